"""The anomaly score inside the graph: a ``Score`` of rows as they passed through the network, and which one it is.

The serving graph, calibration and export know a score only as ``Score``. ``ReconstructionScore`` is that of series,
``DenoisingScore`` of tables, which says how much each feature adds, and ``HiddenLayersScore`` of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from service.runtime.quiet import tf
from service.runtime.signature import in_batches
from service.schemas import InputSchema
from service.training.architecture import Autoencoder
from service.training.config import TrainingConfig
from service.training.denoiser import Denoiser
from service.training.preprocessing import Layout, ScaledRows
from service.training.progress import Reporter
from service.training.scaling import Gaps
from service.training.score_parts import Directions, Mahalanobis, Tails, Units

MAX_FIT_ROWS = 10_000
TAILS_WEIGHT = 0.3
"""Beside the denoiser's error, which has 1."""
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

    @property
    def variables(self) -> Sequence[Any]:
        """What a SavedModel of the score must keep."""
        ...

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
    variables: tuple[Any, ...] = ()

    def __call__(self, rows: Passed) -> Any:
        return mean_squared_error(rows)


@dataclass(frozen=True, slots=True, eq=False)
class DenoisingScore:
    """How far a denoiser moves a row, and how rare its values are: a mean over features, of a training row about 1."""

    denoiser: Denoiser
    tails: Tails

    name = "denoising network"

    @property
    def variables(self) -> Sequence[Any]:
        return self.denoiser.network.variables

    def __call__(self, rows: Passed) -> Any:
        return tf.reduce_mean(self.parts(rows), axis=1)

    def parts(self, rows: Passed) -> Any:
        """What each feature adds to the score, (rows, features), not below 0; 0 where it is missing."""
        tails = tf.where(rows.observed, self.tails(rows.scaled), 0.0)
        error = self.denoiser.errors(rows.scaled, rows.observed)
        return (error + TAILS_WEIGHT * self.denoiser.layout.by_feature(tails)) / (1 + TAILS_WEIGHT)

    def expected(self, rows: Passed) -> Any:
        """What would have been usual in place of each value: (rows, values), in scaled units."""
        return self.denoiser.expected(rows.scaled)

    def denoised(self, rows: Passed) -> Any:
        """The rows without noise, whatever its level: (rows, values), in scaled units."""
        return self.denoiser.denoised(rows.scaled)


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
    variables: ClassVar[Sequence[Any]] = ()

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


def has_denoising_score(schema: InputSchema, config: TrainingConfig) -> bool:
    """Whether ``fit_score`` gives a ``DenoisingScore``."""
    return config.score != "reconstruction" and schema.kind not in ("image", "timeseries")


def fit_score(
    serving: Autoencoder,
    splits: Sequence[ScaledRows],
    *,
    schema: InputSchema,
    layout: Layout,
    config: TrainingConfig,
    reporter: Reporter,
) -> Score:
    """The configured score, fitted on the rows of ``splits``.

    Early stopping has decided by then, so that its validation rows serve here; calibration rows must not.
    """
    if config.score == "reconstruction" or schema.kind == "timeseries":
        return ReconstructionScore()
    reporter.stage("Fitting the score")
    inputs = np.concatenate([rows.inputs for rows in splits])
    order = np.random.default_rng([config.seed, 4]).permutation(len(inputs))
    if schema.kind == "image":
        images = inputs[order[:MAX_FIT_ROWS]]
        latent, reconstruction, *hidden = in_batches(
            lambda part: serving.whole(tf.constant(images[part]), training=False), len(images)
        )
        observed = np.ones(images.shape, bool)  # pixels are never missing
        return HiddenLayersScore.fit(Passed(images, observed, latent, reconstruction, tuple(hidden)))
    observed = np.concatenate([~np.isnan(rows.targets) for rows in splits])
    denoiser = Denoiser.fit(inputs[order], observed[order], layout, config, reporter)
    return DenoisingScore(denoiser, Tails.fit(inputs[order[:MAX_FIT_ROWS]]))
