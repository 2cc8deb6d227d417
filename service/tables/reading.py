"""Rows of a table for training, from files of any size: what is kept is a uniform sample that fits into memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.errors import DataError
from service.schemas import CATEGORIES, INSTANCES, TIMESTAMPS, Array, ColumnType, InputSchema
from service.tables.columns import Found, NumberReader, reader_of
from service.tables.sample import Sample
from service.tables.selection import Condition, Selection
from service.tables.typed import Retype, TableFiles

MAX_SAMPLE_BYTES = 512 * 2**20
"""Of the rows that are kept."""
MIN_SAMPLE_ROWS = 1_000
AS_TEXT = (ColumnType.CATEGORICAL, ColumnType.TIMESTAMP)
"""Columns that are called these may look like numbers in a text file."""
INPUTS = {
    INSTANCES: (ColumnType.NUMERIC, ColumnType.BOOLEAN),
    CATEGORIES: (ColumnType.CATEGORICAL,),
    TIMESTAMPS: (ColumnType.TIMESTAMP,),
}

Progress = Callable[[int, int | None], None]
"""Is told how many rows were read so far, of how many where that is known."""


@dataclass(frozen=True, slots=True)
class Table:
    rows: dict[str, Array]
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
    import pyarrow as pa

    names = selection.names_of(file.names)
    needed = list(dict.fromkeys([*names, *(condition.column for condition in selection.where)]))
    file.read_as_text([name for name in names if selection.type_of(name) in AS_TEXT])
    while True:
        types = dict(zip(needed, file.types(needed), strict=True))
        readers = [reader_of(name, types[name], selection.type_of(name)) for name in names]
        row_bytes = sum(4 if isinstance(reader, NumberReader) else 8 for reader in readers)
        fitting = max(MIN_SAMPLE_ROWS, MAX_SAMPLE_BYTES // row_bytes)
        sample, read = Sample(min(fitting, max_rows or fitting), seed=seed), 0
        try:
            for batch in file.batches(needed):
                rows = rows_where(batch, selection.where)
                rows = rows[sample.choose(len(rows))]
                chosen = batch if len(rows) == len(batch) else batch.take(pa.array(rows))
                values = {str(at): reader.read(chosen[reader.name]) for at, reader in enumerate(readers)}
                sample.add(row=rows + read + 1, **values)
                read += len(batch)
                if progress is not None:
                    progress(read, file.rows)
        except Retype:
            continue
        break
    pa.default_memory_pool().release_unused()  # Arrow keeps what the batches took, which may be as much as the rows
    if not sample.offered:
        raise DataError("The file has no rows." if not read else "No row fulfils the conditions of --where.")
    arrays = sample.take()
    found = [reader.finish(arrays.pop(str(at)), arrays["row"]) for at, reader in enumerate(readers)]
    rows_of, schema = _assembled(found, selection)
    notes = (*file.notes, *(each.note for each in found if each.note))
    return Table(rows_of, schema, sample.offered, notes, file.decimal_comma)


def _assembled(found: Sequence[Found], selection: Selection) -> tuple[dict[str, Array], InputSchema]:
    """Finished columns as inputs of a model and their schema; gaps are allowed or forbidden as the user says."""
    columns, parts = [], dict[str, list[Array]]()
    for each in found:
        if each.column is None or each.values is None:
            continue
        column, choice = each.column, selection.choices.get(each.column.name)
        if choice is not None and choice.may_be_missing is not None:
            if column.may_be_missing and not choice.may_be_missing:
                raise DataError(f'Column "{column.name}" has missing values, but the schema file says that it may not.')
            column = column.model_copy(update={"may_be_missing": choice.may_be_missing})
        columns.append(column)
        parts.setdefault(next(name for name, types in INPUTS.items() if column.type in types), []).append(each.values)
    if not columns:
        raise DataError(f"No column is left to train on. {next(each.note for each in found)}")
    rows = {name: np.stack(parts.pop(name), axis=1) for name in INPUTS if name in parts}
    width = rows[INSTANCES].shape[1] if INSTANCES in rows else 0
    return rows, InputSchema(kind="tabular", row_shape=(width,), columns=tuple(columns))


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
        try:
            batches = [batch.take(pa.array(rows_where(batch, selection.where))) for batch in file.batches(needed)]
            return pa.Table.from_batches(batches).select(names)
        except Retype:
            continue


def rows_where(batch: Any, where: Sequence[Condition]) -> Array:
    """Numbers of the rows of a batch that fulfil all conditions."""
    fits = np.ones(len(batch), np.bool_)
    for condition in where:
        fits &= _fulfils(batch[condition.column], condition)
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
