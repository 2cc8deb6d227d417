"""The default score of images: how unusual the network finds them, and how badly it reconstructs them."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from service.training.quiet import tf
from service.training.score import Passed, mean_squared_error
from service.training.score_parts import Directions, Mahalanobis, Units, in_batches

MAX_DIRECTION_ROWS = 8192
MAHALANOBIS_WEIGHT = 0.5
"""Of the Mahalanobis distance beside the mean of the layers' distances, which has 2."""
ERROR_WEIGHT = 0.3
"""Below 1: the reconstruction error decides only where it is clear."""
SMALLEST_PART = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class ImageParts:
    """Distances of what hidden layers give for an image, and its reconstruction error.

    A network reconstructs a simple image well, whether it has seen the like of it or not; its hidden layers know the
    difference (Kim et al., RaPP, ICLR 2020). For each dense hidden layer, or for the latent where there is none, it is
    the distance of ``Directions`` from training images; for the first of them, the Mahalanobis distance too.
    """

    layers: tuple[Directions, ...]
    mahalanobis: Mahalanobis

    @classmethod
    def fit(cls, rows: Passed) -> Self:
        """From training images, to be kept all, as what the hidden layers give for them."""
        layers = _layers_of(rows)
        return cls(tuple(map(Directions.fit, layers)), Mahalanobis.fit(layers[0].astype(np.float64)))

    def __call__(self, rows: Passed, *, stored: bool = False) -> Any:
        """Logarithms, (rows, layers + 2), the reconstruction error last. ``stored``: the rows are kept ones."""
        pairs = zip(self.layers, _layers_of(rows), strict=True)
        near = [directions(layer, stored=stored) for directions, layer in pairs]
        within = self.mahalanobis(_layers_of(rows)[0])
        error = mean_squared_error(rows)
        parts = [tf.cast(part, tf.float64) for part in (*near, within, error)]
        return tf.math.log(tf.stack(parts, axis=1) + SMALLEST_PART)


@dataclass(frozen=True, slots=True, eq=False)
class HiddenLayersScore:
    """The parts of an image in one score: the weighted mean of the distances, unless the error says clearly more.

    It does of a flaw that the hidden layers overlook. The result is made positive by log(1 + exp(x)): a typical
    training image scores about 0.8.
    """

    parts: ImageParts
    units: Units

    name = "neighbours in hidden layers, and reconstruction error"

    @classmethod
    def fit(cls, rows: Passed) -> Self:
        """Fit on images in random order, of which the first 8,192 are kept, as what the hidden layers give for them."""
        kept = rows[:MAX_DIRECTION_ROWS]
        parts = ImageParts.fit(kept)
        return cls(parts, Units.fit(in_batches(lambda part: parts(kept[part], stored=True), len(kept))))

    def __call__(self, rows: Passed) -> Any:
        standard = self.units(self.parts(rows))
        count = len(self.parts.layers)
        weights = np.array([2 / count] * count + [MAHALANOBIS_WEIGHT])
        near = tf.linalg.matvec(standard[:, :-1], weights / weights.sum())
        return tf.math.softplus(tf.maximum(near, ERROR_WEIGHT * standard[:, -1]))


def _layers_of(rows: Passed) -> tuple[Any, ...]:
    return rows.hidden or (rows.latent,)
