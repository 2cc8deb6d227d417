"""Series for training: read, cut into blocks of time, and those into windows."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import HOURS, InputSchema, PointScale
from service.tables.files import find_files
from service.tables.reading import TableFiles, make_selection, read_columns
from service.tables.series import DAY_S, HOUR_S, duration, even_grid, find_times, numbers_of

MIN_WINDOW = 4
MAX_WINDOW = 512
SHORTEST_SERIES = 160
WINDOWS_IN_BLOCK = 2
"""A block is at least so many windows long, so that the windows lost at its ends are not most of them."""
MOST_BLOCKS = 60
FEWEST_BLOCKS = 20
"""Fewer would leave calibration to one or two stretches of time, which need not be like the others."""
UNEVEN = 0.05
"""Share of a step that a reading may be away from its point without a note."""
SEVERAL_SHARE = 0.1
"""Where so many rows have the time of another one, the table may hold several series."""
SMALLEST_PART = 1e-4
"""Of the variance: the least unit of errors and distances of points, so that noise is not blown up."""


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
    values = np.stack([numbers_of(table, name) for name in names], axis=1)
    notes, words, step_s = list(file.notes), "", None
    if times is not None:
        grid = even_grid(values, times.seconds, step)
        values, step_s = grid.values, grid.step if times.in_seconds else None
        words = duration(grid.step) if times.in_seconds else f"{grid.step:g}"
        notes += times.notes
        if grid.moved > UNEVEN * grid.step and step is None:
            notes.append(f"The times are uneven: readings were brought to steps of {words}; --step chooses others.")
        if grid.merged:
            notes.append(f"{grid.merged} readings fell into a step of {words} that had one already; the mean counts.")
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
