"""Rows as a JSON request has them: valid JSON that is read back as the same rows."""

import json

import numpy as np

from service.codecs.answers import instances_of
from service.schemas import CATEGORIES, INSTANCES, MISSING_TIMESTAMP, TIMESTAMPS, Column, ColumnType, InputSchema


def test_named_columns() -> None:
    """Objects in the order of the columns, booleans as booleans, gaps as null, numbers as short as they can be."""
    columns = (
        Column(name="when", type=ColumnType.TIMESTAMP),
        Column(name="a"),
        Column(name="b", may_be_missing=True),
        Column(name="c", type=ColumnType.BOOLEAN),
        Column(name="kind", type=ColumnType.CATEGORICAL),
    )
    rows = {
        INSTANCES: np.array([[0.1, np.nan, 1], [3e38, 2, np.nan]], np.float32),
        CATEGORIES: np.array([[b"x"], [b""]], object),
        TIMESTAMPS: np.array([[0], [MISSING_TIMESTAMP]], np.int64),
    }
    first, second = instances_of(rows, InputSchema(kind="tabular", row_shape=(3,), columns=columns))
    assert first == {"when": "1970-01-01T00:00:00.000Z", "a": 0.1, "b": None, "c": True, "kind": "x"}
    assert list(first) == ["when", "a", "b", "c", "kind"]
    assert second == {"when": None, "a": 3e38, "b": 2.0, "c": None, "kind": None}


def test_arrays_are_read_back_exactly() -> None:
    """Every float32 survives the way through JSON."""
    rows = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    sent = json.dumps(instances_of({INSTANCES: rows}, InputSchema(kind="image", row_shape=(3, 2))))
    np.testing.assert_array_equal(np.array(json.loads(sent), np.float32), rows)
