"""What rows look like: the forms shared by store, codecs, runtime, API and training.

Rows of one model travel as ``Rows``: the inputs of its SavedModel signatures by name, all with the same leading
dimension. ``instances`` holds numbers (float32, a missing value is NaN), ``categories`` the categorical columns
(UTF-8 bytes, a missing value is empty) and ``timestamps`` the timestamp columns (int64 milliseconds since 1970 in
UTC, a missing value is the smallest int64). A model has only the inputs that its columns need.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.errors import ModelFailed

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = dict[str, Array]
Results: TypeAlias = dict[str, Array]

INSTANCES = "instances"
CATEGORIES = "categories"
TIMESTAMPS = "timestamps"
MISSING_TIMESTAMP = int(np.iinfo(np.int64).min)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnType(StrEnum):
    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    CATEGORICAL = "categorical"
    TIMESTAMP = "timestamp"


class Column(Frozen):
    """One named column of a table, in the model's order."""

    name: str = Field(min_length=1, max_length=256)
    type: ColumnType = ColumnType.NUMERIC
    may_be_missing: bool = False
    categories: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


class InputSchema(Frozen):
    """What one row is: named columns, or an array of ``row_shape``."""

    kind: Literal["tabular", "image", "timeseries"]
    row_shape: tuple[int, ...]
    """Shape of one row of ``instances``; for named columns ``(numeric and boolean columns,)``."""
    columns: tuple[Column, ...] = ()
    channels: tuple[str, ...] = ()
    """Names of what is read at each step of a window of a series, in order."""
    may_be_missing: bool = False
    """Whether unnamed values may be missing (NaN or null)."""
    value_range: tuple[float, float] | None = None
    """Smallest and largest value seen or possible, for images."""

    @property
    def features(self) -> int:
        """Columns, or values of a row where they have no names."""
        return len(self.columns) or math.prod(self.row_shape)

    def columns_of(self, *types: ColumnType) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.type in types)


FEW_VALUES = 2**13
"""BLAS shares sums of more than 10,000 values among threads, which then wait, spinning, for the next one."""
_FINITE_BLOCK = 2**16


def row_count(rows: Rows) -> int:
    """Number of rows, the common leading dimension."""
    return len(next(iter(rows.values())))


def all_finite(numbers: Array) -> bool:
    """Whether floats of any shape are all finite, without an array of their size.

    Of few, the sum of squares tells in half the time of ``np.isfinite``: it is NaN or infinite when any of them is.
    Where it is so from very large numbers alone, they are looked at one by one.
    """
    flat = numbers.reshape(-1)
    if flat.size <= FEW_VALUES and math.isfinite(np.vdot(flat, flat)):
        return True
    return all(np.isfinite(flat[start : start + _FINITE_BLOCK]).all() for start in range(0, flat.size, _FINITE_BLOCK))


def ordered_columns(schema: InputSchema) -> tuple[Column, ...]:
    """The columns in the order of the inputs: numbers and booleans, labels, times."""
    numbers = schema.columns_of(ColumnType.NUMERIC, ColumnType.BOOLEAN)
    return numbers + schema.columns_of(ColumnType.CATEGORICAL) + schema.columns_of(ColumnType.TIMESTAMP)


def times_as_numbers(times: Array) -> NDArray[np.float64]:
    """Milliseconds with NaN for a missing time."""
    return np.where(times == MISSING_TIMESTAMP, np.nan, times.astype(np.float64))


def take_rows(rows: Rows, which: Any) -> Rows:
    """The rows that a slice, a mask or an array of row numbers names."""
    return {name: array[which] for name, array in rows.items()}


def failure_of(results: Results) -> ModelFailed | None:
    """What a model's answer is where a number in it is not finite; None where all are."""
    for name, array in results.items():
        if array.dtype.kind == "f" and not all_finite(array):
            return ModelFailed(f"The model answered with non-finite numbers in '{name}'.")
    return None


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows, or results, of several calls as those of one, in order. A single part is not copied."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
