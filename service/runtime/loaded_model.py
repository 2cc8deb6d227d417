"""One version in memory. The only place where the service calls TensorFlow."""

import timeit
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from service.codecs import Options
from service.codecs.json_rows import decode_json
from service.errors import InvalidVersion, OperationNotSupported, RequestError
from service.runtime.signature import SignatureCall, load_signatures
from service.schemas import INSTANCES, InputSchema, Results, Rows, unsupported
from service.scoring import (
    conformal_p_values,
    conformal_threshold,
    discoveries,
    float32_threshold,
    is_anomaly,
    point_scores,
)
from service.store import (
    GOLDEN_OUTPUTS,
    SAMPLE_REQUEST,
    Calibration,
    Manifest,
    TensorSpec,
    check_digests,
    read_manifest,
)
from service.words import ANOMALY_SCORE, EXPLAIN, OPERATION_NAMED, RECONSTRUCT, Operation

WARM_UP_ROWS = (1, 32, 256)
INLINE_S = 0.001
"""Calls that take no longer may be made on the event loop."""
TIMED_CALLS = 5
GOLDEN_RTOL = 1e-3
GOLDEN_ATOL = 1e-4
GOLDEN_MS = 60_000


_ORDER: Final = (ANOMALY_SCORE.name, *(name for name in OPERATION_NAMED if name != ANOMALY_SCORE.name), EXPLAIN)

Judged: TypeAlias = tuple[Results, dict[str, Any]]
"""Results of ``anomaly_score``, and what belongs to all rows: the threshold and false-alarm rate behind their flags."""


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """The calibration scores and the threshold that scores are compared with."""

    scores: NDArray[np.float32]
    """Calibration scores, ascending."""
    threshold: np.float32
    false_alarm_rate: float

    @property
    def own_flags(self) -> dict[str, Any]:
        """The fields that an answer has once, for flags of the version's own choice."""
        return {"threshold": self.threshold, "false_alarm_rate": self.false_alarm_rate}

    @classmethod
    def of(cls, calibration: Calibration) -> Self:
        scores = np.asarray(calibration.scores, np.float32)
        return cls(scores, np.float32(calibration.threshold), calibration.false_alarm_rate)

    def judged(self, scores: NDArray[np.float32]) -> Results:
        """The results of ``anomaly_score`` for scores that were not computed by a signature of that name."""
        p_values = conformal_p_values(scores, self.scores)
        return {"score": scores, "p_value": p_values, "is_anomaly": is_anomaly(scores, self.threshold)}

    def as_chosen(self, results: Results, options: Options) -> Judged:
        """Results with the flags, threshold and false-alarm rate that a caller chose, or the version's own."""
        once: dict[str, Any]
        if options.threshold is not None:
            limit = float32_threshold(options.threshold)
            rate = float(np.count_nonzero(self.scores > limit)) / len(self.scores)
            once = {"threshold": options.threshold, "false_alarm_rate": rate}
            return {**results, "is_anomaly": results["score"] > limit}, once
        if options.false_alarm_rate is not None:
            limit = conformal_threshold(self.scores, options.false_alarm_rate)
            once = {"threshold": limit, "false_alarm_rate": options.false_alarm_rate}
            return {**results, "is_anomaly": results["score"] > limit}, once
        if options.false_discovery_rate is not None:
            rate = options.false_discovery_rate
            flags, once = discoveries(results["score"], results["p_value"], rate, calibration_rows=len(self.scores))
            return {**results, "is_anomaly": flags}, once
        return results, self.own_flags


class LoadedModel:
    """A version whose signatures can be called. Safe to call from several threads; once measured nothing changes."""

    def __init__(self, manifest: Manifest, signatures: Mapping[str, SignatureCall]) -> None:
        self.manifest = manifest
        self.name = manifest.model
        self.version = manifest.version
        self.schema: InputSchema = manifest.input
        self._judge = Judge.of(manifest.calibration) if manifest.calibration else None
        self.own_flags = self._judge.own_flags if self._judge else {}
        self._point_judge = Judge.of(manifest.point_calibration) if manifest.point_calibration else None
        self._signatures = signatures
        self.inline_rows = dict.fromkeys(signatures, 0)
        """The number of rows that each signature answers within INLINE_S, as measured; 0 until then."""
        self._sample: Rows | None = None
        self.result_bytes = {name: spec.result_bytes for name, spec in manifest.signatures.items()}
        """Bytes of all results of one row, by signature."""

    def __repr__(self) -> str:
        return f"LoadedModel({self.name!r}, version={self.version})"

    def supports(self, signature: str) -> bool:
        return signature in self._signatures

    @property
    def default_signature(self) -> str:
        """The signature that runs where a protocol names none."""
        return ANOMALY_SCORE.name if self.supports(ANOMALY_SCORE.name) else RECONSTRUCT.name

    @cached_property
    def signature_names(self) -> tuple[str, ...]:
        """Signatures that the version has, ``anomaly_score`` first."""
        return tuple(name for name in _ORDER if self.supports(name) and name in self.manifest.signatures)

    @cached_property
    def outputs(self) -> Mapping[str, tuple[str, TensorSpec]]:
        """Every output by name, with its signature and what it looks like; those that an operation is about first."""
        found: dict[str, tuple[str, TensorSpec]] = {}
        for signature in self.signature_names:
            outputs = self.manifest.signatures[signature].outputs
            about = [name for _, name in OPERATION_NAMED[signature].results] if signature in OPERATION_NAMED else []
            for name in (*(name for name in about if name in outputs), *outputs):
                found.setdefault(name, (signature, outputs[name]))
        return found

    def require(self, operation: Operation) -> None:
        """
        Raises:
            OperationNotSupported: this version was not trained for it.
        """
        if operation.name not in self._signatures:
            raise unsupported(operation, self.name, self.version)

    def run(self, signature: str, rows: Rows) -> Results:
        """Call a signature: arrays with the rows first in, arrays with the rows first out. Blocks."""
        return self._signatures[signature](rows)

    def judge(self, results: Results, options: Options) -> Judged:
        """Results of ``anomaly_score`` with the caller's threshold or rate, or with the version's own.

        Raises:
            OperationNotSupported: the version is not calibrated.
        """
        if self._judge is None:
            raise unsupported(ANOMALY_SCORE, self.name, self.version)
        return self._judge.as_chosen(results, options)

    def judge_points(self, results: Results, rows: Rows, options: Options) -> Judged:
        """Results of ``anomaly_score`` for the points of a series, from results of ``point_errors`` for ``rows``.

        ``rows`` are all windows of the series, one point after the other.

        Raises:
            OperationNotSupported: this version was not trained on a series.
        """
        if self._point_judge is None:
            raise OperationNotSupported(f"Version {self.version} of model '{self.name}' was not trained on a series.")
        windows = rows[INSTANCES]
        points = np.concatenate([windows[:, 0], windows[-1, 1:]])
        scores = point_scores(results["error"], points, self.manifest.point_scale)
        judged = self._point_judge.judged(scores)
        return self._point_judge.as_chosen(judged, options)

    def warm_up(self, sample: Rows) -> None:
        """Run every signature at the batch sizes in use, so that no request pays for a first call."""
        self._sample = sample
        for signature, batches in self._batches(sample):
            for rows in batches.values():
                self.run(signature, rows)

    def measure(self) -> None:
        """Time every signature once after ``warm_up``; call while nothing is being loaded."""
        sample, self._sample = self._sample, None
        if sample is not None:
            for signature, batches in self._batches(sample):
                self.inline_rows[signature] = self._timed_rows(signature, batches)

    def _batches(self, sample: Rows) -> Iterator[tuple[str, Mapping[int, Rows]]]:
        """Batches of each signature, by their number of rows."""
        batches = {
            size: {name: np.concatenate([array] * -(-size // len(array)))[:size] for name, array in sample.items()}
            for size in WARM_UP_ROWS
        }
        for signature in self._signatures:
            yield signature, batches

    def _timed_rows(self, signature: str, batches: Mapping[int, Rows]) -> int:
        """The number of rows that are answered within INLINE_S, interpolated between the measured sizes."""
        times = [0.0]
        for rows in batches.values():
            if times[-1] <= INLINE_S:
                # Of several calls the quickest: others were held up by something else.
                quickest = min(timeit.repeat(partial(self.run, signature, rows), number=1, repeat=TIMED_CALLS))
                times.append(max(times[-1], quickest))
        return int(np.interp(INLINE_S, times, [0, *batches][: len(times)]))


def load_version(version_dir: Path) -> LoadedModel:
    """Check every digest, load, compare the golden outputs, warm up.

    Raises:
        InvalidVersion: something is missing, changed, or does not answer as it did when it was trained.
    """
    manifest = read_manifest(version_dir)
    check_digests(version_dir, manifest)
    loaded = open_version(version_dir, manifest)
    sample = sample_rows(version_dir, manifest.input)
    _check_golden_outputs(loaded, version_dir, sample)
    loaded.warm_up(sample)
    return loaded


def open_version(version_dir: Path, manifest: Manifest) -> LoadedModel:
    """Load the version in a folder, without checks and warm-up.

    Raises:
        InvalidVersion: it cannot be loaded, or lacks a signature of the manifest.
    """
    return LoadedModel(manifest, _load_signatures(version_dir, manifest))


def sample_rows(version_dir: Path, schema: InputSchema) -> Rows:
    """Rows of the version's sample request, as its signatures take them."""
    try:
        return decode_json(_read(version_dir / SAMPLE_REQUEST), schema, operation=ANOMALY_SCORE)[0]
    except RequestError as error:
        raise InvalidVersion(f"its sample request does not fit its schema: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidVersion(f"{path.name} cannot be read: {error.strerror}") from error


def _load_signatures(version_dir: Path, manifest: Manifest) -> dict[str, SignatureCall]:
    try:
        signatures = load_signatures(version_dir)
    except Exception as error:
        raise InvalidVersion(f"TensorFlow cannot load it: {type(error).__name__}") from error
    missing = sorted(set(manifest.signatures) - set(signatures))
    if missing:
        raise InvalidVersion(f"the SavedModel lacks the signature '{missing[0]}' that the manifest names")
    return {name: signatures[name] for name in manifest.signatures}


def _check_golden_outputs(loaded: LoadedModel, version_dir: Path, sample: Rows) -> None:
    golden: dict[str, dict[str, Any]] = orjson.loads(_read(version_dir / GOLDEN_OUTPUTS))
    for signature, outputs in golden.items():
        if not loaded.supports(signature):
            raise InvalidVersion(f"golden outputs exist for '{signature}', which the SavedModel lacks")
        try:
            answers = loaded.run(signature, sample)
        except Exception as error:
            raise InvalidVersion(f"signature '{signature}' fails on the sample request") from error
        for name, expected in outputs.items():
            if name not in answers or not agree(answers[name], expected):
                raise InvalidVersion(f"output '{name}' of signature '{signature}' differs from its golden output")


def agree(answer: np.ndarray[Any, Any], expected: Any) -> bool:
    """Whether an output is its golden output, but for the rounding of another processor."""
    if answer.dtype.kind == "O":
        return bool(np.array_equal(answer, np.vectorize(str.encode, otypes=[object])(np.asarray(expected, object))))
    if answer.dtype.kind == "i":  # times, made of floating point numbers
        return answer.shape == np.shape(expected) and bool(np.all(np.abs(answer - np.asarray(expected)) <= GOLDEN_MS))
    if answer.dtype.kind != "f":
        return bool(np.array_equal(answer, np.asarray(expected)))
    wanted = np.asarray(expected, np.float32)
    return answer.shape == wanted.shape and np.allclose(answer, wanted, rtol=GOLDEN_RTOL, atol=GOLDEN_ATOL)
