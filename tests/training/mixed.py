"""Rows of all four types of columns, in which one cause drives several of them."""

import numpy as np

from service.schemas import MISSING_TIMESTAMP, Column, ColumnType, InputSchema, Rows
from service.training.data import Dataset, check_dataset

DAY_MS = 86_400_000
START_MS = 1_600_000_000_000 // DAY_MS * DAY_MS
MIXED_COLUMNS = (
    Column(name="amount"),
    Column(name="country", type=ColumnType.CATEGORICAL, categories=("DE", "FR", "IT")),
    Column(name="member", type=ColumnType.BOOLEAN),
    Column(name="at", type=ColumnType.TIMESTAMP),
    Column(name="channel", type=ColumnType.CATEGORICAL, may_be_missing=True),
    Column(name="age", may_be_missing=True),
    Column(name="signed", type=ColumnType.TIMESTAMP, may_be_missing=True),
)
MIXED = InputSchema(kind="tabular", row_shape=(3,), columns=MIXED_COLUMNS)


def mixed_rows(count: int, *, seed: int) -> Rows:
    """The country decides amount, age and hour; members use the app. A tenth of channels, ages and times is missing."""
    random = np.random.default_rng(seed)
    country = random.choice(3, count, p=[0.5, 0.3, 0.2])
    member = random.random(count) < 0.5
    amount = np.array([50, 200, 900])[country] + random.normal(scale=5, size=count)
    age = np.array([25, 45, 65])[country] + random.normal(size=count)
    hour = np.array([3, 11, 19])[country] + random.normal(scale=0.3, size=count)
    at = START_MS + random.integers(0, 60, count) * DAY_MS + (hour * 3_600_000).astype(np.int64)
    channel = np.where(member, b"app", random.choice([b"shop", b"phone"], count)).astype(object)
    signed = at - 30 * DAY_MS
    age[random.random(count) < 0.1] = np.nan
    channel[random.random(count) < 0.1] = b""
    signed[random.random(count) < 0.1] = MISSING_TIMESTAMP
    labels = np.array([b"DE", b"FR", b"IT"], object)[country]
    return {
        "instances": np.stack([amount, member, age], axis=1).astype(np.float32),
        "categories": np.stack([labels, channel], axis=1),
        "timestamps": np.stack([at, signed], axis=1),
    }


def mixed_dataset(count: int, *, seed: int = 0) -> Dataset:
    return check_dataset(Dataset(mixed_rows(count, seed=seed), MIXED, "orders.csv", ""))
