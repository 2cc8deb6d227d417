"""Checks that every encoding shares: how many rows, which numbers, what is wrong and where.

A ``RowPlan`` is a schema made ready for decoding. Named columns are decoded as sequences of values in the
schema's order, whatever the encoding calls them; arrays of numbers are checked as arrays.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final

import numpy as np
import orjson
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


class Unfit(Exception):
    """Some value does not fit; ``find_problems`` says which. Never leaves the codecs."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold; more is refused before memory is spent on it."""

    max_rows: int = 65_536
    max_depth: int = 32
    max_json_bytes: int = 8 * 2**20
    """Of a JSON body after decompression."""
    max_decoded_bytes: int = 64 * 2**20
    """Of any other body after decompression, and of the arrays of its rows."""
    max_pixels: int = 16_777_216


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A schema made ready for decoding; one for each schema, see ``plan_of``."""

    schema: InputSchema
    row_shape: tuple[int, ...]
    width: int
    """Numbers in one row of ``instances``."""
    arrays_in_row: int
    """Arrays that nest them in JSON, the row's own included."""
    columns: tuple[Column, ...]
    numbers: tuple[Column, ...]
    categories: tuple[Column, ...]
    timestamps: tuple[Column, ...]
    boolean_at: tuple[int, ...]
    """Places of the boolean columns among ``numbers``."""
    may_be_missing: NDArray[np.bool_]
    """Which numbers of a row may be missing; broadcasts against ``(rows, *row_shape)``."""
    any_may_be_missing: bool
    arrays_only: bool
    """Whether a plain array can carry a whole row: no categories, no timestamps."""
    features: int
    """Columns, or values of a row where they have no names."""
    pick_columns: Callable[[Any], tuple[Any, ...]]
    """An object by column name -> its values in the schema's order; KeyError or TypeError where it does not fit."""
    pick_numbers: Callable[[Any], tuple[Any, ...]]
    """A sequence in the schema's order -> the values of the columns of these types."""
    pick_numeric: Callable[[Any], tuple[Any, ...]]
    pick_booleans: Callable[[Any], tuple[Any, ...]]
    pick_categories: Callable[[Any], tuple[Any, ...]]
    pick_timestamps: Callable[[Any], tuple[Any, ...]]
    optional: dict[str, None]
    """The columns that may be left out of an object, each as a missing value."""
    names: frozenset[str]
    json_keys: dict[str, bytes]
    """Each column's name as a JSON key with its colon, in the schema's order."""


_plans: dict[int, RowPlan] = {}


def plan_of(schema: InputSchema) -> RowPlan:
    """The plan of a schema, made once. Keyed by identity: hashing a schema takes longer than decoding a row."""
    plan = _plans.get(id(schema))
    if plan is None:
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        plan = _plans[id(schema)] = _make_plan(schema)  # holds the schema, so that its id stays taken
    return plan


def _make_plan(schema: InputSchema) -> RowPlan:
    columns = schema.columns
    numbers = schema.columns_of(ColumnType.NUMERIC, ColumnType.BOOLEAN)
    categories = schema.columns_of(ColumnType.CATEGORICAL)
    timestamps = schema.columns_of(ColumnType.TIMESTAMP)
    missing = [column.may_be_missing for column in numbers] if columns else [schema.may_be_missing]
    row_shape = (len(numbers),) if columns else schema.row_shape
    return RowPlan(
        schema=schema,
        row_shape=row_shape,
        width=math.prod(row_shape),
        arrays_in_row=sum(math.prod(row_shape[:dimension]) for dimension in range(len(row_shape))),
        columns=columns,
        numbers=numbers,
        categories=categories,
        timestamps=timestamps,
        boolean_at=tuple(at for at, column in enumerate(numbers) if column.type is ColumnType.BOOLEAN),
        may_be_missing=np.array(missing, dtype=np.bool_),
        any_may_be_missing=any(missing),
        arrays_only=not categories and not timestamps,
        features=len(columns) or math.prod(row_shape),
        pick_columns=_picker([column.name for column in columns]),
        pick_numbers=_picker(_places(columns, ColumnType.NUMERIC, ColumnType.BOOLEAN)),
        pick_numeric=_picker(_places(columns, ColumnType.NUMERIC)),
        pick_booleans=_picker(_places(columns, ColumnType.BOOLEAN)),
        pick_categories=_picker(_places(columns, ColumnType.CATEGORICAL)),
        pick_timestamps=_picker(_places(columns, ColumnType.TIMESTAMP)),
        optional={column.name: None for column in columns if column.may_be_missing},
        names=frozenset(column.name for column in columns),
        json_keys={column.name: orjson.dumps(column.name) + b":" for column in columns},
    )


def _places(columns: Sequence[Column], *wanted: ColumnType) -> list[int]:
    return [at for at, column in enumerate(columns) if column.type in wanted]


def _picker(keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    if not keys:
        return lambda row: ()
    if len(keys) == 1:
        key = keys[0]
        return lambda row: (row[key],)
    return itemgetter(*keys)


def no_rows() -> InvalidRows:
    return InvalidRows([], "There are no rows.")


def invalid_rows(problems: Iterable[RowProblem]) -> InvalidRows:
    """An error with the first problems; the rest is not even looked for."""
    return InvalidRows(list(islice(problems, MAX_ROW_PROBLEMS)))


def check_row_count(count: int, plan: RowPlan, limits: Limits) -> None:
    """Refuse before decoding.

    Raises:
        InvalidRows: there are no rows.
        TooLarge: too many rows, or more numbers than the limit of decoded bytes.
    """
    if count == 0:
        raise no_rows()
    if count > limits.max_rows:
        raise TooLarge(f"A request may have at most {limits.max_rows} rows.")
    row_bytes = 4 * plan.width + 8 * (len(plan.categories) + len(plan.timestamps))
    if count * row_bytes > limits.max_decoded_bytes:
        raise TooLarge(f"The decoded rows may take at most {limits.max_decoded_bytes} bytes.")


def shown_name(name: object) -> str | None:
    """A caller's name for something, if it is plain enough to be repeated in an error."""
    plain = isinstance(name, str) and len(name) <= _MAX_NAME_SHOWN and name.isascii() and name.isidentifier()
    return str(name) if plain else None


def place_of(plan: RowPlan, index: Sequence[int]) -> str | int | None:
    """How an error names the value at ``index`` of a row: its column, its number, or ``[i][j]`` in nested arrays."""
    if plan.columns:
        return plan.numbers[index[0]].name
    if len(plan.row_shape) == 1:
        return int(index[0])
    return "".join(f"[{at}]" for at in index) or None


def shape_words(plan: RowPlan) -> str:
    if len(plan.row_shape) == 1:
        return f"must be an array of {plan.row_shape[0]} values"
    return f"must be nested arrays of the shape {list(plan.row_shape)}"


def to_float32(values: Array) -> NDArray[np.float32]:
    """Cast; what does not fit becomes infinite and is found by ``check_numbers``."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


def check_numbers(numbers: NDArray[np.float32], plan: RowPlan) -> None:
    """Check float32 numbers of shape ``(rows, *row_shape)``: finite, present where they must be, booleans 0 or 1.

    Raises:
        InvalidRows: with the rows and columns of the first problems.
    """
    if not _is_complete(numbers, plan) or (plan.boolean_at and _wrong_booleans(numbers, plan).any()):
        raise invalid_rows(number_problems(numbers, plan))


def _is_complete(numbers: NDArray[np.float32], plan: RowPlan) -> bool:
    if all_finite(numbers):
        return True
    missing = np.isnan(numbers)
    return not (np.isinf(numbers).any() or (missing & ~plan.may_be_missing).any())


def _wrong_booleans(numbers: NDArray[np.float32], plan: RowPlan) -> NDArray[np.bool_]:
    values = numbers[:, plan.boolean_at]
    wrong: NDArray[np.bool_] = (values != 0) & (values != 1) & ~np.isnan(values)
    return wrong


def number_problems(numbers: NDArray[np.float32], plan: RowPlan) -> Iterator[RowProblem]:
    """What ``check_numbers`` refuses, row by row."""
    missing = np.isnan(numbers) & ~plan.may_be_missing
    bad = missing | np.isinf(numbers)
    if plan.boolean_at:
        bad[:, plan.boolean_at] |= _wrong_booleans(numbers, plan)
    for row in np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)):
        for index in islice(np.argwhere(bad[row]), MAX_ROW_PROBLEMS):
            place = tuple(int(at) for at in index)
            yield RowProblem(int(row), place_of(plan, place), _number_words(numbers[row][place], place, plan))


def _number_words(value: np.float32, place: tuple[int, ...], plan: RowPlan) -> str:
    if np.isnan(value):
        return MISSING
    return NOT_A_BOOLEAN if plan.columns and place[0] in plan.boolean_at else NOT_FINITE


def rows_from_arrays(numbers: NDArray[np.float32]) -> Rows:
    return {INSTANCES: numbers}


def decode_sequences(rows: Sequence[Sequence[Any]], plan: RowPlan) -> Rows:
    """Rows of named columns as sequences of Python values in the schema's order, ``None`` where missing.

    Raises:
        InvalidRows: with the rows and columns of the first problems.
    """
    try:
        return convert_sequences(rows, plan)
    except Unfit:
        raise invalid_rows(
            find_problems(rows, 0, convert=convert_sequences, explain=_cell_problems, plan=plan)
        ) from None


def find_problems(
    rows: Sequence[Any],
    first: int,
    *,
    convert: Callable[[Sequence[Any], RowPlan], object],
    explain: Callable[[int, Any, RowPlan], Iterator[RowProblem]],
    plan: RowPlan,
) -> Iterator[RowProblem]:
    """Halve until the bad rows are found: a conversion of many rows is cheap, a look at each value is not."""
    try:
        convert(rows, plan)
    except Unfit:
        if len(rows) <= _FEW:
            for at, row in enumerate(rows):
                yield from explain(first + at, row, plan)
            return
        half = len(rows) // 2
        yield from find_problems(rows[:half], first, convert=convert, explain=explain, plan=plan)
        yield from find_problems(rows[half:], first + half, convert=convert, explain=explain, plan=plan)


def convert_sequences(rows: Sequence[Sequence[Any]], plan: RowPlan) -> Rows:
    """All columns at once, by type. Raises ``Unfit`` where any value does not fit."""
    if set(map(len, rows)) != {len(plan.columns)}:
        raise Unfit
    converted: Rows = {}
    if plan.numbers:
        converted[INSTANCES] = _convert_numbers(rows, plan)
    if plan.categories:
        converted[CATEGORIES] = _convert_categories(rows, plan)
    if plan.timestamps:
        converted[TIMESTAMPS] = _convert_timestamps(rows, plan)
    return converted


def _flat(rows: Sequence[Any], pick: Callable[[Any], tuple[Any, ...]]) -> Sequence[Any]:
    return pick(rows[0]) if len(rows) == 1 else list(chain.from_iterable(map(pick, rows)))


def _convert_numbers(rows: Sequence[Sequence[Any]], plan: RowPlan) -> NDArray[np.float32]:
    shape = (len(rows), plan.width)
    if plan.arrays_only and not plan.boolean_at:
        return fit_numbers(rows[0] if len(rows) == 1 else list(chain.from_iterable(rows)), shape, plan)
    if plan.boolean_at:
        _check_booleans(_flat(rows, plan.pick_booleans))
        _check_number_types(_flat(rows, plan.pick_numeric), plan)
        return _fit(np.array(_flat(rows, plan.pick_numbers), dtype=np.float64).reshape(shape), plan)
    return fit_numbers(_flat(rows, plan.pick_numbers), shape, plan)


def fit_numbers(values: Sequence[Any], shape: tuple[int, ...], plan: RowPlan) -> NDArray[np.float32]:
    """A flat sequence of Python numbers as float32 of ``shape``; ``None`` is missing. Raises ``Unfit``."""
    _check_number_types(values, plan)
    return _fit(np.array(values, dtype=np.float64).reshape(shape), plan)


def _check_number_types(values: Sequence[Any], plan: RowPlan) -> None:
    # The types are looked at first: numpy would read "1.5" and True as numbers.
    if not (_OPTIONAL_NUMBER_TYPES if plan.any_may_be_missing else _NUMBER_TYPES).issuperset(map(type, values)):
        raise Unfit


def _check_booleans(values: Sequence[Any]) -> None:
    if not (_BOOLEAN_TYPES.issuperset(map(type, values)) and _BOOLEANS.issuperset(values)):
        raise Unfit


def _fit(values: NDArray[np.float64], plan: RowPlan) -> NDArray[np.float32]:
    numbers = to_float32(values)
    if not _is_complete(numbers, plan):
        raise Unfit
    return numbers


def _convert_categories(rows: Sequence[Sequence[Any]], plan: RowPlan) -> Array:
    # Objects, not fixed-width bytes: one long label would widen every cell.
    labels = np.empty((len(rows), len(plan.categories)), dtype=object)
    for at, (column, values) in enumerate(
        zip(plan.categories, zip(*map(plan.pick_categories, rows), strict=True), strict=True)
    ):
        labels[:, at] = [label_bytes(value, column) for value in values]
    return labels


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


def _convert_timestamps(rows: Sequence[Sequence[Any]], plan: RowPlan) -> Array:
    times = np.empty((len(rows), len(plan.timestamps)), dtype=np.int64)
    for at, (column, values) in enumerate(
        zip(plan.timestamps, zip(*map(plan.pick_timestamps, rows), strict=True), strict=True)
    ):
        times[:, at] = [epoch_ms(value, column) for value in values]
    return times


def epoch_ms(value: object, column: Column) -> int:
    """Milliseconds since 1970 in UTC, of an ISO 8601 string (UTC where it has no offset) or of that number itself."""
    if value is None:
        if not column.may_be_missing:
            raise Unfit
        return MISSING_TIMESTAMP
    if type(value) is str:
        value = _parse_time(value)
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


def _parse_time(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Unfit from None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND


def _cell_problems(row_number: int, row: Sequence[Any], plan: RowPlan) -> Iterator[RowProblem]:
    if len(row) != len(plan.columns):
        yield RowProblem(row_number, None, f"must have {len(plan.columns)} values")
        return
    for column, value in zip(plan.columns, row, strict=True):
        problem = column_problem(value, column)
        if problem:
            yield RowProblem(row_number, column.name, problem)


def column_problem(value: object, column: Column) -> str | None:
    """What is wrong with one value of a column, in words that do not contain it."""
    if column.type is ColumnType.TIMESTAMP and type(value) is int and probably_seconds(value, column):
        return NOT_SECONDS
    return cell_problem(value, column.type, may_be_missing=column.may_be_missing)


def cell_problem(value: object, kind: ColumnType, *, may_be_missing: bool) -> str | None:
    """What is wrong with one value, in words that do not contain it."""
    if value is None or (value == "" and kind is ColumnType.CATEGORICAL):
        return None if may_be_missing else MISSING
    return _PROBLEM_OF[kind](value)


def _number_problem(value: object) -> str | None:
    if type(value) is not int and type(value) is not float:
        return NOT_FINITE if isinstance(value, NonFiniteToken) else NOT_A_NUMBER
    return None if np.isfinite(to_float32(np.array([value], dtype=np.float64))).all() else NOT_FINITE


def _boolean_problem(value: object) -> str | None:
    return None if type(value) in _BOOLEAN_TYPES and value in _BOOLEANS else NOT_A_BOOLEAN


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
    ColumnType.BOOLEAN: _boolean_problem,
    ColumnType.CATEGORICAL: _label_problem,
    ColumnType.TIMESTAMP: _time_problem,
}
