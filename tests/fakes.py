"""Models without TensorFlow: real versions in a real store, whose signatures are a few lines of numpy."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.runtime.loaded_model import LoadedModel
from service.schemas import INSTANCES, Column, InputSchema, Results, Rows
from service.store import (
    ASSETS,
    Calibration,
    Corruption,
    Manifest,
    RowCounts,
    SignatureSpec,
    Store,
    TensorSpec,
    read_manifest,
)

MODEL = "pumps"
WIDTH = 2
RAISES = 1e6
"""A first value on which a fake model raises."""
ANSWERS_NAN = 2e6
"""A first value for which a fake model answers NaN."""
SECRET = "the stack and /srv/secret/path"
OUTPUTS = {
    "encode": ("latent",),
    "reconstruct": ("reconstruction", "error"),
    "anomaly_score": ("score", "p_value", "is_anomaly"),
    "explain": ("contribution", "expected"),
    "denoise": ("denoised",),
}


def fake_manifest(
    number: int,
    digests: dict[str, str],
    *,
    model: str = MODEL,
    columns: Sequence[str] = (),
    denoises: bool = True,
    image: tuple[int, int] | None = None,
    width: int = WIDTH,
    is_calibrated: bool = True,
) -> Manifest:
    """The manifest of a fake version; ``image`` is height and width of its rows."""
    spec = TensorSpec(dtype="float32", shape=(None, width))
    left_out = {"denoise" if not denoises else "", "anomaly_score" if not is_calibrated else ""}
    names = [name for name in OUTPUTS if name not in left_out]
    return Manifest(
        model=model,
        version=number,
        created=datetime(2025, 1, 1, tzinfo=UTC),
        input=InputSchema(kind="tabular", row_shape=(width,), columns=tuple(Column(name=name) for name in columns))
        if image is None
        else InputSchema(kind="image", row_shape=image, value_range=(0.0, 255.0)),
        signatures={
            name: SignatureSpec(inputs={INSTANCES: spec}, outputs=dict.fromkeys(OUTPUTS[name], spec)) for name in names
        },
        latent_dim=1,
        training={"epochs": 1},
        seed=0,
        corruption=Corruption(kind="gaussian", level=0.1) if denoises else None,
        source="fake",
        source_sha256="0" * 64,
        row_counts=RowCounts(train=1, validation=1, calibration=4, test=1),
        libraries={"numpy": "2.0"},
        metrics={},
        calibration=Calibration(rows=4, false_alarm_rate=0.25, threshold=3.0, scores=(0.5, 1.0, 2.0, 3.0))
        if is_calibrated
        else None,
        digests=digests,
    )


def publish_fake(
    store: Store,
    *,
    model: str = MODEL,
    columns: Sequence[str] = (),
    denoises: bool = True,
    image: tuple[int, int] | None = None,
    size_bytes: int = 0,
    width: int = WIDTH,
    is_calibrated: bool = True,
    **changes: Any,
) -> int:
    """Publish the next version of a model that ``load_fake`` loads; the number that it got.

    ``changes``: other fields of its manifest.
    """

    def manifest(number: int, digests: dict[str, str]) -> Manifest:
        return fake_manifest(
            number,
            digests,
            model=model,
            columns=columns,
            denoises=denoises,
            image=image,
            width=width,
            is_calibrated=is_calibrated,
        ).model_copy(update=changes)

    with store.stage(model) as staging:
        (staging.path / ASSETS).mkdir()
        (staging.path / "saved_model.pb").write_bytes(b"\0" * size_bytes)
        return staging.publish(manifest, lambda _: None)


@dataclass(frozen=True)
class FakeSignature:
    """Latent: the first value; score: the sum of a row; the reconstruction is the version in every place."""

    name: str
    manifest: Manifest
    before: Callable[[], None]
    """Called first on every call, on the thread of the model."""

    def __call__(self, rows: Rows) -> Results:
        self.before()
        rows_as_they_came = rows[INSTANCES]
        values = rows_as_they_came.reshape(len(rows_as_they_came), -1)
        if (values[:, 0] == RAISES).any():
            raise RuntimeError(SECRET)
        results = {name: self._result(name, values) for name in OUTPUTS[self.name]}
        for array in results.values():
            if array.dtype.kind == "f":
                array[values[:, 0] == ANSWERS_NAN] = np.nan
        return {
            name: array.reshape(rows_as_they_came.shape) if array.shape == values.shape else array
            for name, array in results.items()
        }

    def _result(self, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
        if name == "latent":
            return values[:, :1].copy()
        if name in ("reconstruction", "denoised", "expected"):
            return np.full_like(values, self.manifest.version)
        if name == "contribution":
            return np.full_like(values, 1 / values.shape[1])
        values = np.clip(values, -1e15, 1e15)  # as real versions do: any finite row has a finite score
        if name == "error":
            return np.asarray(np.square(values - self.manifest.version).mean(axis=1, dtype=np.float32))
        score = values.sum(axis=1, dtype=np.float32)
        calibration = self.manifest.calibrated
        if name == "p_value":
            at_least = (np.asarray(calibration.scores, np.float32) >= score[:, None]).sum(axis=1)
            return np.asarray(((1 + at_least) / (calibration.rows + 1)).astype(np.float32))
        return np.asarray(score > np.float32(calibration.threshold) if name == "is_anomaly" else score)


@dataclass
class Gate:
    """Holds every model call until it is opened."""

    opened: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __call__(self) -> None:
        self.waiting.release()
        assert self.opened.wait(60), "nobody opened the gate"

    def await_call(self) -> None:
        """Until a model call is being held."""
        assert self.waiting.acquire(timeout=60), "no model call came"


def load_fake(path: Path, *, before: Callable[[], None] = lambda: None) -> LoadedModel:
    """A loader for ``create_app`` and ``ModelManager``."""
    manifest = read_manifest(path)
    signatures = {name: FakeSignature(name, manifest, before) for name in manifest.signatures}
    return LoadedModel(manifest, signatures)
