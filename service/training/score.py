"""The anomaly score inside the graph. A better score replaces ``ReconstructionScore`` and nothing else changes.

The serving graph, calibration, explanations and export know a score only as ``Score``.
"""

from typing import Any, Protocol

from service.training.quiet import tf


class Score(Protocol):
    """Higher = more anomalous. All arguments are tensors with the rows first; a score must treat each row alone."""

    name: str

    def __call__(self, scaled: Any, observed: Any, latent: Any, reconstruction: Any) -> Any:
        """Score of each row, (rows,), finite."""
        ...


def residuals(scaled: Any, observed: Any, reconstruction: Any) -> Any:
    """Rows less their reconstructions in scaled units, 0 where a value is missing: (rows, *row_shape)."""
    return tf.where(observed, scaled - reconstruction, 0.0)


def squared_errors(scaled: Any, observed: Any, reconstruction: Any) -> Any:
    """Squared error of each value in scaled units, 0 where it is missing: (rows, *row_shape)."""
    return tf.square(residuals(scaled, observed, reconstruction))


def mean_squared_error(scaled: Any, observed: Any, reconstruction: Any) -> Any:
    """``service.scoring.reconstruction_error`` in TensorFlow: (rows,), of the arguments' type."""
    squares = squared_errors(scaled, observed, reconstruction)
    return tf.reduce_mean(squares, axis=list(range(1, squares.shape.rank)))


class ReconstructionScore:
    """The mean squared reconstruction error of a row, in scaled units."""

    name = "reconstruction error"

    def __call__(self, scaled: Any, observed: Any, latent: Any, reconstruction: Any) -> Any:
        del latent
        return mean_squared_error(scaled, observed, reconstruction)
