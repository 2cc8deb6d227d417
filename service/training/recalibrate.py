"""A new version of a published one: the same networks and score, calibrated with other rows.

Nothing is fitted, so that it takes seconds. What the version computes is taken from its SavedModel, whatever made that;
threshold, p-values and the reference for drift are new.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from service.errors import DataError
from service.runtime.drift import feature_reference
from service.runtime.loaded_model import open_version
from service.runtime.quiet import tf
from service.schemas import INSTANCES, take_rows
from service.scoring import alarm_rate
from service.store import HISTORY, KERAS_MODEL, LATENT_MAP, TRAVERSALS, Manifest, Store
from service.training.config import TrainingConfig
from service.training.data import Dataset, read_dataset
from service.training.evaluate import calibrate, calibrate_points, score_rows
from service.training.evidence import gather
from service.training.export import choose_sample, export
from service.training.fit import History
from service.training.gate import Promotion, compare, hold_production, in_production, open_production, promote
from service.training.graph import ServingGraph
from service.training.progress import Reporter
from service.training.report import TrainingResult, describe_rows
from service.training.series import Windows
from service.training.split import split_rows
from service.training.train import OWN_SETTINGS, verify_in_fresh_process, write_documents
from service.words import ANOMALY_SCORE, DENOISE, ENCODE, EXPLAIN, POINT_ERRORS, RECONSTRUCT


class KeptGraph:
    """The graph of a published version, as a ``ServingGraph``: calibrated and exported in the same way."""

    anomaly_score = ServingGraph.anomaly_score
    point_scores = ServingGraph.point_scores
    score_series = ServingGraph.score_series

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.schema, self._folder = manifest.input, folder
        self._loaded = tf.saved_model.load(str(folder))

    def scores(self, rows: Mapping[str, Any]) -> Any:
        return self._loaded.signatures[ANOMALY_SCORE.name](**rows)["score"]

    def encode(self, rows: Mapping[str, Any]) -> Any:
        return self._loaded.signatures[ENCODE.name](**rows)

    def reconstruct(self, rows: Mapping[str, Any]) -> Any:
        return self._loaded.signatures[RECONSTRUCT.name](**rows)

    def denoise(self, rows: Mapping[str, Any]) -> Any:
        return self._loaded.signatures[DENOISE.name](**rows)

    def explain(self, rows: Mapping[str, Any]) -> Any:
        return self._loaded.signatures[EXPLAIN](**rows)

    def point_errors(self, rows: Mapping[str, Any]) -> Any:
        return self._loaded.signatures[POINT_ERRORS](**rows)

    @property
    def tracked(self) -> list[Any]:
        return [self._loaded]

    def save_network(self, path: Path) -> None:
        """Copy the Keras file of the version, where it has one, and what was drawn of its training."""
        for name in (KERAS_MODEL, HISTORY, LATENT_MAP, TRAVERSALS):
            if (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, path.parents[1] / name)


def recalibrate(
    config: TrainingConfig,
    *,
    source: Mapping[str, Any],
    store: Path | str,
    model: str,
    version: int | None = None,
    promotion: Promotion | None = None,
    reporter: Reporter | None = None,
    verify: Callable[[Path], None] | None = None,
) -> TrainingResult:
    """Calibrate a version with other rows and publish it as the next one of ``model``.

    Args:
        config: what of it holds without training: split, seed and false-alarm rate.
        source: arguments of ``read_dataset``.
        version: None: the one in production.

    Raises:
        ModelNotFound, VersionNotFound, InvalidVersion: there is no such version, or it is damaged.
        DataError: the rows are not such as it takes.
        TrainingFailed, StoreError: as of ``train``.
    """
    started, reporter, target = time.monotonic(), reporter or Reporter(), Store(store)
    number = target.resolve(model, version=version)
    kept = target.verify_digests(model, number)
    target.check_writable(model)
    reporter.stage("Reading rows")
    dataset = read_rows_of(kept, source, config, reporter)
    reporter.note(describe_rows(dataset))
    split = split_rows(len(dataset), config, blocks=dataset.blocks)
    reporter.stage("Calibrating")
    graph = cast("ServingGraph", KeptGraph(target.path(model, number), kept))
    calibration = calibrate(graph, take_rows(dataset.rows, split.calibration), config)
    points = None
    if dataset.series is not None and dataset.blocks is not None and kept.point_calibration is not None:
        held_back = np.unique(dataset.blocks[split.calibration]).tolist()
        seen = take_rows(dataset.rows, split.train)
        points = calibrate_points(graph, dataset.series, seen, config, held_back=held_back)
    test = take_rows(dataset.rows, split.test)
    rate = alarm_rate(score_rows(graph, test), calibration.threshold)
    reference = feature_reference(take_rows(dataset.rows, np.concatenate([split.train, split.validation])), kept.input)
    before = in_production(target, model) if promotion else None
    if promotion in ("auto", "never"):
        hold_production(target, model)
    with target.stage(model) as staging:
        reporter.stage("Exporting")
        sample = choose_sample(graph, calibration, test)
        denoises = DENOISE.name in kept.signatures
        specs = export(staging.path, graph, calibration, denoises=denoises, sample=sample, points=points)
        changed = {
            "created": datetime.now(UTC).replace(microsecond=0),
            "signatures": specs,
            "training": {
                **kept.training,
                **config.model_dump(mode="json", include=OWN_SETTINGS),
                "recalibrated": f"version {number}",
            },
            "source": dataset.source,
            "source_sha256": dataset.sha256,
            "source_rows": dataset.total,
            "row_counts": split.counts,
            "calibration": calibration,
            "point_calibration": points and points[0],
            "point_scale": points and points[1],
            "reference": reference,
            "warnings": dataset.notes,
            "metrics": {**kept.metrics, "test_alarm_rate": rate, "comparison": None},
        }
        blank = kept.model_copy(update={**changed, "version": 1, "digests": {}})
        exported = open_version(staging.path, blank)
        production = None if before is None else open_production(target, model, before)
        comparison = None if production is None else compare(exported, production, test)

        def build_manifest(taken: int, digests: dict[str, str]) -> Manifest:
            metrics = {**blank.metrics, "comparison": comparison.record() if comparison else None}
            return blank.model_copy(update={"version": taken, "digests": digests, "metrics": metrics})

        described = build_manifest(1, {})
        evidence = gather(exported, test, test_rows=len(split.test))
        write_documents(staging.path, described, evidence, _history(staging.path / HISTORY))
        reporter.stage("Verifying in a fresh process")
        published = staging.publish(build_manifest, verify or verify_in_fresh_process)
    reporter.stage(f"Published version {published} of {model}")
    decision = promote(target, model, promotion, comparison, version=published, before=before) if promotion else None
    return TrainingResult(
        model=model,
        version=published,
        source=dataset.source,
        rows=len(dataset),
        total_rows=dataset.total or len(dataset),
        latent_dim=kept.latent_dim,
        metrics=described.metrics,
        threshold=calibration.threshold,
        false_alarm_rate=config.false_alarm_rate,
        warnings=dataset.notes,
        decision=decision,
        seconds=time.monotonic() - started,
    )


def read_rows_of(manifest: Manifest, source: Mapping[str, Any], config: TrainingConfig, reporter: Reporter) -> Dataset:
    """Rows in the form of a version's: its columns in its order and types, its windows.

    Raises:
        DataError: they are none such.
    """
    schema, chosen = manifest.input, dict(source)
    with tempfile.TemporaryDirectory() as folder:
        if schema.columns:
            types = {
                each.name: {"type": each.type.value, "may_be_missing": each.may_be_missing} for each in schema.columns
            }
            chosen["schema_file"] = Path(folder) / "schema.json"
            chosen["schema_file"].write_text(json.dumps({"columns": types}), encoding="utf-8")
            chosen["columns"] = [each.name for each in schema.columns]
        elif schema.kind == "timeseries":
            windows = chosen.get("windows") or Windows()
            chosen["windows"] = Windows(windows.timestamp, schema.row_shape[0], windows.stride, windows.step)
            chosen["columns"] = schema.channels
        dataset = read_dataset(**chosen, max_rows=config.max_rows, seed=config.seed, progress=reporter.rows)
    shape = dataset.schema.row_shape
    if INSTANCES in dataset.rows and shape != schema.row_shape:
        if np.prod(shape) != np.prod(schema.row_shape):
            raise DataError(f"The version takes rows of shape {schema.row_shape}, and those given are of {shape}.")
        dataset.rows[INSTANCES] = dataset.rows[INSTANCES].reshape(-1, *schema.row_shape)
    if INSTANCES in dataset.rows and not schema.any_missing_allowed and np.isnan(dataset.rows[INSTANCES]).any():
        raise DataError("Some rows have missing values, which the version does not take.")
    return dataset


def _history(path: Path) -> History:
    if not path.is_file():
        return History((), (), 0, 0.0)
    kept = json.loads(path.read_text(encoding="utf-8"))
    return History(tuple(kept["train_loss"]), tuple(kept["validation_loss"]), kept["best_epoch"], 0.0)
