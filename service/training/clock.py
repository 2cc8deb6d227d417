"""Timestamp columns inside the graph: milliseconds to a place in time and in its cycles, and back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.schemas import MISSING_TIMESTAMP
from service.training.quiet import tf

DAY_MS = 86_400_000
CYCLES_MS = (31_556_952_000, 7 * DAY_MS, DAY_MS)
"""The mean Gregorian year, the week, the day."""
EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_999


@dataclass(frozen=True, slots=True)
class Clock:
    """What training saw of one column."""

    latest: int
    """Later times count as this one: a row is not strange for coming after the training."""
    cycles: tuple[int, ...]
    """Periods in milliseconds, the longest first; those of which the training rows span a whole one."""

    @property
    def width(self) -> int:
        return 1 + 2 * len(self.cycles)

    def spread_out(self, times: Any) -> Any:
        """(rows,) to (rows, width) float64: days since the latest, sine and cosine of each cycle; NaN if missing."""
        days = tf.cast(tf.minimum(times, self.latest) - self.latest, tf.float64) / DAY_MS
        parts = [days]
        for period in self.cycles:
            angle = tf.cast(tf.math.floormod(times, period), tf.float64) * (2 * np.pi / period)
            parts += [tf.sin(angle), tf.cos(angle)]
        values = tf.stack(parts, axis=1)
        return tf.where(tf.equal(times, MISSING_TIMESTAMP)[:, None], tf.constant(np.nan, tf.float64), values)

    def gather_up(self, values: Any) -> Any:
        """The time (rows,) of values (rows, width): the one nearest to the place in time that fits the cycles."""
        limit = (LATEST_MS - EARLIEST_MS) / DAY_MS
        time = tf.clip_by_value(values[:, 0], -limit, limit) * DAY_MS + self.latest
        for number, period in enumerate(self.cycles):
            angle = tf.atan2(values[:, 1 + 2 * number], values[:, 2 + 2 * number])
            off = angle / (2 * np.pi) - time / period
            time += (off - tf.round(off)) * period
        return tf.cast(tf.clip_by_value(tf.round(time), EARLIEST_MS, LATEST_MS), tf.int64)


def fit_clock(times: NDArray[np.int64]) -> Clock:
    """Fit on (rows,) milliseconds. A cycle counts where the rows span a whole one and differ in their place in it."""
    present = times[times != MISSING_TIMESTAMP]
    if not len(present):
        return Clock(0, ())
    earliest, latest = int(present.min()), int(present.max())
    cycles = (period for period in CYCLES_MS if latest - earliest >= period and np.ptp(present % period) > 0)
    return Clock(latest, tuple(cycles))
