"""When the rows of a table usually are: the days of the week and the hours of the day that hold nearly all of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.schemas import HOURS, MISSING_TIMESTAMP, TIMESTAMPS, InputSchema, Rows

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
THURSDAY = 3
"""Day of the week of 1970-01-01; Monday is 0."""
RARE_DAY = 0.02
"""A day of the week with a smaller share of the rows is not usual."""
MOST_ROWS = 0.98
"""The share of rows that the usual hours hold."""
MOST_HOURS = 18
"""More hours than these are any time of the day."""


def usual_times(rows: Rows, schema: InputSchema) -> dict[str, dict[str, Any]]:
    """For each column of times its usual ``days``, 0 being Monday, and ``hours``, [from, to) in UTC; None: any.

    A column whose rows come on any day at any hour is left out.
    """
    found = {}
    for at, column in enumerate(schema.timestamps):
        times = rows[TIMESTAMPS][:, at]
        times = times[times != MISSING_TIMESTAMP]
        if len(times):
            days, hours = _usual_days(times), _usual_hours(times)
            if days is not None or hours is not None:
                found[column.name] = {"days": days, "hours": hours}
    return found


def _usual_days(times: NDArray[np.int64]) -> list[int] | None:
    shares = np.bincount((times // DAY_MS + THURSDAY) % 7, minlength=7) / len(times)
    days: list[int] = np.flatnonzero(shares >= RARE_DAY).tolist()
    return days if len(days) < 7 else None


def _usual_hours(times: NDArray[np.int64]) -> list[int] | None:
    """The shortest run of hours, over midnight too, with nearly all rows; None where times are dates."""
    if not (times % DAY_MS).any():
        return None
    shares = np.bincount(times % DAY_MS // HOUR_MS, minlength=HOURS) / len(times)
    for length in range(1, MOST_HOURS + 1):
        held = np.convolve(np.concatenate([shares, shares[: length - 1]]), np.ones(length), "valid")
        start = int(held.argmax())
        if held[start] >= MOST_ROWS:
            return [start, (start + length) % HOURS]
    return None
