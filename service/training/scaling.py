"""From raw values to what the network sees, and back: fitted in numpy, applied inside the graph.

Values within ``LINEAR_LIMIT`` spreads of the centre are scaled linearly. Farther out the scale is logarithmic,
continuous in value and slope, so that the largest float32 still has a finite score while a stranger value always
looks stranger.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.schemas import InputSchema
from service.training.config import TrainingConfig
from service.training.quiet import tf

LINEAR_LIMIT = 10.0
MAX_FLOAT32 = float(np.finfo(np.float32).max)
BEYOND_ALL = 1e90
"""More spreads than any float32 lies from any centre, but finite in float64 arithmetic."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Fitted on the training rows. All arrays have the shape of a row and are in raw units."""

    center: NDArray[np.float64]
    spread: NDArray[np.float64]
    """Above 0."""
    typical: NDArray[np.float64]
    """The median: stands in for a missing value."""
    bounded: bool
    """Whether training values lie in [0, 1] after scaling."""

    def scale(self, instances: Any, dtype: Any = tf.float32) -> tuple[Any, Any]:
        """Scaled values and where a value was observed (bool), both (rows, *row_shape)."""
        values = tf.cast(instances, dtype)
        linear = (values - tf.cast(self.center, dtype)) / tf.cast(self.spread, dtype)

        def strange() -> tuple[Any, Any]:
            observed = tf.logical_not(tf.math.is_nan(values))
            exact = (tf.cast(tf.where(observed, values, self.typical), tf.float64) - self.center) / self.spread
            distance = tf.clip_by_value(tf.abs(exact), LINEAR_LIMIT, BEYOND_ALL)
            beyond = tf.sign(exact) * LINEAR_LIMIT * (1 + tf.math.log(distance / LINEAR_LIMIT))
            return tf.cast(tf.where(tf.abs(exact) > LINEAR_LIMIT, beyond, exact), dtype), observed

        # Each step over all values takes as long as a layer, and hardly a batch has a gap or a value so far out.
        scaled, observed = tf.cond(self._is_linear(linear), lambda: (linear, tf.ones_like(linear, tf.bool)), strange)
        return scaled, observed

    def unscale(self, scaled: Any) -> Any:
        """Raw values of scaled ones, finite in float32."""

        def exact() -> Any:
            return tf.cast(tf.clip_by_value(self.widen(scaled), -MAX_FLOAT32, MAX_FLOAT32), tf.float32)

        if scaled.dtype != tf.float32 or self._farthest >= MAX_FLOAT32:
            return exact()
        spread, center = self.spread.astype(np.float32), self.center.astype(np.float32)
        return tf.cond(self._is_linear(scaled), lambda: scaled * spread + center, exact)

    @property
    def _farthest(self) -> float:
        """Largest raw value, without its sign, that linear scaling knows."""
        return float((np.abs(self.center) + LINEAR_LIMIT * self.spread).max(initial=0.0))

    @staticmethod
    def _is_linear(scaled: Any) -> Any:
        """Whether nothing is missing, nor outside of the linear part of the scale."""
        return tf.reduce_all(tf.abs(scaled) <= LINEAR_LIMIT)  # False for NaN

    def widen(self, scaled: Any) -> Any:
        """The same in float64, and finite there."""
        scaled = tf.cast(scaled, tf.float64)
        is_far = tf.abs(scaled) > LINEAR_LIMIT

        def stretched() -> Any:
            excess = tf.clip_by_value(tf.abs(scaled) / LINEAR_LIMIT - 1, 0, np.log(BEYOND_ALL))
            return tf.where(is_far, tf.sign(scaled) * LINEAR_LIMIT * tf.exp(excess), scaled)

        linear = tf.cond(tf.reduce_any(is_far), stretched, lambda: scaled)
        return linear * self.spread + self.center


def fit_scaling(instances: NDArray[np.floating[Any]], schema: InputSchema, config: TrainingConfig) -> Scaling:
    """Fit on training rows, (rows, *row_shape) raw with NaN for missing.

    A feature that does not vary, as far as float32 can tell, gets the spread 1.
    """
    if schema.kind == "timeseries":
        return _by_channel(instances, schema, config)
    kind = ("minmax" if schema.kind == "image" else "standard") if config.scaling == "auto" else config.scaling
    flat = instances.reshape(len(instances), -1)
    columns = [_describe(column[~np.isnan(column)]) for column in flat.T]
    mean, deviation, median, low, high = np.array(columns, np.float64).T.reshape(5, *schema.row_shape)
    if kind == "standard":
        # A deviation of rounding errors only is none.
        steady = deviation <= 1e-7 * np.abs(mean)
        return Scaling(mean, np.where(steady, 1.0, deviation), median, bounded=False)
    if schema.value_range is not None:
        low, high = (np.full(schema.row_shape, limit) for limit in schema.value_range)
    return Scaling(low, np.where(high > low, high - low, 1.0), median, bounded=True)


def _by_channel(instances: NDArray[np.floating[Any]], schema: InputSchema, config: TrainingConfig) -> Scaling:
    """One scale for all steps of a window: where in a window a reading stands is chance."""
    flat = InputSchema(kind="tabular", row_shape=schema.row_shape[1:])
    fitted = fit_scaling(instances.reshape(-1, *schema.row_shape[1:]), flat, config)
    center, spread, typical = (
        np.broadcast_to(array, schema.row_shape) for array in (fitted.center, fitted.spread, fitted.typical)
    )
    return Scaling(center, spread, typical, bounded=fitted.bounded)


def _describe(present: NDArray[np.floating[Any]]) -> tuple[float, float, float, float, float]:
    """Mean, standard deviation, median, least and greatest; of no values at all, those of a zero."""
    if not len(present):
        return (0.0, 0.0, 0.0, 0.0, 0.0)
    wide = present.astype(np.float64)
    return (wide.mean(), wide.std(), float(np.median(wide)), wide.min(), wide.max())
