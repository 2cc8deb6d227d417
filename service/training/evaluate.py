"""Threshold and p-values from calibration rows, and how good the model is: errors beside those of PCA, false alarms."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import TrainingFailed
from service.runtime.quiet import tf
from service.runtime.signature import in_batches
from service.schemas import (
    INSTANCES,
    PointScale,
    Rows,
    row_count,
    take_rows,
)
from service.scoring import (
    alarm_rate,
    conformal_p_values,
    conformal_threshold,
    point_scores,
    reconstruction_error,
    rows_needed,
)
from service.store import Calibration
from service.training.architecture import principal_axes
from service.training.compression import Compression, measure_compression
from service.training.config import MAX_CALIBRATION_ROWS, TrainingConfig
from service.training.data import Dataset
from service.training.fit import Corruptor, History, limits_of
from service.training.gate import SIGNIFICANT, FalseAlarms, chance_of_alarms, false_alarms
from service.training.graph import (
    ServingGraph,
    compile_for_rows,
    run_rows,
)
from service.training.preprocessing import Preprocessing, ScaledRows
from service.training.series import Series, fit_point_scale
from service.training.split import Split

OVERFIT_RATIO = 1.5
MAX_LATENT_ROWS = 10_000
PCA_BATCH_ROWS = 16_384
FAR_OFF = 2.0
"""A false-alarm rate is far off when it is so many times the one that was asked for, or as small a part of it."""
FEW_SPANS = 10
PCA_RATIO = 1.01
"""A test error within this factor of PCA's is as good, and no better."""


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Rows of one split: raw, and scaled."""

    raw: Rows
    scaled: ScaledRows


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean squared reconstruction error by split, in scaled units."""

    train: float
    validation: float
    test: float


@dataclass(frozen=True, slots=True)
class Denoising:
    """Mean squared error of corrupted test rows against the clean ones, before and after; PSNR in dB for images."""

    noisy: float
    denoised: float
    noisy_psnr_db: float | None
    denoised_psnr_db: float | None


@dataclass(frozen=True, slots=True)
class Metrics:
    autoencoder: Errors
    pca: Errors
    """PCA with as many components as the latent is wide, on the same scaled rows: the baseline."""
    test_alarm_rate: float
    """Share of test rows over the threshold; near the false-alarm rate where the rows are normal."""
    false_alarms: FalseAlarms
    """Of the test rows, by false-alarm rate."""
    point_false_alarms: FalseAlarms | None
    """Of the points of the test blocks of a series. Neighbouring scores resemble each other: the band is too narrow."""
    denoising: Denoising | None
    compression: Compression | None
    epochs: int
    best_epoch: int
    fit_s: float
    latent_reason: str | None
    """Why the latent is as wide as it is, where the width was chosen from the rows."""
    device: str
    """What it was fitted on."""

    def record(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        errors = {"autoencoder": asdict(self.autoencoder), "pca": asdict(self.pca)}
        rest = {name: value for name, value in asdict(self).items() if name not in errors}
        return {"reconstruction_error": errors, **rest}


def scale_splits(dataset: Dataset, split: Split, preprocessing: Preprocessing) -> dict[str, SplitRows]:
    """Rows of the train, validation and test splits. Those for calibration stay out of it."""
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    raw = {name: take_rows(dataset.rows, rows) for name, rows in parts.items()}
    return {name: SplitRows(rows, preprocessing.scale_all(rows)) for name, rows in raw.items()}


def evaluate(
    graph: ServingGraph,
    splits: dict[str, SplitRows],
    history: History,
    calibration: Calibration,
    config: TrainingConfig,
    *,
    point_false_alarms: FalseAlarms | None = None,
    latent_reason: str | None = None,
    device: str = "",
) -> Metrics:
    test = splits["test"]
    scores = score_rows(graph, test.raw)
    is_noise_known = config.corruption != "none" or (graph.denoises and not graph.autoencoder_denoises)
    return Metrics(
        autoencoder=autoencoder_errors(graph, splits),
        pca=pca_errors(splits, components=graph.latent_dim, seed=config.seed),
        test_alarm_rate=alarm_rate(scores, calibration.threshold),
        false_alarms=measure_alarms(calibration, scores),
        point_false_alarms=point_false_alarms,
        denoising=measure_denoising(graph, config, splits) if is_noise_known else None,
        compression=measure_compression(
            graph, train=splits["train"].scaled.inputs[:MAX_LATENT_ROWS], test=test.scaled.inputs
        ),
        epochs=len(history.train_loss),
        best_epoch=history.best_epoch,
        fit_s=round(history.fit_s, 3),
        latent_reason=latent_reason,
        device=device,
    )


def autoencoder_errors(graph: ServingGraph, splits: dict[str, SplitRows]) -> Errors:
    errors = compile_for_rows(lambda rows: graph.reconstruct(rows)["error"], graph.schema)
    return Errors(**{name: _mean(run_rows(errors, split.raw)) for name, split in splits.items()})


def pca_errors(splits: dict[str, SplitRows], *, components: int, seed: int) -> Errors:
    """PCA fitted on (at most 100,000 of) the scaled training rows."""
    mean, axes = principal_axes(_flat(splits["train"].scaled.inputs), components, seed=seed)

    def error(rows: ScaledRows) -> float:
        inputs, targets = _flat(rows.inputs), _flat(rows.targets)
        # Batch by batch: errors are measured in float64, and a large table would be there several times.
        errors = in_batches(
            lambda part: reconstruction_error(targets[part], (inputs[part] - mean) @ axes.T @ axes + mean),
            len(inputs),
            size=PCA_BATCH_ROWS,
        )
        return _mean(errors)

    return Errors(**{name: error(split.scaled) for name, split in splits.items()})


def measure_denoising(graph: ServingGraph, config: TrainingConfig, splits: dict[str, SplitRows]) -> Denoising:
    """Corrupt test rows as in training, or with normal noise where there was none, and let the model clean them."""
    rows = splits["test"].scaled
    if config.corruption == "none":
        config = config.model_copy(update={"corruption": "gaussian"})
    corruptor = Corruptor(config, graph.preprocessing.scaling, limits=limits_of(splits["train"].scaled))
    noisy = tf.cast(corruptor.corrupt(tf.constant(rows.inputs), [config.seed, 0]), graph.serving.network.output.dtype)
    observed = ~np.isnan(rows.targets)
    denoised = in_batches(lambda part: graph.denoised(graph.run_scaled(noisy[part], observed[part])), len(noisy))
    before, after = (_mean(reconstruction_error(rows.targets, each)) for each in (noisy.numpy(), denoised))
    is_image = graph.schema.kind == "image" and graph.preprocessing.scaling.bounded
    psnr_db = [-10 * math.log10(max(error, 1e-12)) if is_image else None for error in (before, after)]
    return Denoising(before, after, *psnr_db)


def score_rows(graph: ServingGraph, rows: Rows) -> NDArray[np.float32]:
    """Anomaly scores of raw rows."""
    scores: NDArray[np.float32] = run_rows(compile_for_rows(graph.scores, graph.schema), rows)
    return scores


def measure_alarms(calibration: Calibration, scores: NDArray[np.float32]) -> FalseAlarms:
    """The false alarms among rows with these scores."""
    return false_alarms(calibration.rows, conformal_p_values(scores, calibration.scores))


def decode(graph: ServingGraph, latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reconstructions of latents (rows, latent_dim), in raw units: the numbers of the rows alone."""
    decoder, unscale = graph.serving.decoder, graph.preprocessing.unscale
    decoded: NDArray[np.float32] = in_batches(
        lambda part: unscale(decoder(tf.constant(latents[part]), training=False))[INSTANCES], len(latents)
    )
    return decoded


def find_warnings(
    metrics: Metrics,
    calibration: Calibration,
    config: TrainingConfig,
    *,
    test_rows: int,
    points: tuple[Calibration, PointScale] | None = None,
) -> tuple[str, ...]:
    """Sentences about what a user should look at before trusting the model."""
    own, pca = metrics.autoencoder, metrics.pca
    found = []
    is_fitted_here = bool(metrics.epochs)
    if is_fitted_here and own.test > OVERFIT_RATIO * own.train:
        found.append(
            f"Overfitting: the test error is {own.test / max(own.train, 1e-12):.1f} times the training error. "
            "More rows, a narrower latent, dropout or weight decay would help."
        )
    if is_fitted_here and metrics.best_epoch == 0:
        found.append(
            "No epoch was better than the start, which was kept; where the network starts as PCA, it is PCA. "
            "More rows or another learning rate would help, if anything can."
        )
    elif own.test > PCA_RATIO * pca.test:
        found.append(f"PCA with the same latent size reconstructs better: {pca.test:.4g} against {own.test:.4g}.")
    elif own.test > pca.test / PCA_RATIO:
        found.append(
            f"Rows are reconstructed no better than PCA with the same latent size does: {own.test:.4g} against "
            f"{pca.test:.4g}."
        )
    if (
        config.corruption != "none"
        and metrics.denoising is not None
        and metrics.denoising.denoised >= metrics.denoising.noisy
    ):
        found.append("Denoised test rows are no nearer to the clean ones than the noisy ones were.")
    if calibration.rows < rows_needed(config.false_alarm_rate):
        found.append(
            f"{calibration.rows} calibration rows cannot guarantee a false-alarm rate of {config.false_alarm_rate:g}; "
            f"{rows_needed(config.false_alarm_rate)} are needed."
        )
    if points is not None and points[0].rows < FEW_SPANS * points[1].span:
        found.append(
            f"The threshold of points rests on {points[0].rows} points, where scores are averaged over "
            f"{points[1].span} on either side: that is {points[0].rows / points[1].span:.2g} independent stretches of "
            "time. Where the level of the series moves, false alarms may be many; a longer series would help."
        )
    rate, nominal = metrics.test_alarm_rate, config.false_alarm_rate
    if metrics.point_false_alarms is not None:
        seen = float(np.interp(nominal, metrics.point_false_alarms.nominal, metrics.point_false_alarms.empirical))
        if seen > FAR_OFF * nominal:
            found.append(
                f"{seen:.2%} of the readings of the test stretches are over the threshold of points instead of "
                f"{nominal:.2%}: expect more false alarms than promised."
            )
    fewer, more = chance_of_alarms(
        round(rate * test_rows), test_rows, nominal=nominal, calibration_rows=calibration.rows
    )
    if not nominal / FAR_OFF <= rate <= FAR_OFF * nominal and min(fewer, more) < SIGNIFICANT:
        found.append(
            f"{rate:.2%} of the test rows are over the threshold instead of {nominal:.2%}: they are unlike the "
            "calibration rows, as where a series changes with time, so that the p-values may not hold."
        )
    return tuple(found)


def _flat(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows.reshape(len(rows), -1)


def _mean(errors: NDArray[Any]) -> float:
    return float(np.mean(errors, dtype=np.float64))


def calibrate(graph: ServingGraph, rows: Rows, config: TrainingConfig) -> Calibration:
    """Score raw rows (at most 10,000, drawn with the seed) and take the threshold of the false-alarm rate from them.

    Raises:
        TrainingFailed: a score is not finite.
    """
    count = row_count(rows)
    if count > MAX_CALIBRATION_ROWS:
        drawn = np.random.default_rng([config.seed, 2]).choice(count, MAX_CALIBRATION_ROWS, replace=False)
        rows = take_rows(rows, np.sort(drawn))
    return _calibration(score_rows(graph, rows), config)


def calibrate_points(
    graph: ServingGraph, series: Series, train_rows: Rows, config: TrainingConfig, *, held_back: Sequence[int]
) -> tuple[Calibration, PointScale]:
    """Units of the scores of points, and their calibration on the blocks held back, in which no fitted window is.

    Scores of neighbouring points resemble each other, so that the blocks tell less than their number of points
    promises: p-values hold on average over long series like them, not for each stretch. Points without a reading, whose
    error is none, do not count.

    Raises:
        TrainingFailed: a score is not finite.
    """
    function = compile_for_rows(graph.point_errors, graph.schema)
    scale = fit_point_scale(series, error=_mean(run_rows(function, train_rows)["error"]), held_back=held_back)
    scores = score_blocks(graph, series, scale, held_back)
    if len(scores) > MAX_CALIBRATION_ROWS:
        scores = np.random.default_rng([config.seed, 4]).choice(scores, MAX_CALIBRATION_ROWS, replace=False)
    return _calibration(scores, config), scale


def score_blocks(graph: ServingGraph, series: Series, scale: PointScale, blocks: Sequence[int]) -> NDArray[np.float32]:
    """Scores of the points of some blocks of a series that have a reading."""
    function = compile_for_rows(graph.point_errors, graph.schema)
    found = []
    for number in blocks:
        block = series.block(number)
        windows = np.lib.stride_tricks.sliding_window_view(block, series.window, axis=0).transpose(0, 2, 1)
        errors = run_rows(function, {INSTANCES: windows})["error"]
        slot = int(series.blocks[number][0] / scale.slot_points) % len(scale.typical)
        found.append(point_scores(errors, block, scale, first_slot=slot)[~np.isnan(block).all(axis=1)])
    return np.concatenate(found)


def _calibration(scores: NDArray[np.float32], config: TrainingConfig) -> Calibration:
    scores = np.sort(scores)
    if not np.isfinite(scores).all():
        raise TrainingFailed("The model gives calibration rows scores that are not finite.")
    return Calibration(
        rows=len(scores),
        false_alarm_rate=config.false_alarm_rate,
        threshold=float(conformal_threshold(scores, config.false_alarm_rate)),
        scores=tuple(float(score) for score in scores),
    )
