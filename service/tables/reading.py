"""Rows of a table for training, from files of any size: what is kept is a uniform sample that fits into memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.errors import DataError
from service.schemas import CATEGORIES, INSTANCES, TIMESTAMPS, Array, ColumnType, InputSchema, Rows
from service.tables.columns import ColumnReader, Found, reader_of
from service.tables.sample import Sample
from service.tables.selection import Condition, Selection
from service.tables.typed import Retype, TableFiles

MAX_SAMPLE_BYTES = 512 * 2**20
"""Of the rows that are kept."""
MIN_SAMPLE_ROWS = 1_000
BYTES_OF_LABEL_OR_TIME = 8
AS_TEXT = (ColumnType.CATEGORICAL, ColumnType.TIMESTAMP)
"""Columns that are called these may look like numbers in a text file."""

Progress = Callable[[int, int | None], None]
"""Is told how many rows were read so far, of how many where that is known."""


@dataclass(frozen=True, slots=True)
class Table:
    rows: Rows
    schema: InputSchema
    total: int
    """Rows in the files that fulfil the conditions, kept or not."""
    notes: tuple[str, ...] = ()
    """What was left out and why; sentences."""
    decimal_comma: bool = False
    """Whether the numbers of a CSV file have decimal commas."""


def read_table(
    file: TableFiles,
    selection: Selection,
    *,
    max_rows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Table:
    """Read the files once, and again from the start where a column turns out to be of another type.

    Raises:
        DataError: no rows, columns of a kind that cannot be used, mixed types, infinite numbers; the sentence names the
            column, and the row where there is one.
    """
    while True:
        try:
            return _read(file, selection, max_rows=max_rows, seed=seed, progress=progress)
        except Retype:
            continue


def _read(
    file: TableFiles, selection: Selection, *, max_rows: int | None, seed: int, progress: Progress | None
) -> Table:
    import pyarrow as pa

    names = selection.names_of(file.names)
    file.read_as_text([name for name in names if selection.type_of(name) in AS_TEXT])
    needed = list(dict.fromkeys([*names, *(condition.column for condition in selection.where)]))
    types = dict(zip(needed, file.types(needed), strict=True))
    readers = [reader_of(name, types[name], selection.type_of(name)) for name in names]
    sample = Sample(_most_rows(readers, max_rows), seed=seed)
    read = 0
    for batch in file.batches(needed):
        columns = dict(zip(needed, batch.columns, strict=True))
        fitting = _fitting(columns, selection.where, len(batch))
        chosen = fitting[sample.choose(len(fitting))]
        sample.add(row=chosen + read + 1, **_values(readers, columns, chosen))
        read += len(batch)
        if progress is not None:
            progress(read, file.rows)
    pa.default_memory_pool().release_unused()  # Arrow keeps what the batches took, which may be as much as the rows
    if not sample.offered:
        raise DataError("The file has no rows." if not read else "No row fulfils the conditions of --where.")
    return replace(_table(readers, sample, selection, file.notes), decimal_comma=file.decimal_comma)


def read_columns(file: TableFiles, selection: Selection, *, keep: str | None = None) -> Any:
    """All rows that fulfil the conditions as a ``pyarrow.Table``: the columns of the selection, and ``keep``.

    Raises:
        DataError: as of ``read_table``.
    """
    import pyarrow as pa

    names = selection.names_of(file.names)
    names += [keep] if keep is not None and keep not in names else []
    needed = list(dict.fromkeys([*names, *(condition.column for condition in selection.where)]))
    while True:
        parts = []
        try:
            for batch in file.batches(needed):
                fitting = _fitting(dict(zip(needed, batch.columns, strict=True)), selection.where, len(batch))
                parts.append(batch.select(names).take(pa.array(fitting)) if len(fitting) < len(batch) else batch)
            return pa.Table.from_batches([part.select(names) for part in parts])
        except Retype:
            continue


def _most_rows(readers: Sequence[ColumnReader], max_rows: int | None) -> int:
    of_row = sum(4 if reader.is_number else BYTES_OF_LABEL_OR_TIME for reader in readers)
    fitting = max(MIN_SAMPLE_ROWS, MAX_SAMPLE_BYTES // of_row)
    return fitting if max_rows is None else min(fitting, max_rows)


def _values(readers: Sequence[ColumnReader], columns: dict[str, Any], chosen: Array) -> dict[str, Array]:
    """Arrays of the chosen rows of a batch: one matrix of the numbers, and each other column under its place."""
    import pyarrow as pa

    whole = len(columns) == 0 or len(chosen) == len(next(iter(columns.values())))
    which = None if whole else pa.array(chosen)
    numbers = np.empty((len(chosen), sum(reader.is_number for reader in readers)), np.float32)
    parts, place = {INSTANCES: numbers}, 0
    for at, reader in enumerate(readers):
        column = columns[reader.name]
        values = reader.read(column if which is None else column.take(which))
        if reader.is_number:
            numbers[:, place] = values
            place += 1
        else:
            parts[str(at)] = values
    return parts


def _table(readers: Sequence[ColumnReader], sample: Sample, selection: Selection, file_notes: Sequence[str]) -> Table:
    arrays = sample.take()
    row_numbers, numbers = arrays["row"], arrays[INSTANCES]
    found, place = list[Found](), 0
    for at, reader in enumerate(readers):
        values = numbers[:, place] if reader.is_number else arrays.pop(str(at))
        place += reader.is_number
        found.append(reader.finish(values, row_numbers))
    notes = tuple(each.note for each in found if each.note)
    kept = [each for each in found if each.column is not None]
    columns = tuple(_as_chosen(each.column, selection) for each in kept if each.column is not None)
    if not columns:
        raise DataError(f"No column is left to train on. {notes[0]}")
    schema = InputSchema(kind="tabular", row_shape=(0,), columns=columns)
    rows: Rows = {}
    for name, kinds in _INPUTS.items():
        parts = [each.values for each, column in zip(kept, columns, strict=True) if column.type in kinds]
        if name == INSTANCES and len(parts) == numbers.shape[1] and parts:
            rows[name] = numbers
        elif parts:
            rows[name] = np.stack([part for part in parts if part is not None], axis=1)
    width = len(schema.columns_of(*_INPUTS[INSTANCES]))
    return Table(rows, schema.model_copy(update={"row_shape": (width,)}), sample.offered, (*file_notes, *notes))


_INPUTS = {
    INSTANCES: (ColumnType.NUMERIC, ColumnType.BOOLEAN),
    CATEGORIES: (ColumnType.CATEGORICAL,),
    TIMESTAMPS: (ColumnType.TIMESTAMP,),
}


def _as_chosen(column: Any, selection: Selection) -> Any:
    """The column, with gaps allowed where the user says so, or forbidden where there are none."""
    choice = selection.choices.get(column.name)
    if choice is None or choice.may_be_missing is None:
        return column
    if column.may_be_missing and not choice.may_be_missing:
        raise DataError(f'Column "{column.name}" has missing values, but the schema file says that it may not.')
    return column.model_copy(update={"may_be_missing": choice.may_be_missing})


def _fitting(columns: dict[str, Any], where: Sequence[Condition], rows: int) -> Array:
    """Numbers of the rows of a batch that fulfil all conditions."""
    fits = np.ones(rows, np.bool_)
    for condition in where:
        fits &= _fulfils(columns[condition.column], condition)
    return np.flatnonzero(fits)


def _fulfils(column: Any, condition: Condition) -> Array:
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import types as kinds

    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kinds.is_integer(column.type) or kinds.is_floating(column.type) or kinds.is_decimal(column.type):
        try:
            same = compute.equal(column.cast(pa.float64(), safe=False), float(condition.value))
        except ValueError:
            raise DataError(f'Column "{condition.column}" holds numbers; its condition needs one.') from None
    else:
        value = condition.value.lower() if kinds.is_boolean(column.type) else condition.value
        same = compute.equal(column.cast(pa.string()), value)
    result = same if condition.equal else compute.invert(same)
    fits: Array = result.fill_null(False).to_numpy(zero_copy_only=False)
    return fits
