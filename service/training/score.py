"""The anomaly score inside the graph. A better score replaces ``ReconstructionScore`` and nothing else changes.

The serving graph, calibration, explanations and export know a score only as ``Score``.
"""

from dataclasses import dataclass
from typing import Any, Protocol, Self

from service.training.quiet import tf
from service.training.scaling import Gaps


@dataclass(frozen=True, slots=True)
class Passed:
    """Rows as they passed through the network, in scaled units: tensors, or arrays, all with the rows first."""

    scaled: Any
    observed: Any
    """Which values were there, (rows, *row_shape)."""
    latent: Any
    reconstruction: Any
    hidden: tuple[Any, ...] = ()
    """What each dense hidden layer gives, (rows, width), in the order of the network."""
    gaps: Gaps | None = None
    """As in ``Scaled``; of tensors only."""

    def __len__(self) -> int:
        return len(self.scaled)

    def __getitem__(self, chosen: Any) -> Self:
        hidden = tuple(layer[chosen] for layer in self.hidden)
        return type(self)(
            self.scaled[chosen], self.observed[chosen], self.latent[chosen], self.reconstruction[chosen], hidden
        )


class Score(Protocol):
    """Higher = more anomalous. A score must treat each row alone."""

    name: str

    def __call__(self, rows: Passed) -> Any:
        """Score of each row, (rows,), finite."""
        ...


def residuals(rows: Passed) -> Any:
    """Rows less their reconstructions in scaled units, 0 where a value is missing: (rows, *row_shape)."""
    return _where_observed(rows, rows.scaled - rows.reconstruction)


def squared_errors(rows: Passed) -> Any:
    """Squared error of each value in scaled units, 0 where it is missing: (rows, *row_shape)."""
    return _where_observed(rows, _squares(rows))


def mean_squared_error(rows: Passed) -> Any:
    """``service.scoring.reconstruction_error`` in TensorFlow: (rows,), of the arguments' type."""
    if rows.gaps is None:
        return _row_means(squared_errors(rows))
    squares = _squares(rows)
    return tf.tensor_scatter_nd_update(_row_means(squares), rows.gaps.rows, _row_means(_kept(rows.gaps, squares)))


def _squares(rows: Passed) -> Any:
    return tf.math.squared_difference(rows.scaled, rows.reconstruction)


def _row_means(values: Any) -> Any:
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


def _where_observed(rows: Passed, values: Any) -> Any:
    """``values`` with 0 where one is missing. Hardly a row has gaps: the others are not looked at."""
    if rows.gaps is None:
        return tf.where(rows.observed, values, 0.0)
    return tf.tensor_scatter_nd_update(values, rows.gaps.rows, _kept(rows.gaps, values))


def _kept(gaps: Gaps, values: Any) -> Any:
    """Those of ``values`` that are in rows with gaps, 0 where one is missing."""
    return tf.where(gaps.observed, tf.gather_nd(values, gaps.rows), 0.0)


class ReconstructionScore:
    """The mean squared reconstruction error of a row, in scaled units."""

    name = "reconstruction error"

    def __call__(self, rows: Passed) -> Any:
        return mean_squared_error(rows)
