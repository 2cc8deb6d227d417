"""``python -m benchmarks pipelines`` measures what it says."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from pyarrow import parquet

from benchmarks.cli import bench
from benchmarks.pipelines import make_rows


def test_rows_are_made_once(tmp_path: Path) -> None:
    """The same ones each time, in a file that is whole or not there."""
    first = make_rows(tmp_path / "a.parquet", rows=1000, columns=4)
    again = make_rows(tmp_path / "b.parquet", rows=1000, columns=4)
    table = parquet.read_table(first)
    assert table.column_names == ["c00", "c01", "c02", "c03"]
    assert table.equals(parquet.read_table(again))
    assert make_rows(first, rows=5, columns=1) == first
    assert parquet.read_metadata(first).num_rows == 1000


@pytest.mark.tf
@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """A rate, a share and a peak for the bare calls and for the command."""
    make_rows(tmp_path / "train-4.parquet", rows=400, columns=4)  # the model matters to nobody here
    done = CliRunner().invoke(
        bench,
        ["pipelines", "--rows", "20000", "--width", "4", "--folder", str(tmp_path)],
        env={"COLUMNS": "200"},
    )
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if "│" in line]
    assert [line.split("│")[1].split(",")[0].strip() for line in lines] == ["bare signature", "score"]
    assert "100%" in lines[0]
    assert (tmp_path / "out.parquet").exists()
