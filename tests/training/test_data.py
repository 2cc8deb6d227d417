"""Reading rows of every format, clean and dirty."""

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.errors import DataError
from service.schemas import ColumnType
from service.training.data import read_dataset

ROWS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write_csv(folder: Path, text: str, name: str = "rows.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


def good_csv(*, delimiter: str = ",", end: str = "\n") -> str:
    lines = [["a", "b", "ok"], *([str(n), f"{n / 2}", "true" if n % 2 else "false"] for n in range(ROWS))]
    return end.join(delimiter.join(line) for line in lines) + end


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> str:
    content = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(folder: Path, delimiter: str, end: str) -> None:
    """Named numeric and boolean columns, whatever the delimiter."""
    dataset = read_dataset(write_csv(folder, good_csv(delimiter=delimiter, end=end)))
    assert [(column.name, column.type) for column in dataset.schema.columns] == [
        ("a", ColumnType.NUMERIC),
        ("b", ColumnType.NUMERIC),
        ("ok", ColumnType.BOOLEAN),
    ]
    assert dataset.schema.row_shape == (3,)
    assert dataset.rows["instances"].dtype == np.float32
    np.testing.assert_array_equal(dataset.rows["instances"][3], [3.0, 1.5, 1.0])
    assert dataset.sha256 == hashlib.sha256(dataset.rows["instances"].tobytes()).hexdigest()
    assert dataset.source == "rows.csv"


def test_csv_of_another_encoding_or_compressed(folder: Path) -> None:
    """UTF-8 with a mark, UTF-16 and gzip are read like plain UTF-8."""
    text = good_csv().replace("a,", "größe,", 1)
    plain = read_dataset(write_csv(folder, text))
    for name, content in {
        "mark.csv": text.encode("utf-8-sig"),
        "wide.csv": text.encode("utf-16"),
        "small.csv.gz": gzip.compress(text.encode()),
    }.items():
        (folder / name).write_bytes(content)
        read = read_dataset(str(folder / name))
        assert read.schema == plain.schema, name
        np.testing.assert_array_equal(read.rows["instances"], plain.rows["instances"])


def test_empty_cells_are_missing(folder: Path) -> None:
    """A column with a gap may be missing, the others may not."""
    rows = "\n".join(f"{n},{'' if n == 4 else n},{'NaN' if n == 5 else n}" for n in range(ROWS))
    dataset = read_dataset(write_csv(folder, f"a,b,c\n{rows}\n"))
    assert [column.may_be_missing for column in dataset.schema.columns] == [False, True, True]
    assert np.isnan(dataset.rows["instances"][4, 1])
    assert np.isnan(dataset.rows["instances"]).sum() == 2
    assert (dataset.schema.columns[1].minimum, dataset.schema.columns[1].maximum) == (0.0, 11.0)


def test_columns_can_be_chosen_and_dropped(folder: Path) -> None:
    """Chosen columns come in the order in which they were asked for; a dropped text column does not matter."""
    text = "a,name,b\n" + "\n".join(f"{n},x{n},{-n}" for n in range(ROWS)) + "\n"
    source = write_csv(folder, text)
    assert [column.name for column in read_dataset(source, drop=["name"]).schema.columns] == ["a", "b"]
    chosen = read_dataset(source, columns=["b", "a"])
    np.testing.assert_array_equal(chosen.rows["instances"][2], [-2.0, 2.0])


def test_parquet(folder: Path) -> None:
    """Integers, floats, booleans and decimals over several row groups; nulls are missing."""
    columns = {
        "i": pa.array(range(ROWS), pa.int64()),
        "f": pa.array([None, *np.arange(1.0, ROWS)], pa.float32()),
        "yes": pa.array([n % 3 == 0 for n in range(ROWS)]),
        "d": pa.array(range(ROWS), pa.decimal128(9, 2)),
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=5)
    dataset = read_dataset(str(folder / "rows.parquet"))
    np.testing.assert_array_equal(dataset.rows["instances"][6], [6, 6, 1, 6])
    assert [column.may_be_missing for column in dataset.schema.columns] == [False, True, False, False]


@pytest.mark.parametrize("shape", [(ROWS, 3), (ROWS, 4, 5), (ROWS, 4, 5, 3)])
def test_npy(folder: Path, shape: tuple[int, ...]) -> None:
    """Two dimensions are a table without names, three and four are images."""
    array = np.random.default_rng(0).normal(size=shape)
    np.save(folder / "rows.npy", array)
    dataset = read_dataset(str(folder / "rows.npy"))
    assert dataset.schema.kind == ("tabular" if len(shape) == 2 else "image")
    assert dataset.schema.row_shape == shape[1:]
    np.testing.assert_array_equal(dataset.rows["instances"], array.astype(np.float32))


def test_npz_takes_x_or_the_first_array_of_rows(folder: Path) -> None:
    """Labels beside the rows are left alone."""
    rows = np.arange(ROWS * 2.0).reshape(ROWS, 2)
    np.savez(folder / "x.npz", y=np.zeros(ROWS), other=rows + 1, X=rows)
    np.savez(folder / "first.npz", y=np.zeros(ROWS), images=rows.astype(np.uint8).reshape(ROWS, 2, 1))
    assert read_dataset(str(folder / "x.npz")).rows["instances"][0, 1] == 1
    images = read_dataset(str(folder / "first.npz"))
    assert images.schema.kind == "image"
    assert images.schema.value_range == (0.0, 255.0)


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
def test_idx(folder: Path, name: str) -> None:
    """The format of the MNIST files, plain or gzipped."""
    array = np.arange(ROWS * 6, dtype=np.uint8).reshape(ROWS, 2, 3)
    dataset = read_dataset(write_idx(folder / name, array))
    np.testing.assert_array_equal(dataset.rows["instances"], array.astype(np.float32))
    assert dataset.schema.value_range == (0.0, 255.0)


def test_digits() -> None:
    """The bundled set needs no file."""
    dataset = read_dataset("digits")
    assert dataset.rows["instances"].shape == (1797, 8, 8)
    assert dataset.schema.value_range == (0.0, 16.0)


def test_max_rows_draws_a_sample_with_the_seed() -> None:
    """The sample keeps the order of the rows, and the seed decides which they are."""
    first, again, other = (read_dataset("digits", max_rows=100, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 100
    assert first.sha256 == again.sha256 != other.sha256


def test_constant_columns_are_kept(folder: Path) -> None:
    """A column that does not vary is no reason to refuse the others."""
    text = "a,b,c\n" + "\n".join(f"7,{n},0" for n in range(ROWS)) + "\n"
    assert read_dataset(write_csv(folder, text)).schema.row_shape == (3,)


@pytest.mark.slow
def test_many_columns(folder: Path) -> None:
    """Ten thousand columns are read."""
    names = ",".join(f"c{n}" for n in range(10_000))
    text = names + "\n" + "\n".join(",".join(["1", "2"] * 4999 + ["3", str(n)]) for n in range(10)) + "\n"
    assert read_dataset(write_csv(folder, text)).schema.row_shape == (10_000,)


NUMBERED = "\n".join(f"{n},{n}" for n in range(ROWS))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The file is empty."),
        ("\n\n", "first line"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n", "The number of rows is 1; at least 10"),
        ("a,b", "The file has no rows"),
        ("a\n" + "\n".join(map(str, range(ROWS))), "at least two columns"),
        ("1,2\n" + NUMBERED, "The first line holds numbers"),
        ("a,a\n" + NUMBERED, 'Two columns are named "a"'),
        ("a,\n" + NUMBERED, "Column 2 has no name"),
        ("a,b\n0,0\n1,2,3\n" + NUMBERED, "Row 2 has 3 values, but the header has 2."),
        ("a,b\n0,0\n1\n" + NUMBERED, "Row 2 has 1 values, but the header has 2."),
        (
            "a,city\n0,1\n1,Rome\n" + NUMBERED,
            'Column "city" holds text between its numbers, first in row 2; correct it, leave it out with --drop city',
        ),
        ("a,b,when\n" + "\n".join(f"{n},{n},{'later' if n == 7 else '2020-01-01'}" for n in range(ROWS)), "Row 8"),
        ('a,b\n"0,0\n' + NUMBERED * 400_000, "quotation mark is never closed"),
        ("a,b,c\n" + "\n".join(f"{n},{n},x\0y" for n in range(ROWS)), 'Row 1, column "c": the text holds a NUL'),
        ("id,name\n" + "\n".join(f"{n}x,person {n}" for n in range(30)), 'Column "id" has 30 different texts'),
        ("a,b\n0,0\n1,inf\n" + NUMBERED, 'Row 2, column "b": the number is infinite or too large for float32.'),
        ("a,b\n0,0\n1,1e39\n" + NUMBERED, 'Row 2, column "b"'),
        ("a,b\n" + "\n".join(f"{n}," for n in range(ROWS)), "at least two columns are needed"),
        ("a,b\n" + "\n".join("," for _ in range(ROWS)), 'No column is left to train on. Column "a" has no values'),
        ("a,b\n" + "\n".join("3,4" for _ in range(ROWS)), "No column varies"),
        ("x" * 300 + ",b\n" + NUMBERED, "longer than 256"),
    ],
)
def test_dirty_csv_ends_in_one_sentence(folder: Path, text: str, sentence: str) -> None:
    """The sentence says where it is and what to do, and repeats no value."""
    with pytest.raises(DataError) as caught:
        read_dataset(write_csv(folder, text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Rome" not in str(caught.value)


def test_text_of_another_encoding_ends_in_a_sentence(folder: Path) -> None:
    """Latin-1 and binary rubbish are not taken for a table."""
    for content in ("größe,b\n1,2\n".encode("latin-1"), bytes(range(1, 256)) * 20):
        (folder / "odd.csv").write_bytes(content)
        with pytest.raises(DataError):
            read_dataset(str(folder / "odd.csv"))
    (folder / "cells.csv").write_bytes(b"a,b\n" + "".join(f"{n},é\n" for n in range(ROWS)).encode("latin-1"))
    with pytest.raises(DataError, match='Column "b" is not UTF-8 text; save the file as UTF-8'):
        read_dataset(str(folder / "cells.csv"))
    (folder / "unmarked.csv").write_bytes(good_csv().encode("utf-16-le"))
    with pytest.raises(DataError, match="NUL bytes"):
        read_dataset(str(folder / "unmarked.csv"))


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.arange(20.0), "1 dimension"),
        (np.zeros((2, 2, 2, 2, 2)), "5 dimension"),
        (np.array([["a", "b"]] * ROWS), "neither numbers nor booleans"),
        (np.ones((ROWS, 2), np.complex64), "neither numbers nor booleans"),
        (np.where(np.eye(ROWS) == 1, np.inf, 0), "Row 1, column 1: the number is infinite"),
        (np.where(np.arange(2) == 1, np.nan, np.arange(ROWS)[:, None]), "Column 2 has no values"),
        (np.full((ROWS, 3, 3), np.nan), "has no values"),
        (np.zeros((0, 3)), "number of rows is 0"),
        (np.zeros((ROWS, 3)), "No column varies"),
        (np.arange(ROWS)[:, None], "at least two columns"),
    ],
)
def test_dirty_arrays_end_in_one_sentence(folder: Path, array: np.ndarray[Any, Any], sentence: str) -> None:
    """Wrong shapes, types and values of arrays."""
    np.save(folder / "rows.npy", array)
    with pytest.raises(DataError, match=sentence):
        read_dataset(str(folder / "rows.npy"))


def test_pickles_are_never_loaded(folder: Path) -> None:
    """An array of objects is refused without being unpickled."""
    array = np.array([[object()] * 2] * ROWS)
    np.save(folder / "rows.npy", array, allow_pickle=True)
    np.savez(folder / "rows.npz", X=array)
    for name in ("rows.npy", "rows.npz"):
        with pytest.raises(DataError, match="of numbers"):
            read_dataset(str(folder / name))


def test_damaged_files_end_in_a_sentence(folder: Path) -> None:
    """Files cut short, of every format, compressed or not."""
    np.save(folder / "a.npy", np.ones((ROWS, 3)))
    np.savez(folder / "a.npz", X=np.ones((ROWS, 3)))
    pq.write_table(pa.table({"a": range(ROWS), "b": range(ROWS)}), folder / "a.parquet")
    write_idx(folder / "a-ubyte", np.ones((ROWS, 3, 3), np.uint8))
    write_idx(folder / "a-ubyte.gz", np.ones((ROWS, 3, 3), np.uint8))
    (folder / "a.csv.gz").write_bytes(gzip.compress(good_csv().encode()))
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for kept in (len(content) // 2, len(content) - 1):
            path.write_bytes(content[:kept])
            with pytest.raises(DataError):
                read_dataset(str(path))


def test_labels_are_no_rows(folder: Path) -> None:
    """The labels file of MNIST has one dimension."""
    with pytest.raises(DataError, match="1 dimension"):
        read_dataset(write_idx(folder / "labels-idx1-ubyte", np.arange(ROWS, dtype=np.uint8)))


def test_sources_that_are_no_file(folder: Path) -> None:
    """A path that is not there, and a folder without images."""
    with pytest.raises(DataError, match=r"There is no file none\.csv"):
        read_dataset(str(folder / "none.csv"))
    with pytest.raises(DataError, match="holds no images"):
        read_dataset(str(folder))


def test_wrong_column_names_are_answered_with_the_right_ones(folder: Path) -> None:
    """A typing error in --drop or --columns, names for an array, and nothing left."""
    source = write_csv(folder, good_csv())
    with pytest.raises(DataError, match='no column "x"; the columns are a, b, ok'):
        read_dataset(source, drop=["x"])
    with pytest.raises(DataError, match="No column is left"):
        read_dataset(source, drop=["a", "b", "ok"])
    with pytest.raises(DataError, match="has no names"):
        read_dataset("digits", drop=["a"])


MIXED_CSV = "id,zip,city,ok,at,amount\n" + "".join(
    f"user-{n},0{n % 3}123,{['Rome', 'Oslo', ''][n % 3]},{'yes' if n % 2 else ''},"
    f"2024-01-{n % 28 + 1:02}T10:00:00Z,{n / 2}\n"
    for n in range(60)
)


def test_types_are_inferred(folder: Path) -> None:
    """Numbers, labels and times as they look; a text of its own in each row is left out, with a note."""
    dataset = read_dataset(write_csv(folder, MIXED_CSV))
    assert [(column.name, column.type, column.may_be_missing) for column in dataset.schema.columns] == [
        ("zip", ColumnType.NUMERIC, False),
        ("city", ColumnType.CATEGORICAL, True),
        ("ok", ColumnType.CATEGORICAL, True),
        ("at", ColumnType.TIMESTAMP, False),
        ("amount", ColumnType.NUMERIC, False),
    ]
    assert dataset.schema.columns[1].categories == ("Rome", "Oslo")
    assert dataset.rows["categories"][:3, 0].tolist() == [b"Rome", b"Oslo", b""]
    assert dataset.rows["timestamps"][1, 0] == 1704189600000
    assert dataset.schema.row_shape == (2,)
    assert dataset.notes == (
        'Column "id" has 60 different texts, like an identifier or free text; it was left out. '
        "To use it all the same, call it categorical in a schema file (--schema).",
    )


@pytest.mark.parametrize("name", ["schema.json", "schema.toml"])
def test_the_schema_file_goes_first(folder: Path, name: str) -> None:
    """Codes stay text with their zeros, an identifier is taken, gaps are allowed where there are none yet."""
    texts = {
        "schema.json": '{"columns": {"zip": {"type": "categorical"}, "id": {"type": "categorical"}, '
        '"amount": {"may_be_missing": true}}}',
        "schema.toml": '[columns]\nzip = {type = "categorical"}\nid.type = "categorical"\n'
        "amount.may_be_missing = true\n",
    }
    (folder / name).write_text(texts[name])
    dataset = read_dataset(write_csv(folder, MIXED_CSV), schema_file=folder / name)
    columns = {column.name: column for column in dataset.schema.columns}
    assert columns["zip"].categories == ("00123", "01123", "02123")
    assert columns["id"].type is ColumnType.CATEGORICAL
    assert columns["amount"].may_be_missing
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "neither JSON nor TOML"),
        ('{"columns": {"zip": {"type": "colour"}}}', "not valid at columns.zip.type"),
        ('{"columns": {"nobody": {"type": "numeric"}}}', 'no column "nobody"'),
        ('{"columns": {"city": {"type": "numeric"}}}', 'Column "city" holds text, first in row 1'),
        ('{"columns": {"amount": {"type": "boolean"}}}', "other numbers than 0 and 1"),
        ('{"columns": {"zip": {"type": "timestamp"}}}', 'Row 1, column "zip": not an ISO 8601 time'),
        ('{"columns": {"city": {"may_be_missing": false}}}', 'Column "city" has missing values'),
        ('{"columns": {"city": {"type": "timestamp"}}}', 'Row 1, column "city": not an ISO 8601 time'),
    ],
)
def test_a_schema_that_does_not_fit_ends_in_one_sentence(folder: Path, content: str, sentence: str) -> None:
    """What the user says is taken at its word, or refused with the place."""
    (folder / "schema.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_dataset(write_csv(folder, MIXED_CSV), schema_file=folder / "schema.json")
    assert sentence in str(caught.value)


def test_rows_can_be_chosen_by_their_values(folder: Path) -> None:
    """The column of the condition need not be used; missing values are neither equal nor unequal."""
    source = write_csv(folder, MIXED_CSV)
    rome = read_dataset(source, drop=["city", "id"], where=["city=Rome"])
    assert [len(rome), "city" in {column.name for column in rome.schema.columns}] == [20, False]
    assert len(read_dataset(source, where=["city != Rome"])) == 20
    assert len(read_dataset(source, where=["amount!=3.0", "ok=yes"])) == 30
    with pytest.raises(DataError, match="No row fulfils"):
        read_dataset(source, where=["city=Paris"])
    with pytest.raises(DataError, match="holds numbers; its condition needs one"):
        read_dataset(source, where=["amount=much"])
    with pytest.raises(DataError, match="COLUMN=VALUE"):
        read_dataset(source, where=["city"])


def test_decimal_commas_between_semicolons(folder: Path) -> None:
    """As spreadsheets write them in half of the world."""
    text = "a;b\n" + "\n".join(f"{n},5;{n}" for n in range(ROWS)) + "\n"
    np.testing.assert_array_equal(read_dataset(write_csv(folder, text)).rows["instances"][2], [2.5, 2.0])


def test_quoted_line_ends_are_text(folder: Path) -> None:
    """A label of two lines is one label."""
    text = "a,b\n" + "".join(f'{n},"two\nlines"\n{n},one\n' for n in range(ROWS))
    dataset = read_dataset(write_csv(folder, text))
    assert set(dataset.rows["categories"][:, 0]) == {b"two\nlines", b"one"}


@pytest.mark.slow
def test_a_type_that_widens_late(folder: Path) -> None:
    """A column that is empty, whole or a number at first may hold other things after megabytes."""
    first = "1,,2024-01-01,true\n" * 500_000
    text = "a,b,c,d\n" + first + "1.5,7,2024-01-01T10:30:00,false\n" * 5
    dataset = read_dataset(write_csv(folder, text))
    assert [column.type for column in dataset.schema.columns] == [
        ColumnType.NUMERIC, ColumnType.NUMERIC, ColumnType.TIMESTAMP, ColumnType.BOOLEAN,
    ]  # fmt: skip
    assert dataset.rows["instances"][-1, :2].tolist() == [1.5, 7.0]
    assert dataset.rows["timestamps"][-1, 0] == 1704105000000
    (folder / "late.csv").write_text("a,b\n" + "1,2\n" * 3_000_000 + "1,x\n")
    with pytest.raises(DataError, match='Column "b" holds text between its numbers, first in row 3000001'):
        read_dataset(str(folder / "late.csv"))


def test_parquet_of_all_types(folder: Path) -> None:
    """Dictionaries are labels, dates and zoned times are times, text with numbers keeps its zeros."""
    table = pa.table(
        {
            "n": pa.array(range(ROWS), pa.int16()),
            "label": pa.array(["a", "b", None] * 4).dictionary_encode(),
            "day": pa.array([18_000 + n for n in range(ROWS)], pa.int32()).cast(pa.date32()),
            "at": pa.array([10**15 + n for n in range(ROWS)], pa.timestamp("us", tz="Europe/Rome")),
            "code": pa.array(["007", "008"] * 6),
            "empty": pa.nulls(ROWS),
        }
    )
    pq.write_table(table, folder / "rows.parquet", row_group_size=5)
    dataset = read_dataset(str(folder / "rows.parquet"))
    assert [column.type.value for column in dataset.schema.columns] == [
        "numeric", "categorical", "timestamp", "timestamp", "categorical",
    ]  # fmt: skip
    assert dataset.rows["timestamps"][1].tolist() == [18_001 * 86_400_000, 10**12]
    assert dataset.rows["categories"][2].tolist() == [b"", b"007"]
    assert dataset.notes == ('Column "empty" has no values; it was left out.',)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(folder / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("rows.arrow", "stream.arrow"):
        assert read_dataset(str(folder / name)).sha256 == dataset.sha256, name


def test_several_parquet_files_are_one_table(folder: Path) -> None:
    """A folder or a pattern, in the order of the names; other columns or other formats are refused."""
    (folder / "days").mkdir()
    for day in range(3):
        part = pa.table({"a": [float(10 * day + n) for n in range(ROWS)], "b": ["x", "y"] * 6})
        pq.write_table(part, folder / f"days/{day}.parquet")
    whole, some = read_dataset(str(folder / "days")), read_dataset(str(folder / "days/[01].parquet"))
    assert (len(whole), len(some), whole.source) == (36, 24, "days")
    assert whole.rows["instances"][-1, 0] == 31
    pq.write_table(pa.table({"a": [1.0]}), folder / "days/other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet has other columns than 0\.parquet"):
        read_dataset(str(folder / "days"))
    with pytest.raises(DataError, match="No file matches"):
        read_dataset(str(folder / "*.nothing"))


def test_nested_columns_are_refused_by_name(folder: Path) -> None:
    """Lists and structs; the others can be used without them."""
    pq.write_table(pa.table({"a": range(ROWS), "b": range(ROWS), "c": [[1]] * ROWS}), folder / "rows.parquet")
    with pytest.raises(
        DataError, match='"c" holds neither numbers, booleans, text nor times; leave it out with --drop c'
    ):
        read_dataset(str(folder / "rows.parquet"))
    assert read_dataset(str(folder / "rows.parquet"), drop=["c"]).schema.features == 2


def test_a_sample_of_a_large_table_is_uniform_and_in_order(folder: Path) -> None:
    """One pass, bounded; every row has the same chance, and the rows keep their order."""
    pq.write_table(
        pa.table({"a": np.arange(20_000.0), "b": np.arange(20_000.0)}), folder / "a.parquet", row_group_size=700
    )
    seen = list[tuple[int, int | None]]()
    dataset = read_dataset(str(folder / "a.parquet"), max_rows=2000, progress=lambda *each: seen.append(each))
    kept = dataset.rows["instances"][:, 0]
    assert (len(dataset), dataset.total) == (2000, 20_000)
    assert (np.diff(kept) > 0).all()
    counts = np.histogram(kept, bins=10, range=(0, 20_000))[0]
    assert np.abs(counts - 200).max() < 60
    assert seen[-1] == (20_000, 20_000)
    again = read_dataset(str(folder / "a.parquet"), max_rows=2000)
    assert again.sha256 == dataset.sha256 != read_dataset(str(folder / "a.parquet"), max_rows=2000, seed=1).sha256
