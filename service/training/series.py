"""Series with a timestamp column: read, brought to an even grid, cut into blocks of time, and those into windows."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import MISSING_TIMESTAMP, InputSchema, PointScale
from service.tables.dialect import read_times
from service.tables.files import find_files
from service.tables.reading import TableFiles, make_selection, read_columns

MIN_WINDOW = 4
MAX_WINDOW = 512
SHORTEST_SERIES = 160
WINDOWS_IN_BLOCK = 2
"""A block is at least so many windows long, so that the windows lost at its ends are not most of them."""
MOST_BLOCKS = 60
FEWEST_BLOCKS = 20
"""Fewer would leave calibration to one or two stretches of time, which need not be like the others."""
MOST_EMPTY = 0.5
"""Share of the even grid that may have no reading."""
UNEVEN = 0.05
"""Share of a step that a reading may be away from its point without a note."""
LONGER_STEPS = (2, 3, 5, 10)
"""Multiples of the usual step that uneven times may be brought to."""
MAX_POINTS = 20_000_000
SEVERAL_SHARE = 0.1
"""Where so many rows have the time of another one, the table may hold several series."""
FIRST_UNIX_S, LAST_UNIX_S = 978_307_200, 4_102_444_800
SUNDAY = 3
"""Days since 1970-01-01, a Thursday."""
HOUR_S, DAY_S, HALF_YEAR_S = 3_600, 86_400, 180 * 86_400
HOURS = 24
SMALLEST_PART = 1e-4
"""Of the variance: the least unit of errors and distances of points, so that noise is not blown up."""
UNITS = ((DAY_S, "d"), (HOUR_S, "h"), (60, "min"), (1, "s"), (0.001, "ms"))
CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Windows:
    """How a series becomes rows."""

    timestamp: str | None = None
    """Name of the column of times; None: the first there is."""
    length: int | None = None
    """Steps of a window; None: see ``read_series``."""
    stride: int = 1
    """Steps from one window to the next, in training."""
    step: float | None = None
    """Seconds from one point to the next; None: see ``read_series``."""


@dataclass(frozen=True, slots=True)
class Series:
    """Readings at even steps, and the blocks of time that they are divided into."""

    values: NDArray[np.float32]
    """(points, channels); NaN where there is no reading."""
    channels: tuple[str, ...]
    window: int
    blocks: tuple[tuple[int, int], ...]
    """First point, and the one after the last, of each block. All of a block goes to one part of the split."""
    step: str = ""
    """How far points are apart, in words; empty where lines are evenly spaced."""
    step_s: float | None = None
    """The same in seconds, where the times are dates or Unix times."""
    notes: tuple[str, ...] = ()
    """What was made of the source, for the user to see; sentences."""

    def describe(self) -> str:
        """The points, step, channels and window, for the terminal."""
        empty = int(np.isnan(self.values).all(axis=1).sum())
        step = f" every {self.step}" if self.step else ""
        gaps = f", {empty:,} of them without a reading" if empty else ""
        shown = ", ".join(self.channels[:20]) + (", …" if len(self.channels) > 20 else "")
        return f"{len(self.values):,} points{step}{gaps}; channels: {shown}; windows of {self.window} steps"

    def block(self, number: int) -> NDArray[np.float32]:
        start, end = self.blocks[number]
        return self.values[start:end]

    def windows(self, stride: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Windows (rows, window, channels) with a reading that lie within one block, and the block of each."""
        rows, numbers = [], []
        for number in range(len(self.blocks)):
            found = np.lib.stride_tricks.sliding_window_view(self.block(number), self.window, axis=0)[::stride]
            found = found[~np.isnan(found).all(axis=(1, 2))]
            rows.append(found.transpose(0, 2, 1))
            numbers.append(np.full(len(found), number))
        return np.ascontiguousarray(np.concatenate(rows)), np.concatenate(numbers).astype(np.intp)

    def schema(self) -> InputSchema:
        return InputSchema(
            kind="timeseries",
            row_shape=(self.window, len(self.channels)),
            channels=self.channels,
            may_be_missing=bool(np.isnan(self.values).any()),
        )


def read_series(
    source: Path | str,
    *,
    timestamp: str | None = None,
    window: int | None = None,
    step: float | None = None,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    where: Sequence[str] = (),
) -> Series:
    """Read a table of one reading a line, oldest first, of any format.

    Args:
        timestamp: the column of times; None: the first column of times there is, and where there is none lines are
            taken to be evenly spaced.
        window: steps of a window; None: the period that the series repeats itself with, within limits.
        step: seconds from one point to the next; None: the usual distance of the readings.
        columns, drop: names of columns to use or to leave out.
        where: conditions on rows, such as ``sensor=a``.

    Raises:
        DataError: it is not such a series; names the row and column.
    """
    file = TableFiles([Path(name) for name in find_files(str(source))])
    selection = make_selection(columns=columns, drop=drop, where=where)
    if timestamp is not None and timestamp not in file.names:
        raise DataError(f'There is no column "{timestamp}"; the columns are {", ".join(file.names[:20])}.')
    table = read_columns(file, selection, keep=timestamp)
    if not len(table):
        raise DataError("No row fulfils the conditions of --where." if where else "The file has no rows.")
    times = find_times(table, timestamp)
    names = [name for name in table.column_names if times is None or name not in times.columns]
    if not names:
        raise DataError("No column of readings is left beside the timestamps.")
    if times is not None:
        _refuse_several(table, names, times.seconds)
    values = np.stack([_numbers(table, name) for name in names], axis=1)
    notes, words, step_s = list(file.notes), "", None
    if times is not None:
        values, found, merged, aside = _on_even_grid(values, times.seconds, step)
        step_s = found if times.in_seconds else None
        words = duration(found) if times.in_seconds else f"{found:g}"
        notes += times.notes
        if aside > UNEVEN * found and step is None:
            notes.append(f"The times are uneven: readings were brought to steps of {words}; --step chooses others.")
        if merged:
            notes.append(f"{merged} readings fell into a step of {words} that had one already; the mean counts.")
    elif step is not None:
        raise DataError("A step needs a column of times; name it with --timestamp.")
    _check(values, names)
    longest = min(MAX_WINDOW, len(values) // (WINDOWS_IN_BLOCK * FEWEST_BLOCKS))
    if window is None:
        window = min(longest, max(MIN_WINDOW, _period(values)))
    elif not 2 <= window <= longest:
        raise DataError(
            f"A window of {window} steps does not fit {len(values)} points: from 2 to {longest} are possible."
        )
    count = max(FEWEST_BLOCKS, min(MOST_BLOCKS, len(values) // (WINDOWS_IN_BLOCK * window)))
    blocks = tuple(itertools.pairwise(np.linspace(0, len(values), count + 1).astype(int).tolist()))
    return Series(values.astype(np.float32), tuple(names), window, blocks, words, step_s, tuple(notes))


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


def _refuse_several(table: Any, names: Sequence[str], times: NDArray[np.float64]) -> None:
    """A long table has several series: times come again, and another column says whose they are."""
    _, counts = np.unique(times, return_counts=True)
    if len(counts) > (1 - SEVERAL_SHARE) * len(times):
        return
    for name in names:
        cells = table[name].combine_chunks().dictionary_encode()
        keys = np.asarray(cells.indices.fill_null(len(cells.dictionary)))
        is_key = 1 < len(cells.dictionary) <= 2 * counts.max()
        if is_key and len(np.unique(np.stack([times, keys]), axis=1).T) == len(times):
            raise DataError(
                f'Column "{name}" tells {len(cells.dictionary)} series apart: train a model of each, '
                f"the first with --where {name}={cells.dictionary[0].as_py()} --drop {name}."
            )


def _numbers(table: Any, name: str) -> NDArray[np.float64]:
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


def _on_even_grid(
    values: NDArray[np.float64], times: NDArray[np.float64], step: float | None
) -> tuple[NDArray[np.float64], float, int, float]:
    """Readings at the nearest of even steps, the step, how many share one with another, and how far one was moved.

    A step without a reading is missing; where there are several, their mean counts.
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
    return grid, step, len(places) - len(np.unique(places)), aside


def _places(times: NDArray[np.float64], step: float, *, exact: bool) -> tuple[NDArray[np.int64], float]:
    """The step of each reading, from 0, and how long a step is: refined by the whole length unless ``exact``."""
    if not exact:  # so that the error of the step does not add up
        steps = np.diff(times)
        steps = steps[steps > 0]
        step = (times[-1] - times[0]) / float(np.maximum(np.rint(steps / step), 1).sum())
    places = (times - times[0]) / step
    whole = np.rint(places - np.median(places - np.rint(places))).astype(np.int64)
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


def fit_point_scale(series: Series, *, error: float, held_back: Sequence[int]) -> PointScale:
    """Units of the scores of points, from all blocks but those held back.

    With times, and where the series is a day long or longer, what is typical is the median of the hour of the day, and
    scores are averaged over half a day on either side; else it is the median, and the average goes over a window. No
    average goes over more than a quarter of the series.

    Args:
        error: mean squared error of the steps of training windows, in scaled units.
    """
    kept = np.setdiff1d(np.arange(len(series.blocks)), held_back)
    at = np.concatenate([np.arange(*series.blocks[block]) for block in kept])
    values = series.values[at].astype(np.float64)
    values = np.where(np.isnan(values).all(axis=0), 0.0, values)
    typical, slot_points, span = np.nanmedian(values, axis=0)[None], float(len(series.values)), series.window
    if series.step_s is not None and series.step_s <= DAY_S / 2:
        span = round(DAY_S / 2 / series.step_s)
        if len(series.values) * series.step_s >= DAY_S:
            slot_points = HOUR_S / series.step_s
            hours = (at / slot_points).astype(int) % HOURS
            typical = np.stack([_hourly_medians(channel, hours) for channel in values.T], axis=1)
    distances = values - typical[(at / slot_points).astype(int) % len(typical)]
    variance = np.nanvar(values, axis=0)
    # A channel that never varies is measured by its level.
    least = np.where(variance > 0, SMALLEST_PART * variance, np.square(1e-3 * typical[0]) + SMALLEST_PART**2)
    return PointScale(
        error=max(error, SMALLEST_PART),
        typical=tuple(map(tuple, typical.tolist())),
        spread=tuple(np.maximum(np.nanmean(np.square(distances), axis=0), least).tolist()),
        slot_points=slot_points,
        span=min(span, MAX_WINDOW, max(series.window, len(series.values) // 4)),
    )


def _hourly_medians(channel: NDArray[np.float64], hours: NDArray[np.intp]) -> NDArray[np.float64]:
    """The median of each hour of the day; of an hour without a reading, between those of its neighbours."""
    seen = np.unique(hours[~np.isnan(channel)])
    medians = [np.nanmedian(channel[hours == hour]) for hour in seen]
    by_hour: NDArray[np.float64] = np.interp(np.arange(HOURS), seen, medians, period=HOURS)
    return by_hour


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


def _check(values: NDArray[np.float64], names: Sequence[str]) -> None:
    if len(values) < SHORTEST_SERIES:
        raise DataError(f"The series has {len(values)} points; at least {SHORTEST_SERIES} are needed.")
    for at, name in enumerate(names):
        column = values[:, at]
        if np.isinf(column).any():
            raise DataError(f'Row {int(np.argmax(np.isinf(column))) + 1}, column "{name}": the number is infinite.')
        if np.isnan(column).all():
            raise DataError(f'Column "{name}" has no values; leave it out with --drop.')


def _period(values: NDArray[np.float64]) -> int:
    """Steps after which the first channels resemble themselves most: the highest peak of the autocorrelation.

    A series that does not repeat gets a window in which it forgets: the first lag without correlation.
    """
    filled = np.where(np.isnan(values), np.nanmean(values, axis=0), values)
    centred = (filled - filled.mean(axis=0)) / np.maximum(filled.std(axis=0), 1e-12)
    power = np.abs(np.fft.rfft(centred, 2 * len(centred), axis=0)) ** 2
    correlation = np.fft.irfft(power.sum(axis=1))[: min(MAX_WINDOW, len(values) // 3) + 1]
    correlation = correlation / max(correlation[0], 1e-12)
    negative = np.flatnonzero(correlation <= 0)
    if not len(negative):
        return 32
    first = int(negative[0])
    later = correlation[first:]
    return first + int(np.argmax(later)) if later.max() > 0.2 else first
