"""From raw values to what the network sees, and back: fitted in numpy, applied inside the graph.

Values within ``LINEAR_LIMIT`` spreads of the centre are scaled linearly. Farther out the scale is logarithmic,
continuous in value and slope, so that the largest float32 still has a finite score while a stranger value always
looks stranger.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import tf
from service.schemas import InputSchema
from service.training.config import TrainingConfig

LINEAR_LIMIT = 10.0
MAX_FLOAT32 = float(np.finfo(np.float32).max)
FARTHEST = 1e18
BEYOND_ALL = 1e90
"""More spreads than any float32 lies from any centre, but finite in float64 arithmetic."""


class Gaps(NamedTuple):
    """The rows that may have gaps, as tensors; in all others every value is there."""

    rows: Any
    """Their numbers, (k, 1)."""
    observed: Any
    """Which of their values were there, (k, *row_shape)."""


class Scaled(NamedTuple):
    """Rows in scaled units, as tensors."""

    values: Any
    """(rows, *row_shape), finite: a typical value where one is missing."""
    observed: Any
    """Which values were there, of the same shape."""
    gaps: Gaps | None = None
    """None where any row may have gaps."""


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

    def scale(self, instances: Any, dtype: Any = tf.float32) -> Scaled:
        """Raw values (rows, *row_shape) with NaN for missing, scaled."""
        values = tf.cast(instances, dtype)
        scaled = (values - self._constant(self.center, dtype)) / self._constant(self.spread, dtype)
        strange = _strange_rows(scaled)
        rows, linear = tf.gather_nd(values, strange), tf.gather_nd(scaled, strange)
        observed = tf.logical_not(tf.math.is_nan(rows))
        exact = (tf.cast(tf.where(observed, rows, self.typical), tf.float64) - self.center) / self.spread
        distance = tf.clip_by_value(tf.abs(exact), LINEAR_LIMIT, BEYOND_ALL)
        beyond = tf.sign(exact) * LINEAR_LIMIT * (1 + tf.math.log(distance / LINEAR_LIMIT))
        exact = tf.cast(tf.where(tf.abs(exact) > LINEAR_LIMIT, beyond, exact), dtype)
        # All else as in other rows, to the last digit: a constant column stays one.
        mended = tf.where(tf.abs(linear) <= LINEAR_LIMIT, linear, exact)
        everywhere = tf.fill(tf.shape(values), True)
        return Scaled(
            tf.tensor_scatter_nd_update(scaled, strange, mended),
            tf.tensor_scatter_nd_update(everywhere, strange, observed),
            Gaps(strange, observed),
        )

    def unscale(self, scaled: Any) -> Any:
        """Raw values of scaled ones, finite in float32."""

        def exact(values: Any) -> Any:
            return tf.cast(tf.clip_by_value(self.widen(values), -MAX_FLOAT32, MAX_FLOAT32), tf.float32)

        if scaled.dtype != tf.float32 or self._farthest >= MAX_FLOAT32:
            return exact(scaled)
        strange = _strange_rows(scaled)
        linear = scaled * self._constant(self.spread, tf.float32) + self._constant(self.center, tf.float32)
        return tf.tensor_scatter_nd_update(linear, strange, exact(tf.gather_nd(scaled, strange)))

    @property
    def _farthest(self) -> float:
        """Largest raw value, without its sign, that linear scaling knows."""
        return float((np.abs(self.center) + LINEAR_LIMIT * self.spread).max(initial=0.0))

    def widen(self, scaled: Any) -> Any:
        """Raw values of scaled ones in float64, and finite there."""
        scaled = tf.cast(scaled, tf.float64)
        strange = _strange_rows(scaled)
        rows = tf.gather_nd(scaled, strange)
        excess = tf.clip_by_value(tf.abs(rows) / LINEAR_LIMIT - 1, 0, np.log(BEYOND_ALL))
        stretched = tf.where(tf.abs(rows) > LINEAR_LIMIT, tf.sign(rows) * LINEAR_LIMIT * tf.exp(excess), rows)
        return tf.tensor_scatter_nd_update(scaled, strange, stretched) * self.spread + self.center

    @staticmethod
    def _constant(values: NDArray[np.float64], dtype: Any) -> Any:
        return tf.constant(values.astype(tf.as_dtype(dtype).as_numpy_dtype))


@dataclass(frozen=True, slots=True)
class LinearScaling(Scaling):
    """Linear everywhere, as a model that was trained elsewhere expects it; rows have no gaps."""

    def scale(self, instances: Any, dtype: Any = tf.float32) -> Scaled:
        """Raw values (rows, *row_shape), scaled; those beyond 1e18 as that, so that their squares are finite."""
        values = tf.clip_by_value(tf.cast(instances, self._dtype), -FARTHEST, FARTHEST)
        center, spread = (self._constant(each, self._dtype) for each in (self.center, self.spread))
        scaled = tf.cast((values - center) / spread, dtype)
        return Scaled(scaled, tf.fill(tf.shape(scaled), True))

    def unscale(self, scaled: Any) -> Any:
        center, spread = (self._constant(each, self._dtype) for each in (self.center, self.spread))
        values = tf.cast(scaled, self._dtype) * spread + center
        return tf.cast(tf.clip_by_value(values, -MAX_FLOAT32, MAX_FLOAT32), tf.float32)

    def widen(self, scaled: Any) -> Any:
        return tf.cast(scaled, tf.float64) * self.spread + self.center

    @property
    def _dtype(self) -> Any:
        """float32 where that holds centre and spread exactly: LiteRT, for one, computes in nothing wider."""
        is_exact = all((each.astype(np.float32) == each).all() for each in (self.center, self.spread))
        return tf.float32 if is_exact else tf.float64


def _strange_rows(scaled: Any) -> Any:
    """Numbers of the rows in which a value is missing or outside of the linear part of the scale, (strange rows, 1).

    Hardly a row is: they are computed apart, since each step over all values takes as long as a layer, and a condition
    in the graph longer than a whole row.
    """
    values = list(range(1, len(scaled.shape)))
    # Not of the absolute values, which would be written first, as many as there are. A missing value is NaN, and so is
    # its row's extent. Not "not <=": TensorFlow takes that for ">".
    extent = tf.maximum(tf.reduce_max(scaled, axis=values), -tf.reduce_min(scaled, axis=values))
    return tf.where(tf.logical_or(extent > LINEAR_LIMIT, tf.math.is_nan(extent)))


def fit_scaling(instances: NDArray[np.floating[Any]], schema: InputSchema, config: TrainingConfig) -> Scaling:
    """Fit on training rows, (rows, *row_shape) raw with NaN for missing.

    A feature that does not vary, as far as float32 can tell, gets the spread 1.
    """
    if schema.kind == "timeseries":
        # One scale for all steps of a window: where in a window a reading stands is chance.
        shape = schema.row_shape
        fitted = fit_scaling(
            instances.reshape(-1, *shape[1:]), InputSchema(kind="tabular", row_shape=shape[1:]), config
        )
        center, spread, typical = (
            np.broadcast_to(array, shape) for array in (fitted.center, fitted.spread, fitted.typical)
        )
        return Scaling(center, spread, typical, bounded=fitted.bounded)
    kind = ("minmax" if schema.kind == "image" else "standard") if config.scaling == "auto" else config.scaling
    flat = instances.reshape(len(instances), -1)
    described = np.zeros((5, flat.shape[1]))
    for at, column in enumerate(flat.T):
        present = column[~np.isnan(column)].astype(np.float64)
        if len(present):  # of no values at all, all is as for a zero
            described[:, at] = present.mean(), present.std(), np.median(present), present.min(), present.max()
    mean, deviation, median, low, high = described.reshape(5, *schema.row_shape)
    if kind == "standard":
        # A deviation of rounding errors only is none.
        steady = deviation <= 1e-7 * np.abs(mean)
        return Scaling(mean, np.where(steady, 1.0, deviation), median, bounded=False)
    if schema.value_range is not None:
        low, high = (np.full(schema.row_shape, limit) for limit in schema.value_range)
    return Scaling(low, np.where(high > low, high - low, 1.0), median, bounded=True)
