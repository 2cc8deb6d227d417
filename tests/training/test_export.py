"""The sample request: valid JSON that is read back as the same rows."""

import json

import numpy as np
import pytest

from service.schemas import INSTANCES, Column, ColumnType, InputSchema

pytestmark = pytest.mark.tf


def test_request_of_named_columns() -> None:
    """Objects by name, booleans as booleans, gaps as null, numbers as short as they can be."""
    from service.training.export import request_body

    columns = (Column(name="a"), Column(name="b", may_be_missing=True), Column(name="c", type=ColumnType.BOOLEAN))
    schema = InputSchema(kind="tabular", row_shape=(3,), columns=columns)
    body = request_body({INSTANCES: np.array([[0.1, np.nan, 1], [3e38, 2, np.nan]], np.float32)}, schema)
    assert body == {"instances": [{"a": 0.1, "b": None, "c": True}, {"a": 3e38, "b": 2.0, "c": None}]}


def test_request_of_arrays_is_read_back_exactly() -> None:
    """Every float32 survives the way through JSON."""
    from service.training.export import request_body

    rows = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    body = request_body({INSTANCES: rows}, InputSchema(kind="image", row_shape=(3, 2)))
    np.testing.assert_array_equal(np.array(json.loads(json.dumps(body))["instances"], np.float32), rows)
