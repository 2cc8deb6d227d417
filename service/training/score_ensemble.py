"""The default score of tables: distances in the space of the rows and in that of latent and residual, as one number."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.training.quiet import tf
from service.training.score import Passed, residuals
from service.training.score_parts import (
    LEAST_SPREAD,
    MAX_CORESET_ROWS,
    ROWS_AT_ONCE,
    SMALLEST_DISTANCE,
    Mahalanobis,
    Matrix,
    Neighbours,
    Tails,
    bulk_ranges,
    ranges,
)

NEAR_WEIGHTS = np.array([0.32, 0.1, 0.32, 0.1, 0.06, 0.1])
"""Of the distances to 5 and to 10 nearest rows, by range and by bulk, of that of latent and residual, and of tails."""
FAR_WEIGHTS = np.array([0.3, 0.3])
"""By range and by bulk. Together below 1: ``far`` decides only where it is clear. While all training rows are normal,
near rows tell more."""
LOWEST, HIGHEST = -40.0, 1e30
PARTS = len(NEAR_WEIGHTS) + len(FAR_WEIGHTS)


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleScore:
    """Seven distances and a probability, each as a standardised logarithm, in one score.

    ``near`` in shares of the columns' ranges, ``near`` in shares of their bulk (rare values stretch a range, and are
    lost in a bulk), ``latent and residual`` and ``tails`` are averaged; ``far`` takes over where it says clearly more.
    The result is made positive by log(1 + exp(x)): a typical training row scores about 0.7, and one in ten more than
    about 1.3.
    """

    by_range: Neighbours
    by_bulk: Neighbours
    mahalanobis: Mahalanobis
    tails: Tails
    centers: Matrix
    """(8,): median of the logarithm of each part over trusted rows, each left out of the coreset itself."""
    spreads: Matrix
    """(8,): distance from there to the 90 % quantile."""

    name = "neighbours, latent and residual, tails"

    @classmethod
    def fit(cls, rows: Passed, *, trim: float) -> Self:
        """Fit on ``rows``, flat and in random order, of which the share ``trim`` that lies farthest out is not trusted.

        A trimmed fit in the manner of Rousseeuw and Van Driessen (A fast algorithm for the minimum covariance
        determinant, Technometrics 41, 1999); ``far`` of a first fit on all rows says which they are.
        """
        is_trusted = np.ones(len(rows), bool)
        if trim:
            kept = rows.scaled[:MAX_CORESET_ROWS]
            everything = Neighbours.fit(kept, len(kept), spread=ranges(kept))
            far = _batched(lambda part, itself: everything(part.scaled, part.observed, itself)[:, -1], rows, len(kept))
            is_trusted[np.argsort(far, kind="stable")[max(2, round(len(rows) * (1 - trim))) :]] = False
        return cls._fit_once(rows, is_trusted)

    @classmethod
    def _fit_once(cls, rows: Passed, is_trusted: NDArray[np.bool_]) -> Self:
        in_coreset = np.arange(len(rows)) < MAX_CORESET_ROWS
        # The trusted rows of the coreset, its others, then the rest, so that a row's number is that in the coreset.
        order = np.argsort(np.where(in_coreset, ~is_trusted, 2), kind="stable")
        rows, is_trusted = rows[order], is_trusted[order]
        core = int(in_coreset.sum())
        kept, trusted = rows.scaled[:core], int(is_trusted[:core].sum())
        spreads = (ranges(kept[:trusted]), bulk_ranges(kept[:trusted]))
        by_range, by_bulk = (Neighbours.fit(kept, trusted, spread=spread) for spread in spreads)
        mahalanobis = Mahalanobis.fit(_latent_and_residual(rows[is_trusted]))
        tails = Tails.fit(kept[:trusted])
        plain = cls(by_range, by_bulk, mahalanobis, tails, np.zeros(PARTS), np.ones(PARTS))
        logarithms = _batched(plain._parts, rows, core)
        centers, upper = np.quantile(logarithms[is_trusted], (0.5, 0.9), axis=0)
        return replace(plain, centers=centers, spreads=np.maximum(upper - centers, LEAST_SPREAD))

    def __call__(self, rows: Passed) -> Any:
        return tf.math.softplus(self._combine(self._parts(rows)))

    def _parts(self, rows: Passed, itself: Any = None) -> Any:
        """Logarithms of the parts, (rows, 8), in the order of ``NEAR_WEIGHTS`` and ``FAR_WEIGHTS``."""
        scaled, observed = _flat(rows.scaled), _flat(rows.observed)
        by_range, by_bulk = self.by_range(scaled, observed, itself), self.by_bulk(scaled, observed, itself)
        residual = residuals(rows.scaled, rows.observed, rows.reconstruction)
        within = self.mahalanobis(tf.concat([tf.cast(rows.latent, residual.dtype), _flat(residual)], axis=1))
        near = tf.concat([by_range[:, :-1], by_bulk[:, :-1], within[:, None] + SMALLEST_DISTANCE], axis=1)
        far = tf.stack([by_range[:, -1], by_bulk[:, -1]], axis=1)
        return tf.concat([tf.math.log(near), self.tails(scaled, observed)[:, None], tf.math.log(far)], axis=1)

    def _combine(self, logarithms: Any) -> Any:
        standard = (logarithms - self.centers) / self.spreads
        near, far = standard[:, : len(NEAR_WEIGHTS)], standard[:, len(NEAR_WEIGHTS) :]
        together = tf.maximum(tf.linalg.matvec(near, NEAR_WEIGHTS), tf.linalg.matvec(far, FAR_WEIGHTS))
        return tf.clip_by_value(together, LOWEST, HIGHEST)


def _batched(function: Callable[[Passed, Any], Any], rows: Passed, core: int) -> Matrix:
    """A function of rows, of which the first ``core`` are the coreset, and of their numbers in it."""
    numbers = np.arange(len(rows), dtype=np.int32)
    itself = np.where(numbers < core, numbers, np.int32(-1))
    starts = range(0, len(rows), ROWS_AT_ONCE)
    batches = [slice(start, start + ROWS_AT_ONCE) for start in starts]
    return np.concatenate([function(rows[batch], tf.constant(itself[batch])).numpy() for batch in batches])


def _latent_and_residual(rows: Passed) -> Matrix:
    residual = np.where(rows.observed, rows.scaled - rows.reconstruction, 0.0)
    return np.concatenate([rows.latent, residual], axis=1)


def _flat(values: Any) -> Any:
    return values if len(values.shape) == 2 else tf.reshape(values, (-1, int(np.prod(values.shape[1:]))))
