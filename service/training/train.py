"""The recipe: data, split, fit, calibrate, export, verify, publish."""

import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError, TrainingFailed
from service.runtime.drift import feature_reference
from service.runtime.loaded_model import open_version
from service.schemas import TIMESTAMPS, PointScale, take_rows
from service.store import (
    MODEL_CARD,
    MODEL_NAME_PATTERN,
    PLOTS,
    REPORT,
    Calibration,
    Corruption,
    FeatureReference,
    Manifest,
    SignatureSpec,
    Store,
    Verify,
)
from service.training.checkpoint import Checkpoints
from service.training.config import TrainingConfig, settle
from service.training.data import Dataset, read_dataset
from service.training.gate import (
    Comparison,
    Promotion,
    compare,
    hold_production,
    in_production,
    open_production,
    promote,
    take_labels,
    unseen_rows,
)
from service.training.latent import settle_latent
from service.training.progress import Reporter
from service.training.report import TrainingResult, describe_rows, model_card
from service.training.series import Windows
from service.training.split import Split, split_rows
from service.training.times import usual_times

if TYPE_CHECKING:
    from service.training.evaluate import Metrics, SplitRows
    from service.training.evidence import Evidence
    from service.training.fit import History
    from service.training.graph import ServingGraph


LIBRARIES = ("keras", "numpy", "scikit-learn")
TENSORFLOW = ("tensorflow", "tensorflow-cpu")
VERIFY_TIMEOUT_S = 600.0
OWN_SETTINGS = {"false_alarm_rate", "split", "max_rows", "seed"}
"""What of the configuration holds for a network that was fitted elsewhere."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Everything about a model that has been trained and measured, but not yet written anywhere."""

    dataset: Dataset
    config: TrainingConfig
    split: Split
    graph: "ServingGraph"
    history: "History"
    calibration: Calibration
    points: tuple[Calibration, PointScale] | None
    """Of a series: for the scores of its points."""
    metrics: "Metrics"
    reference: tuple[FeatureReference, ...]
    warnings: tuple[str, ...]
    origin: Mapping[str, Any] | None = None
    """What is known of a network that was fitted elsewhere, for the records; None where it was fitted here."""


def train(
    config: TrainingConfig,
    *,
    source: str,
    store: Path | str,
    model: str,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    where: Sequence[str] = (),
    schema_file: Path | None = None,
    resize: tuple[int, int] | None = None,
    windows: Windows | None = None,
    promotion: Promotion | None = None,
    labels: str | None = None,
    checkpoints: Checkpoints | None = None,
    reporter: Reporter | None = None,
    verify: Callable[[Path], None] | None = None,
) -> TrainingResult:
    """Train on ``source`` (a path, or ``digits``) and publish the result as the next version of ``model``.

    Nothing is written to the store before the model is trained; on any error, and on KeyboardInterrupt, which passes
    through, it has no new version.

    Args:
        columns, drop: names of columns to use or to leave out, for tables.
        where: conditions on rows of tables, such as ``label=normal``; all must hold.
        schema_file: JSON or TOML with what the user says of the columns of a table.
        resize: height and width that images are brought to.
        windows: take the source for a series, whose rows are these windows.
        promotion: whether ``production`` moves to the new version, after a comparison with the one that it names. By
            default nothing is compared, and no alias touched.
        labels: column of a table that says which rows are anomalies; for that comparison only, and no column of rows.
        checkpoints: where the run is kept while it fits. What is there is removed once the version is published.
        reporter: is told of stages and epochs; silence by default.
        verify: loads the staged version before it gets its number; by default in a fresh process.

    Raises:
        DataError: no model can be made of these rows.
        ConfigurationError: the configuration does not fit the rows, or the model's name is none.
        TrainingFailed: training diverged, or the exported model does not answer as the trained one.
        StoreError: the store is not there, or cannot be written.
    """
    reporter = reporter or Reporter()

    def read() -> Dataset:
        return read_dataset(
            source,
            columns=columns,
            drop=drop,
            where=where,
            schema_file=schema_file,
            resize=resize,
            windows=windows,
            max_rows=config.max_rows,
            seed=config.seed,
            progress=reporter.rows,
        )

    def make(dataset: Dataset) -> TrainedModel:
        return train_model(dataset, config, reporter, checkpoints=checkpoints)

    result = make_version(
        read, make, store=store, model=model, promotion=promotion, labels=labels, reporter=reporter, verify=verify
    )
    if checkpoints:
        checkpoints.remove()
    return result


def make_version(
    read: Callable[[], Dataset],
    make: Callable[[Dataset], TrainedModel],
    *,
    store: Path | str,
    model: str,
    promotion: Promotion | None = None,
    labels: str | None = None,
    reporter: Reporter,
    verify: Callable[[Path], None] | None = None,
) -> TrainingResult:
    """Read rows, make a model of them and publish it as the next version. Arguments and errors as of ``train``."""
    started = time.monotonic()
    target = open_target(store, model)
    reporter.stage("Reading rows")
    dataset = read()
    reporter.note(describe_rows(dataset))
    dataset, known = take_labels(dataset, labels) if labels else (dataset, None)
    trained = make(dataset)
    before = in_production(target, model) if promotion else None
    if promotion in ("auto", "never"):
        hold_production(target, model)
    number, comparison = publish_model(
        trained, store=target, model=model, rival=before, labels=known, reporter=reporter, verify=verify
    )
    decision = promote(target, model, promotion, comparison, version=number, before=before) if promotion else None
    return TrainingResult(
        model=model,
        version=number,
        source=dataset.source,
        rows=len(trained.dataset),
        total_rows=dataset.total or len(dataset),
        latent_dim=trained.graph.latent_dim,
        metrics=_metrics(trained, comparison),
        threshold=trained.calibration.threshold,
        false_alarm_rate=trained.config.false_alarm_rate,
        warnings=trained.warnings,
        decision=decision,
        seconds=time.monotonic() - started,
    )


def open_target(store: Path | str, model: str) -> Store:
    """The store that versions of ``model`` are to be published in: what is wrong with it is found before the work.

    Raises:
        ConfigurationError: the model's name is none.
        StoreError: the store is not there, or cannot be written.
    """
    if not re.fullmatch(MODEL_NAME_PATTERN, model, flags=re.ASCII):
        raise ConfigurationError(
            "A model's name is 1 to 63 characters of a-z, 0-9, - and _, and starts with a letter or a digit."
        )
    target = Store(store)
    target.models()
    target.check_writable(model)
    return target


def train_model(
    dataset: Dataset, config: TrainingConfig, reporter: Reporter, *, checkpoints: Checkpoints | None = None
) -> TrainedModel:
    """Split, fit, calibrate and measure. Writes nothing. Errors as of ``train``."""
    split = split_rows(len(dataset), config, blocks=dataset.blocks)
    config = settle(config, dataset.schema, rows=len(split.train))
    reporter.stage("Starting TensorFlow")
    from service.training.architecture import build_autoencoder, start_as_pca
    from service.training.evaluate import scale_splits
    from service.training.fit import fit, fit_refiner, is_refined, make_reproducible, use_devices
    from service.training.graph import build_graph, needs_float64
    from service.training.preprocessing import fit_preprocessing
    from service.training.score import has_denoising_score

    device = use_devices()
    reporter.stage(f"Fitting {len(split.train)} rows on {device}")
    make_reproducible(config.seed)
    train_rows = take_rows(dataset.rows, split.train)
    preprocessing = fit_preprocessing(train_rows, dataset.schema, config)
    splits = scale_splits(dataset, split, preprocessing)
    fitted, validation = splits["train"].scaled, splits["validation"].scaled
    config, reason = settle_latent(config, fitted.inputs, features=dataset.schema.features)
    autoencoder = build_autoencoder(dataset.schema, config, preprocessing.layout)
    start_as_pca(autoencoder, fitted.inputs, seed=config.seed)
    # What must be the same for a run to go on with the same result.
    identity = {**config.model_dump(mode="json"), "rows": dataset.sha256, "libraries": libraries()}
    history = fit(
        autoencoder,
        preprocessing,
        config,
        train=fitted,
        validation=validation,
        reporter=reporter,
        checkpoint=checkpoints.of(identity) if checkpoints else None,
    )
    if is_refined(dataset.schema, config):
        reporter.stage("Fitting what corrects denoised rows")
        autoencoder = fit_refiner(
            autoencoder,
            preprocessing,
            dataset.schema,
            config,
            train=fitted,
            validation=validation,
            reporter=reporter,
        )
    distances = config.score != "reconstruction"
    precise = needs_float64(autoencoder, validation.inputs, dataset.schema, distances=distances)
    # The score's network removes normal noise of any level better than an autoencoder that was trained for one.
    by_score = config.corruption == "gaussian" and has_denoising_score(dataset.schema, config)
    denoises = config.corruption != "none" and not by_score
    graph = build_graph(dataset.schema, autoencoder, preprocessing, precise=precise, autoencoder_denoises=denoises)
    return measure(
        dataset,
        config,
        split=split,
        graph=graph,
        history=history,
        splits=splits,
        reporter=reporter,
        latent_reason=reason,
        device=device,
    )


def measure(
    dataset: Dataset,
    config: TrainingConfig,
    *,
    split: Split,
    graph: "ServingGraph",
    history: "History",
    splits: "dict[str, SplitRows]",
    reporter: Reporter,
    latent_reason: str | None = None,
    device: str = "",
) -> TrainedModel:
    """Fit the score of a network, calibrate it and measure both. Writes nothing. Errors as of ``train``.

    Args:
        graph: around the network, whatever its score.
        splits: as ``scale_splits`` gives them.
    """
    from service.training.evaluate import (
        calibrate,
        calibrate_points,
        evaluate,
        find_warnings,
        measure_alarms,
        score_blocks,
    )
    from service.training.score import fit_score

    # What the documents need takes seconds to import, and fitting does not hold the interpreter's lock.
    Thread(target=_import_for_documents, name="imports").start()
    scaled = (splits["train"].scaled, splits["validation"].scaled)
    score = fit_score(
        graph.serving, scaled, schema=dataset.schema, layout=graph.layout, config=config, reporter=reporter
    )
    graph = replace(graph, score=score)
    reporter.stage("Calibrating and measuring")
    calibration = calibrate(graph, take_rows(dataset.rows, split.calibration), config)
    points = alarms = None
    if dataset.series is not None and dataset.blocks is not None:
        held_back, test = (np.unique(dataset.blocks[part]).tolist() for part in (split.calibration, split.test))
        points = calibrate_points(graph, dataset.series, splits["train"].raw, config, held_back=held_back)
        alarms = measure_alarms(points[0], score_blocks(graph, dataset.series, points[1], test))
    metrics = evaluate(
        graph,
        splits,
        history,
        calibration,
        config,
        point_false_alarms=alarms,
        latent_reason=latent_reason,
        device=device,
    )
    warnings = (*dataset.notes, *find_warnings(metrics, calibration, config, test_rows=len(split.test), points=points))
    reference = feature_reference(splits["train"].raw, dataset.schema)
    return TrainedModel(dataset, config, split, graph, history, calibration, points, metrics, reference, warnings)


def _import_for_documents() -> None:
    for name in ("service.training.charts", "sklearn.manifold"):
        import_module(name)


def publish_model(
    trained: TrainedModel,
    *,
    store: Store,
    model: str,
    reporter: Reporter,
    rival: int | None = None,
    labels: NDArray[np.bool_] | None = None,
    verify: Callable[[Path], None] | None = None,
) -> tuple[int, Comparison | None]:
    """Export, compare with the version ``rival`` (with the rows' ``labels``), verify in a fresh process and publish.

    Returns the version's number, and the comparison where there is a rival that can be loaded. Errors as of ``train``.
    """
    from service.training.evaluate import decode
    from service.training.evidence import gather, image_shape, write_history, write_latent_map
    from service.training.export import choose_sample, export

    dataset, split = trained.dataset, trained.split
    test_rows = take_rows(dataset.rows, split.test)
    with store.stage(model) as staging, verifier(verify) as check:
        reporter.stage("Exporting")
        sample = choose_sample(trained.graph, trained.calibration, test_rows)
        specs = export(
            staging.path,
            trained.graph,
            trained.calibration,
            sample=sample,
            points=trained.points,
        )
        blank = _manifest(trained, specs, model=model)
        exported = open_version(staging.path, blank)
        comparison = None
        if rival is not None:
            reporter.stage(f"Comparing with version {rival}, which is in production")
            production = open_production(store, model, rival)
            if production is not None:
                unseen = unseen_rows(
                    production.manifest, split, rows=len(dataset), sha256=dataset.sha256, blocks=dataset.blocks
                )
                known = None if labels is None else labels[unseen]
                comparison = compare(exported, production, take_rows(dataset.rows, unseen), labels=known)

        # Of rows that were not fitted: of the others everything drawn would be too flattering.
        held_back = take_rows(dataset.rows, np.concatenate([split.test, split.calibration, split.validation]))
        evidence = gather(exported, held_back, test_rows=len(split.test))
        pixel_error_limit = evidence.pixel_error_limit(trained.config.false_alarm_rate)

        def build_manifest(number: int, digests: dict[str, str]) -> Manifest:
            metrics = {**_metrics(trained, comparison), "pixel_error_limit": pixel_error_limit}
            return blank.model_copy(update={"version": number, "digests": digests, "metrics": metrics})

        described = build_manifest(1, {})
        draws = partial(decode, trained.graph) if image_shape(dataset.schema) is not None else None
        latents = (evidence.latents, evidence.latent_scores)
        with ThreadPoolExecutor(1, "latent-map") as beside:
            mapped = beside.submit(
                write_latent_map, staging.path, *latents, dataset.schema, decode=draws, seed=trained.config.seed
            )
            write_documents(staging.path, described, evidence, trained.history)
            if trained.history.train_loss:
                write_history(staging.path, trained.history)
            mapped.result()
        reporter.stage("Verifying in a fresh process")
        number = staging.publish(build_manifest, check)
    reporter.stage(f"Published version {number} of {model}")
    return number, comparison


def write_documents(folder: Path, manifest: Manifest, evidence: "Evidence", history: "History") -> None:
    """Write model card, plots and report of the exported version in ``folder``.

    Args:
        manifest: the version's, complete but for its number and digests.
    """
    from service.training.charts import draw_plots
    from service.training.html_report import report_page

    (folder / MODEL_CARD).write_text(model_card(manifest), encoding="utf-8")
    draw_plots(folder / PLOTS, evidence, history, manifest.calibrated)
    (folder / REPORT).write_text(report_page(manifest, evidence, history), encoding="utf-8")


def _metrics(trained: TrainedModel, comparison: Comparison | None) -> dict[str, Any]:
    dataset = trained.dataset
    has_times = bool(dataset.schema.timestamps)
    times = {TIMESTAMPS: dataset.rows[TIMESTAMPS][trained.split.train]} if has_times else {}
    return {
        **trained.metrics.record(),
        "usual_times": usual_times(times, dataset.schema),
        "comparison": comparison.record() if comparison else None,
    }


def _manifest(trained: TrainedModel, specs: dict[str, SignatureSpec], *, model: str) -> Manifest:
    """The manifest but for its number and digests, which come last."""
    config = trained.config
    noise = None if config.corruption == "none" else Corruption(kind=config.corruption, level=config.corruption_level)
    return Manifest(
        model=model,
        version=1,
        created=datetime.now(UTC).replace(microsecond=0),
        input=trained.dataset.schema,
        signatures=specs,
        latent_dim=trained.graph.latent_dim,
        training={
            **config.model_dump(mode="json", include=None if trained.origin is None else OWN_SETTINGS),
            **(trained.origin or {}),
            "score": trained.graph.score.name,
            **({"decimal_comma": True} if trained.dataset.decimal_comma else {}),
        },
        seed=config.seed,
        corruption=noise,
        source=trained.dataset.source,
        source_sha256=trained.dataset.sha256,
        row_counts=trained.split.counts,
        source_rows=trained.dataset.total,
        libraries=libraries(),
        metrics=_metrics(trained, None),
        warnings=trained.warnings,
        calibration=trained.calibration,
        point_calibration=trained.points and trained.points[0],
        point_scale=trained.points and trained.points[1],
        reference=trained.reference,
        digests={},
    )


def libraries() -> dict[str, str]:
    """Versions that the result may depend on; TensorFlow goes by one of two names."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in (*TENSORFLOW, *LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def verifier(given: Verify | None = None) -> Iterator[Verify]:
    """``given``, or a function that has a fresh process load a staged version as the service will.

    The process loads TensorFlow while the version is being written.
    """
    if given is not None:
        yield given
        return
    command, pipe = [sys.executable, "-m", "service.runtime.verify"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True) as process:
        try:
            yield partial(_verify, process)
        finally:
            process.kill()


def _verify(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Check digests, signatures and golden outputs.

    Raises:
        TrainingFailed: it does not load, or does not answer as the trained network did.
    """
    try:
        _, said = process.communicate(str(folder), timeout=VERIFY_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise TrainingFailed("The exported model took too long to load in a fresh process.") from error
    if process.returncode != 0:
        lines = said.strip().splitlines()
        reason = lines[-1] if lines else f"the process ended with {process.returncode}"
        raise TrainingFailed(f"The exported model does not answer as the trained one: {reason}")
