"""Results of operations: arrays with one entry a row in the order of the rows, and the version that ran.

Scores, errors, flags and latents are numpy arrays. Rows that come back (reconstructions, denoised rows) have the form
that the rows were given in. ``to_pandas``, ``to_polars`` and ``to_arrow`` make a table of all of it, with
``passthrough`` beside the columns of the rows.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from service.client.rows import Rows
from service.scoring import discoveries
from service.words import (
    ANOMALY_SCORE,
    ARROW,
    CONTRIBUTIONS,
    DENOISE,
    ENCODE,
    ERROR_MAPS,
    NPY,
    RECONSTRUCT,
    ROW_RESULTS,
    Operation,
)

Floats = NDArray[np.float32]
R = TypeVar("R", bound="Result")


@dataclass(frozen=True)
class Contribution:
    """How much one feature accounts for a row's score; ``share`` of all features sum to 1."""

    feature: str | int | list[int]
    observed: Any
    expected: Any
    share: float


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result:
    operation: ClassVar[Operation]
    """Which operation finds it."""

    model: str
    version: int
    """The one version that answered for all rows."""
    rows: Rows
    """What was given."""
    passthrough: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows, model={self.model!r}, version={self.version})"

    def columns(self) -> dict[str, Any]:
        """Every result column by column. Names that the rows have too are prefixed, as in ``input.scores``."""
        results = {name: values for name, values in vars(self).items() if name not in _SHARED and values is not None}
        columns: dict[str, Any] = {name: values for name, values in results.items() if name not in _WIDE}
        if CONTRIBUTIONS in columns:
            columns[CONTRIBUTIONS] = [[vars(entry) for entry in row] for row in columns[CONTRIBUTIONS]]
        if self.passthrough:
            given = self.rows.named_columns()
            if given is None:
                raise ValueError("passthrough needs rows with named columns.")
            _add(columns, "input", given)
        for name, singular in _WIDE.items():
            if name in results:
                _add(columns, singular, _wide(singular, results[name]))
        return columns

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with the index of the rows, where they had one."""
        import pandas as pd

        columns = self.columns()
        for name, values in columns.items():
            if isinstance(values, np.ndarray) and values.ndim > 1:
                columns[name] = list(values)  # a list of arrays, which a pandas column can hold
            elif hasattr(values, "index") and hasattr(values, "array"):
                columns[name] = values.array  # a pandas series: pandas would align it
            elif hasattr(values, "to_pandas"):
                columns[name] = values.to_pandas().array
        return pd.DataFrame(columns, index=self.rows.index)

    def to_polars(self) -> Any:
        """A ``polars.DataFrame``."""
        import polars as pl

        return pl.from_arrow(self.to_arrow())

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table``."""
        import pyarrow as pa

        return pa.table({name: _arrow_column(values) for name, values in self.columns().items()})


_ONCE: Final[Mapping[str, Callable[[str], Any]]] = {
    "threshold": float,
    "false_alarm_rate": float,
    "false_discovery_rate": float,
    "calibration_rows": int,
    "warning": str,
}
_SHARED = {*(field.name for field in fields(Result)), *_ONCE}
"""Attributes that are no columns."""
_WIDE = {"latents": "latent", **ROW_RESULTS}
"""Results of several values a row, and what the names of their columns begin with."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Latents(Result):
    operation = ENCODE

    latents: Floats
    """(rows, latent width)."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Reconstructions(Result):
    operation = RECONSTRUCT

    reconstructions: Any
    """In the form of the rows, in their own units."""
    errors: Floats
    """Reconstruction error of each row, in scaled units."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Denoised(Result):
    operation = DENOISE

    denoised: Any
    """In the form of the rows."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AnomalyScores(Result):
    operation = ANOMALY_SCORE

    scores: Floats
    """Higher = more anomalous."""
    p_values: Floats
    is_anomaly: NDArray[np.bool_]
    threshold: float = math.inf
    """With ``false_discovery_rate`` the least score that is flagged; infinite where none is."""
    false_alarm_rate: float
    false_discovery_rate: float | None = None
    """Where it was asked for."""
    calibration_rows: int | None = None
    """With ``false_discovery_rate``."""
    warning: str | None = None
    """Why ``false_discovery_rate`` can flag no row, where it is so."""
    contributions: tuple[tuple[Contribution, ...], ...] | None = None
    """For each row the features that contribute most, with ``explain=k``."""
    error_maps: Floats | None = None
    """Share of each value in its row's score, in the shape of the rows, with ``explain="map"``."""


# --- from the wire ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartAnswer:
    """One part's answer: by name an array, records (rows of objects) or a ``pyarrow.Table`` of rows."""

    model: str
    version: int
    arrays: dict[str, Any]
    once: dict[str, Any]
    """What belongs to all rows."""


def read_answer(response: Any, results: Sequence[str]) -> PartAnswer:
    """The arrays of an ``httpx.Response``. ``results``: names of the operation's results, the first one first."""
    media_type = response.headers.get("content-type", "").partition(";")[0]
    model, version = response.headers["x-model-name"], int(response.headers["x-model-version"])
    if media_type == NPY:
        array = np.load(io.BytesIO(response.content), allow_pickle=False)
        return PartAnswer(model, version, {results[0]: array}, {})
    if media_type == ARROW:
        return PartAnswer(model, version, *_read_arrow(response.content, results))
    answer = orjson.loads(response.content)
    del answer["model"]
    once = {name: value for name in _ONCE if (value := answer.pop(name, None)) is not None}
    return PartAnswer(model, version, {name: _from_json(values) for name, values in answer.items()}, once)


def _from_json(values: list[Any]) -> Any:
    if values and isinstance(values[0], dict):
        return values
    if values and isinstance(values[0], list) and values[0] and isinstance(values[0][0], dict):
        return [tuple(Contribution(**entry) for entry in row) for row in values]
    array = np.asarray(values)
    return array if array.dtype == np.bool_ else array.astype(np.float32)


def _read_arrow(body: bytes, results: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
        table = reader.read_all()
    metadata = table.schema.metadata or {}
    once = {name: read(metadata[name.encode()].decode()) for name, read in _ONCE.items() if name.encode() in metadata}
    arrays: dict[str, Any] = {}
    for name in (*results, ERROR_MAPS):
        if name in table.column_names and name not in arrays:
            arrays[name] = _nested(table.column(name))
    for name in results:
        if name not in arrays:  # rows of named columns: what is left
            rest = table.select([column for column in table.column_names if column not in arrays])
            prefix = f"{ROW_RESULTS[name]}."
            names = [
                column.removeprefix(prefix) if column.removeprefix(prefix) in arrays else column
                for column in rest.column_names
            ]
            arrays[name] = rest.rename_columns(names).replace_schema_metadata(None)
    return arrays, once


def _nested(column: Any) -> Any:
    """A column of numbers, or of fixed-size lists of them, as an array."""
    values, shape = column.combine_chunks(), [len(column)]
    if hasattr(values, "chunks"):  # an empty or split column stays chunked in some releases
        values = values.chunk(0) if values.num_chunks else values
    while hasattr(values.type, "list_size"):
        shape.append(values.type.list_size)
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def merge(answers: Sequence[PartAnswer]) -> PartAnswer:
    """Answers of parts as one, in order."""
    first = answers[0]
    if len(answers) == 1:
        return first
    arrays: dict[str, Any] = {}
    for name, values in first.arrays.items():
        parts = [answer.arrays[name] for answer in answers]
        if isinstance(values, np.ndarray):
            arrays[name] = np.concatenate(parts)
        elif isinstance(values, list):
            arrays[name] = [row for part in parts for row in part]
        else:
            import pyarrow as pa

            arrays[name] = pa.concat_tables(parts)
    once = first.once
    if (rate := once.get("false_discovery_rate")) is not None:  # over all rows, not by parts
        arrays["is_anomaly"], once = discoveries(
            arrays["scores"], arrays["p_values"], rate, calibration_rows=once["calibration_rows"]
        )
        if (least := once.pop("threshold")) is not None:
            once["threshold"] = float(str(least))
    return PartAnswer(first.model, first.version, arrays, once)


def result_of(kind: type[R], answers: Sequence[PartAnswer], rows: Rows, *, passthrough: bool) -> R:
    """The result object of the answers to all parts of ``rows``."""
    answer = merge(answers)
    named = {
        name: rows.in_form(values) if name in ROW_RESULTS else tuple(values) if name == CONTRIBUTIONS else values
        for name, values in answer.arrays.items()
    }
    return kind(model=answer.model, version=answer.version, rows=rows, passthrough=passthrough, **named, **answer.once)


# --- as tables -------------------------------------------------------------------------------------------------------


def _add(columns: dict[str, Any], prefix: str, more: Mapping[str, Any]) -> None:
    for name, values in more.items():
        columns[f"{prefix}.{name}" if name in columns else name] = values


def _wide(name: str, rows: Any) -> dict[str, Any]:
    """Rows column by column: named columns as they are, arrays as ``name_0`` …, larger shapes as one column."""
    if isinstance(rows, np.ndarray):
        if rows.ndim == 2:
            return {f"{name}_{at}": rows[:, at] for at in range(rows.shape[1])}
        return {name: rows}
    if isinstance(rows, list):
        return {column: [row[column] for row in rows] for column in (rows[0] if rows else ())}
    if isinstance(rows, Mapping):
        return dict(rows)
    names = rows.column_names if hasattr(rows, "column_names") else rows.columns
    return {column: rows[column] for column in names}


def _arrow_column(values: Any) -> Any:
    import pyarrow as pa

    if hasattr(values, "to_arrow"):
        return values.to_arrow()
    if not (isinstance(values, np.ndarray) and values.ndim > 1):
        return values if isinstance(values, pa.ChunkedArray) else pa.array(values)
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
