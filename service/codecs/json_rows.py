"""JSON requests: a fast path for plain numbers (simdjson), and an exact one (orjson) for everything else.

The fast path hands numbers to numpy without a Python object for each. That they have the shape of rows is proven, or
they are given up; nothing is judged there. A large body is read in pieces of whole rows: what simdjson needs for a
piece stays in the processor's cache, where that of the whole body would be several times its size in fresh memory, and
the interpreter is free for other threads between two pieces. The exact path gives the same rows more slowly, or says
what is wrong.
"""

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from service.codecs.options import NO_OPTIONS, Options, options_from_json, series_options
from service.codecs.rows import (
    ABSENT_COLUMN,
    UNKNOWN_COLUMN,
    Limits,
    NonFiniteToken,
    Unfit,
    aligned_memory,
    cell_problem,
    cell_problems,
    check_row_count,
    convert_sequences,
    converted,
    fit_numbers,
    place_of,
    shape_words,
    shown_name,
)
from service.errors import InvalidOption, InvalidRows, MalformedInput, RowProblem, TooLarge
from service.schemas import FEW_VALUES, INSTANCES, Column, ColumnType, InputSchema, Rows
from service.words import ANOMALY_SCORE, SCORE_OPTIONS, Operation

PIECE_BYTES: Final = 2**17
"""Bodies up to this size are read whole; of larger ones, pieces of this size and the rest of a row."""
_MAX_OUTLINE_BYTES: Final = 2**12
_MAX_KEPT_PARSER_BYTES: Final = 2**20
_MAX_FLOAT32: Final = float(np.finfo(np.float32).max)
_SQUARES_OF_FLOAT32: Final = 1e76
"""Numbers whose squares sum to less fit into float32."""

_SCALARS: Final = frozenset((float, int, str, type(None)))

_local = threading.local()

_INPUTS: Final = "inputs"
_SERIES: Final = "series"
_BOM: Final = b"\xef\xbb\xbf"
# The closing quote is optional: were it not, each quote of an unclosed string would be tried in vain to its end.
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_MAX_INTEGER_DIGITS: Final = 20
_NOT_JSON: Final = "The body is not valid JSON."
_TOO_DEEP: Final = "The JSON is nested too deeply."


def decode_json(
    body: bytes,
    schema: InputSchema,
    *,
    operation: Operation,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> tuple[Rows, Options]:
    """Rows and options of a JSON request body.

    Raises:
        MalformedInput: not JSON, not UTF-8, or nested too deeply.
        InvalidRows: JSON, but not rows of this model.
        InvalidOption: an unknown key or a wrong option.
        TooLarge: too many rows or numbers.
    """
    found = decode_numbers_fast(body, schema, limits)
    if found is None:
        return decode_json_exactly(body, schema, operation=operation, limits=limits)
    numbers, option_values, _ = found
    options = options_from_json(option_values, schema=schema, operation=operation) if option_values else NO_OPTIONS
    return {INSTANCES: numbers}, options


def decode_json_exactly(
    body: bytes, schema: InputSchema, *, operation: Operation, limits: Limits
) -> tuple[Rows, Options]:
    """The same as ``decode_json``, for any body, with the exact reason where it is refused."""
    check_containers(body, schema, limits)
    document, only_json = parse_json(body)
    try:
        if type(document) is not dict or not document.keys() & {INSTANCES, _INPUTS, _SERIES}:
            raise InvalidRows([], """Put rows under 'instances': {"instances": [...]}, or columns under 'inputs'.""")
        option_values = {key: value for key, value in document.items() if key not in (INSTANCES, _INPUTS, _SERIES)}
        options = options_from_json(option_values, schema=schema, operation=operation) if option_values else NO_OPTIONS
        if _SERIES in document:
            rows, options = _series(document, schema, operation, limits), series_options(options)
        elif INSTANCES in document and _INPUTS in document:
            raise InvalidRows([], "The body must have either 'instances' or 'inputs', not both.")
        elif INSTANCES in document:
            rows = decode_instances(document[INSTANCES], schema, limits)
        else:
            rows = _decode_inputs(document[_INPUTS], schema, limits)
    except (InvalidRows, InvalidOption):
        if _is_deep(document, body, limits):
            raise MalformedInput(_TOO_DEEP) from None
        raise
    if not only_json:  # what made it so was overwritten by a repeated key
        raise MalformedInput(_NOT_JSON)
    return rows, options


def check_containers(body: bytes, schema: InputSchema, limits: Limits) -> None:
    """Refuse more arrays and objects than any rows may have, before memory is spent on each of them."""
    rows = min(limits.max_rows, limits.max_decoded_bytes // (4 * schema.width + 1))
    most = rows * schema.arrays_in_row + len(schema.columns) + limits.max_depth
    if body.count(b"[") + body.count(b"{") <= most:
        return
    bare = _STRING.sub(b"", body)
    if bare.count(b"[") + bare.count(b"{") <= most:
        return
    try:
        simdjson.Parser().parse(body)
    except RuntimeError:
        raise MalformedInput(_TOO_DEEP) from None
    except ValueError:
        raise MalformedInput(_NOT_JSON) from None
    raise TooLarge(f"A request may have at most {limits.max_rows} rows, and no more arrays or objects than they need.")


def parse_json(body: bytes, *, loosely: bool = False) -> tuple[Any, bool]:
    """A JSON value, and whether it is strictly JSON.

    A body whose only fault are bare ``NaN`` or ``Infinity`` tokens (``NonFiniteToken`` objects in the value) or numbers
    beyond float64 (infinite floats in it) is parsed too, so that their rows and columns can be named. ``loosely`` these
    tokens are numbers, as TensorFlow Serving has them, and what follows the value is not looked at.

    Raises:
        MalformedInput: not JSON, not UTF-8, or nested too deeply.
    """
    body = body if loosely else body.removeprefix(_BOM)
    with suppress(ValueError, RecursionError):
        return orjson.loads(body), True
    faults: list[str] = []

    def number(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            faults.append("overflow")
        return value

    def constant(token: str) -> NonFiniteToken:
        faults.append(token)
        return _TOKEN

    def integer(text: str) -> int | float:
        return int(text) if len(text) <= _MAX_INTEGER_DIGITS else number(text)

    finding: dict[str, Any] = {"parse_constant": constant, "parse_float": number, "parse_int": integer}
    try:
        text = body.decode("utf-8-sig" if loosely else "utf-8").strip(" \t\r\n")
        value, end = json.JSONDecoder(**({} if loosely else finding)).raw_decode(text)
    except RecursionError:
        raise MalformedInput(_TOO_DEEP) from None
    except ValueError as error:  # not JSON, not UTF-8, or an integer of thousands of digits
        place = f"Invalid value. at offset: {error.pos}" if isinstance(error, json.JSONDecodeError) else _NOT_JSON
        raise MalformedInput(f"JSON Parse error: {place}" if loosely else _NOT_JSON) from None
    if not loosely and (not faults or end < len(text)):
        raise MalformedInput(_NOT_JSON)
    return value, False


def _is_deep(document: Any, body: bytes, limits: Limits) -> bool:
    if body.count(b"[") + body.count(b"{") <= limits.max_depth:
        return False
    level = [document]
    for _ in range(limits.max_depth + 1):
        children = chain.from_iterable(each.values() if type(each) is dict else each for each in level)
        level = [child for child in children if type(child) in (list, dict)]
        if not level:
            return False
    return True


def _series(document: dict[str, Any], schema: InputSchema, operation: Operation, limits: Limits) -> Rows:
    """The windows of the points of a whole series: rows of numbers or objects, or an object of columns."""
    if operation is not ANOMALY_SCORE or not schema.channels:
        raise InvalidRows([], "'series' is for anomaly-score of a model that was trained on a series.")
    if INSTANCES in document or _INPUTS in document:
        raise InvalidRows([], "The body must have one of 'instances', 'inputs' and 'series'.")
    given = document[_SERIES]
    is_bare = type(given) is list and not any(type(point) in (list, dict) for point in given)
    if is_bare and len(schema.channels) == 1:
        given = [[point] for point in given]
    points = (_decode_inputs if type(given) is dict else decode_instances)(given, _point_schema(schema), limits)
    return _windows_of(points, schema, limits)


@lru_cache(maxsize=64)
def _point_schema(schema: InputSchema) -> InputSchema:
    """A point as a row of named channels."""
    columns = tuple(Column(name=name, may_be_missing=schema.may_be_missing) for name in schema.channels)
    return InputSchema(kind="tabular", row_shape=(len(columns),), columns=columns)


def _windows_of(points: Rows, schema: InputSchema, limits: Limits) -> Rows:
    """Every window of consecutive points: (points - window + 1, window, channels).

    Raises:
        InvalidRows: the series is shorter than a window.
        TooLarge: the windows take more memory than a request may.
    """
    values: NDArray[np.float32] = points[INSTANCES]
    window = schema.row_shape[0]
    if len(values) < window:
        raise InvalidRows([], f"The series must have at least {window} points, the window of this model.")
    if (len(values) - window + 1) * window * values.shape[1] * 4 > limits.max_decoded_bytes:
        raise TooLarge(f"The windows of a series may take at most {limits.max_decoded_bytes} bytes; send it in parts.")
    views = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)
    return {INSTANCES: np.ascontiguousarray(views.transpose(0, 2, 1))}


def decode_instances(instances: Any, schema: InputSchema, limits: Limits) -> Rows:
    """Parsed rows: nested arrays, or objects by column name.

    Raises:
        InvalidRows: with the rows and columns of the first problems.
        TooLarge: too many rows or numbers.
    """
    if type(instances) is not list:
        raise InvalidRows([], "The rows must be an array.")
    check_row_count(len(instances), schema, limits)
    convert: Callable[..., Rows]
    explain: Callable[..., Iterator[RowProblem]]
    if not schema.columns:
        convert, explain = _convert_nested, _level_problems
    elif schema.arrays_only and type(instances[0]) is list:
        convert, explain = _convert_lists, _list_problems
    else:
        convert, explain = _convert_objects, _object_problems
    return converted(instances, partial(convert, schema=schema), partial(explain, schema=schema))


def _decode_inputs(inputs: Any, schema: InputSchema, limits: Limits) -> Rows:
    if not schema.columns:
        return decode_instances(inputs, schema, limits)
    if type(inputs) is not dict:
        raise InvalidRows([], "'inputs' must be an object with an array for each column.")
    problems = list(_column_problems(inputs, schema))
    if problems:
        raise InvalidRows(problems)
    counts = set(map(len, inputs.values()))
    if len(counts) != 1:
        raise InvalidRows([], "The columns must all have the same number of values.")
    count = counts.pop()
    check_row_count(count, schema, limits)
    absent = [None] * count
    rows = list(zip(*(inputs.get(column.name, absent) for column in schema.columns), strict=True))
    return converted(rows, partial(convert_sequences, schema=schema), partial(cell_problems, schema=schema))


def _column_problems(inputs: dict[str, Any], schema: InputSchema) -> Iterator[RowProblem]:
    for name, values in inputs.items():
        if name not in schema.names:
            yield RowProblem(None, shown_name(name), UNKNOWN_COLUMN)
        elif type(values) is not list:
            yield RowProblem(None, name, "must be an array of values")
    for column in schema.columns:
        if column.name not in inputs and column.name not in schema.optional:
            yield RowProblem(None, column.name, ABSENT_COLUMN)


def _convert_nested(rows: Sequence[Any], schema: InputSchema) -> Rows:
    """Nested lists of the row's shape."""
    level = rows
    for size in schema.row_shape:
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise Unfit
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return {INSTANCES: fit_numbers(level, (len(rows), *schema.row_shape), schema, typed=level)}


def _level_problems(
    row_number: int, level: Any, schema: InputSchema, index: tuple[int, ...] = ()
) -> Iterator[RowProblem]:
    depth = len(index)
    if depth == len(schema.row_shape):
        problem = cell_problem(level, ColumnType.NUMERIC, may_be_missing=schema.any_missing_allowed)
        if problem:
            yield RowProblem(row_number, place_of(schema, index), problem)
    elif type(level) is not list or len(level) != schema.row_shape[depth]:
        yield RowProblem(row_number, place_of(schema, index) if index else None, shape_words(schema))
    else:
        for at, part in enumerate(level):
            yield from _level_problems(row_number, part, schema, (*index, at))


def _convert_lists(rows: Sequence[Any], schema: InputSchema) -> Rows:
    if set(map(type, rows)) != {list}:
        raise Unfit
    return convert_sequences(rows, schema)


def _list_problems(row_number: int, row: Any, schema: InputSchema) -> Iterator[RowProblem]:
    if type(row) is not list or len(row) != len(schema.columns):
        yield RowProblem(row_number, None, shape_words(schema))
    else:
        yield from cell_problems(row_number, row, schema)


def _convert_objects(rows: Sequence[Any], schema: InputSchema) -> Rows:
    """Objects by column name, in which columns that may be missing may be left out."""
    if set(map(type, rows)) != {dict}:
        raise Unfit
    whole = {len(schema.columns)}
    if set(map(len, rows)) != whole:
        rows = [schema.optional | row for row in rows]
        if set(map(len, rows)) != whole:
            raise Unfit
    try:
        picked = list(map(schema.pick_columns, rows))
    except KeyError:
        raise Unfit from None
    return convert_sequences(picked, schema)


def _object_problems(row_number: int, row: Any, schema: InputSchema) -> Iterator[RowProblem]:
    if type(row) is not dict:
        yield RowProblem(row_number, None, "must be an object with the model's columns")
        return
    is_complete = True
    for name in row:
        if name not in schema.names:
            is_complete = False
            yield RowProblem(row_number, shown_name(name), UNKNOWN_COLUMN)
    for column in schema.columns:
        if column.name not in row and column.name not in schema.optional:
            is_complete = False
            yield RowProblem(row_number, column.name, ABSENT_COLUMN)
    if is_complete:
        yield from cell_problems(row_number, schema.pick_columns(schema.optional | row), schema)


_TOKEN: Final = NonFiniteToken()


# --- numbers -------------------------------------------------------------------------------------------------------


def decode_numbers_fast(
    body: bytes,
    schema: InputSchema,
    limits: Limits,
    *,
    under: tuple[str, ...] = (INSTANCES,),
    beside: tuple[str, ...] = SCORE_OPTIONS,
) -> tuple[NDArray[np.float32], dict[str, Any], str] | None:
    """Float32 numbers ``(rows, *row_shape)`` of a JSON object, the scalars beside them, and the key that they had.

    None where that is not all: the numbers stand under one of the keys ``under``, and each key ``beside`` at most once.
    """
    if not schema.arrays_only or (schema.columns and body.find(b"{", body.find(b"{") + 1) >= 0):
        return None
    # Numbers come flattened. Their nesting is proven by the lengths of all arrays and by there being no other brackets.
    count, more = divmod(body.count(b"[") - 1, schema.arrays_in_row)
    try:
        if more or not 0 < count <= limits.max_rows or 4 * count * schema.width > limits.max_decoded_bytes:
            return None
        document, content = _outline(body)
        if len(document) > 1 + len(beside):
            return None  # looking up each of very many keys takes quadratic time
        keys = list(document.keys())
        (key,) = keys if len(keys) == 1 else [key for key in keys if key in under]
        scalars = {key: document[key] for key in keys if key in beside} if len(keys) > 1 else {}
        if key not in under or len(scalars) + 1 != len(keys) or not _SCALARS.issuperset(map(type, scalars.values())):
            return None
        if content is None:
            numbers = _values_of(document[key], count, schema).astype(np.float32).reshape(count, *schema.row_shape)
        else:
            numbers = _read_pieces(body, content, document[key], count, schema)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None
    has_booleans = not schema.boolean_at or np.isin(numbers[:, schema.boolean_at], (0, 1)).all()
    return (numbers, scalars, key) if has_booleans else None


def _outline(body: bytes) -> tuple[Any, slice | None]:
    """A JSON value; of a large body without the content of its outermost array, with the place of that content.

    The array is empty then. There can be no other: it lies between the first opening and the last closing bracket.

    Raises:
        ValueError: not JSON, or too much of a large body is outside its array.
        RuntimeError: nested too deeply.
    """
    if len(body) <= PIECE_BYTES:
        return _parser_for(len(body)).parse(body), None
    start, stop = body.find(b"[") + 1, body.rfind(b"]")
    if not 0 < start <= stop or start + len(body) - stop > _MAX_OUTLINE_BYTES:
        raise ValueError
    # Not with the kept parser: it is busy as long as the outline is looked at, and needed for the pieces.
    return simdjson.Parser().parse(body[:start] + body[stop:]), slice(start, stop)


def _parser_for(length: int) -> Any:
    # A parser keeps the memory of its largest document and must not be shared by threads.
    if length > _MAX_KEPT_PARSER_BYTES:
        return simdjson.Parser()
    parser = getattr(_local, "parser", None)
    if parser is None:
        parser = _local.parser = simdjson.Parser()
    return parser


def _read_pieces(body: bytes, content: slice, emptied: Any, count: int, schema: InputSchema) -> NDArray[np.float32]:
    """The numbers of an array whose content was left out of ``emptied``."""
    if not isinstance(emptied, simdjson.Array):
        raise TypeError
    numbers = aligned_memory(4 * count * schema.width).view(np.float32).reshape(count, *schema.row_shape)
    row_end, view = _row_end(len(schema.row_shape)), memoryview(body)
    row, start = 0, content.start
    while start <= content.stop:
        found = row_end.search(body, min(start + PIECE_BYTES, content.stop), content.stop)
        stop = found.end() - 1 if found else content.stop
        piece = b"".join((b"[", view[start:stop], b"]"))
        rows = _parser_for(len(piece)).parse(piece)
        end = row + len(rows)
        if not row < end <= count:
            raise ValueError
        numbers[row:end] = _values_of(rows, end - row, schema).reshape(end - row, *schema.row_shape)
        row, start = end, stop + 1
        del rows  # the parser takes the next piece only when nothing is left of this one
    if row != count:
        raise ValueError
    return numbers


def _values_of(rows: Any, count: int, schema: InputSchema) -> NDArray[np.float64]:
    """The values of ``count`` rows of the right shape, flat; all of them fit into float32."""
    if len(rows) != count:
        raise ValueError
    level = [rows]
    for size in schema.row_shape:
        level = list(chain.from_iterable(level))
        if set(map(len, level)) != {size}:
            raise ValueError
    values = np.frombuffer(rows.as_buffer(of_type="d"))
    is_small = len(values) <= FEW_VALUES and np.vdot(values, values) < _SQUARES_OF_FLOAT32
    if not is_small and not (values.min() >= -_MAX_FLOAT32 and values.max() <= _MAX_FLOAT32):
        raise ValueError
    return values


@cache
def _row_end(dimensions: int) -> re.Pattern[bytes]:
    """The closing brackets of a row that another one follows, and the comma between them."""
    return re.compile(rb"\][ \t\r\n]*" * dimensions + b",")
