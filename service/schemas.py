"""The forms of rows that store, codecs, runtime, API and training share.

Rows of one model travel as ``Rows``: the inputs of its SavedModel signatures by name, all with the same leading
dimension. ``instances`` holds numbers (float32, a missing value is NaN), ``categories`` the categorical columns
(UTF-8 bytes, a missing value is empty) and ``timestamps`` the timestamp columns (int64 milliseconds since 1970 in
UTC, a missing value is the smallest int64). A model has only the inputs that its columns need.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.errors import ModelFailed, OperationNotSupported
from service.words import ANOMALY_SCORE, Operation

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = dict[str, Array]
Results: TypeAlias = dict[str, Array]

Picker: TypeAlias = Callable[[Any], tuple[Any, ...]]

INSTANCES = "instances"
CATEGORIES = "categories"
TIMESTAMPS = "timestamps"
MISSING_TIMESTAMP = int(np.iinfo(np.int64).min)
HOURS = 24


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnType(StrEnum):
    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    CATEGORICAL = "categorical"
    TIMESTAMP = "timestamp"


class PointScale(Frozen):
    """Units of the scores of single points of a series; ``service.scoring.point_scores`` says how they are used.

    Attributes:
        error: mean squared error of the steps of training windows, in scaled units.
        typical: medians of the channels by slot of the day (slots, channels); a single slot: no daily cycle is known.
        spread: by channel, the mean squared distance of training points from what is typical.
        slot_points: points of one slot, which need not be whole.
        span: points on either side over which scores are averaged.
    """

    error: float = Field(gt=0)
    typical: tuple[tuple[float, ...], ...] = Field(min_length=1)
    spread: tuple[float, ...]
    slot_points: float = Field(gt=0)
    span: int = Field(ge=1)

    @property
    def step_s(self) -> float | None:
        """Seconds of a step in training, where it had times and was a day long."""
        return 3600 / self.slot_points if len(self.typical) == HOURS else None


class Column(Frozen):
    """One named column of a table, in the model's order."""

    name: str = Field(min_length=1, max_length=256)
    type: ColumnType = ColumnType.NUMERIC
    may_be_missing: bool = False
    categories: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class TensorInput:
    """One input of a model's signatures; the datatype by its name in the Open Inference Protocol."""

    name: str
    datatype: str
    row_shape: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        return [-1, *self.row_shape]


class InputSchema(Frozen):
    """The form of one row: named columns, or an array of ``row_shape``."""

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

    def columns_of(self, *types: ColumnType) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.type in types)

    # What decoding and encoding look up for each request, made once for each schema.

    @cached_property
    def numbers(self) -> tuple[Column, ...]:
        """Columns of ``instances``."""
        return self.columns_of(ColumnType.NUMERIC, ColumnType.BOOLEAN)

    @cached_property
    def categories(self) -> tuple[Column, ...]:
        return self.columns_of(ColumnType.CATEGORICAL)

    @cached_property
    def timestamps(self) -> tuple[Column, ...]:
        return self.columns_of(ColumnType.TIMESTAMP)

    @cached_property
    def ordered_columns(self) -> tuple[Column, ...]:
        """The columns in the order of the inputs: numbers and booleans, labels, times."""
        return self.numbers + self.categories + self.timestamps

    @cached_property
    def inputs(self) -> tuple[TensorInput, ...]:
        """The inputs of the signatures: those that the columns need."""
        inputs = []
        if self.numbers or not self.columns:
            inputs.append(TensorInput(INSTANCES, "FP32", self.row_shape))
        if self.categories:
            inputs.append(TensorInput(CATEGORIES, "BYTES", (len(self.categories),)))
        if self.timestamps:
            inputs.append(TensorInput(TIMESTAMPS, "INT64", (len(self.timestamps),)))
        return tuple(inputs)

    @cached_property
    def features(self) -> int:
        """Columns, or values of a row where they have no names."""
        return len(self.columns) or math.prod(self.row_shape)

    @cached_property
    def width(self) -> int:
        """Numbers in one row of ``instances``."""
        return math.prod(self.row_shape)

    @cached_property
    def arrays_in_row(self) -> int:
        """Arrays that nest the numbers of a row in JSON, the row's own included."""
        return sum(math.prod(self.row_shape[:dimension]) for dimension in range(len(self.row_shape)))

    @cached_property
    def arrays_only(self) -> bool:
        """Whether a plain array can carry a whole row: no categories, no timestamps."""
        return not self.categories and not self.timestamps

    @cached_property
    def boolean_at(self) -> tuple[int, ...]:
        """Places of the boolean columns among ``numbers``."""
        return tuple(at for at, column in enumerate(self.numbers) if column.type is ColumnType.BOOLEAN)

    @cached_property
    def missing_allowed(self) -> NDArray[np.bool_]:
        """Which numbers of a row may be missing; broadcasts against ``(rows, *row_shape)``."""
        return np.array([column.may_be_missing for column in self.numbers] if self.columns else [self.may_be_missing])

    @cached_property
    def any_missing_allowed(self) -> bool:
        return bool(self.missing_allowed.any())

    @cached_property
    def optional(self) -> dict[str, None]:
        """The columns that may be left out of an object, each as a missing value."""
        return {column.name: None for column in self.columns if column.may_be_missing}

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(column.name for column in self.columns)

    @cached_property
    def json_keys(self) -> dict[str, bytes]:
        """Each column's name as a JSON key with its colon, in the schema's order."""
        return {column.name: orjson.dumps(column.name) + b":" for column in self.columns}

    @cached_property
    def pick_columns(self) -> Picker:
        """An object by column name -> its values in the schema's order; KeyError or TypeError where it does not fit."""
        return picker([column.name for column in self.columns])

    @cached_property
    def pick_numbers(self) -> Picker:
        """A sequence in the schema's order -> the values of ``numbers``; so for the other types."""
        return self._pick(ColumnType.NUMERIC, ColumnType.BOOLEAN)

    @cached_property
    def pick_numeric(self) -> Picker:
        return self._pick(ColumnType.NUMERIC)

    @cached_property
    def pick_booleans(self) -> Picker:
        return self._pick(ColumnType.BOOLEAN)

    @cached_property
    def pick_categories(self) -> Picker:
        return self._pick(ColumnType.CATEGORICAL)

    @cached_property
    def pick_timestamps(self) -> Picker:
        return self._pick(ColumnType.TIMESTAMP)

    def _pick(self, *wanted: ColumnType) -> Picker:
        return picker([at for at, column in enumerate(self.columns) if column.type in wanted])


def picker(keys: Sequence[Any]) -> Picker:
    """A function that gives the values of some keys, or of some places, as a tuple."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda row: tuple(row[key] for key in keys)


FEW_VALUES = 2**13
"""BLAS shares sums of more than 10,000 values among threads, which then wait, spinning, for the next one."""
_FINITE_BLOCK = 2**16


nbytes = attrgetter("nbytes")


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


def times_as_numbers(times: Array) -> NDArray[np.float64]:
    """Milliseconds with NaN for a missing time."""
    return np.where(times == MISSING_TIMESTAMP, np.nan, times.astype(np.float64))


def take_rows(rows: Rows, which: Any) -> Rows:
    """The rows that a slice, a mask or an array of row numbers names."""
    return {name: array[which] for name, array in rows.items()}


def failure_of(results: Results) -> ModelFailed | None:
    """The error for a model's answer that holds a non-finite number, or None."""
    for name, array in results.items():
        if array.dtype.kind == "f" and not all_finite(array):
            return ModelFailed(f"The model answered with non-finite numbers in '{name}'.")
    return None


def unsupported(operation: Operation, model: str, version: int) -> OperationNotSupported:
    """The error for a version that lacks an operation. Without calibration it lacks the score."""
    if operation is ANOMALY_SCORE:
        return OperationNotSupported(
            f"Version {version} of model '{model}' is not calibrated: "
            f"`autoencoder recalibrate {model} {version} --rows ROWS` makes one that scores."
        )
    return OperationNotSupported(f"Version {version} of model '{model}' was not trained for {operation.path}.")


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows, or results, of several calls as those of one, in order. A single part is not copied."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
