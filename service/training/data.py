"""The rows to train on, and what they are: from a file of any format that we read, or from a bundled set."""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import InputSchema
from service.training.arrays import check_array, load_digits, read_idx, read_npy, read_npz
from service.training.tables import read_csv, read_parquet

DIGITS = "digits"
MIN_ROWS = 10


@dataclass(frozen=True, slots=True)
class Dataset:
    instances: NDArray[np.float32]
    """(rows, *row_shape), raw values; a missing one is NaN."""
    schema: InputSchema
    source: str
    """File name without its folders, or the name of a bundled set."""
    sha256: str
    """Of the bytes of the instances, in order."""

    @property
    def features(self) -> int:
        return int(np.prod(self.schema.row_shape))


def read_dataset(
    source: str,
    *,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    max_rows: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read rows from the path ``source``, or the bundled ``digits``.

    Args:
        columns, drop: names of columns to use or to leave out, for CSV and Parquet.
        max_rows: take a random sample of so many rows, in their order, when there are more.

    Raises:
        DataError: no model can be made of it, and why.
    """
    if source == DIGITS:
        _refuse_names(columns, drop)
        instances, schema = load_digits()
        name = DIGITS
    else:
        name = Path(source).name
        instances, schema = _read_file(Path(source), columns=columns, drop=drop)
    if max_rows is not None and len(instances) > max_rows:
        chosen = np.random.default_rng(seed).choice(len(instances), max_rows, replace=False)
        instances = instances[np.sort(chosen)]
    return check_dataset(Dataset(instances, schema, name, ""))


def check_dataset(dataset: Dataset) -> Dataset:
    """The data set with its fingerprint.

    Raises:
        DataError: too few rows or features, or nothing in them varies.
    """
    rows = dataset.instances
    if len(rows) < MIN_ROWS:
        raise DataError(f"The number of rows is {len(rows)}; at least {MIN_ROWS} are needed.")
    if dataset.features < 2:
        raise DataError(
            "A row has one value only; at least two columns are needed, so that the latent can be narrower."
        )
    flat = rows.reshape(len(rows), -1)
    if not _varies(flat):
        raise DataError("No column varies: there is nothing to learn.")
    contiguous = np.ascontiguousarray(rows, "<f4")
    return replace(dataset, instances=contiguous, sha256=hashlib.sha256(contiguous.data).hexdigest())


def _varies(flat: NDArray[np.float32]) -> bool:
    """Whether any column has two different values, looking no further than the first that does."""
    return any(_spread(column) > 0 for column in flat.T)


def _spread(column: NDArray[np.float32]) -> float:
    present = column[~np.isnan(column)]
    return float(np.subtract(present.max(), present.min(), dtype=np.float64)) if len(present) else 0.0


def _read_file(path: Path, *, columns: Sequence[str], drop: Sequence[str]) -> tuple[NDArray[np.float32], InputSchema]:
    kind = _kind_of(path)
    if kind in {"csv", "parquet"}:
        table = (read_csv if kind == "csv" else read_parquet)(path, columns=columns, drop=drop)
        schema = InputSchema(kind="tabular", row_shape=(len(table.columns),), columns=table.columns)
        return table.values, schema
    _refuse_names(columns, drop)
    return check_array({"npy": read_npy, "npz": read_npz, "idx": read_idx}[kind](path))


def _kind_of(path: Path) -> str:
    """By the first bytes, whatever the name; what is nothing else is taken for CSV."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(path) as unzipped:
                start = unzipped.read(8)
    except FileNotFoundError:
        raise DataError(f"There is no file {path.name}; the bundled set is called {DIGITS}.") from None
    except IsADirectoryError:
        raise DataError(f"{path.name} is a folder, not a file.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be read.") from error
    if not start:
        raise DataError("The file is empty.")
    marks = {b"PAR1": "parquet", b"\x93NUMPY": "npy", b"PK\x03\x04": "npz", b"PK\x05\x06": "npz"}
    named = next((kind for mark, kind in marks.items() if start.startswith(mark)), None)
    return named or ("idx" if start[:2] == b"\0\0" else "csv")


def _refuse_names(columns: Sequence[str], drop: Sequence[str]) -> None:
    if columns or drop:
        raise DataError("Columns can be chosen by name in CSV and Parquet files only; this source has no names.")
