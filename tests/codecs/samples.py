"""Schemas and small bodies that the codec tests share."""

import io
from typing import Any

import numpy as np

from service.codecs import Limits
from service.schemas import Array, Column, ColumnType, InputSchema, Rows

VECTOR = InputSchema(kind="image", row_shape=(4,))
IMAGE = InputSchema(kind="image", row_shape=(2, 3), value_range=(0.0, 1.0))
GAPPY = InputSchema(kind="timeseries", row_shape=(2, 2), may_be_missing=True)
NUMBERS = InputSchema(
    kind="tabular",
    row_shape=(3,),
    columns=(
        Column(name="amount"),
        Column(name="age", may_be_missing=True),
        Column(name="active", type=ColumnType.BOOLEAN),
    ),
)
MIXED = InputSchema(
    kind="tabular",
    row_shape=(2,),
    columns=(
        Column(name="country", type=ColumnType.CATEGORICAL, may_be_missing=True),
        Column(name="amount"),
        Column(name="at", type=ColumnType.TIMESTAMP, may_be_missing=True),
        Column(name="active", type=ColumnType.BOOLEAN, may_be_missing=True),
        Column(name="kind", type=ColumnType.CATEGORICAL),
    ),
)
SCHEMAS = {"vector": VECTOR, "image": IMAGE, "gappy": GAPPY, "numbers": NUMBERS, "mixed": MIXED}
SMALL = Limits(max_rows=50, max_depth=8, max_decoded_bytes=4096, max_pixels=100)


def same_rows(left: Rows, right: Rows) -> bool:
    """Whether two sets of rows are equal, with their types, missing values being equal to each other."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and np.array_equal(left[name], right[name], equal_nan=left[name].dtype.kind == "f")
        for name in left
    )


def npy(array: Array, **kwargs: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, **kwargs)
    return sink.getvalue()
