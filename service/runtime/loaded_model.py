"""One version in memory. The only place where the service calls TensorFlow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from service.codecs.json_rows import decode_json
from service.errors import InvalidVersion, OperationNotSupported, RequestError
from service.runtime.signature import Signature
from service.schemas import ANOMALY_SCORE, EXPLAIN, InputSchema, Operation, Results, Rows, row_count
from service.store import GOLDEN_OUTPUTS, SAMPLE_REQUEST, Manifest, check_digests, read_manifest

WARM_UP_ROWS = (1, 32, 256)
GOLDEN_RTOL = 1e-3
GOLDEN_ATOL = 1e-4


class LoadedModel:
    """A version whose signatures can be called. Immutable and safe to call from several threads."""

    def __init__(
        self, manifest: Manifest, signatures: Mapping[str, Callable[[Rows], Results]], *, size_bytes: int
    ) -> None:
        self.manifest = manifest
        self.name = manifest.model
        self.version = manifest.version
        self.schema: InputSchema = manifest.input
        self.size_bytes = size_bytes
        self.calibration_scores = np.asarray(manifest.calibration.scores, np.float32)
        self.threshold = np.float32(manifest.calibration.threshold)
        self.false_alarm_rate = manifest.calibration.false_alarm_rate
        self._signatures = signatures

    def __repr__(self) -> str:
        return f"LoadedModel({self.name!r}, version={self.version})"

    def supports(self, signature: str) -> bool:
        return signature in self._signatures

    def require(self, operation: Operation) -> None:
        """
        Raises:
            OperationNotSupported: this version was not trained for it.
        """
        if operation.name not in self._signatures:
            raise OperationNotSupported(
                f"Version {self.version} of model '{self.name}' was not trained for {operation.path}."
            )

    def run(self, signature: str, rows: Rows) -> Results:
        """Call a signature: arrays with the rows first in, arrays with the rows first out. Blocks."""
        return self._signatures[signature](rows)

    def warm_up(self, sample: Rows, sizes: Sequence[int] = WARM_UP_ROWS) -> None:
        """Run every signature at the batch sizes in use, so that no request pays for a first call."""
        for size in sizes:
            repeats = -(-size // row_count(sample))
            rows = {name: np.concatenate([array] * repeats)[:size] for name, array in sample.items()}
            for signature in self._signatures:
                if size == sizes[0] or signature != EXPLAIN:  # each row of it is a batch by itself
                    self.run(signature, rows)


def load_version(version_dir: Path) -> LoadedModel:
    """Check every digest, load, compare the golden outputs, warm up.

    Raises:
        InvalidVersion: something is missing, changed, or does not answer as it did when it was trained.
    """
    manifest = read_manifest(version_dir)
    check_digests(version_dir, manifest)
    signatures = _load_signatures(version_dir, manifest)
    size = sum(file.stat().st_size for file in version_dir.rglob("*") if file.is_file())
    loaded = LoadedModel(manifest, signatures, size_bytes=size)
    sample = sample_rows(version_dir, manifest.input)
    _check_golden_outputs(loaded, version_dir, sample)
    loaded.warm_up(sample)
    return loaded


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


def _load_signatures(version_dir: Path, manifest: Manifest) -> dict[str, Signature]:
    from service.runtime.quiet import tf

    try:
        saved_model = tf.saved_model.load(str(version_dir))
    except Exception as error:
        raise InvalidVersion(f"TensorFlow cannot load it: {type(error).__name__}") from error
    missing = sorted(set(manifest.signatures) - set(saved_model.signatures))
    if missing:
        raise InvalidVersion(f"the SavedModel lacks the signature '{missing[0]}' that the manifest names")
    return {name: Signature(saved_model.signatures[name], saved_model) for name in manifest.signatures}


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
            if name not in answers or not _agree(answers[name], expected):
                raise InvalidVersion(f"output '{name}' of signature '{signature}' differs from its golden output")


def _agree(answer: np.ndarray[Any, Any], expected: Any) -> bool:
    if answer.dtype.kind != "f":
        return bool(np.array_equal(answer, np.asarray(expected)))
    wanted = np.asarray(expected, np.float32)
    return answer.shape == wanted.shape and np.allclose(answer, wanted, rtol=GOLDEN_RTOL, atol=GOLDEN_ATOL)
