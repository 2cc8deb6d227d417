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
    assert dataset.instances.dtype == np.float32
    np.testing.assert_array_equal(dataset.instances[3], [3.0, 1.5, 1.0])
    assert dataset.sha256 == hashlib.sha256(dataset.instances.tobytes()).hexdigest()
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
        np.testing.assert_array_equal(read.instances, plain.instances)


def test_empty_cells_are_missing(folder: Path) -> None:
    """A column with a gap may be missing, the others may not."""
    rows = "\n".join(f"{n},{'' if n == 4 else n},{'NaN' if n == 5 else n}" for n in range(ROWS))
    dataset = read_dataset(write_csv(folder, f"a,b,c\n{rows}\n"))
    assert [column.may_be_missing for column in dataset.schema.columns] == [False, True, True]
    assert np.isnan(dataset.instances[4, 1])
    assert np.isnan(dataset.instances).sum() == 2
    assert (dataset.schema.columns[1].minimum, dataset.schema.columns[1].maximum) == (0.0, 11.0)


def test_columns_can_be_chosen_and_dropped(folder: Path) -> None:
    """Chosen columns come in the order in which they were asked for; a dropped text column does not matter."""
    text = "a,name,b\n" + "\n".join(f"{n},x{n},{-n}" for n in range(ROWS)) + "\n"
    source = write_csv(folder, text)
    assert [column.name for column in read_dataset(source, drop=["name"]).schema.columns] == ["a", "b"]
    chosen = read_dataset(source, columns=["b", "a"])
    np.testing.assert_array_equal(chosen.instances[2], [-2.0, 2.0])


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
    np.testing.assert_array_equal(dataset.instances[6], [6, 6, 1, 6])
    assert [column.may_be_missing for column in dataset.schema.columns] == [False, True, False, False]


@pytest.mark.parametrize("shape", [(ROWS, 3), (ROWS, 4, 5), (ROWS, 4, 5, 3)])
def test_npy(folder: Path, shape: tuple[int, ...]) -> None:
    """Two dimensions are a table without names, three and four are images."""
    array = np.random.default_rng(0).normal(size=shape)
    np.save(folder / "rows.npy", array)
    dataset = read_dataset(str(folder / "rows.npy"))
    assert dataset.schema.kind == ("tabular" if len(shape) == 2 else "image")
    assert dataset.schema.row_shape == shape[1:]
    np.testing.assert_array_equal(dataset.instances, array.astype(np.float32))


def test_npz_takes_x_or_the_first_array_of_rows(folder: Path) -> None:
    """Labels beside the rows are left alone."""
    rows = np.arange(ROWS * 2.0).reshape(ROWS, 2)
    np.savez(folder / "x.npz", y=np.zeros(ROWS), other=rows + 1, X=rows)
    np.savez(folder / "first.npz", y=np.zeros(ROWS), images=rows.astype(np.uint8).reshape(ROWS, 2, 1))
    assert read_dataset(str(folder / "x.npz")).instances[0, 1] == 1
    images = read_dataset(str(folder / "first.npz"))
    assert images.schema.kind == "image"
    assert images.schema.value_range == (0.0, 255.0)


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
def test_idx(folder: Path, name: str) -> None:
    """The format of the MNIST files, plain or gzipped."""
    array = np.arange(ROWS * 6, dtype=np.uint8).reshape(ROWS, 2, 3)
    dataset = read_dataset(write_idx(folder / name, array))
    np.testing.assert_array_equal(dataset.instances, array.astype(np.float32))
    assert dataset.schema.value_range == (0.0, 255.0)


def test_digits() -> None:
    """The bundled set needs no file."""
    dataset = read_dataset("digits")
    assert dataset.instances.shape == (1797, 8, 8)
    assert dataset.schema.value_range == (0.0, 16.0)


def test_max_rows_draws_a_sample_with_the_seed() -> None:
    """The sample keeps the order of the rows, and the seed decides which they are."""
    first, again, other = (read_dataset("digits", max_rows=100, seed=seed) for seed in (1, 1, 2))
    assert len(first.instances) == 100
    assert first.sha256 == again.sha256 != other.sha256


def test_constant_columns_are_kept(folder: Path) -> None:
    """A column that does not vary is no reason to refuse the others."""
    text = "a,b,c\n" + "\n".join(f"7,{n},0" for n in range(ROWS)) + "\n"
    assert read_dataset(write_csv(folder, text)).schema.row_shape == (3,)


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
        ("a\n" + "\n".join(map(str, range(ROWS))), "at least two columns"),
        ("1,2\n" + NUMBERED, "The first line holds numbers"),
        ("a,a\n" + NUMBERED, 'Two columns are named "a"'),
        ("a,\n" + NUMBERED, "Column 2 has no name"),
        ("a,b\n0,0\n1,2,3\n" + NUMBERED, "Row 2 has 3 values, but the header has 2."),
        ("a,b\n0,0\n1\n" + NUMBERED, "Row 2 has 1 values, but the header has 2."),
        (
            "a,city\n0,1\n1,Rome\n" + NUMBERED,
            'Column "city" holds text, first in row 2; leave it out with --drop city.',
        ),
        ("a,b,when\n" + "\n".join(f"{n},{n},2020-01-{n + 10}" for n in range(ROWS)), "dates or times"),
        ("a,b\n0,0\n1,inf\n" + NUMBERED, 'Row 2, column "b": the number is infinite or too large for float32.'),
        ("a,b\n0,0\n1,1e39\n" + NUMBERED, 'Row 2, column "b"'),
        ("a,b\n" + "\n".join(f"{n}," for n in range(ROWS)), 'Column "b" has no values'),
        ("a,b\n" + "\n".join("," for _ in range(ROWS)), 'Column "a" has no values'),
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
    with pytest.raises(DataError, match='Column "b" holds text'):
        read_dataset(str(folder / "cells.csv"))


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
    """A path that is not there, and a folder."""
    with pytest.raises(DataError, match=r"There is no file none\.csv"):
        read_dataset(str(folder / "none.csv"))
    with pytest.raises(DataError, match="is a folder"):
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
