"""Tables of all four types of columns, through the exported graph."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.schemas import INSTANCES, Rows, row_count, take_rows
from service.scoring import reconstruction_error
from service.training import Reporter, load_config
from tests.training.conftest import export_model
from tests.training.mixed import mixed_dataset, mixed_rows

if TYPE_CHECKING:
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def mixed_model() -> "TrainedModel":
    from service.training.train import train_model

    config = load_config("dense", latent_dim=3, hidden=(32,), epochs=25, learning_rate=3e-3)
    return train_model(mixed_dataset(4000), config, Reporter())


@pytest.fixture(scope="module")
def loaded(mixed_model: "TrainedModel", tmp_path_factory: pytest.TempPathFactory) -> Any:
    from service.runtime.quiet import tf

    return tf.saved_model.load(str(export_model(mixed_model, tmp_path_factory.mktemp("mixed"))))


def call(loaded: Any, signature: str, rows: Rows) -> dict[str, Any]:
    from service.runtime.quiet import tf

    outputs = loaded.signatures[signature](**{name: tf.constant(array) for name, array in rows.items()})
    return {name: output.numpy() for name, output in outputs.items()}


def test_a_bare_load_gives_the_numbers_of_the_trained_graph(mixed_model: "TrainedModel", loaded: Any) -> None:
    """Labels are looked up inside the SavedModel, with nothing of ours around it; alone as in a batch."""
    rows = mixed_rows(100, seed=5)
    results = call(loaded, "anomaly_score", rows)
    np.testing.assert_allclose(results["score"], mixed_model.graph.scores(rows).numpy(), rtol=1e-5)
    alone = [call(loaded, "anomaly_score", take_rows(rows, slice(at, at + 1)))["score"][0] for at in range(0, 100, 9)]
    np.testing.assert_allclose(alone, results["score"][::9], rtol=1e-5)


def test_error_is_that_of_the_encoded_rows(mixed_model: "TrainedModel", loaded: Any) -> None:
    """The graph's reconstruction error is numpy's, over all scaled values of a row."""
    rows = mixed_rows(50, seed=6)
    targets = mixed_model.graph.preprocessing.scale_all(rows).targets
    rebuilt = mixed_model.graph.run(rows).reconstruction.numpy()
    np.testing.assert_allclose(
        call(loaded, "reconstruct", rows)["error"], reconstruction_error(targets, rebuilt), rtol=1e-3
    )


def test_reconstructions_are_rows(loaded: Any) -> None:
    """Labels as labels, times as times, gaps filled; what follows from the other columns is right."""
    rows = mixed_rows(300, seed=7)
    rebuilt = call(loaded, "reconstruct", rows)
    assert np.mean(rebuilt["reconstruction_categories"][:, 0] == rows["categories"][:, 0]) > 0.99
    assert set(rebuilt["reconstruction_categories"][:, 1]) <= {b"app", b"shop", b"phone"}
    known = ~np.isnan(rows[INSTANCES])
    assert np.corrcoef(rebuilt["reconstruction"][known[:, 2], 2], rows[INSTANCES][known[:, 2], 2])[0, 1] > 0.95
    off = (rebuilt["reconstruction_timestamps"][:, 0] - rows["timestamps"][:, 0]) / 3_600_000 % 24
    assert np.median(np.minimum(off, 24 - off)) < 2


def test_the_column_at_fault_is_named_whatever_its_type(loaded: Any) -> None:
    """A wrong label, a label never seen, a wrong hour and a wrong number: a whole column is blamed, and mended."""
    rows = mixed_rows(200, seed=8)
    right = {name: array.copy() for name, array in rows.items()}
    fault = np.arange(row_count(rows)) % 4
    rows[INSTANCES][fault == 0, 0] += 2000
    other = {b"DE": b"IT", b"FR": b"DE", b"IT": b"DE"}
    rows["categories"][fault == 1, 0] = [other[label] for label in rows["categories"][fault == 1, 0]]
    rows["categories"][fault == 2, 0] = b"never seen"
    rows["timestamps"][fault == 3, 0] += 8 * 3_600_000
    explained = call(loaded, "explain", rows)
    np.testing.assert_allclose(explained["contribution"].sum(axis=1), 1, rtol=1e-5)
    assert explained["contribution"].shape == (200, 7)
    column = np.array([0, 3, 3, 5])[fault]
    top = explained["contribution"].argmax(axis=1)
    # In the order of the inputs: amount, member, age; country, channel; at, signed.
    assert [np.mean(top[fault == each] == column[fault == each]) > 0.8 for each in range(3)] == [True] * 3
    mended = explained["expected_categories"][fault == 2, 0] == right["categories"][fault == 2, 0]
    assert mended.mean() > 0.8
    scores, before = (call(loaded, "anomaly_score", each) for each in (rows, right))
    assert np.median(scores["score"][fault == 3]) > 2 * np.median(before["score"][fault == 3])
    assert scores["is_anomaly"][fault == 2].all()
    assert before["is_anomaly"].mean() < 0.05


def test_labels_never_seen_are_surprising(loaded: Any) -> None:
    """A never-seen label scores higher than any known one; a missing label adds nothing to be wrong about."""
    row = mixed_rows(1, seed=11)
    variants = [b"DE", b"FR", b"IT", b"XX", b"another"]
    rows = {name: np.repeat(array, len(variants), axis=0) for name, array in row.items()}
    rows["categories"][:, 0] = variants
    scores = call(loaded, "anomaly_score", rows)["score"]
    assert scores[3:].min() > scores[:3].max()
    assert scores[3] == pytest.approx(scores[4], rel=1e-5)


def test_keras_model_has_no_code_of_ours(mixed_model: "TrainedModel", tmp_path: Path) -> None:
    """Label probabilities and their weights are standard layers."""
    from service.runtime.quiet import keras
    from service.store import KERAS_MODEL

    export_model(mixed_model, tmp_path)
    network = keras.saving.load_model(tmp_path / KERAS_MODEL, safe_mode=True)
    scaled = mixed_model.graph.preprocessing.scale_all(mixed_rows(20, seed=1)).inputs
    np.testing.assert_allclose(network(scaled), mixed_model.graph.trained.network(scaled), rtol=1e-5, atol=1e-6)
