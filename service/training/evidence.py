"""What the training report shows: what the exported version says of rows that it was not fitted on.

All of it comes from the version's signatures, as any caller would get it. Imports no TensorFlow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codecs.answers import label_text
from service.runtime.loaded_model import LoadedModel
from service.schemas import CATEGORIES, INSTANCES, TIMESTAMPS, ColumnType, InputSchema, Results, Rows, times_as_numbers
from service.training.exhibits import find_directions
from service.training.gate import run_version, spreads
from service.words import ANOMALY_SCORE, ENCODE, RECONSTRUCT

SHOWN_ROWS = 6
"""Rows drawn of the best and of the worst each."""


@dataclass(frozen=True, slots=True)
class FeatureError:
    """How well one column comes back. ``is_label``: a share of labels missed; else error over variance."""

    name: str
    error: float
    is_label: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a row, as people read it."""

    column: str
    observed: str
    reconstructed: str
    surprise: float
    """How far they are apart, in units of the column's spread; 1 for another label."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Columns of one sort: observed and reconstructed values, both (rows, columns), and how one is written."""

    names: tuple[str, ...]
    observed: NDArray[Any]
    rebuilt: NDArray[Any]
    write: Callable[[Any], str]
    is_label: bool = False

    def distances(self) -> NDArray[np.float64]:
        """How far each value is missed, in spreads of its column; 1 for another label, NaN where it is missing."""
        if self.is_label:
            return np.asarray(self.observed != self.rebuilt, np.float64)
        return np.asarray(np.abs(self.rebuilt - self.observed) / spreads(self.observed))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Test rows, and what the version says of each; all arrays have the rows first."""

    schema: InputSchema
    rows: Rows
    rebuilt: Results
    """``reconstruction`` and, for labels and times, ``reconstruction_categories`` and ``reconstruction_timestamps``."""
    scores: NDArray[np.float32]
    p_values: NDArray[np.float32]
    projected: NDArray[np.float64]
    """(rows, directions): the latents along their principal directions, the widest first."""
    explained: NDArray[np.float64]
    """(directions,): share of the latents' variance along each."""

    @property
    def count(self) -> int:
        return len(self.scores)

    @property
    def by_error(self) -> NDArray[np.intp]:
        """Row numbers, the best reconstructed first."""
        return np.argsort(self.rebuilt["error"], kind="stable")

    @property
    def best(self) -> NDArray[np.intp]:
        return self.by_error[:SHOWN_ROWS]

    @property
    def worst(self) -> NDArray[np.intp]:
        return self.by_error[::-1][:SHOWN_ROWS]


def gather(version: LoadedModel, rows: Rows) -> Evidence:
    """Run the version on raw test rows."""
    judged = run_version(version, ANOMALY_SCORE.name, rows)
    latents = run_version(version, ENCODE.name, rows)["latent"]
    directions = find_directions(latents)
    projected = directions.project(latents)
    return Evidence(
        schema=version.schema,
        rows=rows,
        rebuilt=run_version(version, RECONSTRUCT.name, rows),
        scores=judged["score"],
        p_values=judged["p_value"],
        projected=projected,
        explained=directions.explained,
    )


def feature_errors(evidence: Evidence) -> list[FeatureError]:
    """The error of each column, the worst first, labels last; none for the pixels of an image, which have no names."""
    if evidence.schema.kind == "image":
        return []
    found = []
    for block in _blocks(evidence):
        means = np.ma.filled(np.ma.masked_invalid(np.square(block.distances())).mean(axis=0), 0.0)
        found += [
            FeatureError(name, float(mean), block.is_label) for name, mean in zip(block.names, means, strict=True)
        ]
    return sorted(found, key=lambda feature: (feature.is_label, -feature.error))


def cells(evidence: Evidence, row: int) -> list[Cell]:
    """The values of one row of a table, those farthest from their reconstruction first."""
    found = []
    for block in _blocks(evidence):
        values = zip(
            block.names, block.observed[row], block.rebuilt[row], np.nan_to_num(block.distances()[row]), strict=True
        )
        found += [Cell(name, block.write(one), block.write(other), float(far)) for name, one, other, far in values]
    return sorted(found, key=lambda cell: -cell.surprise)


def _blocks(evidence: Evidence) -> Iterator[_Block]:
    """Numbers (of a series: its channels), labels, times; what the version does not reconstruct is left out."""
    inputs, rebuilt = evidence.rows, evidence.rebuilt
    if INSTANCES in inputs and "reconstruction" in rebuilt:
        width = inputs[INSTANCES].shape[-1]
        named = evidence.schema.channels or _names(evidence.schema, ColumnType.NUMERIC, ColumnType.BOOLEAN)
        yield _Block(
            named if len(named) == width else tuple(f"value {number}" for number in range(1, width + 1)),
            inputs[INSTANCES].reshape(-1, width).astype(np.float64),
            rebuilt["reconstruction"].reshape(-1, width).astype(np.float64),
            lambda value: "missing" if np.isnan(value) else f"{value:.4g}",
        )
    labels, times = f"reconstruction_{CATEGORIES}", f"reconstruction_{TIMESTAMPS}"
    if CATEGORIES in inputs and labels in rebuilt:
        names = _names(evidence.schema, ColumnType.CATEGORICAL)
        yield _Block(
            names, inputs[CATEGORIES], rebuilt[labels], lambda label: label_text(label) or "missing", is_label=True
        )
    if TIMESTAMPS in inputs and times in rebuilt:
        names = _names(evidence.schema, ColumnType.TIMESTAMP)
        yield _Block(names, times_as_numbers(inputs[TIMESTAMPS]), times_as_numbers(rebuilt[times]), _time)


def _names(schema: InputSchema, *types: ColumnType) -> tuple[str, ...]:
    return tuple(column.name for column in schema.columns_of(*types))


def _time(milliseconds: float) -> str:
    if np.isnan(milliseconds):
        return "missing"
    return str(np.datetime64(int(milliseconds), "ms").astype("datetime64[s]")).replace("T", " ")
