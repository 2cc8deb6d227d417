"""The whole recipe: a version in the store, or the store as it was."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from service.errors import ConfigurationError, DataError, StoreUnavailable, TrainingFailed
from service.store import KERAS_MODEL, MODEL_CARD, PLOTS, Store
from service.training import SilentReporter, load_config, summary, train
from service.training.publish import verify
from service.training.report import TrainingResult

QUICK = load_config("demo", epochs=2, hidden=(16,))


@pytest.fixture
def empty_store(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


class Interrupter(SilentReporter):
    """Presses Ctrl-C when a stage begins."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def stage(self, name: str) -> None:
        if name.startswith(self._stage):
            raise KeyboardInterrupt


@pytest.mark.tf
def test_a_version_is_complete(trained_store: Path) -> None:
    """Manifest, model card, plots and Keras model are there, and say what was trained."""
    store = Store(trained_store)
    manifest = store.verify_digests("payments", 1)
    assert manifest.training["preset"] == "dense"
    assert (manifest.training["hidden"], manifest.latent_dim) == ([32], 2)
    assert all(manifest.training[name] is not None for name in ("hidden", "latent_dim", "batch_size"))
    assert manifest.source == "payments.csv"
    assert sum(manifest.row_counts.model_dump().values()) == 3000
    assert manifest.calibration.rows == manifest.row_counts.calibration
    assert set(manifest.metrics["reconstruction_error"]) == {"autoencoder", "pca"}
    assert manifest.signatures["anomaly_score"].inputs["instances"].shape == (None, 6)
    assert manifest.signatures["anomaly_score"].outputs["is_anomaly"].dtype == "bool"
    assert "tensorflow" in "".join(manifest.libraries)
    folder = store.path("payments", 1)
    assert (folder / KERAS_MODEL).stat().st_size > 1000
    for plot in ("losses.png", "score_histogram.png", "reconstructions.png"):
        assert (folder / PLOTS / plot).read_bytes().startswith(b"\x89PNG")
    card = (folder / MODEL_CARD).read_text(encoding="utf-8")
    assert "| autoencoder |" in card
    assert "| balance | numeric | no |" in card
    assert manifest.source_sha256 in card


@pytest.mark.tf
@pytest.mark.parametrize("stage", ["Calibrating", "Exporting", "Verifying"])
def test_ctrl_c_leaves_the_store_as_it_was(empty_store: Path, stage: str) -> None:
    """Stopped at any stage: no version, and nothing staged remains."""
    with pytest.raises(KeyboardInterrupt):
        train(QUICK, source="digits", store=empty_store, model="digits", reporter=Interrupter(stage))
    left = [path for path in empty_store.rglob("*") if path.is_dir() and path.name != "digits"]
    assert left == []


def test_nothing_is_read_when_nothing_can_be_published(tmp_path: Path, empty_store: Path) -> None:
    """A missing store and a wrong name are found first."""
    with pytest.raises(StoreUnavailable):
        train(QUICK, source="no such file", store=tmp_path / "missing", model="digits")
    with pytest.raises(ConfigurationError, match="A model's name"):
        train(QUICK, source="no such file", store=empty_store, model="Digits!")
    with pytest.raises(DataError, match="no such file"):
        train(QUICK, source="no such file", store=empty_store, model="digits")
    assert list(empty_store.iterdir()) == []


def test_a_latent_that_is_too_wide_is_found_before_training(empty_store: Path) -> None:
    """In a moment, before TensorFlow starts."""
    with pytest.raises(ConfigurationError, match="which is 64"):
        train(load_config("demo", latent_dim=64), source="digits", store=empty_store, model="digits")


def test_what_the_fresh_process_refuses_is_not_published(tmp_path: Path) -> None:
    """Its sentence is passed on."""
    with pytest.raises(TrainingFailed, match=r"does not answer as the trained one: manifest\.json cannot be read"):
        verify(tmp_path)


def test_summary_tells_errors_threshold_and_warnings() -> None:
    """Autoencoder and PCA side by side, by split."""
    errors = {"train": 0.1, "validation": 0.2, "test": 0.3}
    metrics = {
        "reconstruction_error": {"autoencoder": errors, "pca": {name: 2 * error for name, error in errors.items()}},
        "test_alarm_rate": 0.012,
        "denoising": {"noisy": 0.5, "denoised": 0.25, "noisy_psnr_db": None, "denoised_psnr_db": None},
        "epochs": 7,
        "best_epoch": 5,
    }
    result = TrainingResult("m", 3, "rows.csv", 100, 4, metrics, 0.75, 0.01, ("Overfitting: much.",), 12.3)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(result))
    text = console.export_text()
    for part in ("Model m, version 3", "0.1", "0.6", "PCA, 4 components", "0.75", "0.0120", "Warning: Overfitting"):
        assert part in text
