"""Arrow IPC streams: named columns, or the rows as one column of fixed-size lists called ``instances``."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.codecs.answers import Answer, contributions, error_maps, label_text
from service.codecs.arrow_bounds import check_stream_bounds
from service.codecs.rows import (
    ABSENT_COLUMN,
    EARLIEST_MS,
    LATEST_MS,
    MISSING,
    NOT_A_BOOLEAN,
    NOT_A_NUMBER,
    NOT_A_STRING,
    NOT_A_TIME,
    NOT_SECONDS,
    UNKNOWN_COLUMN,
    Limits,
    Unfit,
    check_numbers,
    check_row_count,
    epoch_ms,
    invalid_rows,
    no_rows,
    number_problems,
    probably_seconds,
    shape_words,
    shown_name,
    to_float32,
)
from service.errors import MAX_ROW_PROBLEMS, InvalidRows, MalformedInput, RowProblem, TooLarge
from service.schemas import (
    CATEGORIES,
    INSTANCES,
    MISSING_TIMESTAMP,
    TIMESTAMPS,
    Array,
    Column,
    ColumnType,
    InputSchema,
    Rows,
)
from service.words import CONTRIBUTIONS, ERROR_MAPS

_NOT_ARROW: Final = "The body is not an Arrow stream."
_UNITS_PER_SECOND: Final = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_VIEW_BYTES: Final = 16
_SECONDS: Final = LATEST_MS + 2
"""Stands for a number that is probably seconds until its row is named."""
_UNBOUNDED: Final = Limits(max_rows=2**62, max_decoded_bytes=2**62)


def decode_arrow(
    body: bytes | memoryview,
    schema: InputSchema,
    *,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> tuple[Rows, Any]:
    """Rows of an Arrow IPC stream, and its ``pyarrow.Table``.

    Nulls are missing values. One batch of float32 lists is not copied.

    Raises:
        MalformedInput: not an Arrow stream, or one whose parts contradict each other.
        InvalidRows: a table, but not rows of this model.
        TooLarge: too many rows, batches or bytes.
    """
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            as_lists = _takes_lists(reader.schema.names, schema)
            if not as_lists:
                _check_names(reader.schema.names, schema)
            check_stream_bounds(body, limits)
            table = reader.read_all()
        table.validate(full=True)
        check_row_count(table.num_rows, schema, limits)
        rows = {INSTANCES: _list_numbers(table.column(0), schema)} if as_lists else _named_rows(table, schema, limits)
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        raise MalformedInput(_NOT_ARROW) from None
    _check_rows(rows, schema)
    return rows, table


def table_rows(table: Any, schema: InputSchema) -> tuple[Rows, dict[int, RowProblem]]:
    """Rows of a ``pyarrow.Table`` in memory, however many, and the first problem of each row that does not fit.

    The table has the model's columns and no others, or one column ``instances``.

    Raises:
        InvalidRows: a column is missing or of a type that fits in no row.
    """
    import pyarrow as pa

    as_lists = _takes_lists(table.column_names, schema)
    if not as_lists:
        _check_names(table.column_names, schema)
    if table.num_rows == 0:
        raise no_rows()
    try:
        rows = (
            {INSTANCES: _list_numbers(table.column(0), schema)} if as_lists else _named_rows(table, schema, _UNBOUNDED)
        )
    except (pa.ArrowException, ValueError, OverflowError):
        raise InvalidRows([], "The table cannot be read as rows of this model.") from None
    try:
        _check_rows(rows, schema)
    except InvalidRows:
        numbers = number_problems(rows[INSTANCES], schema) if INSTANCES in rows else ()
        found = reversed([*_value_problems(rows, schema), *numbers])
        return rows, {problem.row: problem for problem in found if problem.row is not None}
    return rows, {}


def _check_rows(rows: Rows, schema: InputSchema) -> None:
    if CATEGORIES in rows or TIMESTAMPS in rows:
        problems = list(islice(_value_problems(rows, schema), MAX_ROW_PROBLEMS))
        if problems:
            raise invalid_rows(problems)
    if INSTANCES in rows:
        check_numbers(rows[INSTANCES], schema)


def _takes_lists(names: Sequence[str], schema: InputSchema) -> bool:
    if not schema.columns and list(names) != [INSTANCES]:
        raise InvalidRows([], f"The table must have one column '{INSTANCES}' of fixed-size lists.")
    return not schema.columns or (list(names) == [INSTANCES] and schema.arrays_only and INSTANCES not in schema.names)


def _check_names(names: Sequence[str], schema: InputSchema) -> None:
    problems = list(_name_problems(names, schema))
    if problems:
        raise InvalidRows(problems)


def _name_problems(names: Sequence[str], schema: InputSchema) -> Iterator[RowProblem]:
    seen: set[str] = set()
    for name in names:
        if name not in schema.names:
            yield RowProblem(None, shown_name(name), UNKNOWN_COLUMN)
        elif name in seen:
            yield RowProblem(None, name, "is there twice")
        seen.add(name)
    for column in schema.columns:
        if column.name not in seen and column.name not in schema.optional:
            yield RowProblem(None, column.name, ABSENT_COLUMN)


def _list_numbers(column: Any, schema: InputSchema) -> NDArray[np.float32]:
    first = 0
    parts: list[Array] = []
    for chunk in column.chunks:
        parts.append(_lists_of_chunk(chunk, schema, first))
        first += len(chunk)
    return np.ascontiguousarray((parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, *schema.row_shape))


def _lists_of_chunk(chunk: Any, schema: InputSchema, first: int) -> Array:
    """Values of one chunk of lists, nested as the row's shape is or flat in its order."""
    import pyarrow as pa

    values = chunk.storage if isinstance(chunk.type, pa.BaseExtensionType) else chunk
    kind = chunk.type
    is_tensor = isinstance(kind, pa.FixedShapeTensorType)
    in_order = not is_tensor or kind.permutation is None or list(kind.permutation) == sorted(kind.permutation)
    if is_tensor and not (in_order and tuple(kind.shape) == schema.row_shape):
        raise InvalidRows([RowProblem(None, INSTANCES, f"must be tensors: each row {shape_words(schema)}")])
    flat = not _is_list(getattr(values.type, "value_type", None))
    for size in (schema.width,) if flat else schema.row_shape:
        if not _is_list(values.type):
            raise InvalidRows([RowProblem(None, INSTANCES, f"must be lists: each row {shape_words(schema)}")])
        _check_list_lengths(values, size, len(chunk), first, schema)
        values = values.flatten()
    if not (_is_number(values.type) or pa.types.is_boolean(values.type)):
        raise InvalidRows([RowProblem(None, INSTANCES, "must be lists of numbers")])
    return to_float32(_numpy_numbers(values))


def _check_list_lengths(lists: Any, size: int, row_count: int, first: int, schema: InputSchema) -> None:
    import pyarrow as pa
    from pyarrow import compute

    lists_in_row = max(len(lists) // max(row_count, 1), 1)
    if lists.null_count:
        bad, problem = np.flatnonzero(compute.is_null(lists).to_numpy(zero_copy_only=False)), MISSING
    elif pa.types.is_fixed_size_list(lists.type):
        bad, problem = np.arange(0 if lists.type.list_size == size else len(lists)), shape_words(schema)
    else:
        lengths = compute.list_value_length(lists).to_numpy(zero_copy_only=False)
        bad, problem = np.flatnonzero(lengths != size), shape_words(schema)
    if len(bad):
        raise invalid_rows(RowProblem(first + int(row), None, problem) for row in np.unique(bad // lists_in_row))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    if kind is None:
        return False
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _numpy_numbers(values: Any) -> Array:
    """Numbers of an Arrow array; null becomes NaN."""
    import pyarrow as pa

    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    array: Array = values.to_numpy(zero_copy_only=False)
    return array


def _named_rows(table: Any, schema: InputSchema, limits: Limits) -> Rows:
    rows: Rows = {}
    if schema.numbers:
        rows[INSTANCES] = np.empty((table.num_rows, schema.width), dtype=np.float32)
        _fill(rows[INSTANCES], table, schema.numbers, _column_numbers)
    if schema.categories:
        rows[CATEGORIES] = np.empty((table.num_rows, len(schema.categories)), dtype=object)
        _fill(rows[CATEGORIES], table, schema.categories, lambda chunk, column: _column_labels(chunk, limits))
    if schema.timestamps:
        rows[TIMESTAMPS] = np.empty((table.num_rows, len(schema.timestamps)), dtype=np.int64)
        _fill(rows[TIMESTAMPS], table, schema.timestamps, lambda chunk, column: _column_times(chunk, column, limits))
    return rows


_MISSING_OF: Final = {
    ColumnType.NUMERIC: np.nan,
    ColumnType.BOOLEAN: np.nan,
    ColumnType.CATEGORICAL: b"",
    ColumnType.TIMESTAMP: MISSING_TIMESTAMP,
}
_PROBLEM_OF: Final = {
    ColumnType.NUMERIC: NOT_A_NUMBER,
    ColumnType.BOOLEAN: NOT_A_BOOLEAN,
    ColumnType.CATEGORICAL: NOT_A_STRING,
    ColumnType.TIMESTAMP: NOT_A_TIME,
}


def _fill(target: Array, table: Any, columns: Sequence[Column], read: Callable[[Any, Column], Array]) -> None:
    """Write the table's columns into ``target``, in the order of ``columns``."""
    import pyarrow as pa

    for at, column in enumerate(columns):
        chunks = table.column(column.name).chunks if column.name in table.column_names else ()
        if not chunks:
            target[:, at] = _MISSING_OF[column.type]
        first = 0
        for chunk in chunks:
            try:
                is_null = pa.types.is_null(chunk.type)
                target[first : first + len(chunk), at] = _MISSING_OF[column.type] if is_null else read(chunk, column)
            except Unfit:
                raise InvalidRows([RowProblem(None, column.name, _PROBLEM_OF[column.type])]) from None
            first += len(chunk)


def _column_numbers(chunk: Any, column: Column) -> Array:
    import pyarrow as pa

    if pa.types.is_dictionary(chunk.type) and _is_number(chunk.type.value_type):
        chunk = chunk.dictionary_decode()
    is_boolean = pa.types.is_boolean(chunk.type) and column.type is ColumnType.BOOLEAN
    if not (is_boolean or _is_number(chunk.type)):
        raise Unfit
    return to_float32(_numpy_numbers(chunk))


def _column_labels(chunk: Any, limits: Limits) -> Array:
    """Labels as bytes; null becomes empty."""
    import pyarrow as pa

    if pa.types.is_dictionary(chunk.type):
        # The labels are shared, not copied for each row: few bytes of indices may name a long label.
        labels = np.append(_column_labels(chunk.dictionary, limits), np.array([b""], dtype=object))
        indices = chunk.indices.cast(pa.int64()).fill_null(-1)
        found: Array = labels[indices.to_numpy(zero_copy_only=False)]
        return found
    if not _is_text(chunk.type):
        raise Unfit
    _check_view_lengths(chunk, limits)
    values = [b"" if value is None else value.encode() for value in chunk.to_pylist()]
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _check_view_lengths(chunk: Any, limits: Limits) -> None:
    """Views may name the same long text again and again; copies of it are made for each."""
    import pyarrow as pa

    if not pa.types.is_string_view(chunk.type):
        return
    views = chunk.buffers()[1]
    lengths = np.frombuffer(views, dtype=np.int32).reshape(-1, _VIEW_BYTES // 4)[:, 0]
    if np.maximum(lengths, 0).sum(dtype=np.int64) > limits.max_decoded_bytes:
        raise TooLarge(f"The decoded rows may take at most {limits.max_decoded_bytes} bytes.")


def _value_problems(rows: Rows, schema: InputSchema) -> Iterator[RowProblem]:
    """Labels and times that do not fit, column by column."""
    for at, column in enumerate(schema.categories):
        if not column.may_be_missing:
            yield from _problems(rows[CATEGORIES][:, at] == b"", column, MISSING)
    for at, column in enumerate(schema.timestamps):
        times = rows[TIMESTAMPS][:, at]
        if not column.may_be_missing:
            yield from _problems(times == MISSING_TIMESTAMP, column, MISSING)
        yield from _problems(times == _SECONDS, column, NOT_SECONDS)
        yield from _problems((times > LATEST_MS) & (times != _SECONDS), column, NOT_A_TIME)


def _problems(bad: Array, column: Column, problem: str) -> Iterator[RowProblem]:
    return (RowProblem(int(row), column.name, problem) for row in np.flatnonzero(bad))


def _column_times(chunk: Any, column: Column, limits: Limits) -> Array:
    """Milliseconds since 1970 in UTC; null becomes ``MISSING_TIMESTAMP``, a time out of range is not changed much."""
    import pyarrow as pa

    kind = chunk.type
    if _is_text(kind):
        _check_view_lengths(chunk, limits)
        return _text_times(chunk, column)
    if pa.types.is_date32(kind):
        chunk = chunk.cast(pa.date64())
    elif not (pa.types.is_timestamp(kind) or pa.types.is_date64(kind) or kind == pa.int64()):
        raise Unfit
    per_second = _UNITS_PER_SECOND[kind.unit] if pa.types.is_timestamp(kind) else 1000
    nulls = chunk.is_null().to_numpy(zero_copy_only=False)
    values: Array = chunk.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    # Clipped wide of any year there is, so that the product of seconds cannot overflow.
    in_seconds = per_second == 1
    times = np.clip(values, -(10**15), 10**15) * 1000 if in_seconds else values // (per_second // 1000)
    out_of_range = (times < EARLIEST_MS) | (times > LATEST_MS)
    times = np.where(out_of_range, LATEST_MS + 1, times)
    if kind == pa.int64():
        times = np.where(probably_seconds(times, column), _SECONDS, times)
    return np.where(nulls, MISSING_TIMESTAMP, times)


def _text_times(chunk: Any, column: Column) -> Array:
    times = np.empty(len(chunk), dtype=np.int64)
    for at, value in enumerate(chunk):
        text = value.as_py()
        try:
            times[at] = MISSING_TIMESTAMP if text is None else epoch_ms(text, column)
        except Unfit:
            times[at] = LATEST_MS + 1
    return times


def encode_arrow(answer: Answer, passthrough: Any = None) -> bytes:
    """All result columns as an Arrow IPC stream; what belongs to all rows is in the schema's metadata.

    ``passthrough``: a ``pyarrow.Table`` of as many rows, whose columns come beside the results.

    Rows with named columns come back as columns. A name that is taken already, as by a column that is passed through,
    gets a prefix: ``input.score``, ``reconstruction.amount``.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for prefix, name, values in answer_columns(answer, passthrough):
        columns[name if name not in columns else f"{prefix}.{name}"] = values
    once = {name: str(value) for name, value in answer.once.items() if value is not None}
    metadata = {"model": answer.model, "version": str(answer.version), **once}
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def answer_columns(answer: Answer, passthrough: Any = None) -> Iterator[tuple[str, str, Any]]:
    """(where it comes from, name, Arrow array): ``result``, ``input``, or the output whose named columns these are."""
    named = [output for _, output in answer.operation.results if answer.has_named_columns(output)]
    for name, output in answer.operation.results:
        if output not in named:
            yield "result", name, nested_array(answer.results[output])
    if answer.explain == "map":
        yield "result", ERROR_MAPS, nested_array(error_maps(answer))
    elif answer.explain is not None:
        yield "result", CONTRIBUTIONS, _contributions(answer)
    if passthrough is not None:
        for name, values in zip(passthrough.column_names, passthrough.columns, strict=True):
            yield "input", name, values
    for output in named:
        parts = [answer.results.get(name) for name in (output, f"{output}_{CATEGORIES}", f"{output}_{TIMESTAMPS}")]
        for name, values in _columns_of(answer.schema, parts):
            yield output, name, values


def nested_array(array: Array) -> Any:
    """A numpy array as Arrow: its further dimensions as fixed-size lists."""
    import pyarrow as pa

    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def rows_table(rows: Rows, schema: InputSchema) -> Any:
    """Rows with named columns as the ``pyarrow.Table`` that ``table_rows`` makes these rows of."""
    import pyarrow as pa

    arrays = [rows.get(name) for name in (INSTANCES, CATEGORIES, TIMESTAMPS)]
    return pa.table(dict(_columns_of(schema, arrays)))


def _columns_of(schema: InputSchema, arrays: Sequence[Array | None]) -> Iterator[tuple[str, Any]]:
    """``arrays``: numbers, categories and timestamps."""
    groups = zip(arrays, (schema.numbers, schema.categories, schema.timestamps), strict=True)
    made = {
        column.name: _arrow_column(array[:, at], column)
        for array, columns in groups
        if array is not None
        for at, column in enumerate(columns)
    }
    yield from ((column.name, made[column.name]) for column in schema.columns if column.name in made)


def _arrow_column(values: Array, column: Column) -> Any:
    import pyarrow as pa

    if column.type is ColumnType.CATEGORICAL:
        return pa.array([label_text(label) for label in values.tolist()], type=pa.string())
    if column.type is ColumnType.TIMESTAMP:
        times = np.ascontiguousarray(values).view("datetime64[ms]")
        return pa.array(times, type=pa.timestamp("ms", tz="UTC"), mask=values == MISSING_TIMESTAMP)
    missing = np.isnan(values)
    if column.type is ColumnType.BOOLEAN:
        return pa.array(values >= 0.5, mask=missing)
    return pa.array(np.ascontiguousarray(values), mask=missing if missing.any() else None)


def _contributions(answer: Answer) -> Any:
    """Lists of structs. Observed and expected are numbers, or text in a model that also has other columns."""
    import pyarrow as pa

    schema = answer.schema
    feature = pa.string() if schema.columns else pa.int32() if len(schema.row_shape) == 1 else pa.list_(pa.int32())
    value = pa.float32() if schema.arrays_only else pa.string()
    kind = pa.struct([("feature", feature), ("observed", value), ("expected", value), ("share", pa.float32())])

    def shown(value: Any) -> float | str | None:
        if value is None:
            return None
        return float(value) if schema.arrays_only else str(value).lower() if isinstance(value, bool) else str(value)

    rows = [
        [entry | {"observed": shown(entry["observed"]), "expected": shown(entry["expected"])} for entry in row]
        for row in contributions(answer)
    ]
    return pa.array(rows, type=pa.list_(kind))
