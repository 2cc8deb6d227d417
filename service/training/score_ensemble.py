"""The default score of tables: distances in the space of the rows and in that of latent and residual, as one number."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.training.quiet import tf
from service.training.score import Passed, residuals
from service.training.score_parts import (
    MAX_CORESET_ROWS,
    SMALLEST_DISTANCE,
    Mahalanobis,
    Matrix,
    Neighbours,
    Tails,
    Units,
    bulk_ranges,
    in_batches,
    ranges,
)

NEAR_WEIGHTS = np.array([0.32, 0.1, 0.32, 0.1, 0.06, 0.1])
"""Of the distances to 5 and to 10 nearest rows, by range and by bulk, of that of latent and residual, and of tails."""
FAR_WEIGHTS = np.array([0.3, 0.3])
"""By range and by bulk. Together below 1: ``far`` decides only where it is clear. While all training rows are normal,
near rows tell more."""
LOWEST, HIGHEST = -40.0, 1e30


@dataclass(frozen=True, slots=True, eq=False)
class TableParts:
    """Seven distances and a probability of a row.

    ``near`` in shares of the columns' ranges and ``near`` in shares of their bulk (rare values stretch a range, and are
    lost in a bulk), ``latent and residual``, ``tails``, and ``far`` in both shares.
    """

    by_range: Neighbours
    by_bulk: Neighbours
    mahalanobis: Mahalanobis
    tails: Tails

    @classmethod
    def fit(cls, rows: Passed, is_trusted: NDArray[np.bool_], *, core: int) -> Self:
        """From training rows, of which the first ``core`` are kept, the trusted ones of these first of all."""
        kept, trusted = rows.scaled[:core], int(is_trusted[:core].sum())
        spreads = (ranges(kept[:trusted]), bulk_ranges(kept[:trusted]))
        by_range, by_bulk = (Neighbours.fit(kept, trusted, spread=spread) for spread in spreads)
        mahalanobis = Mahalanobis.fit(_latent_and_residual(rows[is_trusted]))
        return cls(by_range, by_bulk, mahalanobis, Tails.fit(kept[:trusted]))

    def __call__(self, rows: Passed, itself: Any = None) -> Any:
        """Logarithms, (rows, 8), in the order of ``NEAR_WEIGHTS`` and ``FAR_WEIGHTS``."""
        scaled, observed = _flat(rows.scaled), _flat(rows.observed)
        by_range, by_bulk = self.by_range(scaled, observed, itself), self.by_bulk(scaled, observed, itself)
        residual = residuals(rows)
        within = self.mahalanobis(tf.concat([tf.cast(rows.latent, residual.dtype), _flat(residual)], axis=1))
        near = tf.concat([by_range[:, :-1], by_bulk[:, :-1], within[:, None] + SMALLEST_DISTANCE], axis=1)
        far = tf.stack([by_range[:, -1], by_bulk[:, -1]], axis=1)
        return tf.concat([tf.math.log(near), self.tails(scaled, observed)[:, None], tf.math.log(far)], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleScore:
    """The parts of a row in one score: the mean of all but ``far``, which takes over where it says clearly more.

    The result is made positive by log(1 + exp(x)): a typical training row scores about 0.7, and one in ten more than
    about 1.3.
    """

    parts: TableParts
    units: Units
    """Of trusted rows, each left out of the coreset itself."""

    name = "neighbours, latent and residual, tails"

    @classmethod
    def fit(cls, rows: Passed, *, trim: float) -> Self:
        """Fit on ``rows``, flat and in random order, of which the share ``trim`` that lies farthest out is not trusted.

        A trimmed fit in the manner of Rousseeuw and Van Driessen (A fast algorithm for the minimum covariance
        determinant, Technometrics 41, 1999); ``far`` of a first fit on all rows says which they are.
        """
        core = min(len(rows), MAX_CORESET_ROWS)
        is_trusted = np.ones(len(rows), bool)
        if trim:
            everything = Neighbours.fit(rows.scaled[:core], core, spread=ranges(rows.scaled[:core]))
            itself = _itself(len(rows), core)
            far = in_batches(
                lambda part: everything(rows.scaled[part], rows.observed[part], itself[part])[:, -1], len(rows)
            )
            is_trusted[np.argsort(far, kind="stable")[max(2, round(len(rows) * (1 - trim))) :]] = False
        return cls._fit_once(rows, is_trusted, core)

    @classmethod
    def _fit_once(cls, rows: Passed, is_trusted: NDArray[np.bool_], core: int) -> Self:
        # The trusted rows of the coreset, its others, then the rest, so that a row's number is that in the coreset.
        order = np.argsort(np.where(np.arange(len(rows)) < core, ~is_trusted, 2), kind="stable")
        rows, is_trusted, itself = rows[order], is_trusted[order], _itself(len(rows), core)
        parts = TableParts.fit(rows, is_trusted, core=core)
        logarithms = in_batches(lambda part: parts(rows[part], itself[part]), len(rows))
        return cls(parts, Units.fit(logarithms[is_trusted]))

    def __call__(self, rows: Passed) -> Any:
        standard = self.units(self.parts(rows))
        near, far = standard[:, : len(NEAR_WEIGHTS)], standard[:, len(NEAR_WEIGHTS) :]
        together = tf.maximum(tf.linalg.matvec(near, NEAR_WEIGHTS), tf.linalg.matvec(far, FAR_WEIGHTS))
        return tf.math.softplus(tf.clip_by_value(together, LOWEST, HIGHEST))


def _itself(rows: int, core: int) -> NDArray[np.int32]:
    """The number of each row in the coreset, which the first ``core`` rows are; -1 for the others."""
    numbers = np.arange(rows, dtype=np.int32)
    return np.where(numbers < core, numbers, np.int32(-1))


def _latent_and_residual(rows: Passed) -> Matrix:
    residual = np.where(rows.observed, rows.scaled - rows.reconstruction, 0.0)
    return np.concatenate([rows.latent, residual], axis=1)


def _flat(values: Any) -> Any:
    return values if len(values.shape) == 2 else tf.reshape(values, (-1, int(np.prod(values.shape[1:]))))
