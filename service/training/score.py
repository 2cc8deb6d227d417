"""The anomaly score inside the graph: a ``Score`` of rows as they passed through the network, and which one it is.

The serving graph, calibration, explanations and export know a score only as ``Score``. ``ReconstructionScore`` is that
of series, ``EnsembleScore`` of tables, ``HiddenLayersScore`` of images, the latter two made of ``score_parts``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import tf
from service.runtime.signature import in_batches
from service.schemas import InputSchema
from service.training.architecture import Autoencoder
from service.training.config import TrainingConfig
from service.training.preprocessing import ScaledRows
from service.training.scaling import Gaps
from service.training.score_parts import (
    MAX_CORESET_ROWS,
    SMALLEST_DISTANCE,
    Directions,
    Mahalanobis,
    Neighbours,
    Tails,
    Units,
    bulk_ranges,
    ranges,
)

MAX_FIT_ROWS = 10_000
NEAR_WEIGHTS = np.array([0.32, 0.1, 0.32, 0.1, 0.06, 0.1])
"""Of the distances to 5 and to 10 nearest rows, by range and by bulk, of that of latent and residual, and of tails."""
FAR_WEIGHTS = np.array([0.3, 0.3])
"""By range and by bulk. Together below 1: ``far`` decides only where it is clear. While all training rows are normal,
near rows tell more."""
LOWEST, HIGHEST = -40.0, 1e30
MAX_DIRECTION_ROWS = 8192
MAHALANOBIS_WEIGHT = 0.5
"""Of the Mahalanobis distance beside the mean of the layers' distances, which has 2."""
ERROR_WEIGHT = 0.3
"""Below 1: the reconstruction error decides only where it is clear."""
SMALLEST_PART = 1e-6


@dataclass(frozen=True, slots=True)
class Passed:
    """Rows as they passed through the network, in scaled units: tensors, or arrays, all with the rows first."""

    scaled: Any
    observed: Any
    """Which values were there, (rows, *row_shape)."""
    latent: Any
    reconstruction: Any
    hidden: tuple[Any, ...] = ()
    """What each dense hidden layer gives, (rows, width), in the order of the network."""
    gaps: Gaps | None = None
    """As in ``Scaled``; of tensors only."""

    def __len__(self) -> int:
        return len(self.scaled)

    def __getitem__(self, chosen: Any) -> Self:
        hidden = tuple(layer[chosen] for layer in self.hidden)
        return type(self)(
            self.scaled[chosen], self.observed[chosen], self.latent[chosen], self.reconstruction[chosen], hidden
        )


class Score(Protocol):
    """Higher = more anomalous. A score must treat each row alone."""

    name: str

    def __call__(self, rows: Passed) -> Any:
        """Score of each row, (rows,), finite."""
        ...


def residuals(rows: Passed) -> Any:
    """Rows less their reconstructions in scaled units, 0 where a value is missing: (rows, *row_shape)."""
    return _where_observed(rows, rows.scaled - rows.reconstruction)


def squared_errors(rows: Passed) -> Any:
    """Squared error of each value in scaled units, 0 where it is missing: (rows, *row_shape)."""
    return _where_observed(rows, _squares(rows))


def mean_squared_error(rows: Passed) -> Any:
    """``service.scoring.reconstruction_error`` in TensorFlow: (rows,), of the arguments' type."""
    if rows.gaps is None:
        return _row_means(squared_errors(rows))
    squares = _squares(rows)
    return tf.tensor_scatter_nd_update(_row_means(squares), rows.gaps.rows, _row_means(_kept(rows.gaps, squares)))


def _squares(rows: Passed) -> Any:
    return tf.math.squared_difference(rows.scaled, rows.reconstruction)


def _row_means(values: Any) -> Any:
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


def _where_observed(rows: Passed, values: Any) -> Any:
    """``values`` with 0 where one is missing. Hardly a row has gaps: the others are not looked at."""
    if rows.gaps is None:
        return tf.where(rows.observed, values, 0.0)
    return tf.tensor_scatter_nd_update(values, rows.gaps.rows, _kept(rows.gaps, values))


def _kept(gaps: Gaps, values: Any) -> Any:
    """Those of ``values`` that are in rows with gaps, 0 where one is missing."""
    return tf.where(gaps.observed, tf.gather_nd(values, gaps.rows), 0.0)


class ReconstructionScore:
    """The mean squared reconstruction error of a row, in scaled units."""

    name = "reconstruction error"

    def __call__(self, rows: Passed) -> Any:
        return mean_squared_error(rows)


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
        normal = rows[is_trusted]
        residual = np.where(normal.observed, normal.scaled - normal.reconstruction, 0.0)
        mahalanobis = Mahalanobis.fit(np.concatenate([normal.latent, residual], axis=1))
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


def _flat(values: Any) -> Any:
    return values if len(values.shape) == 2 else tf.reshape(values, (-1, int(np.prod(values.shape[1:]))))


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


def takes_distances(schema: InputSchema, config: TrainingConfig) -> bool:
    """Whether the configured score is one of distances from training rows, and not the reconstruction error."""
    return config.score == "ensemble" or (config.score == "auto" and schema.kind != "timeseries")


def fit_score(serving: Autoencoder, splits: Sequence[ScaledRows], schema: InputSchema, config: TrainingConfig) -> Score:
    """The configured score, fitted on the rows of ``splits``; at most 10,000 of them, drawn with the seed.

    Early stopping has decided by then, so that its validation rows serve here; calibration rows must not.
    """
    if not takes_distances(schema, config):
        return ReconstructionScore()
    inputs = np.concatenate([rows.inputs for rows in splits])
    missing = np.concatenate([np.isnan(rows.targets) for rows in splits])
    order = np.random.default_rng([config.seed, 4]).permutation(len(inputs))[:MAX_FIT_ROWS]
    scaled, observed = inputs[order], ~missing[order]
    latent, reconstruction, *hidden = in_batches(
        lambda part: serving.whole(tf.constant(scaled[part]), training=False), len(scaled)
    )
    rows = Passed(scaled, observed, latent, reconstruction, tuple(hidden))
    if schema.kind == "image":
        return HiddenLayersScore.fit(rows)
    # Each row a vector, in float64; without the hidden layers, which tables are not scored by.
    flat = {name: getattr(rows, name).reshape(len(rows), -1) for name in ("scaled", "observed", "reconstruction")}
    numbers = {name: flat[name].astype(np.float64) for name in ("scaled", "reconstruction")}
    vectors = Passed(latent=rows.latent.astype(np.float64), observed=flat["observed"], **numbers)
    return EnsembleScore.fit(vectors, trim=config.trim)
