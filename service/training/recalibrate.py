"""A new version of a published one: the same networks and score, calibrated with other rows.

Nothing is fitted, so that it takes seconds. What the version computes is taken from its SavedModel, whatever made that;
threshold, p-values and the reference for drift are new.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from service.errors import DataError
from service.runtime.drift import feature_reference
from service.runtime.loaded_model import LoadedModel, open_version
from service.runtime.quiet import tf
from service.schemas import INSTANCES, take_rows
from service.scoring import alarm_rate
from service.store import HISTORY, KERAS_MODEL, LATENT_MAP, TRAVERSALS, Manifest, Store
from service.training.config import TrainingConfig
from service.training.data import Dataset, read_dataset
from service.training.evaluate import calibrate, calibrate_points, measure_alarms, score_blocks
from service.training.evidence import gather, write_latent_map
from service.training.export import choose_sample, export
from service.training.fit import History
from service.training.gate import (
    Promotion,
    compare,
    hold_production,
    in_production,
    open_production,
    promote,
    run_version,
    unseen_rows,
)
from service.training.graph import ServingGraph
from service.training.progress import Reporter
from service.training.report import TrainingResult, describe_rows
from service.training.series import Windows
from service.training.split import Split, split_rows
from service.training.train import OWN_SETTINGS, verifier, write_documents
from service.words import ANOMALY_SCORE, DENOISE, ENCODE, EXPLAIN, POINT_ERRORS, RECONSTRUCT


class KeptGraph:
    """The graph of a published version, as a ``ServingGraph``: calibrated and exported in the same way."""

    anomaly_score = ServingGraph.anomaly_score
    point_scores = ServingGraph.point_scores
    score_series = ServingGraph.score_series

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.schema, self._folder = manifest.input, folder
        self._scored = (ANOMALY_SCORE.name, "score") if manifest.calibration else (RECONSTRUCT.name, "error")
        self._loaded = tf.saved_model.load(str(folder))
        self.denoises = DENOISE.name in manifest.signatures

    def scores(self, rows: Mapping[str, Any]) -> Any:
        """The version's own; the reconstruction errors where it is not calibrated yet."""
        signature, output = self._scored
        return self._loaded.signatures[signature](**rows)[output]

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
    false_alarm_rate: float | None = None,
    promotion: Promotion | None = None,
    reporter: Reporter | None = None,
    verify: Callable[[Path], None] | None = None,
) -> TrainingResult:
    """Calibrate a version with other rows and publish it as the next one of ``model``.

    Args:
        config: what of it holds without training: split, seed and number of rows.
        source: arguments of ``read_dataset``.
        version: None: the one in production.
        false_alarm_rate: None: the one that the version has.

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
    fitted = _fitted(kept)
    rate = false_alarm_rate or (kept.calibration or config).false_alarm_rate
    config = TrainingConfig.model_validate(
        {**config.model_dump(), "false_alarm_rate": rate, **_divided(fitted, dataset)}
    )
    split = split_rows(len(dataset), config, blocks=dataset.blocks)
    reporter.stage("Calibrating")
    graph = cast("ServingGraph", KeptGraph(target.path(model, number), kept))
    calibration = calibrate(graph, take_rows(dataset.rows, split.calibration), config)
    points = alarms = None
    if dataset.series is not None and dataset.blocks is not None:
        held_back, tested = (np.unique(dataset.blocks[part]).tolist() for part in (split.calibration, split.test))
        seen = take_rows(dataset.rows, split.train)
        points = calibrate_points(graph, dataset.series, seen, config, held_back=held_back)
        alarms = measure_alarms(points[0], score_blocks(graph, dataset.series, points[1], tested))
    test = take_rows(dataset.rows, split.test)
    reference = feature_reference(take_rows(dataset.rows, np.concatenate([split.train, split.validation])), kept.input)
    before = in_production(target, model) if promotion else None
    if promotion in ("auto", "never"):
        hold_production(target, model)
    with target.stage(model) as staging, verifier(verify) as check:
        reporter.stage("Exporting")
        sample = choose_sample(graph, calibration, test)
        specs = export(staging.path, graph, calibration, sample=sample, points=points)
        changed = {
            "created": datetime.now(UTC).replace(microsecond=0),
            "signatures": specs,
            "training": {
                **kept.training,
                **config.model_dump(mode="json", include=OWN_SETTINGS),
                "recalibrated": f"version {number}",
                **({"fitted": fitted} if fitted else {}),
            },
            "seed": config.seed,
            "source": dataset.source,
            "source_sha256": dataset.sha256,
            "source_rows": dataset.total,
            "row_counts": split.counts,
            "calibration": calibration,
            "point_calibration": points and points[0],
            "point_scale": points and points[1],
            "reference": reference,
            "warnings": dataset.notes,
        }
        blank = kept.model_copy(update={**changed, "version": 1, "digests": {}})
        exported = open_version(staging.path, blank)
        production = None if before is None else open_production(target, model, before)
        comparison = None
        if production is not None:
            unseen = unseen_rows(
                production.manifest, split, rows=len(dataset), sha256=dataset.sha256, blocks=dataset.blocks
            )
            comparison = compare(exported, production, take_rows(dataset.rows, unseen))
        evidence = gather(exported, test, test_rows=len(split.test))
        metrics = {
            **kept.metrics,
            "reconstruction_error": {"autoencoder": _errors(exported, dataset, split)},
            "test_alarm_rate": alarm_rate(evidence.scores, calibration.threshold),
            "false_alarms": asdict(measure_alarms(calibration, evidence.scores)),
            "point_false_alarms": alarms and asdict(alarms),
            "pixel_error_limit": evidence.pixel_error_limit(config.false_alarm_rate),
            "comparison": comparison.record() if comparison else None,
        }
        described = blank.model_copy(update={"metrics": metrics})

        def build_manifest(taken: int, digests: dict[str, str]) -> Manifest:
            return described.model_copy(update={"version": taken, "digests": digests})

        write_documents(staging.path, described, evidence, _history(staging.path / HISTORY))
        if not (staging.path / LATENT_MAP).is_file():
            write_latent_map(
                staging.path, evidence.latents, evidence.latent_scores, kept.input, decode=None, seed=config.seed
            )
        reporter.stage("Verifying in a fresh process")
        published = staging.publish(build_manifest, check)
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


def _fitted(kept: Manifest) -> Mapping[str, Any] | None:
    """The rows that the network of a version was fitted on, and how they were divided; None where it is not known."""
    if {"imported", "recalibrated"} & kept.training.keys():
        return cast("Mapping[str, Any] | None", kept.training.get("fitted"))
    known: dict[str, Any] = {name: kept.training[name] for name in ("seed", "split") if name in kept.training}
    return {"source": kept.source, "sha256": kept.source_sha256, **known}


def _divided(fitted: Mapping[str, Any] | None, dataset: Dataset) -> dict[str, Any]:
    """Settings that divide the rows as they were when the network was fitted on them: what it knows calibrates nothing.

    None for other rows.
    """
    if fitted is None or fitted["sha256"] != dataset.sha256:
        return {}
    return {name: fitted[name] for name in ("seed", "split") if name in fitted}


def _errors(version: LoadedModel, dataset: Dataset, split: Split) -> dict[str, float]:
    """Mean squared reconstruction error by split, in scaled units."""
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    found = {
        name: run_version(version, RECONSTRUCT.name, take_rows(dataset.rows, rows))["error"]
        for name, rows in parts.items()
    }
    return {name: float(np.mean(errors, dtype=np.float64)) for name, errors in found.items()}


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
