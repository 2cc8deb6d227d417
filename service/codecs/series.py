"""A series sent whole: one reading a point. It becomes the windows that a model of series takes as rows."""

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.codecs.rows import Limits
from service.errors import InvalidRows, TooLarge
from service.schemas import INSTANCES, Column, InputSchema, Rows

SERIES: Final = "series"


@lru_cache(maxsize=64)
def point_schema(schema: InputSchema) -> InputSchema:
    """A point as a row of named channels."""
    columns = tuple(Column(name=name, may_be_missing=schema.may_be_missing) for name in schema.channels)
    return InputSchema(kind="tabular", row_shape=(len(columns),), columns=columns)


def as_points(series: Any, schema: InputSchema) -> Any:
    """The JSON of a series as rows of points; of one channel the bare numbers will do."""
    if type(series) is list and len(schema.channels) == 1 and not any(type(point) in (list, dict) for point in series):
        return [[point] for point in series]
    return series


def windows_of(points: Rows, schema: InputSchema, limits: Limits) -> Rows:
    """Every window of consecutive points: (points - window + 1, window, channels).

    Raises:
        InvalidRows: the series is shorter than a window.
        TooLarge: the windows take more memory than a request may.
    """
    values: NDArray[np.float32] = points[INSTANCES]
    window = schema.row_shape[0]
    if len(values) < window:
        raise InvalidRows([], f"The series must have at least {window} points, the window of this model.")
    if (len(values) - window + 1) * window * values.shape[1] * 4 > limits.max_decoded_bytes:
        raise TooLarge(f"The windows of a series may take at most {limits.max_decoded_bytes} bytes; send it in parts.")
    views = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)
    return {INSTANCES: np.ascontiguousarray(views.transpose(0, 2, 1))}
