"""Files are cut between rows, and every row of every part is read once."""

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from service.errors import ConfigurationError, DataError
from service.pipelines.chunks import read_chunks
from service.schemas import Column, ColumnType, InputSchema
from service.tables.files import Part, find_files, format_of, plan_parts, row_number

SCHEMA = InputSchema(
    kind="tabular",
    row_shape=(2,),
    columns=(
        Column(name="amount", may_be_missing=True),
        Column(name="paid", type=ColumnType.BOOLEAN, may_be_missing=True),
    ),
)


def rows_of(parts: list[Part], *, schema: InputSchema = SCHEMA, as_text: bool = False) -> pa.Table:
    return pa.concat_tables(
        chunk.kept for part in parts for chunk in read_chunks(part, schema, batch_rows=7, as_text=as_text)
    )


def write_notes(path: Path, count: int) -> list[str]:
    """A CSV file whose cells have line ends, quotation marks and commas in them."""
    random = np.random.default_rng(0)
    pieces = ["a", "\n", '"', ",", "ä", "\r\n", "long " * 9]
    notes = ["".join(random.choice(pieces, size=random.integers(0, 6))) for _ in range(count)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "amount", "paid", "note"])
        writer.writerows([at, at / 4, at % 2 == 0, note] for at, note in enumerate(notes))
    return notes


@pytest.mark.parametrize("part_bytes", [1, 50, 64, 1000, 10**9])
def test_csv_is_cut_between_rows(tmp_path: Path, part_bytes: int) -> None:
    """Wherever the cuts fall, also inside quoted cells with line ends in them."""
    notes = write_notes(tmp_path / "notes.csv", 300)
    parts = plan_parts([str(tmp_path / "notes.csv")], part_bytes=part_bytes)
    assert len(parts) > 10 or part_bytes > 999
    table = rows_of(parts)
    assert table["note"].to_pylist() == notes
    assert table["amount"].to_pylist() == [at / 4 for at in range(300)]
    assert table["paid"].to_pylist() == [at % 2 == 0 for at in range(300)]
    assert table["id"].to_pylist() == [str(at) for at in range(300)]


def test_rows_of_text_are_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    """A row's number in an error is that in the file, whichever part it is in."""
    write_notes(tmp_path / "notes.csv", 50)
    parts = plan_parts([str(tmp_path / "notes.csv")], part_bytes=200)
    for part in parts[1:]:
        first = next(read_chunks(part, SCHEMA, batch_rows=1))
        assert row_number(part, 0) == int(first.kept["id"][0].as_py()) + 1


def test_ndjson_is_cut_between_lines(tmp_path: Path) -> None:
    """Blank lines are no rows; the last line needs no end."""
    path = tmp_path / "rows.ndjson"
    path.write_text("\n\n".join(f'{{"amount": {at}, "note": "x{at}"}}' for at in range(100)))
    parts = plan_parts([str(path)], part_bytes=100)
    assert len(parts) > 10
    assert rows_of(parts)["amount"].to_pylist() == list(range(100))
    assert row_number(parts[3], 0) == next(read_chunks(parts[3], SCHEMA, batch_rows=1)).kept["amount"][0].as_py() + 1


def test_csv_spellings_of_nothing_and_of_numbers(tmp_path: Path) -> None:
    """What training takes for missing is missing; what is no number is a problem of its row."""
    path = tmp_path / "rows.csv"
    path.write_text("amount;paid\n 1.5 ;true\n;FALSE\nNA;0\nabc;maybe\n", encoding="utf-8-sig")
    (chunk,) = read_chunks(plan_parts([str(path)])[0], SCHEMA, batch_rows=10)
    assert chunk.columns["amount"].to_pylist() == [1.5, None, None, None]
    assert chunk.columns["paid"].to_pylist() == [True, False, False, None]
    assert {row: problem.problem for row, problem in chunk.problems.items()} == {3: "must be a number"}
    (text,) = read_chunks(plan_parts([str(path)])[0], SCHEMA, batch_rows=10, as_text=True)
    assert text.kept["amount"].to_pylist() == ["1.5", "", "NA", "abc"]


@pytest.mark.parametrize("name", ["rows.csv.gz", "utf16.csv", "rows.ndjson.zst"])
def test_what_cannot_be_cut_is_one_part(tmp_path: Path, name: str) -> None:
    """Compressed text, and text in which a line end is not one byte."""
    text = "amount,paid\n1,true\n2,false\n" if "csv" in name else '{"amount": 1}\n{"amount": 2}\n'
    content = text.encode("utf-16" if "utf16" in name else "utf-8")
    with pa.output_stream(str(tmp_path / name), compression="detect") as stream:
        stream.write(content)
    parts = plan_parts([str(tmp_path / name)], part_bytes=5)
    assert len(parts) == 1
    assert rows_of(parts)["amount"].to_pylist() == [1, 2]


def test_parquet_and_arrow_are_cut_by_row_groups_and_batches(tmp_path: Path) -> None:
    """Each part knows its rows and how many stand before it."""
    table = pa.table({"amount": np.arange(100.0)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    feather.write_feather(table, tmp_path / "a.feather", chunksize=10, compression="lz4")
    for name in ("a.parquet", "a.feather"):
        parts = plan_parts([str(tmp_path / name)], part_rows=25)
        assert [(part.rows, part.first_row) for part in parts] == [(30, 0), (30, 30), (30, 60), (10, 90)]
        assert rows_of(parts).equals(table)


def test_partitioned_folders(tmp_path: Path) -> None:
    """Folders called name=value are columns; what begins with _ or . is not read."""
    for year, country in ((2025, "DE"), (2026, "F R")):
        folder = tmp_path / f"year={year}" / f"country={country.replace(' ', '%20')}"
        folder.mkdir(parents=True)
        parquet.write_table(pa.table({"amount": [float(year)]}), folder / "x.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "notes.md").touch()
    files = find_files(str(tmp_path))
    table = rows_of(plan_parts(files, root=str(tmp_path)))
    assert table.to_pylist() == [
        {"amount": 2025.0, "year": 2025, "country": "DE"},
        {"amount": 2026.0, "year": 2026, "country": "F R"},
    ]


def test_patterns_and_missing_files(tmp_path: Path) -> None:
    """A pattern is as many files as it matches, in the order of their names."""
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).write_text("amount\n1\n")
    assert [Path(file).name for file in find_files(str(tmp_path / "*.csv"))] == ["a.csv", "b.csv"]
    with pytest.raises(DataError, match="There is no file"):
        find_files(str(tmp_path / "nothing.csv"))
    with pytest.raises(ConfigurationError, match="--format"):
        format_of("rows.dat")
    (tmp_path / "rows.dat").write_text("amount\n1\n")
    assert plan_parts([str(tmp_path / "rows.dat")])[0].format == "csv"


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv", "a.ndjson"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    """One sentence with the file's name, whatever is wrong with it."""
    path = tmp_path / name
    path.write_bytes(b"ARROW1" + os.urandom(99) if name == "a.arrow" else b"amount,paid\n1,2,3,4\n")
    with pytest.raises(DataError, match=name):
        rows_of(plan_parts([str(path)]))


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.csv", "a.ndjson"])
def test_files_without_rows(tmp_path: Path, name: str) -> None:
    """Their columns are known all the same."""
    empty = pa.table({"amount": pa.array([], pa.float64())})
    path = tmp_path / name
    if name == "a.parquet":
        parquet.write_table(empty, path)
    elif name == "a.feather":
        feather.write_feather(empty, path)
    else:
        path.write_text("amount\n" if name == "a.csv" else "")
    table = rows_of(plan_parts([str(path)]))
    assert table.num_rows == 0
    assert table.column_names[0] == "amount"
