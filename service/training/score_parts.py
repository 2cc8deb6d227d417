"""The parts of an anomaly score that are fitted once and constant in the graph."""

from dataclasses import dataclass, replace
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
CLOSE_QUANTILES = 16
"""A sixteenth of the quantiles of a column says where they lie closest."""
CELLS = 256
LEAST_UNIT = 1e-3
"""Of what the quantiles extend over."""
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
    35, 2023), with the rarer of both tails of each column. The probability is the share of quantiles that are as far
    out as the value, or farther.

    It is looked up: each column is divided into cells, narrow ones where its values lie closest, and wider ones with
    the distance from there. A search among the quantiles took most of the time of a score.
    """

    centers: NDArray[np.float32]
    """(columns,): where the values lie closest."""
    units: NDArray[np.float32]
    """(columns,), above 0: the distance from there up to which cells have about one width."""
    starts: NDArray[np.float32]
    """(columns,): where the second cell begins, on the scale of ``_places``."""
    cells_a_place: NDArray[np.float32]
    """(columns,): cells in one unit of that scale."""
    rarities: NDArray[np.float32]
    """(columns x cells,), over their mean over training rows; the first and last cell of a column are for values
    beyond all."""

    @classmethod
    def fit(cls, rows: NDArray[np.float32]) -> Self:
        """From training rows (rows, columns)."""
        count = min(len(rows), MAX_QUANTILES)
        quantiles = np.quantile(rows.astype(np.float64), (np.arange(count) + 0.5) / count, axis=0)
        apart = max(1, count // CLOSE_QUANTILES)
        spans = quantiles[apart:] - quantiles[:-apart] if count > 1 else np.zeros_like(quantiles)
        closest = spans.argmin(axis=0), np.arange(spans.shape[1])
        extent = quantiles[-1] - quantiles[0]
        units = np.maximum(spans[closest], np.where(extent > 0, LEAST_UNIT * extent, 1.0))
        centers = quantiles[closest] + spans[closest] / 2
        rounding = ROUNDING * (1 + np.abs(quantiles))
        edges = quantiles[[0, -1]] + np.array([[-2], [2]]) * rounding[[0, -1]]
        first, last = np.asarray(_places(edges - centers, units))
        width = (last - first) / (CELLS - 2)
        middles = first + (np.arange(CELLS)[:, None] - 0.5) * width
        middles[0], middles[-1] = -np.inf, np.inf
        at_middles = _rarities(centers + np.sign(middles) * np.expm1(np.abs(middles)) * units, quantiles).T.ravel()
        center, unit, start, cells_a_place = (each.astype(np.float32) for each in (centers, units, first, 1 / width))
        tails = cls(center, unit, start, cells_a_place, at_middles.astype(np.float32))
        # Where quantiles lie in a cell, their mean is that of the cell: values that come again are most frequent.
        moved = np.concatenate([quantiles - rounding, quantiles + rounding]).astype(np.float32)
        cells = np.asarray(tails._cells(moved)).ravel()
        counts = np.bincount(cells, minlength=len(at_middles))
        sums = np.bincount(cells, np.tile(_rarities(quantiles, quantiles), (2, 1)).ravel(), len(at_middles))
        found = np.where(counts > 0, sums / np.maximum(counts, 1), at_middles)
        tails = replace(tails, rarities=found.astype(np.float32))
        usual = in_batches(lambda part: tails(rows[part]), len(rows)).mean(dtype=np.float64)
        return replace(tails, rarities=tails.rarities / np.float32(max(usual, LEAST_SPREAD)))

    def __call__(self, rows: Any) -> Any:
        """The rarity of each value over the usual one, (rows, columns)."""
        return tf.gather(self.rarities, self._cells(tf.cast(rows, tf.float32)))

    def _cells(self, rows: Any) -> Any:
        """The cell of each value among those of all columns."""
        places = (_places(rows - self.centers, self.units) - self.starts) * self.cells_a_place
        of_column = tf.cast(tf.clip_by_value(places + 1, 0, CELLS - 1), tf.int32)
        return of_column + CELLS * np.arange(len(self.centers), dtype=np.int32)


def _places(distances: Any, units: Any) -> Any:
    """Distances on a scale that is even up to the unit, and the logarithm beyond."""
    return tf.sign(distances) * tf.math.log1p(tf.abs(distances) / units)


def _rarities(values: Matrix, quantiles: Matrix) -> Matrix:
    """Minus the logarithm of the share of quantiles (quantiles, columns) as far out as the values (values, columns)."""
    count, found = len(quantiles), np.empty(values.shape)
    with np.errstate(invalid="ignore"):
        rounding = np.nan_to_num(ROUNDING * (1 + np.abs(values)), posinf=0)
    for column, ascending in enumerate(quantiles.T):
        value, less = values[:, column], rounding[:, column]
        below = np.searchsorted(ascending, value - less)
        up_to = np.searchsorted(ascending, value + less, side="right")
        found[:, column] = -np.log((np.minimum(up_to, count - below) + 1) / (count + 1))
    return found


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
