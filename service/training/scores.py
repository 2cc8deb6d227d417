"""Which score a model has, and what it is fitted on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.schemas import InputSchema
from service.training.architecture import Autoencoder
from service.training.config import TrainingConfig
from service.training.preprocessing import ScaledRows
from service.training.quiet import tf
from service.training.score import Passed, ReconstructionScore, Score
from service.training.score_ensemble import EnsembleScore
from service.training.score_images import HiddenLayersScore
from service.training.score_parts import ROWS_AT_ONCE

MAX_FIT_ROWS = 10_000


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
    rows = _pass_through(serving, inputs[order], ~missing[order])
    return HiddenLayersScore.fit(rows) if schema.kind == "image" else EnsembleScore.fit(_flat(rows), trim=config.trim)


def _pass_through(serving: Autoencoder, scaled: NDArray[np.float32], observed: NDArray[np.bool_]) -> Passed:
    passed = [
        serving.whole(tf.constant(scaled[start : start + ROWS_AT_ONCE]), training=False)
        for start in range(0, len(scaled), ROWS_AT_ONCE)
    ]
    parts = zip(*passed, strict=True)
    latent, reconstruction, *hidden = (np.concatenate([batch.numpy() for batch in part]) for part in parts)
    return Passed(scaled, observed, latent, reconstruction, tuple(hidden))


def _flat(rows: Passed) -> Passed:
    """Each row a vector, in float64; without the hidden layers, which tables are not scored by."""
    numbers = (each.reshape(len(rows), -1).astype(np.float64) for each in (rows.scaled, rows.reconstruction))
    scaled, reconstruction = numbers
    observed, latent = rows.observed.reshape(len(rows), -1), rows.latent.astype(np.float64)
    return replace(rows, scaled=scaled, observed=observed, latent=latent, reconstruction=reconstruction, hidden=())
