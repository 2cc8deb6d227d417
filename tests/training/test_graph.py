"""The exported signatures: equal to the trained network, to numpy's definitions, and alone as in a batch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from service.schemas import INSTANCES, Column, InputSchema
from service.scoring import conformal_p_values, conformal_threshold, reconstruction_error
from service.store import GOLDEN_OUTPUTS, SAMPLE_REQUEST
from service.training import Reporter, load_config
from service.training.data import Dataset
from tests.conftest import COLUMNS, table_rows
from tests.training.conftest import table_dataset

if TYPE_CHECKING:
    from service.training.graph import ServingGraph
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf

MAX = np.float32(3e38)


def load(folder: Path) -> Any:
    from service.runtime.quiet import tf

    return tf.saved_model.load(str(folder))


def call(loaded: Any, signature: str, rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    from service.runtime.quiet import tf

    outputs = loaded.signatures[signature](instances=tf.constant(rows))
    return {name: output.numpy() for name, output in outputs.items()}


def untrained(schema: InputSchema, rows: NDArray[np.float32]) -> "ServingGraph":
    from service.training.architecture import build_autoencoder
    from service.training.graph import build_graph
    from service.training.preprocessing import fit_preprocessing

    config = load_config("dense", latent_dim=2, hidden=(8,))
    preprocessing = fit_preprocessing({INSTANCES: rows}, schema, config)
    return build_graph(schema, build_autoencoder(schema, config), preprocessing)


def test_signatures_by_name(table_export: Path, digits_export: Path) -> None:
    """A table is denoised by the network of its score, images where that was trained; serving_default scores."""
    table, digits = load(table_export), load(digits_export)
    names = {"anomaly_score", "encode", "reconstruct", "denoise", "explain", "serving_default"}
    assert set(table.signatures) == set(digits.signatures) == names
    rows = table_rows(3, seed=9)
    np.testing.assert_array_equal(
        call(table, "serving_default", rows)["score"], call(table, "anomaly_score", rows)["score"]
    )


def test_reconstruct_equals_the_trained_network(table_export: Path, table_model: "TrainedModel") -> None:
    """The reloaded export gives the network's latent and reconstruction, and numpy's error of it."""
    rows = table_rows(200, seed=9)
    mean = table_model.dataset.rows["instances"][table_model.split.train].mean(axis=0, dtype=np.float64)
    deviation = table_model.dataset.rows["instances"][table_model.split.train].std(axis=0, dtype=np.float64)
    scaled = ((rows - mean) / deviation).astype(np.float32)
    latent, expected, *_ = (np.asarray(each) for each in table_model.graph.trained.whole(scaled))
    loaded = load(table_export)
    np.testing.assert_allclose(call(loaded, "encode", rows)["latent"], latent, rtol=1e-4, atol=1e-5)
    results = call(loaded, "reconstruct", rows)
    np.testing.assert_allclose(results["reconstruction"], expected * deviation + mean, rtol=1e-4)
    np.testing.assert_allclose(results["error"], reconstruction_error(scaled, expected), rtol=1e-3)


def test_p_values_and_flags_are_numpys(table_export: Path, table_model: "TrainedModel") -> None:
    """The graph's p-values and flags are those of ``service.scoring``, bit for bit."""
    rows = np.concatenate([table_rows(500, seed=9), table_rows(20, seed=9) * 3])
    results = call(load(table_export), "anomaly_score", rows)
    calibration = table_model.calibration
    np.testing.assert_array_equal(results["p_value"], conformal_p_values(results["score"], calibration.scores))
    np.testing.assert_array_equal(results["is_anomaly"], results["score"] > np.float32(calibration.threshold))
    assert results["is_anomaly"].any()
    assert calibration.threshold == conformal_threshold(calibration.scores, 0.01)


def test_ties_count_as_at_least_as_anomalous(table_model: "TrainedModel") -> None:
    """A row that scores exactly as a calibration row is no more anomalous than it."""
    from service.runtime.quiet import tf
    from service.training.graph import compile_for_rows

    graph, rows = table_model.graph, tf.constant(table_rows(200, seed=9))
    scores = np.sort(compile_for_rows(graph.scores, graph.schema)(instances=rows).numpy())
    calibration = table_model.calibration.model_copy(update={"rows": 200, "scores": tuple(scores.tolist())})
    results = compile_for_rows(graph.anomaly_score(calibration), graph.schema)(instances=rows)
    np.testing.assert_array_equal(results["p_value"].numpy(), conformal_p_values(results["score"].numpy(), scores))
    assert results["p_value"].numpy().min() == pytest.approx(2 / 201)


@pytest.mark.parametrize("signature", ["anomaly_score", "encode", "reconstruct", "explain", "denoise"])
def test_a_row_is_answered_alone_as_in_a_batch(digits_export: Path, table_export: Path, signature: str) -> None:
    """One row, 1,000 rows, through a bare load: equal within 1e-5."""
    digits = np.random.default_rng(0).uniform(0, 16, (1000, 8, 8)).astype(np.float32)
    for folder, rows in ((digits_export, digits), (table_export, table_rows(1000, seed=9))):
        loaded = load(folder)
        if signature not in loaded.signatures:
            continue
        together = call(loaded, signature, rows)
        for row in range(0, 1000, 83):
            for name, alone in call(loaded, signature, rows[row : row + 1]).items():
                scale = np.abs(together[name]).max() if name not in {"score", "error"} else 0.0
                np.testing.assert_allclose(alone[0], together[name][row], rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def test_a_row_is_answered_alone_as_in_a_batch_where_nothing_is_left_to_err() -> None:
    """Columns that follow from each other leave errors of the size of float32's rounding; scores agree all the same."""
    from service.runtime.quiet import tf
    from service.training.graph import compile_for_rows
    from service.training.train import train_model

    causes = np.random.default_rng(0).normal(size=(3000, 1))
    rows = (causes @ [[1.0, 2.0, -3.0, 0.5, 7.0, 1.5]]).astype(np.float32)
    config = load_config("dense", latent_dim=1, hidden=(100, 50), epochs=30)
    graph = train_model(table_dataset(rows), config, Reporter()).graph
    errors = compile_for_rows(lambda raw: graph.reconstruct(raw)["error"], graph.schema)
    assert np.median(errors(instances=tf.constant(rows[:1000])).numpy()) < 1e-6
    scores = compile_for_rows(graph.scores, graph.schema)
    together = scores(instances=tf.constant(rows[:1000])).numpy()
    alone = [scores(instances=tf.constant(rows[row : row + 1])).numpy()[0] for row in range(0, 1000, 10)]
    np.testing.assert_allclose(alone, together[::10], rtol=1e-5)


@pytest.mark.parametrize(("noise", "dtype"), [(1.0, "float32"), (0.0, "float64")])
def test_wide_rows_are_computed_in_float32_where_it_cannot_be_seen(noise: float, dtype: str) -> None:
    """Where errors are clear, and scores alone and in a batch agree; not where next to nothing is left to err."""
    from service.runtime.quiet import tf
    from service.training.graph import compile_for_rows
    from service.training.train import train_model

    random = np.random.default_rng(0)
    rows = (random.normal(size=(600, 1)) + noise * random.normal(size=(600, 300))).astype(np.float32)
    config = load_config("dense", latent_dim=2, hidden=(8,), epochs=2, score="reconstruction")
    dataset = Dataset({"instances": rows}, InputSchema(kind="tabular", row_shape=(300,)), "wide.npy", "")
    graph = train_model(dataset, config, Reporter()).graph
    assert graph.serving.network.output.dtype == dtype
    scores = compile_for_rows(graph.scores, graph.schema)
    together = scores(instances=tf.constant(rows)).numpy()
    alone = [scores(instances=tf.constant(rows[row : row + 1])).numpy()[0] for row in range(0, 600, 5)]
    np.testing.assert_allclose(alone, together[::5], rtol=1e-5)


def test_golden_outputs_are_those_of_the_sample(digits_export: Path) -> None:
    """What was written before the export is what the reloaded export answers."""
    sample = orjson.loads((digits_export / SAMPLE_REQUEST).read_bytes())
    golden = orjson.loads((digits_export / GOLDEN_OUTPUTS).read_bytes())
    loaded = load(digits_export)
    rows = np.array(sample["instances"], np.float32)
    assert rows.shape == (8, 8, 8)
    assert set(golden) == set(loaded.signatures) - {"serving_default"}
    for signature, outputs in golden.items():
        for name, answer in call(loaded, signature, rows).items():
            np.testing.assert_allclose(answer, np.array(outputs[name]), rtol=1e-6, atol=1e-6)


def test_sample_request_names_its_columns(table_export: Path) -> None:
    """A table's sample is a valid request by named rows."""
    sample = orjson.loads((table_export / SAMPLE_REQUEST).read_bytes())
    assert [tuple(row) for row in sample["instances"]] == [COLUMNS] * 8


def test_false_alarms_on_fresh_rows(table_export: Path, table_model: "TrainedModel") -> None:
    """Within sampling error of the rate, that of the calibration included."""
    results = call(load(table_export), "anomaly_score", table_rows(50_000, seed=77))
    for rate in (0.01, 0.05):
        threshold = conformal_threshold(table_model.calibration.scores, rate)
        error = np.sqrt(rate * (1 - rate) * (1 / 50_000 + 1 / table_model.calibration.rows))
        assert np.mean(results["score"] > threshold) == pytest.approx(rate, abs=4 * error)
        assert np.mean(results["p_value"] <= rate) == pytest.approx(rate, abs=4 * error)
    assert np.mean(results["is_anomaly"]) == np.mean(results["score"] > np.float32(table_model.calibration.threshold))


def test_the_column_at_fault_contributes_most(table_export: Path) -> None:
    """One wrong value among correlated columns: that column is named, and its right value is expected."""
    rows = table_rows(240, seed=31)
    every, fault = np.arange(240), np.arange(240) % 6
    original = rows[every, fault].copy()
    rows[every, fault] += 2 * table_rows(2000, seed=1).std(axis=0)[fault] * np.where(fault % 2, 1, -1)
    results = call(load(table_export), "explain", rows)
    assert np.mean(results["contribution"].argmax(axis=1) == fault) > 0.97
    moved = np.abs(rows[every, fault] - original)
    assert np.mean(np.abs(results["expected"][every, fault] - original) < 0.5 * moved) > 0.8


def test_shares_sum_to_one(table_export: Path, digits_export: Path) -> None:
    """For ordinary rows, strange ones, and images."""
    strange = np.array([[MAX] * 6, [-MAX] * 6, [0] * 6], np.float32)
    images = np.stack([np.full((8, 8), value, np.float32) for value in (0, 8, 16, MAX, -MAX)])
    for folder, rows in ((table_export, np.concatenate([table_rows(50, seed=3), strange])), (digits_export, images)):
        results = call(load(folder), "explain", rows)
        assert (results["contribution"] >= 0).all()
        np.testing.assert_allclose(results["contribution"].reshape(len(rows), -1).sum(axis=1), 1, rtol=1e-5)
        assert np.isfinite(results["expected"]).all()
        assert results["contribution"].shape == results["expected"].shape == rows.shape


def test_numbers_of_any_size_have_finite_scores(table_export: Path) -> None:
    """Up to the largest float32, with p-values as small as can be."""
    rows = np.eye(6, dtype=np.float32) * MAX
    loaded = load(table_export)
    results = call(loaded, "anomaly_score", np.concatenate([rows, -rows]))
    assert np.isfinite(results["score"]).all()
    assert results["is_anomaly"].all()
    assert np.isfinite(call(loaded, "reconstruct", rows)["reconstruction"]).all()


def test_missing_values_are_filled_and_blamed_for_nothing() -> None:
    """A gap has no error and no share, and its reconstruction is a number."""
    columns = tuple(Column(name=name, may_be_missing=True) for name in COLUMNS)
    rows = table_rows(300, seed=4)
    graph = untrained(InputSchema(kind="tabular", row_shape=(6,), columns=columns), rows)
    gaps = rows[:20].copy()
    gaps[:, 2] = np.nan
    assert np.isfinite(graph.scores({INSTANCES: gaps}).numpy()).all()
    assert np.isfinite(graph.reconstruct({INSTANCES: gaps})["reconstruction"].numpy()).all()
    results = {name: output.numpy() for name, output in graph.explain({INSTANCES: gaps}).items()}
    np.testing.assert_array_equal(results["contribution"][:, 2], 0)
    assert np.isfinite(results["expected"]).all()
    nothing = graph.scores({INSTANCES: np.full((1, 6), np.nan, np.float32)}).numpy()
    np.testing.assert_array_equal(nothing, [0.0])
    uniform = graph.explain({INSTANCES: np.full((1, 6), np.nan, np.float32)})["contribution"].numpy()
    np.testing.assert_allclose(uniform, 1 / 6)


def test_a_reconstruction_error_is_explained_by_its_squares() -> None:
    """Of a score that is the error the shares are those of the squared error."""
    rows = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    graph = untrained(InputSchema(kind="tabular", row_shape=(300,)), rows)
    passed = graph.run({INSTANCES: rows})
    squares = np.square(passed.scaled.numpy() - passed.reconstruction.numpy())
    shares = graph.explain({INSTANCES: rows})["contribution"].numpy()
    np.testing.assert_allclose(shares, squares / squares.sum(axis=1, keepdims=True), rtol=1e-4)


def test_denoise_keeps_to_the_range_and_removes_noise(digits_export: Path, digits_model: "TrainedModel") -> None:
    """Denoised images are nearer to the clean ones, and are images."""
    clean = digits_model.dataset.rows["instances"][digits_model.split.test]
    noise = np.random.default_rng(0).normal(scale=0.3 * 16, size=clean.shape)
    noisy = np.clip(clean + noise, 0, 16).astype(np.float32)
    denoised = call(load(digits_export), "denoise", noisy)["denoised"]
    assert np.mean(np.square(denoised - clean)) < 0.8 * np.mean(np.square(noisy - clean))
    assert denoised.min() >= 0
    assert denoised.max() <= 16
