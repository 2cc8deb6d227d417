"""The parts of an anomaly score: distances from training rows, fitted once and constant in the graph.

All arithmetic but that of ``Directions`` is in float64, whatever the network computes in: a distance is a small
difference of large numbers.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import tf
from service.runtime.signature import in_batches

MAX_CORESET_ROWS = 2048
NEAREST = (5, 10)
"""So many nearest rows: few see what is near by, more see past a cluster of anomalies in training."""
GROUP_ROWS = 16
MAX_GROUPS = 64
SMALLEST_DISTANCE = 1e-5
"""Rows that differ by less than this share of a column's spread are alike."""
LEAST_RANGE = 1e-6
"""In scaled units: a column that extends over less is constant but for rounding."""
LEAST_BULK = 1e-3
"""In scaled units: where nine tenths of a column lie closer, it is one value with exceptions."""
MAX_AXES = 64
SMALLEST_LENGTH = 1e-6
"""Of a hidden vector: one that is shorter has no direction."""
LEAST_SPREAD = 0.01
"""Of the logarithm of a distance, or of a probability, over training rows."""
MAX_QUANTILES = 256
MAX_DIRECTIONS = 256
MAX_COVARIANCE_ROWS = 5_000

Matrix = NDArray[np.float64]


def ranges(rows: Matrix) -> Matrix:
    """Largest less least value of each column, 1 where there is no difference but rounding: (columns,)."""
    extent: Matrix = np.ptp(rows, axis=0)
    return np.where(extent > LEAST_RANGE, extent, 1.0)


def bulk_ranges(rows: Matrix) -> Matrix:
    """Range of the middle nine tenths of a column, which no rare value stretches; of all, where that is one value."""
    low, high = np.quantile(rows, (0.05, 0.95), axis=0)
    return np.where(high - low > LEAST_BULK, high - low, ranges(rows))


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
class Neighbours:
    """Distances from a coreset: a random sample of training rows that the model keeps, the trusted ones first.

    Each column is divided by how widely it is spread. A missing value adds nothing to a distance.
    """

    coreset: Matrix
    """(coreset rows, columns), in shares of the spreads."""
    spread: Matrix
    """(columns,): of each column, in scaled units, above 0."""
    trusted: int
    """So many rows of the coreset, the first ones, are taken for normal."""
    sparseness: Matrix
    """(coreset rows,): logarithm of the mean distance of a row's own nearest rows."""

    @classmethod
    def fit(cls, rows: Matrix, trusted: int, *, spread: Matrix) -> Self:
        """From training rows (rows, columns) to be kept all, of which the first ``trusted``, at least 2, are."""
        plain = cls(rows / spread, spread, trusted, np.zeros(len(rows)))
        numbers, everywhere = np.arange(len(rows), dtype=np.int32), np.ones(rows.shape, bool)
        near = in_batches(lambda part: plain(rows[part], everywhere[part], numbers[part])[:, 0], len(rows))
        return cls(plain.coreset, spread, trusted, np.log(near))

    def __call__(self, rows: Any, observed: Any, itself: Any = None) -> Any:
        """Three distances of rows (rows, columns) in scaled units, (rows, 3): two of ``near``, and ``far``.

        ``near`` is the mean distance of the 5 or the 10 nearest rows (Ramaswamy, Rastogi and Shim, SIGMOD 2000;
        Angiulli and Pizzuti, PKDD 2002), over the square root of that of these rows from their own nearest: what is
        near in a sparse region would be far in a dense one (local scaling: Zelnik-Manor and Perona, NIPS 2004).
        ``far`` is the distance of the nearest of 16 trusted rows drawn at random (Sugiyama and Borgwardt, NeurIPS
        2013), the median over 64 such draws: a few anomalies in training, near one another, do not change it.

        ``itself``, (rows,) int: the number of the coreset row that a row is, which is then left out; -1 for none.
        """
        present = tf.cast(observed, tf.float64)
        rows = tf.cast(rows, tf.float64) / self.spread * present
        nearness = self._nearness(rows, present)
        if itself is not None:
            nearness = tf.where(tf.equal(tf.range(len(self.coreset))[None], itself[:, None]), -np.inf, nearness)
        return tf.stack([*self._near(rows, present, nearness), self._far(rows, nearness)], axis=1)

    def _nearness(self, rows: Any, present: Any) -> Any:
        """2ab - |b|^2, (rows, coreset rows): the square of the row itself less that of the distance.

        One product and no other pass over what is by far the largest tensor of a score.
        """
        weights = np.concatenate([2 * self.coreset, -np.square(self.coreset)], axis=1)
        return tf.matmul(tf.concat([rows, present], axis=1), weights, transpose_b=True)

    def _near(self, rows: Any, present: Any, nearness: Any) -> list[Any]:
        most = max(1, len(self.coreset) - 1)
        nearest = tf.math.top_k(nearness, min(max(NEAREST), most)).indices
        # Measured anew: the expanded square has lost the digits of a small distance.
        apart = (tf.gather(self.coreset, nearest) - rows[:, None]) * present[:, None]
        distances = _root(tf.reduce_sum(tf.square(apart), axis=-1))
        sparseness = tf.gather(self.sparseness, nearest)

        def near(count: int) -> Any:
            scale = tf.exp(-tf.reduce_mean(sparseness[:, :count], axis=1) / 2)
            return tf.reduce_mean(distances[:, :count], axis=1) * scale

        return [near(count) for count in NEAREST]

    def _far(self, rows: Any, nearness: Any) -> Any:
        groups = min(MAX_GROUPS, max(1, self.trusted // GROUP_ROWS))
        size = min(GROUP_ROWS, self.trusted // groups)
        nearest = tf.reduce_max(tf.reshape(nearness[:, : groups * size], (-1, groups, size)), axis=2)
        median = tf.sort(nearest, axis=1)[:, groups // 2]
        return _root(tf.maximum(tf.reduce_sum(tf.square(rows), axis=1) - median, 0))


@dataclass(frozen=True, slots=True, eq=False)
class Tails:
    """How rare the values of a row are, each in its own column.

    What only distances see, a cluster of anomalies in training hides; it hardly moves the quantiles of a column. After
    Li et al., ECOD: Unsupervised Outlier Detection Using Empirical Cumulative Distribution Functions (IEEE TKDE 35,
    2023), with the rarer of both tails of each column.
    """

    quantiles: Matrix
    """(columns, quantiles), in rising order: of trusted rows, evenly spaced from the least to the greatest."""

    @classmethod
    def fit(cls, rows: Matrix) -> Self:
        """From trusted rows (rows, columns)."""
        places = np.linspace(0, len(rows) - 1, min(len(rows), MAX_QUANTILES)).round().astype(int)
        return cls(np.ascontiguousarray(np.sort(rows, axis=0)[places].T))

    def __call__(self, rows: Any, observed: Any) -> Any:
        """Minus the logarithm of the product of the columns' probabilities, as if independent: (rows,), not below 0.

        That of a column is how many of its values are as far out as this one, or farther; one that differs by no more
        than rounding is as far out. A missing value is not rare.
        """
        columns, count = tf.transpose(tf.cast(rows, tf.float64)), self.quantiles.shape[1]
        rounding = LEAST_RANGE * (1 + tf.abs(columns))
        below = tf.searchsorted(self.quantiles, columns - rounding)
        up_to = tf.searchsorted(self.quantiles, columns + rounding, side="right")
        as_far = tf.cast(tf.minimum(up_to, count - below), tf.float64)
        probability = tf.transpose((as_far + 1) / (count + 1))
        return -tf.reduce_sum(tf.where(observed, tf.math.log(probability), 0.0), axis=1)


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
        nearest = tf.math.top_k(nearness, min(first + NEAREST[0], len(coreset))).indices[:, first:]
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


def _root(squared: Any) -> Any:
    return tf.sqrt(squared + SMALLEST_DISTANCE**2)
