"""The days and hours that rows usually come at."""

import numpy as np
from numpy.typing import NDArray

from service.schemas import MISSING_TIMESTAMP, TIMESTAMPS, Column, ColumnType, InputSchema
from service.training.times import DAY_MS, HOUR_MS, usual_times

MONDAY = 4 * DAY_MS
SCHEMA = InputSchema(kind="tabular", row_shape=(0,), columns=(Column(name="at", type=ColumnType.TIMESTAMP),))


def usual(times: NDArray[np.int64]) -> object:
    return usual_times({TIMESTAMPS: times[:, None]}, SCHEMA).get("at")


def test_office_hours() -> None:
    """Weekdays from nine to five; a missing time and one in a hundred at another one change nothing."""
    random = np.random.default_rng(0)
    days = random.integers(0, 50, 2000)
    days = days // 5 * 7 + days % 5
    times = MONDAY + days * DAY_MS + random.integers(9 * HOUR_MS, 17 * HOUR_MS, 2000)
    times[:10] = MONDAY + 5 * DAY_MS + 3 * HOUR_MS
    times[-1] = MISSING_TIMESTAMP
    assert usual(times) == {"days": [0, 1, 2, 3, 4], "hours": [9, 17]}


def test_nights_go_over_midnight() -> None:
    random = np.random.default_rng(0)
    times = MONDAY + random.integers(0, 70, 2000) * DAY_MS + random.integers(22 * HOUR_MS, 28 * HOUR_MS, 2000)
    assert usual(times) == {"days": None, "hours": [22, 4]}


def test_any_time_and_none() -> None:
    """Rows that come at any time have no usual one; of dates only the days count."""
    random = np.random.default_rng(0)
    assert usual(MONDAY + random.integers(0, 70 * DAY_MS, 5000)) is None
    assert usual(np.full(3, MISSING_TIMESTAMP)) is None
    assert usual(MONDAY + random.integers(0, 20, 500) * 7 * DAY_MS) == {"days": [0], "hours": None}
