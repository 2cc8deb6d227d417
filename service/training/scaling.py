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
        observed = tf.logical_not(tf.math.is_nan(instances))
        filled = tf.where(observed, tf.cast(instances, tf.float64), self.typical)
        linear = (filled - self.center) / self.spread
        distance = tf.clip_by_value(tf.abs(linear), LINEAR_LIMIT, BEYOND_ALL)
        beyond = tf.sign(linear) * LINEAR_LIMIT * (1 + tf.math.log(distance / LINEAR_LIMIT))
        return tf.cast(tf.where(tf.abs(linear) <= LINEAR_LIMIT, linear, beyond), dtype), observed

    def unscale(self, scaled: Any) -> Any:
        """Raw values of scaled ones, finite in float32."""
        scaled = tf.cast(scaled, tf.float64)
        excess = tf.clip_by_value(tf.abs(scaled) / LINEAR_LIMIT - 1, 0, np.log(BEYOND_ALL))
        linear = tf.where(tf.abs(scaled) <= LINEAR_LIMIT, scaled, tf.sign(scaled) * LINEAR_LIMIT * tf.exp(excess))
        return tf.cast(tf.clip_by_value(linear * self.spread + self.center, -MAX_FLOAT32, MAX_FLOAT32), tf.float32)


def fit_scaling(instances: NDArray[np.float32], schema: InputSchema, config: TrainingConfig) -> Scaling:
    """Fit on training rows, (rows, *row_shape) raw with NaN for missing.

    A feature that does not vary, as far as float32 can tell, gets the spread 1.
    """
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


def _describe(present: NDArray[np.float32]) -> tuple[float, float, float, float, float]:
    """Mean, standard deviation, median, least and greatest; of no values at all, those of a zero."""
    if not len(present):
        return (0.0, 0.0, 0.0, 0.0, 0.0)
    wide = present.astype(np.float64)
    return (wide.mean(), wide.std(), float(np.median(wide)), wide.min(), wide.max())
