"""The parts of an anomaly score that are fitted once and constant in the graph."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import tf
from service.runtime.signature import in_batches

NEAREST = 5
"""So many nearest rows."""
ROUNDING = 1e-5
"""Of a value, as a share of it, in float32."""
MAX_AXES = 64
SMALLEST_LENGTH = 1e-6
"""Of a hidden vector: one that is shorter has no direction."""
LEAST_SPREAD = 0.01
"""Of the logarithm of a distance, or of a probability, over training rows."""
MAX_QUANTILES = 128
MAX_DIRECTIONS = 256
MAX_COVARIANCE_ROWS = 5_000

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Brings the parts of a score, logarithms all, to one measure: how much each varies over training rows."""

    centers: Matrix
    """(parts,): the median of each."""
    spreads: Matrix
    """(parts,): distance from there to the 90 % quantile."""

    @classmethod
    def fit(cls, parts: Matrix) -> Self:
        """From the parts of training rows, (rows, parts)."""
        centers, upper = np.quantile(parts, (0.5, 0.9), axis=0)
        return cls(centers, np.maximum(upper - centers, LEAST_SPREAD))

    def __call__(self, parts: Any) -> Any:
        return (parts - self.centers) / self.spreads


@dataclass(frozen=True, slots=True, eq=False)
class Tails:
    """How rare the values of a row are, each in its own column: minus the logarithm of a probability, 0 and above.

    Anomalies in training that lie together can be learnt by a network; they hardly move the quantiles of a column.
    After Li et al., ECOD: Unsupervised Outlier Detection Using Empirical Cumulative Distribution Functions (IEEE TKDE
    35, 2023), with the rarer of both tails of each column.
    """

    quantiles: NDArray[np.float32]
    """(columns, quantiles), in rising order, evenly spaced; neither the least nor the greatest value is one."""
    usual: float = 1.0
    """Mean over training rows and columns, above 0."""

    @classmethod
    def fit(cls, rows: NDArray[np.float32]) -> Self:
        """From training rows (rows, columns)."""
        count = min(len(rows), MAX_QUANTILES)
        quantiles = np.quantile(rows, (np.arange(count) + 0.5) / count, axis=0).T
        tails = cls(np.ascontiguousarray(quantiles, np.float32))
        return cls(
            tails.quantiles, max(float(in_batches(lambda part: tails(rows[part]), len(rows)).mean()), LEAST_SPREAD)
        )

    def __call__(self, rows: Any) -> Any:
        """That of each value over the usual one, (rows, columns).

        The probability is the share of quantiles that are as far out as the value, or farther; one that differs by no
        more than rounding is as far out.
        """
        columns, count = tf.transpose(tf.cast(rows, tf.float32)), self.quantiles.shape[1]
        rounding = ROUNDING * (1 + tf.abs(columns))
        below = tf.searchsorted(self.quantiles, columns - rounding)
        up_to = tf.searchsorted(self.quantiles, columns + rounding, side="right")
        # The logarithm of each count that there may be, looked up.
        rarity = (-np.log((np.arange(count + 1) + 1) / (count + 1)) / self.usual).astype(np.float32)
        return tf.transpose(tf.gather(rarity, tf.minimum(up_to, count - below)))


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Distances between what a hidden layer gives for a row and for training rows, each brought to length 1.

    The length of a hidden vector says how much there is of a row, such as the ink of a digit, its direction of what
    kind it is. Mean distance of the 5 nearest (Angiulli and Pizzuti, PKDD 2002) along the widest 64 axes, which hold
    nearly all of it in an eighth of the memory. In the type of the network: it is measured as a difference.
    """

    axes: Matrix
    """(width, axes), orthonormal."""
    coreset: Matrix
    """(coreset rows, axes), along the axes."""

    @classmethod
    def fit(cls, hidden: NDArray[np.floating[Any]]) -> Self:
        """From what the layer gives for training rows, (rows, width), to be kept all."""
        hidden = hidden.astype(np.float64)
        unit = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), SMALLEST_LENGTH)
        axes = _principal(unit)[0][:, :MAX_AXES]
        return cls(axes, unit @ axes)

    def __call__(self, hidden: Any, *, stored: bool = False) -> Any:
        """Distance of each row, (rows,) from 0 to 2.

        ``stored``: the rows are of the coreset, each of which is then left out itself.
        """
        hidden = tf.convert_to_tensor(hidden)
        axes, coreset = (each.astype(hidden.dtype.as_numpy_dtype) for each in (self.axes, self.coreset))
        unit = hidden / tf.maximum(tf.norm(hidden, axis=1, keepdims=True), SMALLEST_LENGTH)
        along = tf.matmul(unit, axes)
        nearness = tf.matmul(along, 2 * coreset, transpose_b=True) - np.square(coreset).sum(axis=1)
        first = int(stored and len(coreset) > 1)
        nearest = tf.math.top_k(nearness, min(first + NEAREST, len(coreset))).indices[:, first:]
        apart = tf.gather(coreset, nearest) - along[:, None]
        return tf.reduce_mean(tf.norm(apart, axis=2), axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Mahalanobis:
    """Mahalanobis distance under a shrunk covariance.

    On latent and residual together it finds rows that the network cannot reconstruct, weighted by how well it
    reconstructs each column in training, and rows whose latent is unusual (as T-squared and Q statistics do in process
    monitoring: Jackson and Mudholkar, Technometrics 21, 1979). Shrinkage after Ledoit and Wolf (J. Multivariate
    Analysis 88, 2004). Only the widest directions are kept; all others share their mean variance, as in
    probabilistic PCA (Tipping and Bishop, J. Royal Statistical Society B 61, 1999).
    """

    mean: Matrix
    directions: Matrix
    """(columns, directions), orthonormal."""
    variances: Matrix
    """(directions,), above 0."""
    rest: float
    """Variance in every other direction."""

    @classmethod
    def fit(cls, rows: Matrix) -> Self:
        """From (rows, columns)."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        rows = rows[:MAX_COVARIANCE_ROWS]
        mean = rows.mean(axis=0)
        centred = rows - mean
        directions, variances = _principal(centred)
        shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True)) if rows.shape[1] > 1 else 0.0
        total = float(np.square(centred).mean(axis=0).sum())
        typical = total / rows.shape[1]
        others = max(0.0, total - float(variances.sum())) / max(1, rows.shape[1] - len(variances))
        least = max(1e-6 * float(variances.max(initial=0.0)), 1e-12)
        shrunk = np.maximum((1 - shrinkage) * variances + shrinkage * typical, least)
        return cls(mean, directions, shrunk, max((1 - shrinkage) * others + shrinkage * typical, least))

    def __call__(self, rows: Any) -> Any:
        """Distance of each row, (rows,)."""
        centred = tf.cast(rows, tf.float64) - self.mean
        along = tf.matmul(centred, self.directions)
        # What is left is measured as such: the difference of two squares would be rounding where it is nothing.
        left = centred - tf.matmul(along, self.directions, transpose_b=True)
        within = tf.reduce_sum(tf.square(along) / self.variances, axis=1)
        return tf.sqrt(within + tf.reduce_sum(tf.square(left), axis=1) / self.rest)


def _principal(centred: Matrix) -> tuple[Matrix, Matrix]:
    """The widest directions, and the variances along them, in falling order."""
    if min(centred.shape) <= 4 * MAX_DIRECTIONS:
        _, values, directions = np.linalg.svd(centred, full_matrices=False)
        values, directions = values[:MAX_DIRECTIONS], directions[:MAX_DIRECTIONS]
    else:
        from sklearn.utils.extmath import randomized_svd

        _, values, directions = randomized_svd(centred, MAX_DIRECTIONS, random_state=0)
    return np.ascontiguousarray(directions.T), np.square(values) / len(centred)
