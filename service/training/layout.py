"""Which scaled values tell of which feature. The network, the score and PCA see scaled values; columns are known here.

A numeric or boolean column is one scaled value. A categorical column is a block with a value for each label, and a
timestamp column one for its place in time and two for each cycle; such values are small enough for a whole block to
count like one number. Features are in the order of the columns of ``instances``, ``categories`` and ``timestamps``.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.schemas import InputSchema


@dataclass(frozen=True, slots=True, eq=False)
class LabelBlock:
    """The scaled values of one categorical column: one is its weight, the others are 0."""

    start: int
    weights: NDArray[np.float32]
    """Scaled value of each position where it applies; probability times weight is its reconstruction."""
    entropy: float
    """Of the training labels, in nats; above 0. The cross-entropy is divided by it, to count like a squared error."""

    @property
    def stop(self) -> int:
        return self.start + len(self.weights)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    shape: tuple[int, ...]
    """Of one scaled row."""
    owner: NDArray[np.intp]
    """(values of a row,): number of the feature that each value belongs to; ascending."""
    labels: tuple[LabelBlock, ...] = ()

    @property
    def features(self) -> int:
        return int(self.owner[-1]) + 1

    @property
    def is_plain(self) -> bool:
        """Whether each value is a feature by itself."""
        return self.features == len(self.owner)

    @property
    def first_label(self) -> int:
        """Where the label blocks begin; they follow each other."""
        return self.labels[0].start if self.labels else len(self.owner)

    @property
    def sizes(self) -> NDArray[np.intp]:
        """Values of each feature."""
        return np.bincount(self.owner)


def plain_layout(schema: InputSchema) -> Layout:
    """Each value of a row by itself: numbers, pixels, steps."""
    return Layout(schema.row_shape, np.arange(math.prod(schema.row_shape)))
