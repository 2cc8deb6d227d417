"""Series with a timestamp column: read, brought to an even grid, cut into blocks of time, and those into windows."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import InputSchema
from service.tables.selection import Selection

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


@dataclass(frozen=True, slots=True)
class Windows:
    """How a series becomes rows."""

    timestamp: str | None = None
    """Name of the column of times; None: the first there is."""
    length: int | None = None
    """Steps of a window; None: see ``read_series``."""
    stride: int = 1
    """Steps from one window to the next, in training."""


@dataclass(frozen=True, slots=True)
class Series:
    """Readings at even steps, and the blocks of time that they are divided into."""

    values: NDArray[np.float32]
    """(points, channels); NaN where there is no reading."""
    channels: tuple[str, ...]
    window: int
    blocks: tuple[tuple[int, int], ...]
    """First point, and the one after the last, of each block. All of a block goes to one part of the split."""

    def block(self, number: int) -> NDArray[np.float32]:
        start, end = self.blocks[number]
        return self.values[start:end]

    def windows(self, stride: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Windows (rows, window, channels) that lie within one block, and the block of each."""
        rows, numbers = [], []
        for number in range(len(self.blocks)):
            found = np.lib.stride_tricks.sliding_window_view(self.block(number), self.window, axis=0)[::stride]
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
    path: Path,
    *,
    timestamp: str | None = None,
    window: int | None = None,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> Series:
    """Read a CSV or Parquet file of one reading a line, oldest first.

    Args:
        timestamp: the column of times; None: the first column of times there is, and where there is none lines are
            taken to be evenly spaced.
        window: steps of a window; None: the period that the series repeats itself with, within limits.
        columns, drop: names of columns to use or to leave out.

    Raises:
        DataError: it is not such a series; names the row and column.
    """
    table = _read(path)
    timestamp = timestamp or _find_times(table)
    if timestamp is not None and timestamp not in table.column_names:
        raise DataError(f'There is no column "{timestamp}"; the columns are {", ".join(table.column_names[:20])}.')
    names = [name for name in Selection(columns, drop).names_of(table.column_names) if name != timestamp]
    if not names:
        raise DataError("No column of readings is left beside the timestamps.")
    values = np.stack([_numbers(table, name) for name in names], axis=1)
    if timestamp is not None:
        values = _on_even_grid(values, _times(table, timestamp))
    _check(values, names)
    longest = min(MAX_WINDOW, len(values) // (WINDOWS_IN_BLOCK * FEWEST_BLOCKS))
    if window is None:
        window = min(longest, max(MIN_WINDOW, _period(values)))
    elif not 2 <= window <= longest:
        raise DataError(
            f"A window of {window} steps does not fit {len(values)} points: from 2 to {longest} are possible."
        )
    return Series(values, tuple(names), window, _blocks(len(values), window))


def _read(path: Path) -> Any:
    from pyarrow import ArrowException, csv, parquet

    try:
        with path.open("rb") as stream:
            is_parquet = stream.read(4) == b"PAR1"
        return parquet.read_table(path) if is_parquet else csv.read_csv(path)
    except FileNotFoundError:
        raise DataError(f"There is no file {path.name}.") from None
    except (ArrowException, OSError) as error:
        raise DataError("The file cannot be read as CSV or Parquet with a header and one reading a line.") from error


def _find_times(table: Any) -> str | None:
    import pyarrow.types as kinds

    return next((f.name for f in table.schema if kinds.is_timestamp(f.type) or kinds.is_date(f.type)), None)


def _numbers(table: Any, name: str) -> NDArray[np.float32]:
    import pyarrow as pa

    try:
        return np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64).astype(np.float32)
    except pa.ArrowException as error:
        raise DataError(f'Column "{name}" holds something other than numbers; leave it out with --drop.') from error


def _times(table: Any, name: str) -> NDArray[np.float64]:
    """Seconds; numbers are taken as they are, whatever their unit."""
    import pyarrow as pa
    import pyarrow.types as kinds

    column = table[name]
    if column.null_count:
        raise DataError(f'Column "{name}" lacks a time in row {1 + column.to_pylist().index(None)}.')
    try:
        if kinds.is_integer(column.type) or kinds.is_floating(column.type):
            return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
        milliseconds = column.cast(pa.timestamp("ms", getattr(column.type, "tz", None))).cast(pa.int64())
        return np.asarray(milliseconds.to_numpy(), np.float64) / 1000
    except pa.ArrowException as error:
        raise DataError(f'Column "{name}" holds no times of one form, as in 2026-01-31 12:00:00.') from error


def _on_even_grid(values: NDArray[np.float32], times: NDArray[np.float64]) -> NDArray[np.float32]:
    """Readings at the nearest of even steps; a step without one is missing, of two the later counts."""
    steps = np.diff(times)
    if (steps < 0).any():
        row = int(np.argmax(steps < 0)) + 2
        raise DataError(f"Row {row} is earlier than the row before it; sort the file by its times.")
    steps = steps[steps > 0]
    if not len(steps):
        raise DataError("All times are the same.")
    # The usual step, first roughly and then from the whole length, so that its error does not add up.
    step = (times[-1] - times[0]) / np.maximum(np.rint(steps / np.median(steps)), 1).sum()
    exact = (times - times[0]) / step
    places = np.rint(exact - np.median(exact - np.rint(exact))).astype(np.int64)
    places -= places[0]
    length = int(places[-1]) + 1
    if len(np.unique(places)) < (1 - MOST_EMPTY) * length:
        raise DataError(
            "The times are too uneven: with their usual step more than half of the series would be missing."
        )
    grid = np.full((length, values.shape[1]), np.nan, np.float32)
    grid[places] = values
    return grid


def _check(values: NDArray[np.float32], names: Sequence[str]) -> None:
    if len(values) < SHORTEST_SERIES:
        raise DataError(f"The series has {len(values)} points; at least {SHORTEST_SERIES} are needed.")
    for at, name in enumerate(names):
        column = values[:, at]
        if np.isinf(column).any():
            raise DataError(f'Row {int(np.argmax(np.isinf(column))) + 1}, column "{name}": the number is infinite.')
        if np.isnan(column).all():
            raise DataError(f'Column "{name}" has no values; leave it out with --drop.')


def _period(values: NDArray[np.float32]) -> int:
    """Steps after which the first channels resemble themselves most: the highest peak of the autocorrelation.

    A series that does not repeat gets a window in which it forgets: the first lag without correlation.
    """
    filled = np.where(np.isnan(values), np.nanmean(values, axis=0), values).astype(np.float64)
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


def _blocks(points: int, window: int) -> tuple[tuple[int, int], ...]:
    count = max(FEWEST_BLOCKS, min(MOST_BLOCKS, points // (WINDOWS_IN_BLOCK * window)))
    edges = np.linspace(0, points, count + 1).astype(int).tolist()
    return tuple(itertools.pairwise(edges))
