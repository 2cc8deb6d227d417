"""Checks that every encoding shares: how many rows, which numbers, what is wrong and where.

A ``InputSchema`` is a schema made ready for decoding. Named columns are decoded as sequences of values in the
schema's order, whatever the encoding calls them; arrays of numbers are checked as arrays.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import MAX_ROW_PROBLEMS, InvalidRows, RowProblem, TooLarge
from service.schemas import (
    CATEGORIES,
    INSTANCES,
    MISSING_TIMESTAMP,
    TIMESTAMPS,
    Array,
    Column,
    ColumnType,
    InputSchema,
    Picker,
    Rows,
    all_finite,
)

MISSING: Final = "may not be missing"
NOT_A_NUMBER: Final = "must be a number"
NOT_FINITE: Final = "must be a finite number that fits into float32"
NOT_A_BOOLEAN: Final = "must be true or false"
NOT_A_STRING: Final = "must be a string"
NOT_UNICODE: Final = "must be valid Unicode"
NOT_A_TIME: Final = "must be an ISO 8601 time or whole milliseconds since 1970, in the years 1 to 9999"
NOT_SECONDS: Final = "must be milliseconds since 1970, not seconds, or an ISO 8601 time"
UNKNOWN_COLUMN: Final = "is not a column of this model"
ABSENT_COLUMN: Final = "is missing"

EARLIEST_MS: Final = -62_135_596_800_000
LATEST_MS: Final = 253_402_300_799_999
SECONDS_BELOW: Final = 10**11
"""Numbers below it, as milliseconds, would be before 1973: they are probably seconds."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_BOOLEANS: Final = frozenset((0, 1, None))
_NUMBER_TYPES: Final = frozenset((float, int))
_OPTIONAL_NUMBER_TYPES: Final = _NUMBER_TYPES | {type(None)}
_BOOLEAN_TYPES: Final = _OPTIONAL_NUMBER_TYPES | {bool}
_MAX_NAME_SHOWN: Final = 64
_MAX_PLANS: Final = 256
_FEW: Final = 8
_ALIGNMENT: Final = 64
"""TensorFlow copies arrays whose address is no multiple of this, in bytes."""


def aligned_memory(size: int, begins: int = 0) -> NDArray[np.uint8]:
    """``size`` bytes for an array that begins at byte ``begins`` of them: TensorFlow takes it without a copy.

    They are not touched, so cost nothing yet.
    """
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -(memory.ctypes.data + begins) % _ALIGNMENT
    return memory[start : start + size]


class Unfit(Exception):
    """Some value does not fit; ``find_problems`` says which. Never leaves the codecs."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request; more is refused before memory is spent on it."""

    max_rows: int = 65_536
    max_depth: int = 32
    max_json_bytes: int = 8 * 2**20
    """Bytes of a JSON body after decompression."""
    max_decoded_bytes: int = 64 * 2**20
    """Bytes of any other body after decompression, and of the arrays of its rows."""
    max_pixels: int = 16_777_216


def no_rows() -> InvalidRows:
    return InvalidRows([], "There are no rows.")


def invalid_rows(problems: Iterable[RowProblem]) -> InvalidRows:
    """An error with the first problems; the rest is not even looked for."""
    return InvalidRows(list(islice(problems, MAX_ROW_PROBLEMS)))


def check_row_count(count: int, schema: InputSchema, limits: Limits) -> None:
    """Refuse before decoding.

    Raises:
        InvalidRows: there are no rows.
        TooLarge: too many rows, or more numbers than the limit of decoded bytes.
    """
    if count == 0:
        raise no_rows()
    if count > limits.max_rows:
        raise TooLarge(f"A request may have at most {limits.max_rows} rows.")
    row_bytes = 4 * schema.width + 8 * (len(schema.categories) + len(schema.timestamps))
    if count * row_bytes > limits.max_decoded_bytes:
        raise TooLarge(f"The decoded rows may take at most {limits.max_decoded_bytes} bytes.")


def shown_name(name: object) -> str | None:
    """A caller's name for something, if it is plain enough to be repeated in an error."""
    plain = isinstance(name, str) and len(name) <= _MAX_NAME_SHOWN and name.isascii() and name.isidentifier()
    return str(name) if plain else None


def place_of(schema: InputSchema, index: Sequence[int]) -> str | int | None:
    """How an error names the value at ``index`` of a row: its column, its number, or ``[i][j]`` in nested arrays."""
    if schema.columns:
        return schema.numbers[index[0]].name
    if len(schema.row_shape) == 1:
        return int(index[0])
    return "".join(f"[{at}]" for at in index) or None


def shape_words(schema: InputSchema) -> str:
    if len(schema.row_shape) == 1:
        return f"must be an array of {schema.row_shape[0]} values"
    return f"must be nested arrays of the shape {list(schema.row_shape)}"


def to_float32(values: Array) -> NDArray[np.float32]:
    """Cast; what does not fit becomes infinite and is found by ``check_numbers``."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


def check_numbers(numbers: NDArray[np.float32], schema: InputSchema) -> None:
    """Check float32 numbers of shape ``(rows, *row_shape)``: finite, present where they must be, booleans 0 or 1.

    Raises:
        InvalidRows: with the rows and columns of the first problems.
    """
    is_fit = all_finite(numbers) or _has_allowed_gaps(numbers, schema)
    if not is_fit or (schema.boolean_at and _wrong_booleans(numbers, schema).any()):
        raise invalid_rows(number_problems(numbers, schema))


def _has_allowed_gaps(numbers: NDArray[np.float32], schema: InputSchema) -> bool:
    """Whether numbers that are not all finite only lack what may be missing."""
    missing = np.isnan(numbers)
    return not (np.isinf(numbers).any() or (missing & ~schema.missing_allowed).any())


def _wrong_booleans(numbers: NDArray[np.float32], schema: InputSchema) -> NDArray[np.bool_]:
    values = numbers[:, schema.boolean_at]
    wrong: NDArray[np.bool_] = (values != 0) & (values != 1) & ~np.isnan(values)
    return wrong


def number_problems(numbers: NDArray[np.float32], schema: InputSchema) -> Iterator[RowProblem]:
    """The problems for which ``check_numbers`` refuses rows, row by row."""
    missing = np.isnan(numbers) & ~schema.missing_allowed
    bad = missing | np.isinf(numbers)
    if schema.boolean_at:
        bad[:, schema.boolean_at] |= _wrong_booleans(numbers, schema)
    for row in np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)):
        for index in islice(np.argwhere(bad[row]), MAX_ROW_PROBLEMS):
            place = tuple(int(at) for at in index)
            is_boolean = schema.columns and place[0] in schema.boolean_at
            words = MISSING if np.isnan(numbers[row][place]) else NOT_A_BOOLEAN if is_boolean else NOT_FINITE
            yield RowProblem(int(row), place_of(schema, place), words)


def converted(
    rows: Sequence[Any],
    convert: Callable[[Sequence[Any]], Rows],
    explain: Callable[[int, Any], Iterator[RowProblem]],
) -> Rows:
    """Rows as arrays. ``convert`` raises ``Unfit`` where any does not fit; ``explain`` says what is wrong with one.

    Raises:
        InvalidRows: with the rows and columns of the first problems.
    """
    try:
        return convert(rows)
    except Unfit:
        raise invalid_rows(_problems(rows, 0, convert, explain)) from None


def _problems(
    rows: Sequence[Any],
    first: int,
    convert: Callable[[Sequence[Any]], Rows],
    explain: Callable[[int, Any], Iterator[RowProblem]],
) -> Iterator[RowProblem]:
    """Halve until the bad rows are found: a conversion of many rows is cheap, a look at each value is not."""
    try:
        convert(rows)
    except Unfit:
        if len(rows) <= _FEW:
            for at, row in enumerate(rows, first):
                yield from explain(at, row)
        else:
            half = len(rows) // 2
            yield from _problems(rows[:half], first, convert, explain)
            yield from _problems(rows[half:], first + half, convert, explain)


def convert_sequences(rows: Sequence[Sequence[Any]], schema: InputSchema) -> Rows:
    """Sequences of Python values in the schema's order, ``None`` where missing, as arrays.

    Raises:
        Unfit: some value does not fit.
    """
    if set(map(len, rows)) != {len(schema.columns)}:
        raise Unfit
    arrays: Rows = {}
    if schema.numbers:
        shape = (len(rows), schema.width)
        values = _flat(rows, None if schema.arrays_only else schema.pick_numbers)
        if schema.boolean_at:
            booleans = _flat(rows, schema.pick_booleans)
            if not (_BOOLEAN_TYPES.issuperset(map(type, booleans)) and _BOOLEANS.issuperset(booleans)):
                raise Unfit
            arrays[INSTANCES] = fit_numbers(values, shape, schema, typed=_flat(rows, schema.pick_numeric))
        else:
            arrays[INSTANCES] = fit_numbers(values, shape, schema, typed=values)
    # Labels as objects, not fixed-width bytes: one long label would widen every cell.
    for name, columns, pick, convert, dtype in (
        (CATEGORIES, schema.categories, schema.pick_categories, label_bytes, object),
        (TIMESTAMPS, schema.timestamps, schema.pick_timestamps, epoch_ms, np.int64),
    ):
        if columns:
            arrays[name] = np.empty((len(rows), len(columns)), dtype)
            for at, (column, values) in enumerate(zip(columns, zip(*map(pick, rows), strict=True), strict=True)):
                arrays[name][:, at] = [convert(value, column) for value in values]
    return arrays


def _flat(rows: Sequence[Any], pick: Picker | None) -> Sequence[Any]:
    """The picked values of all rows, one after the other; without ``pick`` all values."""
    if len(rows) == 1:
        return rows[0] if pick is None else pick(rows[0])
    return list(chain.from_iterable(rows if pick is None else map(pick, rows)))


def fit_numbers(
    values: Sequence[Any], shape: tuple[int, ...], schema: InputSchema, *, typed: Sequence[Any]
) -> NDArray[np.float32]:
    """A flat sequence of Python numbers as float32 of ``shape``; ``None`` is missing. Raises ``Unfit``.

    ``typed`` are those that must be numbers by their types: numpy would read ``"1.5"`` and ``True`` as numbers.
    """
    if not (_OPTIONAL_NUMBER_TYPES if schema.any_missing_allowed else _NUMBER_TYPES).issuperset(map(type, typed)):
        raise Unfit
    try:
        numbers = to_float32(np.array(values, dtype=np.float64).reshape(shape))
    except OverflowError:  # an integer of hundreds of digits
        raise Unfit from None
    if not all_finite(numbers) and not _has_allowed_gaps(numbers, schema):
        raise Unfit
    return numbers


def label_bytes(value: object, column: Column) -> bytes:
    """UTF-8 of a label; a missing one is empty. Raises ``Unfit``."""
    if value is None or value == "":
        if not column.may_be_missing:
            raise Unfit
        return b""
    if type(value) is not str:
        raise Unfit
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise Unfit from None


def epoch_ms(value: object, column: Column) -> int:
    """Milliseconds since 1970 in UTC, of an ISO 8601 string (UTC where it has no offset) or of that number itself."""
    if value is None:
        if not column.may_be_missing:
            raise Unfit
        return MISSING_TIMESTAMP
    if type(value) is str:
        try:
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            raise Unfit from None
        value = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND
    elif type(value) is int and probably_seconds(value, column):
        raise Unfit
    if type(value) is not int or not EARLIEST_MS <= value <= LATEST_MS:
        raise Unfit
    return value


def probably_seconds(times: Any, column: Column) -> Any:
    """Whether a number, or which of an array of them, is a time in seconds: training had no milliseconds that low."""
    if column.minimum is None or column.minimum < SECONDS_BELOW:
        return np.zeros(np.shape(times), np.bool_)
    return (times != 0) & (times > -SECONDS_BELOW) & (times < SECONDS_BELOW)


def cell_problems(row_number: int, row: Sequence[Any], schema: InputSchema) -> Iterator[RowProblem]:
    """The problems of a row's values, which are in the schema's order."""
    for column, value in zip(schema.columns, row, strict=True):
        problem = column_problem(value, column)
        if problem:
            yield RowProblem(row_number, column.name, problem)


def column_problem(value: object, column: Column) -> str | None:
    """The problem of one value of a column, in words that do not contain it."""
    if column.type is ColumnType.TIMESTAMP and type(value) is int and probably_seconds(value, column):
        return NOT_SECONDS
    return cell_problem(value, column.type, may_be_missing=column.may_be_missing)


def cell_problem(value: object, kind: ColumnType, *, may_be_missing: bool) -> str | None:
    """The problem of one value, in words that do not contain it."""
    if value is None or (value == "" and kind is ColumnType.CATEGORICAL):
        return None if may_be_missing else MISSING
    return _PROBLEM_OF[kind](value)


def _number_problem(value: object) -> str | None:
    if type(value) is not int and type(value) is not float:
        return NOT_FINITE if isinstance(value, NonFiniteToken) else NOT_A_NUMBER
    try:
        return None if np.isfinite(to_float32(np.array([value], dtype=np.float64))).all() else NOT_FINITE
    except OverflowError:
        return NOT_FINITE


def _label_problem(value: object) -> str | None:
    if type(value) is not str:
        return NOT_A_STRING
    try:
        value.encode()
    except UnicodeEncodeError:
        return NOT_UNICODE
    return None


def _time_problem(value: object) -> str | None:
    try:
        epoch_ms(value, _ANY_TIME)
    except Unfit:
        return NOT_A_TIME
    return None


class NonFiniteToken:
    """Stands for a bare ``NaN`` or ``Infinity`` in what is otherwise JSON."""


_ANY_TIME: Final = Column(name="time", type=ColumnType.TIMESTAMP, may_be_missing=True)
_PROBLEM_OF: Final[dict[ColumnType, Callable[[object], str | None]]] = {
    ColumnType.NUMERIC: _number_problem,
    ColumnType.BOOLEAN: lambda v: None if type(v) in _BOOLEAN_TYPES and v in _BOOLEANS else NOT_A_BOOLEAN,
    ColumnType.CATEGORICAL: _label_problem,
    ColumnType.TIMESTAMP: _time_problem,
}
