"""What rows, operations and calibrations look like: the words shared by store, codecs, runtime, API and training.

Rows of one model travel as ``Rows``: the inputs of its SavedModel signatures by name, all with the same leading
dimension. ``instances`` holds numbers (float32, a missing value is NaN), ``categories`` the categorical columns
(UTF-8 bytes, a missing value is empty) and ``timestamps`` the timestamp columns (int64 milliseconds since 1970 in
UTC, a missing value is the smallest int64). A model has only the inputs that its columns need.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

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
    may_be_missing: bool = False
    """Whether unnamed values may be missing (NaN or null)."""
    value_range: tuple[float, float] | None = None
    """Smallest and largest value seen or possible, for images."""

    def columns_of(self, *types: ColumnType) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.type in types)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One of the four things that the service does with rows. There is one object of each."""

    name: str
    """Name of the SavedModel signature and of the operation in metrics."""
    path: str
    results: tuple[tuple[str, str], ...]
    """(name in an answer, name of the signature's output), the first one first."""


ENCODE = Operation("encode", "encode", (("latents", "latent"),))
RECONSTRUCT = Operation("reconstruct", "reconstruct", (("reconstructions", "reconstruction"), ("errors", "error")))
DENOISE = Operation("denoise", "denoise", (("denoised", "denoised"),))
ANOMALY_SCORE = Operation(
    "anomaly_score",
    "anomaly-score",
    (("scores", "score"), ("p_values", "p_value"), ("is_anomaly", "is_anomaly")),
)
OPERATIONS = (ENCODE, RECONSTRUCT, DENOISE, ANOMALY_SCORE)

EXPLAIN = "explain"
"""Signature beside the operations: ``contribution`` and ``expected``, each (rows, *row_shape); shares sum to 1."""


def row_count(rows: Rows) -> int:
    """Number of rows, the common leading dimension."""
    return len(next(iter(rows.values())))
