"""The whole recipe: a version in the store, or the store as it was."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from service.errors import ConfigurationError, DataError, StoreUnavailable, TrainingFailed
from service.store import KERAS_MODEL, MODEL_CARD, PLOTS, Store
from service.training import Reporter, load_config, summary, train
from service.training.gate import Comparison, Promotion, decide, unseen_rows
from service.training.report import TrainingResult
from service.training.split import split_rows
from service.training.train import verifier
from service.words import PRODUCTION
from tests.conftest import COLUMNS, table_rows, write_csv
from tests.fakes import fake_manifest

QUICK = load_config("demo", epochs=2, hidden=(16,))


@pytest.fixture
def empty_store(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


class Interrupter(Reporter):
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
    assert manifest.calibrated.rows == manifest.row_counts.calibration
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
    sentence = r"does not answer as the trained one: manifest\.json cannot be read"
    with verifier() as verify, pytest.raises(TrainingFailed, match=sentence):
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
    result = TrainingResult("m", 3, "rows.csv", 100, 100, 4, metrics, 0.75, 0.01, ("Overfitting: much.",), 12.3)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(result))
    text = console.export_text()
    for part in ("Model m, version 3", "0.1", "0.6", "PCA, 4 components", "0.75", "1.20%", "Warning: Overfitting"):
        assert part in text


@pytest.mark.tf
def test_promotion_by_comparison(tmp_path: Path) -> None:
    """The first version goes into production, a worse one stays out and its card says why, a good one goes in."""
    csv, root = write_csv(tmp_path / "rows.csv", table_rows(1500, seed=0)), tmp_path / "new"
    root.mkdir()
    store = Store(root)

    def run(promotion: Promotion, **options: Any) -> TrainingResult:
        config = load_config(
            "dense",
            **{
                "latent_dim": 2,
                "hidden": (16,),
                "epochs": 20,
                "learning_rate": 1e-2,
                "score": "reconstruction",
                **options,
            },
        )
        return train(config, source=str(csv), store=root, model="rows", promotion=promotion)

    first = run("auto")
    assert first.decision is not None
    assert first.decision.promoted
    assert first.metrics["comparison"] is None
    assert store.aliases("rows") == {PRODUCTION: 1}
    worse = run("auto", latent_dim=1)
    assert worse.decision is not None
    assert not worse.decision.promoted
    assert "reconstruction error" in worse.decision.sentence
    assert store.aliases("rows") == {PRODUCTION: 1}
    comparison = store.manifest("rows", 2).metrics["comparison"]
    assert comparison["production"] == 1
    assert comparison["rows"] == store.manifest("rows", 2).row_counts.test
    assert comparison["error"]["candidate"] > 2 * comparison["error"]["production"]
    assert worse.decision.sentence == f"Version 1 stays in production. {' '.join(comparison['worse'])}"
    card = (store.path("rows", 2) / MODEL_CARD).read_text(encoding="utf-8")
    assert "## Against version 1, in production at the time" in card
    assert comparison["worse"][0] in card
    again = run("auto", epochs=21)
    assert again.decision is not None
    assert "not worse than version 1" in again.decision.sentence
    assert store.aliases("rows") == {PRODUCTION: 3}


@pytest.mark.tf
def test_production_is_held_where_no_alias_was_set(store: Path) -> None:
    """The version that answered, being the highest, goes on answering when a higher one is not promoted."""
    assert Store(store).aliases("digits") == {"stable": 1}
    result = train(QUICK, source="digits", store=store, model="digits", promotion="never")
    assert result.version == 3
    assert result.metrics["comparison"]["rows"] > 0
    assert Store(store).aliases("digits") == {"stable": 1, PRODUCTION: 2}
    assert result.decision is not None
    assert result.decision.sentence == "Version 2 stays in production, as asked."
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(result))
    text = console.export_text()
    assert "Against version 2" in text
    assert "rank correlation" in text


def test_rows_that_production_was_fitted_on_are_left_out() -> None:
    """With another seed, its fitted rows are among the candidate's test rows; its split follows from its manifest."""
    rows, ours = 1000, split_rows(1000, load_config("dense", seed=5))
    theirs = split_rows(rows, load_config("dense", seed=3))
    production = fake_manifest(1, {}).model_copy(
        update={"source_sha256": "a" * 64, "training": {"seed": 3, "split": None, "epochs": 2}}
    )
    chosen = unseen_rows(production, ours, rows=rows, sha256="a" * 64)
    assert set(chosen) == set(ours.test) - set(theirs.train) - set(theirs.validation)
    assert 0 < len(chosen) < len(ours.test)
    assert list(unseen_rows(production, ours, rows=rows, sha256="b" * 64)) == list(ours.test)


def test_decisions() -> None:
    """What each policy makes of each finding."""
    good, bad = Comparison(4, 10, ()), Comparison(4, 10, ("It is worse.",))
    cases: tuple[tuple[Promotion, Comparison | None, int | None, bool], ...] = (
        ("auto", good, 4, True),
        ("auto", bad, 4, False),
        ("auto", None, 4, False),
        ("auto", None, None, True),
        ("always", bad, 4, True),
        ("never", good, 4, False),
        ("never", None, None, False),
    )
    for promotion, comparison, before, promoted in cases:
        assert decide(promotion, comparison, version=5, before=before).promoted is promoted
    assert "It is worse." in decide("auto", bad, version=5, before=4).sentence
    assert "cannot be loaded" in decide("auto", None, version=5, before=4).sentence


@pytest.mark.tf
def test_labels_are_for_the_comparison_only(tmp_path: Path) -> None:
    """Two versions of the same options: the same weights as without labels, AUROC and AUPR in the comparison."""
    rows = table_rows(900, seed=0)
    labels = np.zeros((900, 1), np.float32)
    labels[::30] = 1
    rows[::30] += (rows.std(axis=0) * np.random.default_rng(0).normal(0, 4, size=(30, 6))).astype(np.float32)
    csv = tmp_path / "rows.csv"
    names = ",".join((*COLUMNS, "fraud"))
    np.savetxt(csv, np.hstack([rows, labels]), fmt="%.6g", delimiter=",", header=names, comments="")
    (tmp_path / "new").mkdir()
    config = load_config("dense", latent_dim=2, hidden=(8,), epochs=2, max_rows=800, score="reconstruction")

    def run(labels: str | None) -> TrainingResult:
        return train(
            config,
            source=str(csv),
            store=tmp_path / "new",
            model="rows",
            drop=() if labels else ("fraud",),
            promotion="auto",
            labels=labels,
        )

    run(None)
    comparison = run("fraud").metrics["comparison"]
    assert comparison["auroc"]["candidate"] == comparison["auroc"]["production"] > 0.8
    assert comparison["aupr"]["candidate"] > 0.5
    scores = [Store(tmp_path / "new").manifest("rows", number).calibrated.scores for number in (1, 2)]
    assert scores[0] == scores[1]
    with pytest.raises(DataError, match="Column amount has other values"):
        run("amount")
    with pytest.raises(DataError, match="no column theft"):
        run("theft")
