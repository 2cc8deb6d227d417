"""The times of a series, found in a table of one reading a line, and the even grid that readings are brought to."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import MISSING_TIMESTAMP
from service.tables.dialect import read_times

MOST_EMPTY = 0.5
"""Share of the even grid that may have no reading."""
LONGER_STEPS = (2, 3, 5, 10)
"""Multiples of the usual step that uneven times may be brought to."""
MAX_POINTS = 20_000_000
HALF_UP = 1e-6
"""Of a step: a half that is a little less for want of digits is one."""
FIRST_UNIX_S, LAST_UNIX_S = 978_307_200, 4_102_444_800
SUNDAY = 3
"""Days since 1970-01-01, a Thursday."""
HOUR_S, DAY_S, HALF_YEAR_S = 3_600, 86_400, 180 * 86_400
UNITS = ((DAY_S, "d"), (HOUR_S, "h"), (60, "min"), (1, "s"), (0.001, "ms"))
CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Times:
    """When the rows of a series were taken, and which columns say so."""

    columns: tuple[str, ...]
    seconds: NDArray[np.float64]
    """Or other units, where a column of numbers was named."""
    in_seconds: bool = True
    notes: tuple[str, ...] = ()


def find_times(table: Any, name: str | None) -> Times | None:
    """The times in the named column, else in the first that has some; None where no column has.

    Dates in one column and times of day in another are one time. Whole numbers that never fall are Unix times where
    they are of the years 2001 to 2100, in seconds or milliseconds.

    Raises:
        DataError: the named column holds no times, or lacks some.
    """
    found = None
    for candidate in table.column_names if name is None else [name]:
        column = table[candidate].combine_chunks()
        found = _times_of(column, candidate, named=name is not None)
        if found is not None:
            break
    if found is None or (found.seconds % DAY_S).any():
        return found
    for candidate in table.column_names:
        clock = _clock_of(table[candidate].combine_chunks())
        if clock is not None:
            note = f'Columns "{found.columns[0]}" and "{candidate}" were taken for date and time of the readings.'
            return Times((*found.columns, candidate), found.seconds + clock, notes=(note,))
    return found


def _times_of(column: Any, name: str, *, named: bool) -> Times | None:
    import pyarrow as pa
    from pyarrow import types as kinds

    is_text = kinds.is_string(column.type) or kinds.is_large_string(column.type)
    if kinds.is_timestamp(column.type) or kinds.is_date(column.type):
        zone = getattr(column.type, "tz", None)
        milliseconds = column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64())
        times = milliseconds.fill_null(MISSING_TIMESTAMP).to_numpy()
    elif is_text:
        times, wrong = read_times(column)
        if wrong.any() and not named and wrong.sum() > len(times) / 2:
            return None
        if wrong.any():
            raise DataError(f'Row {int(wrong.argmax()) + 1}, column "{name}": not a time, as in 2026-01-31 12:00:00.')
    elif kinds.is_integer(column.type) or kinds.is_floating(column.type):
        return _unix_times(column, name, named=named)
    else:
        return None
    missing = times == MISSING_TIMESTAMP
    if missing.all() and not named:
        return None
    if missing.any():
        raise DataError(f'Column "{name}" lacks a time in row {int(missing.argmax()) + 1}.')
    return Times((name,), times / 1000)


def _unix_times(column: Any, name: str, *, named: bool) -> Times | None:
    numbers = np.asarray(column.cast("float64", safe=False).to_numpy(zero_copy_only=False), np.float64)
    missing = np.isnan(numbers)
    if missing.any():
        if named:
            raise DataError(f'Column "{name}" lacks a time in row {int(missing.argmax()) + 1}.')
        return None
    for unit, factor in (("seconds", 1), ("milliseconds", 1000)):
        in_range = (numbers >= FIRST_UNIX_S * factor) & (numbers <= LAST_UNIX_S * factor)
        whole = (numbers % 1 == 0).all()
        if in_range.all() and (named or (whole and (np.diff(numbers) >= 0).all() and numbers[0] < numbers[-1])):
            note = f'Column "{name}" was taken for Unix times in {unit}.'
            return Times((name,), numbers / factor, notes=(note,))
    return Times((name,), numbers, in_seconds=False) if named else None


def _clock_of(column: Any) -> NDArray[np.float64] | None:
    """Seconds since midnight of a column of nothing but times of day; None where it is another one."""
    import pyarrow as pa
    from pyarrow import types as kinds

    if kinds.is_time(column.type) and not column.null_count:
        return np.asarray(column.cast(pa.time64("ns")).cast(pa.int64()).to_numpy(), np.float64) / 1e9
    if not (kinds.is_string(column.type) or kinds.is_large_string(column.type)):
        return None
    parts = [CLOCK.fullmatch((cell or "").strip()) for cell in column.to_pylist()]
    if not all(parts):
        return None
    return np.array([3600 * int(p[1]) + 60 * int(p[2]) + float(p[3] or 0) for p in parts if p], np.float64)


def numbers_of(table: Any, name: str) -> NDArray[np.float64]:
    """A column of a ``pyarrow.Table`` as float64, NaN where a value is missing.

    Raises:
        DataError: it holds something else.
    """
    import pyarrow as pa

    column = table[name]
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    try:
        if is_text:
            raise pa.ArrowInvalid("text")
        numbers = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
        return np.asarray(numbers.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    except pa.ArrowException as error:
        raise DataError(f'Column "{name}" holds something other than numbers; leave it out with --drop.') from error


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Readings at even steps."""

    values: NDArray[np.float64]
    """(points, channels). NaN where a step has no reading; where it has several, their mean."""
    places: NDArray[np.int64]
    """The point of each reading."""
    step: float
    moved: float
    """How far a reading was moved at most."""

    @property
    def merged(self) -> int:
        """The number of readings that share a point with one before them."""
        return len(self.places) - len(np.unique(self.places))


def even_grid(values: NDArray[np.float64], times: NDArray[np.float64], step: float | None) -> Grid:
    """Readings (readings, channels) at the nearest of even steps; of their usual distance where no step is given.

    Raises:
        DataError: a time lies before the one above it, or they are too uneven.
    """
    times = _through_clock_changes(times)
    steps = np.diff(times)
    if (steps < 0).any():
        row = int(np.argmax(steps < 0)) + 2
        raise DataError(f"Row {row} is earlier than the row before it; sort the file by its times.")
    steps = steps[steps > 0]
    if not len(steps):
        raise DataError("All times are the same.")
    if step is None:
        usual = float(np.median(steps))
        # Uneven times get a longer step, so that most of the steps have a reading.
        for factor in (1, *LONGER_STEPS):
            places, step = _places(times, usual * factor, exact=factor > 1)
            if len(np.unique(places)) >= (1 - MOST_EMPTY) * max(places[-1] + 1, len(places) if factor > 1 else 0):
                break
        else:
            raise DataError(
                "The times are too uneven: with their usual step more than half of the series would be missing. "
                "Choose a longer one, as in --step 1h."
            )
    else:
        places, step = _places(times, step, exact=True)
    length = int(places[-1]) + 1
    if length > MAX_POINTS:
        raise DataError(f"With this step the series has {length} points; at most {MAX_POINTS} are possible.")
    present = ~np.isnan(values)
    counts, sums = np.zeros((length, values.shape[1])), np.zeros((length, values.shape[1]))
    np.add.at(counts, places, present)
    np.add.at(sums, places, np.where(present, values, 0))
    grid = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    aside = float(np.abs(times - times[0] - places * step).max())
    return Grid(grid, places, step, aside)


def _places(times: NDArray[np.float64], step: float, *, exact: bool) -> tuple[NDArray[np.int64], float]:
    """The step of each reading, from 0, and how long a step is: refined by the whole length unless ``exact``."""
    if not exact:  # so that the error of the step does not add up
        steps = np.diff(times)
        steps = steps[steps > 0]
        step = (times[-1] - times[0]) / float(np.maximum(np.rint(steps / step), 1).sum())
    places = (times - times[0]) / step
    # Halves go up: rounded to even numbers, three readings would share one step, and one have the next to itself.
    whole = np.floor(places - np.median(places - np.rint(places)) + 0.5 + HALF_UP).astype(np.int64)
    return whole - whole[0], step


def _through_clock_changes(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times that go on where local clocks were put back by an hour: what comes after counts as an hour later.

    Clocks are put back in the first hours of a Sunday, and then not for half a year.
    """
    steps = np.diff(times)
    if not (steps <= 0).any() or not (steps > 0).any():
        return times
    usual = float(np.median(steps[steps > 0]))
    sunday = (times[1:] // DAY_S % 7 == SUNDAY) & (times[1:] % DAY_S < 4 * HOUR_S)
    put_back = (steps <= 0) & (np.abs(steps + HOUR_S - usual) <= usual / 2) & sunday
    far_apart = (np.diff(times[1:][put_back]) > HALF_YEAR_S).all()
    return times + HOUR_S * np.concatenate([[0], np.cumsum(put_back)]) if far_apart else times


def duration(seconds: float) -> str:
    """Seconds in words, as in ``10 min``, to four digits."""
    seconds = float(f"{seconds:.4g}")
    size, unit = next((each for each in UNITS if seconds >= each[0] and seconds % each[0] < 1e-6 * each[0]), UNITS[-1])
    return f"{seconds / size:.6g} {unit}"


def seconds_of(text: str) -> float:
    """Seconds of a duration such as ``10min``, ``1h`` or ``90``. Raises DataError where it is none."""
    found = re.fullmatch(r"(\d+\.?\d*)\s*(d|h|min|s|ms|)", text.strip())
    seconds = float(found[1]) * {unit: size for size, unit in UNITS}[found[2] or "s"] if found else 0
    if not seconds:
        raise DataError("A step is a length of time, as in 30s, 10min, 1h or 1d.")
    return seconds
