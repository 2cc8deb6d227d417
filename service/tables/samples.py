"""Tables to try the service on, made from a seed: payments with a few odd ones, a series with odd stretches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MONDAY: Final = np.datetime64("2026-01-05", "m")
DAY_MINUTES: Final = 24 * 60
COUNTRIES: Final = ("DE", "FR", "NL", "PL")
SHARES: Final = (0.55, 0.2, 0.15, 0.1)

ODD_SHARE: Final = 0.02
"""The share of payments that are odd, in one of three ways."""

STEP_MINUTES: Final = 10
STUCK_HOURS, AWAKE_HOURS, HOT_HOURS = 12, 24, 18

Array = NDArray[np.float64]


def payments(rows: int, seed: int) -> pa.Table:
    """Payments by day, with a column ``label``: ``normal``, or ``odd`` for two in a hundred.

    Those that are ordinary are made by day, and their amount follows age, visits and country. Of the odd ones some are
    made at night, some are of many times the amount that fits, and some are of customers too young for their visits.
    """
    random = np.random.default_rng(seed)
    age = np.clip(random.normal(45, 15, rows), 18, 90).round()
    visits = random.poisson(1 + (age - 15) / 8)
    country = random.choice(len(COUNTRIES), rows, p=SHARES)
    hour = np.clip(random.normal(14, 3, rows), 7, 21.9)
    odd = random.random(rows) < ODD_SHARE
    way = np.where(odd, random.integers(1, 4, rows), 0)
    hour = np.where(way == 1, random.uniform(1, 4, rows), hour)
    amount = np.exp(2.5 + 0.015 * age + 0.1 * np.minimum(visits, 15) + 0.25 * country + random.normal(0, 0.3, rows))
    amount *= np.where(way == 2, random.uniform(8, 30, rows), 1)
    age = np.where(way == 3, random.integers(18, 21, rows), age)
    visits = np.where(way == 3, random.integers(12, 20, rows), visits)
    minutes = np.sort(random.integers(0, 90, rows)) * DAY_MINUTES + (60 * hour).astype(np.int64)
    return pa.table(
        {
            "id": np.arange(1, rows + 1),
            "time": (MONDAY + minutes).astype("datetime64[s]"),
            "amount": amount.round(2),
            "age": age.astype(np.int64),
            "visits": visits,
            "country": [COUNTRIES[index] for index in country],
            "label": ["odd" if each else "normal" for each in odd],
        }
    )


def series(rows: int, seed: int) -> pa.Table:
    """Load and temperature of a machine every ten minutes, higher by day and on weekdays.

    Three stretches of the last quarter are odd: the load is stuck for twelve hours, it stays as high as at noon for a
    day and a night, and the temperature is too high for the load for eighteen hours. The column ``label`` says where.
    """
    random = np.random.default_rng(seed)
    at = np.arange(rows)
    minutes = at * STEP_MINUTES
    hour, weekend = minutes / 60 % 24, minutes // DAY_MINUTES % 7 >= 5
    curve = np.where(weekend, 0.4, 1) * np.exp(-(((hour - 14) / 4.5) ** 2))
    load = 40 + 30 * curve + _slow(rows, random)
    odd = np.zeros(rows, bool)
    stretches = []
    for turn, hours in enumerate((STUCK_HOURS, AWAKE_HOURS, HOT_HOURS)):
        start = int(rows * (0.77 + 0.08 * turn))
        stretches.append(slice(start, start + min(hours * 60 // STEP_MINUTES, rows // 20)))
        odd[stretches[-1]] = True
    stuck, awake, hot = stretches
    load[awake] += 30 * (1 - curve[awake])
    load[stuck] = load[stuck.start]
    warm = 20 + 0.5 * np.convolve(np.pad(load, (5, 0), "edge"), np.ones(6) / 6, "valid") + random.normal(0, 0.4, rows)
    warm[hot] += 8
    return pa.table(
        {
            "time": (MONDAY + minutes).astype("datetime64[s]"),
            "load": load.round(2),
            "temperature": warm.round(2),
            "label": ["odd" if each else "normal" for each in odd],
        }
    )


def _slow(rows: int, random: np.random.Generator) -> Array:
    """Noise in which each value resembles the one before."""
    from scipy.signal import lfilter

    noise: Array = lfilter([0.6], [1, -0.8], random.normal(0, 1, rows))
    return noise


@dataclass(frozen=True)
class MadeTable:
    make: Callable[[int, int], pa.Table]
    """From a number of rows and a seed."""
    rows: int
    options: str
    """Of ``autoencoder train``, for this table."""


SAMPLES: Final[dict[str, MadeTable]] = {
    "payments": MadeTable(payments, 3_000, "--drop id,label"),
    "series": MadeTable(series, 8_640, "--kind timeseries --drop label"),
}


def write_sample(name: str, path: Any, *, rows: int | None = None, seed: int = 0) -> None:
    """Write the sample ``name`` as CSV; the number of rows is the sample's own if none is given."""
    from pyarrow import csv

    sample = SAMPLES[name]
    options = csv.WriteOptions(quoting_style="none", quoting_header="none")
    csv.write_csv(sample.make(sample.rows if rows is None else rows, seed), path, options)
