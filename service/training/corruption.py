"""Noise for denoising autoencoders: added to scaled rows in training, the clean row being the target."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.training.config import TrainingConfig
from service.training.quiet import tf
from service.training.scaling import Scaling


class Corruptor:
    """Corrupts scaled rows (rows, *row_shape).

    gaussian adds normal noise, and keeps bounded values in [0, 1]; masking replaces a share of the values by what a
    missing one becomes (black for pixels, the median otherwise); salt_and_pepper by the least or the greatest value.

    Source: Vincent et al., Stacked denoising autoencoders (JMLR 11, 2010), section 3.3.
    """

    def __init__(
        self, config: TrainingConfig, scaling: Scaling, *, limits: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> None:
        """``limits``: least and greatest scaled value of each feature in training, in the shape of a row."""
        self._kind, self._level = config.corruption, config.corruption_level
        self._bounded = scaling.bounded
        median = (scaling.typical - scaling.center) / scaling.spread
        self._blank = np.zeros_like(limits[0]) if scaling.bounded else median.astype(np.float32)
        self._low, self._high = limits

    def corrupt(self, rows: Any, seed: Any) -> Any:
        """The rows with noise; the same for the same two integers ``seed``."""
        shape = tf.shape(rows)
        if self._kind == "none":
            return rows
        if self._kind == "gaussian":
            noisy = rows + tf.random.stateless_normal(shape, seed, stddev=self._level)
            return tf.clip_by_value(noisy, 0.0, 1.0) if self._bounded else noisy
        draw = tf.random.stateless_uniform(shape, seed)
        if self._kind == "masking":
            return tf.where(draw < self._level, self._blank, rows)
        noisy = tf.where(draw < self._level, self._high, rows)
        return tf.where(draw < self._level / 2, self._low, noisy)
