"""How good the model is: errors by split beside those of PCA, denoising, false alarms, and what to worry about."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.schemas import INSTANCES, Array, Rows, take_rows
from service.scoring import alarm_rate, reconstruction_error, rows_needed
from service.store import Calibration
from service.training.architecture import principal_axes
from service.training.compression import Compression, measure_compression
from service.training.config import TrainingConfig
from service.training.corruption import Corruptor
from service.training.data import Dataset
from service.training.fit import History, limits_of
from service.training.graph import ServingGraph, compile_for_rows, map_arrays, map_rows, run_signature
from service.training.preprocessing import Preprocessing, ScaledRows
from service.training.quiet import tf
from service.training.split import Split

OVERFIT_RATIO = 1.5
MAX_LATENT_ROWS = 10_000
PCA_BATCH_ROWS = 16_384


PCA_RATIO = 1.01
"""A test error that is greater than PCA's by less is as good."""


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
    latent_reason: str | None = None,
    device: str = "",
) -> Metrics:
    test = splits["test"]
    return Metrics(
        autoencoder=autoencoder_errors(graph, splits),
        pca=pca_errors(splits, components=graph.latent_dim, seed=config.seed),
        test_alarm_rate=alarm_rate(score_rows(graph, test.raw), calibration.threshold),
        denoising=None if config.corruption == "none" else measure_denoising(graph, config, splits),
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
    return Errors(**{name: _mean(map_rows(errors, split.raw)) for name, split in splits.items()})


def pca_errors(splits: dict[str, SplitRows], *, components: int, seed: int) -> Errors:
    """PCA fitted on (at most 100,000 of) the scaled training rows."""
    mean, axes = principal_axes(_flat(splits["train"].scaled.inputs), components, seed=seed)

    def errors(inputs: Array, targets: Array) -> Array:
        return reconstruction_error(targets, (inputs - mean) @ axes.T @ axes + mean)

    def error(rows: ScaledRows) -> float:
        # Batch by batch: errors are measured in float64, and a large table would be there several times.
        inputs, targets = _flat(rows.inputs), _flat(rows.targets)
        starts = range(0, len(inputs), PCA_BATCH_ROWS)
        batches = [slice(start, start + PCA_BATCH_ROWS) for start in starts]
        return _mean(np.concatenate([errors(inputs[batch], targets[batch]) for batch in batches]))

    return Errors(**{name: error(split.scaled) for name, split in splits.items()})


def measure_denoising(graph: ServingGraph, config: TrainingConfig, splits: dict[str, SplitRows]) -> Denoising:
    """Corrupt test rows as in training and let the model clean them."""
    rows = splits["test"].scaled
    corruptor = Corruptor(config, graph.preprocessing.scaling, limits=limits_of(splits["train"].scaled))
    noisy = corruptor.corrupt(tf.constant(rows.inputs), [config.seed, 0]).numpy()
    trained = graph.trained
    denoised = map_arrays(lambda scaled: trained.denoise(scaled, trained.network(scaled, training=False)), noisy)
    before, after = (_mean(reconstruction_error(rows.targets, each)) for each in (noisy, denoised))
    is_image = graph.schema.kind == "image" and graph.preprocessing.scaling.bounded
    psnr_db = [-10 * math.log10(max(error, 1e-12)) if is_image else None for error in (before, after)]
    return Denoising(before, after, *psnr_db)


def score_rows(graph: ServingGraph, rows: Rows) -> NDArray[np.float32]:
    """Anomaly scores of raw rows."""
    return map_rows(compile_for_rows(graph.scores, graph.schema), rows)


def reconstruct(graph: ServingGraph, rows: Rows) -> Rows:
    """Reconstructions of raw rows, as raw rows."""
    rebuild = compile_for_rows(lambda raw: graph.preprocessing.unscale(graph.run(raw).reconstruction), graph.schema)
    return run_signature(rebuild, rows)


def encode(graph: ServingGraph, rows: Rows) -> NDArray[np.float32]:
    """Latents of raw rows, (rows, latent_dim)."""
    return map_rows(compile_for_rows(lambda raw: graph.encode(raw)["latent"], graph.schema), rows)


def decode(graph: ServingGraph, latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reconstructions of latents (rows, latent_dim), in raw units: the numbers of the rows alone."""

    def decoded(batch: Any) -> Any:
        return graph.preprocessing.unscale(graph.serving.decoder(batch, training=False))[INSTANCES]

    return map_arrays(decoded, latents)


def find_warnings(metrics: Metrics, calibration: Calibration, config: TrainingConfig) -> tuple[str, ...]:
    """What a user should look at before trusting the model, one sentence each."""
    own, pca = metrics.autoencoder, metrics.pca
    found = []
    if own.test > OVERFIT_RATIO * own.train:
        found.append(
            f"Overfitting: the test error is {own.test / max(own.train, 1e-12):.1f} times the training error. "
            "More rows, a narrower latent, dropout or weight decay would help."
        )
    if own.test > PCA_RATIO * pca.test:
        found.append(f"PCA with the same latent size reconstructs better: {pca.test:.4g} against {own.test:.4g}.")
    if metrics.denoising is not None and metrics.denoising.denoised >= metrics.denoising.noisy:
        found.append("Denoised test rows are no nearer to the clean ones than the noisy ones were.")
    if calibration.rows < rows_needed(config.false_alarm_rate):
        found.append(
            f"{calibration.rows} calibration rows cannot guarantee a false-alarm rate of {config.false_alarm_rate:g}; "
            f"{rows_needed(config.false_alarm_rate)} are needed."
        )
    return tuple(found)


def _flat(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows.reshape(len(rows), -1)


def _mean(errors: NDArray[Any]) -> float:
    return float(np.mean(errors, dtype=np.float64))
