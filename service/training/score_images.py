"""The default score of images: how unusual the network finds them, and how badly it reconstructs them."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from service.training.quiet import tf
from service.training.score import Passed, mean_squared_error
from service.training.score_parts import LEAST_SPREAD, ROWS_AT_ONCE, Directions, Mahalanobis, Matrix

MAX_DIRECTION_ROWS = 8192
MAHALANOBIS_WEIGHT = 0.5
"""Of the Mahalanobis distance beside the mean of the layers' distances, which has 2."""
ERROR_WEIGHT = 0.3
"""Below 1: the reconstruction error decides only where it is clear."""
SMALLEST_PART = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class HiddenLayersScore:
    """Distances in the hidden layers and the reconstruction error, each as a standardised logarithm, in one score.

    A network reconstructs a simple image well, whether it has seen the like of it or not; its hidden layers know the
    difference (Kim et al., RaPP, ICLR 2020). For each dense hidden layer, or for the latent where there is none, it is
    the distance of ``Directions`` from training images; for the first of them, the Mahalanobis distance too. Their
    weighted mean is the score, unless the reconstruction error says clearly more, as it does of a flaw that the hidden
    layers overlook. The result is made positive by log(1 + exp(x)): a typical training image scores about 0.8.
    """

    layers: tuple[Directions, ...]
    mahalanobis: Mahalanobis
    centers: Matrix
    """(layers + 2,): median of the logarithm of each distance, and of the error, over training images."""
    spreads: Matrix
    """(layers + 2,): distance from there to the 90 % quantile."""

    name = "neighbours in hidden layers, and reconstruction error"

    @classmethod
    def fit(cls, rows: Passed) -> Self:
        """Fit on images in random order, of which the first 8,192 are kept, as what the hidden layers give for them."""
        kept = rows[:MAX_DIRECTION_ROWS]
        layers = tuple(Directions.fit(layer) for layer in _layers_of(kept))
        mahalanobis = Mahalanobis.fit(_layers_of(kept)[0].astype(np.float64))
        parts = len(layers) + 2
        plain = cls(layers, mahalanobis, np.zeros(parts), np.ones(parts))
        starts = range(0, len(kept), ROWS_AT_ONCE)
        batches = [plain._parts(kept[start : start + ROWS_AT_ONCE], stored=True).numpy() for start in starts]
        centers, upper = np.quantile(np.concatenate(batches), (0.5, 0.9), axis=0)
        return cls(layers, mahalanobis, centers, np.maximum(upper - centers, LEAST_SPREAD))

    def __call__(self, rows: Passed) -> Any:
        standard = (self._parts(rows) - self.centers) / self.spreads
        count = len(self.layers)
        weights = np.array([2 / count] * count + [MAHALANOBIS_WEIGHT])
        near = tf.linalg.matvec(standard[:, :-1], weights / weights.sum())
        return tf.math.softplus(tf.maximum(near, ERROR_WEIGHT * standard[:, -1]))

    def _parts(self, rows: Passed, *, stored: bool = False) -> Any:
        """Logarithms, (rows, layers + 2), the reconstruction error last. ``stored``: the rows are kept ones."""
        pairs = zip(self.layers, _layers_of(rows), strict=True)
        near = [directions(layer, stored=stored) for directions, layer in pairs]
        within = self.mahalanobis(_layers_of(rows)[0])
        error = mean_squared_error(rows.scaled, rows.observed, rows.reconstruction)
        parts = [tf.cast(part, tf.float64) for part in (*near, within, error)]
        return tf.math.log(tf.stack(parts, axis=1) + SMALLEST_PART)


def _layers_of(rows: Passed) -> tuple[Any, ...]:
    return rows.hidden or (rows.latent,)
