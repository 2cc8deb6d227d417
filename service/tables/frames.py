"""Tables of any kind: the model's columns out of them as Arrow, result columns into them.

A table is a ``pyarrow.Table`` or ``RecordBatch``, a pandas or polars ``DataFrame``, or a mapping of columns (arrays or
lists). None of these libraries is imported before somebody brings a table of it. A bare array is rows without names.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.codecs import nested_array
from service.codecs.rows import column_problem, shown_name
from service.errors import InvalidOption, InvalidRows, RowProblem
from service.schemas import INSTANCES, Array, Column, ColumnType, InputSchema

Table = Any
"""A table of any kind, see above."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of table is taken apart and put together."""

    names: Callable[[Any], list[str]]
    column: Callable[[Any, str], Any]
    attach: Callable[[Any, Any], Any]
    """(table, ``pyarrow.Table`` of results) -> the table with the results beside its columns."""


def model_columns(table: Table, schema: InputSchema, names: Sequence[str] = ()) -> tuple[Any, dict[int, RowProblem]]:
    """The model's columns of a table as a ``pyarrow.Table``, and what could not even be converted, by row.

    Args:
        names: the table's columns to use, in the order of the model's; those of the model's own names when empty.

    Raises:
        InvalidRows: a column is not there.
        InvalidOption: ``names`` does not fit the model.
    """
    import pyarrow as pa

    if isinstance(table, np.ndarray):
        if table.ndim < 2 or not schema.arrays_only:
            message = "Rows without names must be an array of numbers, one row each, and the model take those."
            raise InvalidRows([], message)
        return pa.table({INSTANCES: nested_array(table)}), {}
    kind = _kind_of(table)
    present = set(kind.names(table))
    for name in names:
        if name not in present:
            raise InvalidRows([RowProblem(None, shown_name(name), "is not a column of the table")])
    if not schema.columns:
        return _instances(table, kind, schema, names or [INSTANCES]), {}
    if names and len(names) != len(schema.columns):
        raise InvalidOption(f"The model has {len(schema.columns)} columns; give as many, in its order.")
    # Columns that may be missing may be left out, unless they are named.
    sources = zip(schema.columns, names or (column.name for column in schema.columns), strict=True)
    problems: dict[int, RowProblem] = {}
    columns = {
        column.name: arrow_column(kind.column(table, name), column, problems)
        for column, name in sources
        if name in present
    }
    if not columns:
        raise InvalidRows([], "The table has none of the model's columns.")
    return pa.table(columns), problems


def with_results(table: Table, results: Any) -> Table:
    """A table of the same kind that has the results' columns too; of a bare array, the results alone.

    Raises:
        InvalidOption: the table has a column of such a name already.
    """
    if isinstance(table, np.ndarray):
        return _as_arrays(results)
    kind = _kind_of(table)
    check_no_clash(kind.names(table), results.column_names)
    return kind.attach(table, results)


def check_no_clash(present: Sequence[str], added: Sequence[str]) -> None:
    """Raises InvalidOption where a result would take the name of an input column."""
    taken = [name for name in added if name in set(present)]
    if taken:
        raise InvalidOption(f"The table has a column '{taken[0]}' already: give the results another name by a prefix.")


def _instances(table: Table, kind: _Kind, schema: InputSchema, names: Sequence[str]) -> Any:
    """Rows without names: one column of lists, or as many columns of numbers as a row has values."""
    import pyarrow as pa

    if list(names) == [INSTANCES] and INSTANCES not in kind.names(table):
        raise InvalidRows(
            [], f"The table has no column '{INSTANCES}'; name those that make up a row, as in --columns a,b."
        )
    values = [_to_arrow(kind.column(table, name)) for name in names]
    if len(values) == 1:
        return pa.table({INSTANCES: values[0]})
    if len(values) != schema.width:
        raise InvalidOption(f"A row of this model has {schema.width} values; name as many columns.")
    chunks = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in values]
    stacked = np.stack([column.to_numpy(zero_copy_only=False) for column in chunks], axis=1)
    return pa.table({INSTANCES: nested_array(stacked)})


def arrow_column(values: Any, column: Column, problems: dict[int, RowProblem]) -> Any:
    """One column as Arrow. A Python value that fits in no way becomes null, and a problem of its row."""
    import pyarrow as pa

    is_python = isinstance(values, list) or getattr(getattr(values, "dtype", None), "kind", "") == "O"
    try:
        if is_python and column.type in _ARROW_TYPES:
            return pa.array(values, type=getattr(pa, _ARROW_TYPES[column.type])(), from_pandas=True)
        return _to_arrow(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return _value_by_value(list(values), column, problems)


def _to_arrow(values: Any) -> Any:
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.ndim > 1:
        return nested_array(values)
    if hasattr(values, "to_arrow"):
        values = values.to_arrow()
    return _plain_column(
        values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, from_pandas=True)
    )


def plain(table: Any) -> Any:
    """A ``pyarrow.Table`` whose text is of a type that every reader and writer knows: no views, as polars has them."""
    import pyarrow as pa

    columns = [_plain_column(column) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _plain_column(column: Any) -> Any:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        parts = [pa.DictionaryArray.from_arrays(c.indices, c.dictionary.cast(pa.large_string())) for c in chunks]
        decoded = [part.dictionary_decode() for part in parts]
        return pa.chunked_array(decoded, pa.large_string()) if isinstance(column, pa.ChunkedArray) else decoded[0]
    if pa.types.is_string_view(kind):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if pa.types.is_binary_view(kind) else column


_ARROW_TYPES = {ColumnType.NUMERIC: "float64", ColumnType.BOOLEAN: "bool_", ColumnType.CATEGORICAL: "string"}


def _value_by_value(values: list[Any], column: Column, problems: dict[int, RowProblem]) -> Any:
    import pyarrow as pa

    kept = []
    for row, value in enumerate(values):
        plain = None if value is None or value != value else value.item() if isinstance(value, np.generic) else value  # noqa: PLR0124
        problem = column_problem(plain, column)
        if problem:
            problems.setdefault(row, RowProblem(row, column.name, problem))
        kept.append(None if problem or plain is None else _PLAIN[column.type](plain))
    return pa.array(kept, type=getattr(pa, _ARROW_TYPES.get(column.type, "string"))())


_PLAIN: dict[ColumnType, Callable[[Any], Any]] = {
    ColumnType.NUMERIC: float,
    ColumnType.BOOLEAN: bool,
    ColumnType.CATEGORICAL: str,
    ColumnType.TIMESTAMP: lambda value: value if isinstance(value, str) else f"{np.datetime64(value, 'ms')}Z",
}


# --- kinds of tables --------------------------------------------------------------------------------------------------


def _kind_of(table: Table) -> _Kind:
    import pyarrow as pa

    if isinstance(table, pa.Table | pa.RecordBatch):
        return _ARROW
    for library, kind in (("pandas", _PANDAS), ("polars", _POLARS)):
        # A library that another thread is still loading has made no table yet.
        if isinstance(table, getattr(sys.modules.get(library), "DataFrame", ())):
            return kind
    if isinstance(table, Mapping):
        return _MAPPING
    raise InvalidRows([], "This is no table: give Arrow, pandas, polars, a mapping of columns, or an array of rows.")


def _attach_to_arrow(table: Any, results: Any) -> Any:
    import pyarrow as pa

    for name in results.column_names:
        column = results[name]
        table = table.append_column(name, column if isinstance(table, pa.Table) else column.combine_chunks())
    return table


def _as_arrays(results: Any) -> dict[str, Any]:
    return {name: _as_array(results[name]) for name in results.column_names}


def _as_array(column: Any) -> Array:
    import pyarrow as pa

    flat, shape = column.combine_chunks(), [len(column)]
    while pa.types.is_fixed_size_list(flat.type) and not flat.null_count:
        shape.append(flat.type.list_size)
        flat = flat.flatten()
    array: Array = flat.to_numpy(zero_copy_only=False)
    return array.reshape(shape) if len(shape) > 1 else array


_ARROW = _Kind(lambda table: list(table.schema.names), lambda table, name: table.column(name), _attach_to_arrow)
_PANDAS = _Kind(
    lambda frame: list(frame.columns),
    lambda frame, name: frame[name],
    lambda frame, results: frame.assign(**{name: column.array for name, column in results.to_pandas().items()}),
)
_POLARS = _Kind(
    lambda frame: list(frame.columns),
    lambda frame, name: frame[name],
    lambda frame, results: frame.hstack(sys.modules["polars"].from_arrow(results)),
)
_MAPPING = _Kind(list, lambda columns, name: columns[name], lambda columns, results: {**columns, **_as_arrays(results)})
