"""The rows to train on, and what they are: from a file of any format that we read, or from a bundled set."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import CATEGORIES, INSTANCES, TIMESTAMPS, Array, InputSchema, Rows, row_count
from service.tables.files import IDX, NPY, NPZ, TABLES, find_files, kind_of
from service.tables.reading import MAX_SAMPLE_BYTES, Progress, Selection, TableFiles, make_selection, read_table
from service.training.arrays import check_array, load_digits, read_idx, read_npy, read_npz, read_pictures, resized
from service.training.series import Series, Windows, read_series

DIGITS = "digits"
MIN_ROWS = 10


@dataclass(frozen=True, slots=True)
class Dataset:
    rows: Rows
    """Raw, the inputs that the schema needs."""
    schema: InputSchema
    source: str
    """File name without its folders, or the name of a bundled set."""
    sha256: str
    """Of the bytes of the rows in order, input by input; a label ends with a zero byte."""
    total: int | None = None
    """Rows that the source has, where these are a sample of them."""
    notes: tuple[str, ...] = ()
    """What was left out of the source and why, for the user to see; sentences."""
    decimal_comma: bool = False
    """Whether the numbers of the source, a CSV file, have decimal commas."""

    series: Series | None = None
    """What the rows are windows of."""
    blocks: NDArray[np.intp] | None = None
    """Of each window, the block of the series that it lies in."""

    def __len__(self) -> int:
        return row_count(self.rows)


def read_dataset(
    source: str,
    *,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    where: Sequence[str] = (),
    schema_file: Path | None = None,
    resize: tuple[int, int] | None = None,
    windows: Windows | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    """Read rows from ``source``: a path, a pattern such as ``days/*.parquet``, or the bundled ``digits``.

    Args:
        columns, drop: names of columns to use or to leave out, for tables.
        where: conditions on rows of tables, such as ``label=normal``.
        schema_file: what the user says of the columns of a table.
        resize: height and width that images are brought to.
        windows: take the source for a series, whose rows are these windows.
        max_rows: take a random sample of so many rows, in their order, when there are more. Whatever it is, no more
            rows of tables and arrays are kept than fit into 512 MiB.
        progress: is told how many rows of a table were read so far, of how many where that is known.

    Raises:
        DataError: no model can be made of it, and why.
    """
    selection = make_selection(columns=columns, drop=drop, where=where, schema=schema_file)
    if source == DIGITS:
        _refuse_names(selection)
        return check_dataset(_sampled(*load_digits(), DIGITS, max_rows=max_rows, seed=seed))
    if windows is not None:
        if schema_file:
            raise DataError("Columns of a series cannot be described: they are numbers.")
        series = read_series(
            source,
            timestamp=windows.timestamp,
            window=windows.length,
            step=windows.step,
            columns=columns,
            drop=drop,
            where=where,
        )
        return _windows_of(series, windows, Path(source.rstrip("/")).name, max_rows=max_rows, seed=seed)
    name = Path(source.rstrip("/")).name
    paths = [Path(source)] if Path(source).is_dir() else list(map(Path, find_files(source)))
    if paths[0].is_dir():
        paths = sorted(paths[0].rglob("*.parquet")) or paths
    kind = "pictures" if paths[0].is_dir() else kind_of(paths[0])
    if kind in TABLES:
        if resize is not None:
            raise DataError("A table has no images to resize.")
        table = read_table(TableFiles(paths), selection, max_rows=max_rows, seed=seed, progress=progress)
        total = table.total if table.total > row_count(table.rows) else None
        return check_dataset(Dataset(table.rows, table.schema, name, "", total, table.notes, table.decimal_comma))
    _refuse_names(selection)
    if kind == "pictures":
        instances, schema, notes = read_pictures(paths[0], resize=resize)
        return check_dataset(replace(_sampled(instances, schema, name, max_rows=max_rows, seed=seed), notes=notes))
    if len(paths) > 1:
        raise DataError("Several files can be read together when all are tables of one format.")
    array = {NPY: read_npy, NPZ: read_npz, IDX: read_idx}[kind](paths[0])
    array, total = _part_of(array, max_rows=max_rows, seed=seed)
    instances, schema = check_array(array if resize is None else resized(array, resize))
    return check_dataset(Dataset({INSTANCES: instances}, schema, name, "", total))


def _sampled(
    instances: NDArray[np.float32], schema: InputSchema, name: str, *, max_rows: int | None, seed: int
) -> Dataset:
    part, total = _part_of(instances, max_rows=max_rows, seed=seed)
    return Dataset({INSTANCES: part}, schema, name, "", total)


def _part_of(array: Array, *, max_rows: int | None, seed: int) -> tuple[Array, int | None]:
    """At most so many rows, and no more than fit; with the number of all rows where some are left out."""
    count = len(array) if array.ndim else 0
    fitting = max(1, MAX_SAMPLE_BYTES // (4 * max(1, math.prod(array.shape[1:]))))
    most = fitting if max_rows is None else min(max_rows, fitting)
    if count <= most:
        return array, None
    chosen = np.random.default_rng(seed).choice(count, most, replace=False)
    return array[np.sort(chosen)], count


def _windows_of(series: Series, windows: Windows, name: str, *, max_rows: int | None, seed: int) -> Dataset:
    instances, blocks = series.windows(windows.stride)
    if max_rows is not None and len(instances) > max_rows:
        chosen = np.sort(np.random.default_rng(seed).choice(len(instances), max_rows, replace=False))
        instances, blocks = instances[chosen], blocks[chosen]
    rows = {INSTANCES: instances}
    return check_dataset(Dataset(rows, series.schema(), name, "", notes=series.notes, series=series, blocks=blocks))


def check_dataset(dataset: Dataset) -> Dataset:
    """The data set with its fingerprint.

    Raises:
        DataError: too few rows or features, or nothing in them varies.
    """
    rows = dataset.rows
    if len(dataset) < MIN_ROWS:
        raise DataError(f"The number of rows is {len(dataset)}; at least {MIN_ROWS} are needed.")
    if dataset.schema.features < 2:
        sentence = "A row has one value only; at least two columns are needed, so that the latent can be narrower."
        raise DataError(" ".join([sentence, *dataset.notes[:1]]))
    columns = (column for array in rows.values() for column in array.reshape(len(array), -1).T)
    if not any(map(_varies, columns)):
        raise DataError("No column varies: there is nothing to learn.")
    types = {name: "<f4" if array.dtype.kind == "f" else None for name, array in rows.items()}
    rows = {name: np.ascontiguousarray(array, types[name]) for name, array in rows.items()}
    digest = hashlib.sha256()
    for name in (INSTANCES, CATEGORIES, TIMESTAMPS):
        if name in rows and rows[name].dtype.kind != "O":
            digest.update(rows[name].data)
        elif name in rows:
            for labels in rows[name]:
                digest.update(b"\0".join(labels) + b"\0")
    return replace(dataset, rows=rows, sha256=digest.hexdigest())


def _refuse_names(selection: Selection) -> None:
    if selection:
        raise DataError("Columns and rows can be chosen in tables only; this has no names.")


def _varies(column: Array) -> bool:
    """Whether a column has two different values."""
    if column.dtype.kind != "f":
        return bool((column != column[0]).any())
    present = column[~np.isnan(column)]
    return len(present) > 0 and bool(np.subtract(present.max(), present.min(), dtype=np.float64) > 0)
