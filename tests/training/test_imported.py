"""``autoencoder import``: a version of a model that was trained elsewhere, which answers as the model does."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from service import publish
from service.cli import app
from service.cli.import_ import import_
from service.errors import ConfigurationError, DataError
from service.runtime.loaded_model import load_version, open_version
from service.runtime.quiet import keras, tf
from service.schemas import INSTANCES, Column, InputSchema
from service.scoring import reconstruction_error
from service.settings import Settings
from service.store import HISTORY, KERAS_MODEL, MODEL_CARD, REPORT, Store
from service.training.data import Dataset, check_dataset, read_dataset
from service.training.foreign import of_keras
from service.training.imported import (
    Wishes,
    as_series,
    calibrated,
    find_parts,
    fit_rows,
    import_config,
    make_scaling,
    schema_without_rows,
)
from service.training.progress import Reporter
from tests.conftest import COLUMNS, table_rows
from tests.live import LiveService, serve_live
from tests.training import networks
from tests.training.conftest import table_dataset
from tests.training.networks import WIDTH, rows_of

pytestmark = [
    pytest.mark.tf,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
COUNT = 1000
CLOSE = 1e-5


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return result.output


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The classic script's model, fitted on bytes over 255 and imported as one reads about it, with its rows."""
    folder = tmp_path_factory.mktemp("classic")
    rows = (255 * rows_of((28, 28), COUNT)).astype(np.uint8)
    np.save(folder / "rows.npy", rows)
    model = networks.classic()
    scaled = rows.reshape(COUNT, 784).astype("float32") / 255.0
    model.fit(scaled, scaled, epochs=3, batch_size=50, verbose=0)
    model.save(folder / "autoencoder.keras")
    said = run(
        "import", folder / "autoencoder.keras", "--rows", folder / "rows.npy", "--scale", "0-255", "--model", "classic",
        "--store", folder / "store",
    )  # fmt: skip
    return SimpleNamespace(folder=folder, store=folder / "store", rows=rows, scaled=scaled, model=model, said=said)


@pytest.fixture(scope="module")
def service(classic: SimpleNamespace) -> Iterator[LiveService]:
    with serve_live(Settings(store=classic.store, port=0)) as live:
        yield live


def test_an_imported_version_is_one_as_any_other(classic: SimpleNamespace) -> None:
    """Calibrated, measured, in production, with card and report; the card says where it is from."""
    manifest = Store(classic.store).manifest("classic", 1)
    assert Store(classic.store).aliases("classic") == {"production": 1}
    assert "Version 1 is in production now" in classic.said
    assert (manifest.latent_dim, manifest.input.row_shape, manifest.calibrated.rows) == (32, (784,), 400)
    assert manifest.training["imported"] == "autoencoder.keras"
    assert manifest.training["score"] == "reconstruction error"
    assert abs(manifest.metrics["test_alarm_rate"] - manifest.calibrated.false_alarm_rate) < 0.05
    assert {MODEL_CARD, REPORT, KERAS_MODEL} <= set(manifest.digests)
    assert HISTORY not in manifest.digests
    card = Store(classic.store).read_file("classic", 1, MODEL_CARD)
    assert card is not None
    assert "trained elsewhere: autoencoder.keras, a Keras file" in card.decode()


def test_every_protocol_answers_as_keras_does(classic: SimpleNamespace, service: LiveService) -> None:
    """HTTP, TensorFlow Serving, Open Inference, a bare load, and the command that scores files."""
    rows = classic.rows[:7].reshape(7, 784).astype(np.float32)
    expected = 255 * classic.model.predict(classic.scaled[:7], verbose=0)
    encoded = classic.model.layers[1](classic.scaled[:7]).numpy()
    errors = reconstruction_error(classic.scaled[:7], expected / 255)
    body = {"instances": rows.tolist()}

    def close(found: Any, wanted: NDArray[Any], *, scale: float = 255.0) -> None:
        np.testing.assert_allclose(np.asarray(found) / scale, wanted / scale, atol=CLOSE)

    own = {path: service.post(f"/{path}", json=body).json() for path in ("encode", "reconstruct", "anomaly-score")}
    close(own["reconstruct"]["reconstructions"], expected)
    close(own["encode"]["latents"], encoded, scale=np.abs(encoded).max())
    np.testing.assert_allclose(own["anomaly-score"]["scores"], errors, rtol=0, atol=CLOSE)
    asked = {**body, "signature_name": "reconstruct"}
    predicted = service.post("/v1/models/classic:predict", json=asked).json()["predictions"]
    close([row["reconstruction"] for row in predicted], expected)
    inputs = [{"name": "instances", "shape": [7, 784], "datatype": "FP32", "data": rows.ravel().tolist()}]
    asked = {"inputs": inputs, "outputs": [{"name": "reconstruction"}]}
    (inferred,) = service.post("/v2/models/classic/infer", json=asked).json()["outputs"]
    close(np.reshape(inferred["data"], (7, 784)), expected)
    bare = tf.saved_model.load(str(classic.store / "classic" / "1"))
    close(bare.signatures["reconstruct"](instances=tf.constant(rows))["reconstruction"], expected)
    file, out = (classic.folder / name for name in ("seven.parquet", "scored.parquet"))
    pq.write_table(pa.table({"instances": pa.FixedSizeListArray.from_arrays(rows.ravel(), 784)}), file)
    run("score", file, out, "--model", "classic", "--store", classic.store)
    np.testing.assert_allclose(pq.read_table(out)["anomaly_score"], errors, rtol=0, atol=CLOSE)
    run("reconstruct", file, out, "--model", "classic", "--store", classic.store)
    close(np.stack(pq.read_table(out)["reconstruction"].to_numpy()), expected)


def test_the_folder_that_was_never_ready(classic: SimpleNamespace) -> None:
    """What ``model.export("store/ae/1")`` leaves is imported by its name in the store, and the gate compares it."""
    classic.model.export(classic.store / "ae" / "1", verbose=False)
    listed = run("models", "list", "--store", classic.store)
    assert "autoencoder import ae/1 --rows ROWS" in listed
    run("import", "ae/1", "--rows", classic.folder / "rows.npy", "--scale", "0-255", "--store", classic.store)
    assert Store(classic.store).versions("ae") == [2]
    manifest = Store(classic.store).manifest("ae", 2)
    assert (manifest.training["format"], manifest.latent_dim) == ("SavedModel", 32)
    assert KERAS_MODEL not in manifest.digests


def test_the_score_of_trained_versions_can_be_fitted(tmp_path: Path) -> None:
    """Beside the network, which reconstructs as before; it needs the rows only."""
    option = next(each for each in import_.params if each.name == "score")
    assert isinstance(option.type, click.Choice)
    (score,) = set(option.type.choices) - {"reconstruction"}
    model, rows = networks.nested(), rows_of((WIDTH,), 300)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "store").mkdir()
    arguments = (tmp_path / "model.keras", "--rows", tmp_path / "rows.npy", "--store", tmp_path / "store")
    run("import", *arguments, "--score", score, "--model", "scored")
    manifest = Store(tmp_path / "store").manifest("scored", 1)
    assert manifest.training["score"] != "reconstruction error"
    version = open_version(Store(tmp_path / "store").path("scored", 1), manifest)
    answer = version.run("reconstruct", {INSTANCES: rows[:5]})
    np.testing.assert_allclose(answer["reconstruction"], model(rows[:5], training=False), atol=CLOSE)
    judged = version.run("anomaly_score", {INSTANCES: rows[:5]})
    assert not np.allclose(judged["score"], answer["error"])


def test_a_wrong_scale_is_warned_of(classic: SimpleNamespace) -> None:
    """Rows of bytes, for a model that was trained on fractions."""
    dataset = read_dataset(str(classic.folder / "rows.npy"))
    foreign = of_keras(classic.model, "Keras model")
    trained = calibrated(foreign, dataset, config=import_config(), wishes=Wishes(), name="raw", reporter=Reporter())
    assert "was it trained on scaled rows? --scale standard, minmax or 0-255" in trained.warnings[0]


def test_what_cannot_be_imported_is_one_sentence(classic: SimpleNamespace, tmp_path: Path) -> None:
    """And publishes nothing."""
    store, rows = classic.store, classic.folder / "rows.npy"
    assert "is a version of this service already" in refused("import", "classic/1", "--rows", rows, "--store", store)
    np.save(tmp_path / "narrow.npy", rows_of((5,)))
    model = classic.folder / "autoencoder.keras"
    said = refused("import", model, "--rows", tmp_path / "narrow.npy", "--store", store, "--model", "none")
    assert "takes rows of shape (784,), and those given are of shape (5,)" in said
    assert "Give MODEL, or --encoder and --decoder" in refused("import", "--rows", rows, "--encoder", model)
    assert "none" not in Store(store).models()


def test_a_notebook_publishes_a_model(classic: SimpleNamespace, tmp_path: Path) -> None:
    """From memory, with a table and a fitted scaler; columns keep their names."""
    table = pd.DataFrame(table_rows(300, seed=0), columns=list(COLUMNS))
    scaler = StandardScaler().fit(table)
    model = networks.nested()
    result = publish(model, table, store=tmp_path, model="payments", scale=scaler, false_alarm_rate=0.05)
    assert (result.version, result.latent_dim) == (1, 2)
    manifest = Store(tmp_path).manifest("payments", 1)
    assert [column.name for column in manifest.input.columns] == list(COLUMNS)
    assert (manifest.training["scale"], manifest.calibrated.false_alarm_rate) == ("StandardScaler", 0.05)
    version = open_version(Store(tmp_path).path("payments", 1), manifest)
    rows = table.to_numpy()[:9]
    scaled = (rows - scaler.mean_) / scaler.scale_
    expected = model.predict(scaled, verbose=0) * scaler.scale_ + scaler.mean_
    np.testing.assert_allclose(version.run("reconstruct", {INSTANCES: rows})["reconstruction"], expected, rtol=1e-4)


ODD_NAME = """
import sys, keras, numpy as np
from pathlib import Path
folder = Path(sys.argv[1])
layers = [keras.layers.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(3)]
keras.Sequential(layers, name="my model!").save(folder / "odd.keras")
np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
from service.cli import main
files = [str(folder / name) for name in ("odd.keras", "rows.npy")]
sys.argv = ["autoencoder", "import", files[0], "--rows", files[1], "--store", sys.argv[1]]
main()
"""


def test_a_name_that_tensorflow_does_not_take_is_one_sentence(tmp_path: Path) -> None:
    """In a process of its own: Keras is left with half a scope."""
    done = subprocess.run([sys.executable, "-c", ODD_NAME, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "not a valid" in done.stderr.strip().splitlines()[-1]


def test_a_model_that_removes_noise(classic: SimpleNamespace, tmp_path: Path) -> None:
    """``/denoise`` is its reconstruction, where its owner says that it was trained for that."""
    store = tmp_path / "store"
    rows = classic.folder / "rows.npy"
    path = classic.folder / "autoencoder.keras"
    run("import", path, "--rows", rows, "--scale", "0-255", "--denoises", "--model", "clean", "--store", store)
    version = load_version(store / "clean/1")
    given = {INSTANCES: classic.rows[:5].reshape(5, 784).astype(np.float32)}
    denoised = version.run("denoise", given)["denoised"]
    np.testing.assert_array_equal(denoised, version.run("reconstruct", given)["reconstruction"])
    np.testing.assert_allclose(denoised / 255, classic.model.predict(classic.scaled[:5], verbose=0), atol=CLOSE)
    assert "denoise" not in Store(classic.store).manifest("classic", 1).signatures


def test_a_notebook_publishes_without_rows(classic: SimpleNamespace, tmp_path: Path) -> None:
    """A version that is not calibrated: it encodes, reconstructs and denoises, and scores nothing."""
    result = publish(classic.model, None, store=tmp_path, model="bare", scale="0-255", denoises=True)
    assert (result.version, result.latent_dim) == (1, 32)
    manifest = Store(tmp_path).manifest("bare", 1)
    assert manifest.calibration is None
    assert set(manifest.signatures) == {"encode", "reconstruct", "denoise", "explain"}
    version = load_version(tmp_path / "bare/1")
    given = {INSTANCES: classic.rows[:5].reshape(5, 784).astype(np.float32)}
    expected = classic.model.predict(classic.scaled[:5], verbose=0)
    np.testing.assert_allclose(version.run("denoise", given)["denoised"] / 255, expected, atol=CLOSE)


def test_without_rows_a_version_encodes_and_reconstructs(classic: SimpleNamespace, tmp_path: Path) -> None:
    """As the model does; rows that come later make it score as one that was imported with them."""
    (tmp_path / "store").mkdir()
    path, rows, store = classic.folder / "autoencoder.keras", classic.folder / "rows.npy", tmp_path / "store"
    said = run("import", path, "--scale", "0-255", "--model", "bare", "--store", store)
    assert "autoencoder recalibrate bare 1 --rows ROWS" in said
    first = Store(store).manifest("bare", 1)
    assert (first.calibration, first.latent_dim, first.input.row_shape) == (None, 32, (784,))
    assert set(first.signatures) == {"encode", "reconstruct", "explain"}
    assert {MODEL_CARD, KERAS_MODEL} <= set(first.digests)
    assert REPORT not in first.digests
    bare = tf.saved_model.load(str(store / "bare" / "1"))
    given = tf.constant(classic.rows[:5].reshape(5, 784).astype(np.float32))
    expected = classic.model.predict(classic.scaled[:5], verbose=0)
    for signature in ("serving_default", "reconstruct"):
        answer = bare.signatures[signature](instances=given)["reconstruction"]
        np.testing.assert_allclose(answer / 255, expected, atol=CLOSE)
    said = run("recalibrate", "bare", "--rows", rows, "--store", store)
    assert "Version 2 is in production now" in said
    with_rows, second = Store(classic.store).manifest("classic", 1), Store(store).manifest("bare", 2)
    assert second.calibrated.rows == 400
    assert second.calibrated.threshold == pytest.approx(with_rows.calibrated.threshold, rel=1e-4)
    errors = [each.metrics["reconstruction_error"]["autoencoder"]["test"] for each in (second, with_rows)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    assert {"anomaly_score", *first.signatures} == set(second.signatures)
    card = Store(store).read_file("bare", 2, MODEL_CARD)
    assert card is not None
    assert "trained elsewhere: autoencoder.keras, a Keras file, taken from version 1" in card.decode()
    said = run("import", path, "--scale", "0-255", "--model", "bare", "--store", store)
    assert "Version 2 stays in production. The new version is not calibrated." in said


def test_without_rows_the_model_must_say_what_rows_are(classic: SimpleNamespace, tmp_path: Path) -> None:
    """And nothing can be fitted on them."""
    path, store = classic.folder / "autoencoder.keras", classic.store
    for options, sentence in (
        (("--scale", "standard"), "--scale standard is fitted on rows: give --rows"),
        (("--score", "network"), "--labels and --score need --rows"),
        (("--columns", "a,b"), r"2 columns are named, and a row has shape \(784,\)"),
    ):
        assert re.search(sentence, refused("import", path, *options, "--store", store, "--model", "none"))
    layers = keras.layers
    open_steps = keras.Sequential([layers.Input((None, 3)), layers.Conv1D(1, 3, padding="same"), layers.Dense(3)])
    open_steps.save(tmp_path / "open.keras")
    said = refused("import", tmp_path / "open.keras", "--store", store, "--model", "none")
    assert "leaves the shape of its rows open: --rows gives it" in said
    assert "none" not in Store(store).models()


def test_without_rows_columns_and_steps_have_names() -> None:
    """Columns as they are given; of windows the channels are numbered."""
    named = schema_without_rows((2,), names=("amount", "age"), scale="none")
    assert [(column.name, column.minimum) for column in named.columns] == [("amount", None), ("age", None)]
    lstm = networks.lstm()
    schema = schema_without_rows(lstm.input_shape[1:], names=(), scale="none")
    parts, _ = find_parts(of_keras(lstm, "Keras model"), schema.row_shape)
    series = as_series(schema, parts.network.graph)
    assert (series.kind, series.channels) == ("timeseries", ("channel 1", "channel 2", "channel 3"))
    assert as_series(named, parts.network.graph) is named


# --- rows and scales --------------------------------------------------------------------------------------------------


def pictures(shape: tuple[int, ...]) -> Dataset:
    rows = rows_of(shape)
    return check_dataset(
        Dataset({INSTANCES: rows}, InputSchema(kind="image", row_shape=shape, value_range=(0, 1)), "x", "")
    )


@pytest.mark.parametrize(
    ("given", "wanted", "kind"),
    [
        ((8, 8), (8, 8), "image"),
        ((8, 8), (8, 8, 1), "image"),
        ((8, 8), (1, 8, 8), "image"),
        ((8, 8), (64,), "tabular"),
        ((8, 8), (None, 8), "image"),
        ((8, 8, 3), (3, 8, 8), "image"),
        ((8, 8, 3), (8, None, None), "image"),
    ],
)
def test_rows_are_brought_to_the_shape_of_the_model(given: Any, wanted: Any, kind: str) -> None:
    """Where that is unambiguous; channels are moved, not mixed up."""
    dataset = pictures(given)
    fitted = fit_rows(dataset, wanted)
    assert fitted.schema.kind == kind
    shape = tuple(have or size for have, size in zip(wanted, given, strict=False)) if None in wanted else wanted
    assert fitted.rows[INSTANCES].shape == (len(dataset), *shape)
    if wanted == (3, 8, 8):
        np.testing.assert_array_equal(fitted.rows[INSTANCES][:, 2], dataset.rows[INSTANCES][..., 2])


def test_rows_with_gaps_are_left_out() -> None:
    """A model of another program knows no missing values; columns keep their names."""
    rows = rows_of((WIDTH,))
    rows[3, 2] = np.nan
    fitted = fit_rows(table_dataset(rows, may_be_missing=True), (WIDTH,))
    assert len(fitted) == len(rows) - 1
    assert "1 rows with missing values were left out" in fitted.notes[-1]
    assert not any(column.may_be_missing for column in fitted.schema.columns)


def test_columns_can_be_named() -> None:
    """Of an array, in its order."""
    dataset = check_dataset(Dataset({INSTANCES: rows_of((2,))}, InputSchema(kind="tabular", row_shape=(2,)), "x", ""))
    fitted = fit_rows(dataset, (2,), names=("amount", "age"))
    assert [column.name for column in fitted.schema.columns] == ["amount", "age"]
    with pytest.raises(DataError, match=r"1 columns are named, and a row has shape \(2,\)"):
        fit_rows(dataset, (2,), names=("amount",))


def test_columns_of_labels_are_refused() -> None:
    """By name."""
    columns = (Column(name="country", type="categorical", categories=("DE", "FR")), Column(name="amount"))
    schema = InputSchema(kind="tabular", row_shape=(1,), columns=columns)
    rows = {INSTANCES: rows_of((1,)), "categories": np.array([[b"DE"], [b"FR"]] * 20, object)}
    with pytest.raises(DataError, match="Column country holds no numbers"):
        fit_rows(Dataset(rows, schema, "x", ""), (2,))


def scalers() -> dict[str, Callable[[NDArray[Any]], Any]]:
    from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

    return {"standard": StandardScaler, "minmax": MinMaxScaler, "robust": RobustScaler}


@pytest.mark.parametrize("name", ["standard", "minmax", "robust"])
def test_fitted_scalers_are_taken_over(name: str, tmp_path: Path) -> None:
    """Those of scikit-learn, and their numbers in a file; forth and back."""
    rows = 100 * rows_of((WIDTH,)) - 30
    schema = InputSchema(kind="tabular", row_shape=(WIDTH,))
    scaler = scalers()[name]().fit(rows)  # type: ignore[call-arg]
    files = {
        "standard": lambda: {"mean": scaler.mean_.tolist(), "std": scaler.scale_.tolist()},
        "minmax": lambda: {"min": scaler.data_min_.tolist(), "max": scaler.data_max_.tolist()},
        "robust": lambda: {"center": scaler.center_.tolist(), "scale": scaler.scale_.tolist()},
    }
    (tmp_path / "scale.json").write_text(json.dumps(files[name]()))
    far = np.concatenate([rows, 1e6 * rows])
    for scale in (scaler, str(tmp_path / "scale.json"), *([name] if name != "robust" else [])):
        scaling = make_scaling(scale, schema, rows, import_config())
        scaled = scaling.scale(tf.constant(far)).values
        np.testing.assert_allclose(scaled, scaler.transform(far), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scaling.unscale(scaled), far, rtol=1e-5, atol=1e-4)


def test_what_is_no_scale_is_refused(tmp_path: Path) -> None:
    """In one sentence."""
    from sklearn.preprocessing import QuantileTransformer

    rows = rows_of((WIDTH,))
    schema = InputSchema(kind="tabular", row_shape=(WIDTH,))
    (tmp_path / "scale.json").write_text('{"mean": [1, 2], "std": [1, 1]}')
    (tmp_path / "zero.json").write_text('{"mean": 0, "std": 0}')
    (tmp_path / "other.json").write_text('{"a": 1}')
    for scale, sentence in (
        ("tall", "--scale takes none, standard, minmax, 0-255 or a JSON file"),
        (str(tmp_path / "scale.json"), "The scale has 2 values, and a row 6"),
        (str(tmp_path / "zero.json"), "divides by numbers above 0"),
        (str(tmp_path / "other.json"), 'with "mean" and "std", or "min" and "max"'),
        (QuantileTransformer(n_quantiles=10).fit(rows), "does not scale each value by itself and linearly"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            make_scaling(scale, schema, rows, import_config())
