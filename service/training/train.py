"""The recipe: data, split, fit, calibrate, export, verify, publish."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.store import MODEL_CARD, PLOTS, Calibration, Corruption, FeatureReference, Manifest, SignatureSpec, Store
from service.training.config import TrainingConfig, settle
from service.training.data import Dataset, read_dataset
from service.training.progress import Reporter, SilentReporter
from service.training.publish import check_target, verify
from service.training.reference import feature_reference
from service.training.report import TrainingResult, model_card
from service.training.split import Split, split_rows

if TYPE_CHECKING:
    from service.training.evaluate import Metrics
    from service.training.fit import History
    from service.training.graph import ServingGraph

LIBRARIES = ("keras", "numpy", "scikit-learn")
TENSORFLOW = ("tensorflow", "tensorflow-cpu")


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Everything about a model that has been trained and measured, but not yet written anywhere."""

    dataset: Dataset
    config: TrainingConfig
    split: Split
    graph: "ServingGraph"
    history: "History"
    calibration: Calibration
    metrics: "Metrics"
    reference: tuple[FeatureReference, ...]
    warnings: tuple[str, ...]


def train(
    config: TrainingConfig,
    *,
    source: str,
    store: Path,
    model: str,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train on ``source`` (a path, or ``digits``) and publish the result as the next version of ``model``.

    Nothing is written to the store before the model is trained; on any error, and on KeyboardInterrupt, which passes
    through, it has no new version.

    Args:
        columns, drop: names of columns to use or to leave out, for CSV and Parquet.
        reporter: is told of stages and epochs; silence by default.

    Raises:
        DataError: no model can be made of these rows.
        ConfigurationError: the configuration does not fit the rows, or the model's name is none.
        TrainingFailed: training diverged, or the exported model does not answer as the trained one.
        StoreError: the store is not there, or cannot be written.
    """
    started = time.monotonic()
    reporter = reporter or SilentReporter()
    target = Store(store)
    check_target(target, model)
    reporter.stage("Reading rows")
    dataset = read_dataset(source, columns=columns, drop=drop, max_rows=config.max_rows, seed=config.seed)
    trained = train_model(dataset, config, reporter)
    number = publish_model(trained, store=target, model=model, reporter=reporter)
    return TrainingResult(
        model=model,
        version=number,
        source=dataset.source,
        rows=len(dataset.instances),
        latent_dim=trained.graph.latent_dim,
        metrics=trained.metrics.record(),
        threshold=trained.calibration.threshold,
        false_alarm_rate=config.false_alarm_rate,
        warnings=trained.warnings,
        seconds=time.monotonic() - started,
    )


def train_model(dataset: Dataset, config: TrainingConfig, reporter: Reporter) -> TrainedModel:
    """Split, fit, calibrate and measure. Writes nothing. Errors as of ``train``."""
    split = split_rows(len(dataset.instances), config)
    config = settle(config, features=dataset.features, rows=len(split.train))
    reporter.stage("Starting TensorFlow")
    from service.training.architecture import build_autoencoder
    from service.training.calibrate import calibrate
    from service.training.evaluate import evaluate, find_warnings, scale_splits
    from service.training.fit import fit, make_reproducible
    from service.training.graph import build_graph
    from service.training.scaling import fit_scaling

    reporter.stage(f"Fitting {len(split.train)} rows")
    make_reproducible(config.seed)
    scaling = fit_scaling(dataset.instances[split.train], dataset.schema, config)
    splits = scale_splits(dataset, split, scaling)
    autoencoder = build_autoencoder(dataset.schema, config)
    train_rows, validation_rows = splits["train"].scaled, splits["validation"].scaled
    history = fit(autoencoder, scaling, config, train=train_rows, validation=validation_rows, reporter=reporter)
    graph = build_graph(dataset.schema, autoencoder, scaling, train=train_rows.targets)

    reporter.stage("Calibrating and measuring")
    calibration = calibrate(graph, dataset.instances[split.calibration], config)
    metrics = evaluate(graph, splits, history, calibration, config)
    warnings = find_warnings(metrics, calibration, config)
    reference = feature_reference(dataset.instances[split.train], dataset.schema)
    return TrainedModel(dataset, config, split, graph, history, calibration, metrics, reference, warnings)


def publish_model(trained: TrainedModel, *, store: Store, model: str, reporter: Reporter) -> int:
    """Export, verify in a fresh process and publish; the version's number. Errors as of ``train``."""
    from service.training.export import choose_sample, export

    test_rows = trained.dataset.instances[trained.split.test]
    with store.stage(model) as staging:
        reporter.stage("Exporting")
        sample = choose_sample(trained.graph, trained.calibration, test_rows)
        denoises = trained.config.corruption != "none"
        specs = export(staging.path, trained.graph, trained.calibration, denoises=denoises, sample=sample)
        created = datetime.now(UTC).replace(microsecond=0)

        def build_manifest(number: int, digests: dict[str, str]) -> Manifest:
            return _manifest(trained, specs, created, model=model, number=number, digests=digests)

        (staging.path / MODEL_CARD).write_text(model_card(build_manifest(1, {})), encoding="utf-8")
        _draw(trained, staging.path / PLOTS)
        reporter.stage("Verifying in a fresh process")
        number = staging.publish(build_manifest, verify)
    reporter.stage(f"Published version {number} of {model}")
    return number


def _draw(trained: TrainedModel, folder: Path) -> None:
    from service.training.evaluate import reconstruct, score_rows
    from service.training.plots import POINTS, draw_plots

    rows = trained.dataset.instances[trained.split.test]
    draw_plots(
        folder,
        history=trained.history,
        calibration=trained.calibration,
        test_scores=score_rows(trained.graph, rows),
        rows=rows[:POINTS],
        reconstructions=reconstruct(trained.graph, rows[:POINTS]),
        schema=trained.dataset.schema,
    )


def _manifest(
    trained: TrainedModel,
    specs: dict[str, SignatureSpec],
    created: datetime,
    *,
    model: str,
    number: int,
    digests: dict[str, str],
) -> Manifest:
    config = trained.config
    noise = None if config.corruption == "none" else Corruption(kind=config.corruption, level=config.corruption_level)
    return Manifest(
        model=model,
        version=number,
        created=created,
        input=trained.dataset.schema,
        signatures=specs,
        latent_dim=trained.graph.latent_dim,
        training={**config.model_dump(mode="json"), "score": trained.graph.score.name},
        seed=config.seed,
        corruption=noise,
        source=trained.dataset.source,
        source_sha256=trained.dataset.sha256,
        row_counts=trained.split.counts,
        libraries=_libraries(),
        metrics=trained.metrics.record(),
        warnings=trained.warnings,
        calibration=trained.calibration,
        reference=trained.reference,
        digests=digests,
    )


def _libraries() -> dict[str, str]:
    """Versions that the result may depend on; TensorFlow goes by one of two names."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in (*TENSORFLOW, *LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
