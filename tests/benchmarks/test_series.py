"""The series benchmark, on a made-up series in the layout of the Numenta Anomaly Benchmark."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.cli import bench
from benchmarks.series import false_alarms_per_day, read_labelled
from service.errors import DataError


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two series of 4,000 points every five minutes: one disturbed where its label says, one that never varies."""
    folder = tmp_path / "nab"
    (folder / "made").mkdir(parents=True)
    random, at = np.random.default_rng(0), np.arange(4000)
    values = np.sin(2 * np.pi * at / 24) + 0.1 * random.normal(size=4000)
    values[3000:3050] += 3
    times = np.datetime64("2026-01-01T00:00:00") + at * np.timedelta64(300, "s")
    for name, readings in (("wave", values), ("flat", np.ones(4000))):
        lines = [f"{str(time).replace('T', ' ')},{value:.5f}" for time, value in zip(times, readings, strict=True)]
        (folder / "made" / f"{name}.csv").write_text("timestamp,value\n" + "\n".join(lines) + "\n")
    window = [f"{str(times[end]).replace('T', ' ')}.000000" for end in (2990, 3060)]
    (folder / "labels.json").write_text(json.dumps({"made/wave.csv": [window]}))
    return folder


@pytest.mark.tf
@pytest.mark.slow
def test_points_are_told_apart(labelled: Path, tmp_path: Path) -> None:
    """The disturbed points score higher; a series that no model can be made of says why, and the rest goes on."""
    out = tmp_path / "results.csv"
    arguments = ["series", "--data", str(labelled), "--out", str(out), "--", "--epochs", "20"]
    result = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with out.open() as stream:
        lines = {line["series"]: line for line in csv.DictReader(stream)}
    assert set(lines) == {"wave", "flat", "mean"}
    assert float(lines["wave"]["auroc"]) > 0.8
    assert 0 <= float(lines["wave"]["false_alarms_per_day"]) < 60
    assert "nothing to learn" in lines["flat"]["note"]
    assert lines["mean"]["auroc"] == lines["wave"]["auroc"]
    assert float(lines["wave"]["hourly_auroc"]) > 0.8


def test_false_alarms_are_stretches(labelled: Path) -> None:
    """However many points one has; a stretch that goes on in a labelled window is told."""
    _, wave = read_labelled(labelled)
    flags = np.zeros(3400, bool)
    flags[[0, 1, 5, 6, 7]] = True
    flags[2385:2395] = True  # its last five points are labelled
    assert false_alarms_per_day(wave, flags) == pytest.approx(3 / (3399 * 300 / 86400))


def test_labels_mark_their_points(labelled: Path) -> None:
    """Both ends of a labelled window belong to it."""
    flat, wave = read_labelled(labelled)
    assert np.flatnonzero(wave.is_anomalous).tolist() == list(range(2990, 3061))
    assert not flat.is_anomalous.any()
    assert wave.probation == 600


def test_a_folder_without_labels(tmp_path: Path) -> None:
    """Nothing could be measured."""
    with pytest.raises(DataError, match=r"no readable labels\.json"):
        read_labelled(tmp_path)
