"""Detection on files with named columns: the commands are run, the labels stay out of the model."""

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.cli import bench
from benchmarks.columns import measure_columns
from service.errors import DataError

pytestmark = [pytest.mark.tf, pytest.mark.slow]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Flows of which attacks are far larger, and of a protocol that training never saw."""
    folder, random = tmp_path_factory.mktemp("flows"), np.random.default_rng(0)

    def write(name: str, normal: int, attacks: int) -> Path:
        rows = [[f"{random.normal(100, 10):.3f}", f"{random.normal():.3f}", "tcp", "fine", "7"] for _ in range(normal)]
        rows += [[f"{random.normal(400, 10):.3f}", "9", "icmp", "flood", "7"] for _ in range(attacks)]
        path = folder / name
        with path.open("w", newline="") as stream:
            csv.writer(stream).writerows([["bytes", "rate", "protocol", "kind", "difficulty"], *rows])
        return path

    return write("train.csv", 800, 30), write("test.csv", 400, 50)


def test_attacks_are_told_apart(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Every figure, in the table and in the file; the attacks of the training file were not trained on."""
    out = tmp_path / "out.csv"
    given = ["columns", *map(str, files), "--label", "kind", "--normal", "fine", "--drop", "difficulty"]
    given += ["--out", str(out), "--", "--epochs", "5", "--score", "reconstruction"]
    result = CliRunner().invoke(bench, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with out.open() as stream:
        (line,) = csv.DictReader(stream)
    assert int(line["training_rows"]) < 800
    assert (line["test_rows"], line["anomalies"], line["nominal_rate"]) == ("450", "50", "0.01")
    assert float(line["auroc"]) > 0.99
    assert float(line["aupr"]) > 0.95
    assert float(line["detected"]) > 0.95
    assert float(line["false_alarms"]) < 0.05


def test_what_the_commands_refuse_is_passed_on(files: tuple[Path, Path]) -> None:
    """One sentence: their last one."""
    with pytest.raises(DataError, match="class"):
        measure_columns(*files, label="class", normal="fine", drop=(), options=())


def test_test_rows_of_one_kind_measure_nothing(files: tuple[Path, Path], tmp_path: Path) -> None:
    """There is nothing to tell apart."""
    only = tmp_path / "only.csv"
    only.write_text("bytes,rate,protocol,kind\n100,0,tcp,fine\n101,1,tcp,fine\n")
    with pytest.raises(DataError, match="one kind of rows only"):
        measure_columns(files[0], only, label="kind", normal="fine", drop=("difficulty",), options=("--epochs", "1"))
