"""The detection benchmark: its protocol, its files, and one real run from the command."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks.baselines import pyod_autoencoder, standardised
from benchmarks.cli import bench
from benchmarks.quality import (
    OURS,
    FalseAlarms,
    Line,
    append_lines,
    by_set,
    divide,
    find_sets,
    mean_over_sets,
    read_lines,
    sets_won,
)
from service.errors import DataError


def rows_and_labels(normal: int = 300, anomalies: int = 30) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two causes in four columns; anomalies break the columns' relation."""
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(normal + anomalies, 2))
    rows = causes @ np.array([[1.0, 0.5, -1, 0], [0, 1, 1, 2]]) + 0.05 * rng.normal(size=(normal + anomalies, 4))
    rows[normal:, 0] += 3
    return rows.astype(np.float32), np.repeat([0, 1], [normal, anomalies])


def test_normal_only_trains_on_half_of_the_normal_rows() -> None:
    """The other half and all anomalies are the test; another seed divides otherwise, the same one alike."""
    rows, labels = rows_and_labels()
    divided = divide(rows, labels, seed=0, mode="normal-only")
    assert len(divided.train) == 150
    assert len(divided.test) == 180
    assert divided.labels.sum() == 30
    together = np.concatenate([divided.train, divided.test])
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, rows.tolist()))
    anomalies = {tuple(row) for row in rows[labels == 1].tolist()}
    assert not anomalies & {tuple(row) for row in divided.train.tolist()}
    np.testing.assert_array_equal(divide(rows, labels, seed=0, mode="normal-only").train, divided.train)
    assert not np.array_equal(divide(rows, labels, seed=1, mode="normal-only").train, divided.train)


def test_contaminated_trains_on_half_of_all_rows() -> None:
    """Anomalies are on both sides."""
    rows, labels = rows_and_labels()
    divided = divide(rows, labels, seed=0, mode="contaminated")
    assert len(divided.train) == len(divided.test) == 165
    assert 0 < divided.labels.sum() < 30


def test_large_sets_are_drawn_from() -> None:
    """At most 50,000 rows take part."""
    rows = np.arange(60_000, dtype=np.float32)[:, None]
    divided = divide(rows, np.repeat([0, 1], [59_000, 1_000]), seed=0, mode="contaminated")
    assert len(divided.train) + len(divided.test) == 50_000


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"X": np.zeros((50, 2))}, "lacks an array"),
        ({"X": np.zeros((50, 2)), "y": np.zeros(49)}, "one label a row"),
        ({"X": np.zeros((50, 2)), "y": np.arange(50)}, "0 for normal and 1"),
        ({"X": np.zeros((50, 2)), "y": np.zeros(50)}, "one anomaly"),
        ({"X": np.array([["a"]] * 50), "y": np.zeros(50)}, "must be numbers"),
    ],
)
def test_files_that_are_no_data_set(tmp_path: Path, arrays: dict[str, NDArray[np.float64]], sentence: str) -> None:
    """One sentence says what is wrong with which file."""
    np.savez(tmp_path / "odd.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=sentence) as found:
        find_sets(tmp_path)
    assert "odd.npz" in str(found.value)


def test_damaged_files_and_empty_folders(tmp_path: Path) -> None:
    """So do files that are no NPZ at all, and a folder without one."""
    with pytest.raises(DataError, match="no NPZ file"):
        find_sets(tmp_path)
    (tmp_path / "odd.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(DataError, match=r"odd\.npz cannot be read"):
        find_sets(tmp_path)


def test_results_survive_their_file(tmp_path: Path) -> None:
    """Lines are read back as they were written; a file of something else is refused, not overwritten."""
    lines = [Line("a", seed, "normal-only", OURS, 90.0 + seed, 50.0, 1.5, 0.1) for seed in (0, 1)]
    append_lines(tmp_path / "out.csv", lines[:1])
    append_lines(tmp_path / "out.csv", lines[1:])
    assert read_lines(tmp_path / "out.csv", Line) == lines
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="something else"):
        read_lines(tmp_path / "other.csv", Line)


def test_means_and_wins() -> None:
    """Seeds are averaged by set, sets among each other; a tie is not won."""
    areas = {("a", OURS): 90.0, ("a", "knn"): 80.0, ("b", OURS): 70.0, ("b", "knn"): 70.0}
    lines = [Line(s, seed, "normal-only", m, v + seed, 1, 1, 1) for (s, m), v in areas.items() for seed in (0, 2)]
    table = by_set(lines, "auroc")
    assert table["a"] == {OURS: 91.0, "knn": 81.0}
    assert mean_over_sets(table, OURS) == 81.0
    assert sets_won(table, against="knn") == (1, 2)


def test_false_alarms_in_standard_errors() -> None:
    """1,000 calibration rows and as many test rows: 2 % instead of 1 % is 2.2 standard errors off."""
    first, second = FalseAlarms("a", 0, 1000, 1000, 0.02, 0.05).deviations()
    assert first == pytest.approx(2.25, abs=0.02)
    assert second == pytest.approx(0, abs=1e-9)


@pytest.mark.tf
def test_the_command_measures_and_goes_on(tmp_path: Path) -> None:
    """Results, false alarms and a picture are written; a second run measures what is missing only."""
    rows, labels = rows_and_labels()
    np.savez(tmp_path / "relation.npz", X=rows, y=labels)
    out = tmp_path / "results.csv"
    command = ["quality", "--data", str(tmp_path), "--seeds", "0", "--out", str(out), "--jobs", "1"]
    ended = CliRunner().invoke(bench, command, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert "Worst set: relation" in ended.output
    assert out.read_text().splitlines()[0] == "dataset,seed,mode,method,auroc,aupr,train_s,score_s"
    lines = read_lines(out, Line)
    methods = [OURS, "knn", "isolation_forest", "pca", "mahalanobis"]
    assert [line.method for line in lines] == methods
    assert lines[0].auroc > 90
    assert len(read_lines(tmp_path / "results-false-alarms.csv", FalseAlarms)) == 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(bench, command, catch_exceptions=False)
    assert again.exit_code == 0
    assert read_lines(out, Line) == lines


@pytest.mark.skipif(find_spec("pyod") is not None, reason="PyOD is installed")
def test_pyod_is_asked_for_and_not_there(tmp_path: Path) -> None:
    """One sentence before anything is measured."""
    rows, labels = rows_and_labels()
    np.savez(tmp_path / "relation.npz", X=rows, y=labels)
    out = tmp_path / "results.csv"
    ended = CliRunner().invoke(bench, ["quality", "--data", str(tmp_path), "--pyod", "--out", str(out)])
    assert ended.exit_code == 1
    assert "pip install 'autoencoder-service[pyod]'" in ended.output
    assert not out.exists()


@pytest.mark.skipif(find_spec("pyod") is None, reason="pip install 'autoencoder-service[pyod]'")
def test_pyod_is_measured() -> None:
    """Rows off the plane score higher than rows on it."""
    random = np.random.default_rng(0)
    train, test = (random.normal(size=(count, 2)) @ [[1.0, 2.0, -1.0], [0.5, 1.0, 3.0]] for count in (400, 100))
    test[50:] += 3 * random.normal(size=(50, 3))
    scores = pyod_autoencoder(*standardised(train, test), 0)
    assert np.median(scores[50:]) > np.median(scores[:50])


def test_seeds_are_several_values(tmp_path: Path) -> None:
    """After one option, with commas or without; anything else is refused."""
    for seeds in (["--seeds", "0", "1", "2"], ["--seeds", "0,1,2"]):
        ended = CliRunner().invoke(bench, ["quality", "--data", str(tmp_path), *seeds])
        assert ended.exit_code == 1
        assert "no NPZ file" in ended.output
    ended = CliRunner().invoke(bench, ["quality", "--data", str(tmp_path), "--seeds", "x"])
    assert ended.exit_code == 2
    assert "whole numbers" in ended.output
