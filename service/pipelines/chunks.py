"""The rows of a part of a file for scoring: what is passed through, and what the model sees of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from service.errors import RowProblem
from service.schemas import INSTANCES, Column, ColumnType, InputSchema
from service.tables.dialect import Dialect, present, typed_cells
from service.tables.files import CSV, NDJSON, Part, read_batches
from service.tables.frames import arrow_column

EXACT_BELOW = 2**53
"""Integers that float64 holds exactly."""


@dataclass(slots=True)
class Chunk:
    """Some rows on their way. ``problems`` counts them from the first of the chunk."""

    part: Part
    first_row: int
    """Rows of the part before these."""
    kept: Any
    """What is passed through to the output, a ``pyarrow.Table``."""
    columns: Any
    """The table that the model's columns are in."""
    problems: dict[int, RowProblem] = field(default_factory=dict)
    lines: list[bytes] | None = None
    """The rows as they stood in an NDJSON file."""

    @property
    def rows(self) -> int:
        return int(self.columns.num_rows)


def read_chunks(
    part: Part,
    schema: InputSchema,
    *,
    batch_rows: int,
    columns: Sequence[str] = (),
    as_text: bool = False,
    decimal_comma: bool = False,
) -> Iterator[Chunk]:
    """The rows of a part, at least one chunk of them even where there are none.

    Args:
        columns: the file's columns that are the model's, in its order; those of the same names when empty.
        as_text: pass the cells of a CSV file through as they stand, not as numbers.
        decimal_comma: whether numbers had decimal commas in training, for CSV files that do not show their own mark.

    Raises:
        DataError: the file is damaged; the sentence names it.
    """
    import pyarrow as pa

    wanted = columns or tuple(column.name for column in schema.columns)
    targets = dict(zip(wanted, schema.columns, strict=True)) if len(wanted) == len(schema.columns) else {}
    if not schema.columns:
        targets = dict.fromkeys(columns, Column(name="value", may_be_missing=schema.any_missing_allowed))
    first_row = 0
    for table, form in read_batches(part, batch_rows=batch_rows):
        if part.format == CSV:
            chunk = _of_text(part, table, form, targets, as_text=as_text, comma=decimal_comma)
        elif part.format == NDJSON:
            chunk = _of_json(part, table, form, targets)
        else:
            chunk = Chunk(part, 0, table, table)
        chunk.first_row = first_row
        first_row += chunk.rows
        for name, value in part.partition:
            if name not in chunk.kept.column_names:
                column = pa.array([value] * chunk.rows, type=pa.int64() if isinstance(value, int) else pa.string())
                same = chunk.columns is chunk.kept
                chunk.kept = chunk.kept.append_column(name, column)
                chunk.columns = chunk.kept if same else chunk.columns.append_column(name, column)
        yield chunk


def _of_text(
    part: Part,
    table: Any,
    dialect: Dialect,
    targets: Mapping[str, Column],
    *,
    as_text: bool,
    comma: bool,
) -> Chunk:
    """Text cells as what the model's columns are."""
    problems: dict[int, RowProblem] = {}
    kept = columns = table
    for at, name in enumerate(table.column_names):
        if name in targets:
            cells = table[name].combine_chunks()
            decimal = dialect.decimal(name, comma_in_training=comma)
            values = typed_cells(cells, targets[name], problems, decimal=decimal)
            columns = columns.set_column(at, name, values)
            if not as_text and targets[name].type is not ColumnType.TIMESTAMP:
                kept = kept.set_column(at, name, _exact(values, present(cells)))
    return Chunk(part, 0, kept, columns, problems)


def _of_json(part: Part, values: Mapping[str, list[Any]], lines: list[bytes], targets: Mapping[str, Column]) -> Chunk:
    import pyarrow as pa

    problems: dict[int, RowProblem] = {}
    names = list(values) or list(targets)
    columns, kept = {}, {}
    for name in names:
        given = values.get(name, [])
        try:
            columns[name] = kept[name] = pa.array(given)
        except (pa.ArrowException, OverflowError):  # what has no one type is kept as JSON text
            texts = [None if value is None else orjson.dumps(value).decode() for value in given]
            columns[name] = kept[name] = pa.array(texts)
        if name in targets:
            columns[name] = arrow_column(given, targets[name], problems)
            kept[name] = _exact(columns[name], kept[name])
    if not columns:
        columns = kept = {INSTANCES: pa.nulls(0)}
    return Chunk(part, 0, pa.table(kept), pa.table(columns), problems, lines)


def _exact(values: Any, given: Any) -> Any:
    """Float64 values; or, where it cannot hold them exactly, the integers that were given, text or not."""
    import pyarrow as pa

    if not pa.types.is_floating(values.type) or not len(values) or pa.types.is_floating(given.type):
        return values
    with np.errstate(invalid="ignore"):
        if not (np.abs(values.to_numpy(zero_copy_only=False)) >= EXACT_BELOW).any():
            return values
    for kind in (pa.int64(), pa.uint64()):
        try:
            return given.cast(kind)
        except pa.ArrowInvalid:
            continue
    return values
