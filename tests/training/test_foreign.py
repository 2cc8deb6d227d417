"""Models of other programs: every kind of file read, cut at its latent, and refused where it would run code."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import ConfigurationError
from service.runtime.quiet import keras, tf
from service.training.foreign import Foreign, of_keras, open_model
from service.training.imported import find_parts, open_parts
from tests.training import networks
from tests.training.networks import LATENT, WIDTH, L, rows_of

pytestmark = [
    pytest.mark.tf,
    pytest.mark.slow,
    # Keras copies TensorFlow variables in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
CLOSE = 1e-5


def parts_of(foreign: Foreign, shape: tuple[int, ...], *, layer: str | None = None) -> Any:
    return find_parts(foreign, shape, layer=layer)[0]


def agrees(foreign: Foreign, model: Any, shape: tuple[int, ...]) -> Any:
    """Check reconstructions against Keras, and the two halves against the whole; the network."""
    rows = rows_of(shape, 5)
    parts = parts_of(foreign, shape)
    expected = model(rows, training=False)
    np.testing.assert_allclose(parts.network(rows), expected, atol=CLOSE)
    latents = parts.encoder(rows)
    assert latents.shape == (5, parts.latent_dim)
    np.testing.assert_allclose(parts.decoder(latents), expected, atol=CLOSE)
    latent, rebuilt = parts.whole(rows[:1])
    np.testing.assert_allclose(latent, latents[:1], atol=CLOSE)
    np.testing.assert_allclose(rebuilt, expected[:1], atol=CLOSE)
    return parts


@pytest.mark.parametrize(
    ("build", "latent_dim"),
    [
        (lambda: networks.classic(20, 3), 3),
        (networks.sequential, LATENT),
        (networks.nested, LATENT),
        (networks.mixed_precision, LATENT),
        (networks.with_normalization, LATENT),
        (networks.convolutional, LATENT),
        (networks.convolutional_through, 8),
        (networks.channels_first, LATENT),
        (networks.lstm, 4),
        (networks.gru, 4),
        (networks.conv1d, 6),
    ],
)
def test_keras_files_answer_as_keras_does(build: Callable[[], Any], latent_dim: int, tmp_path: Path) -> None:
    """The latent is what the narrowest layer gives, activation and all."""
    model = build()
    model.save(tmp_path / "model.keras")
    assert agrees(open_model(tmp_path / "model.keras"), model, model.input_shape[1:]).latent_dim == latent_dim


@pytest.mark.parametrize("build", [networks.sequential, networks.lstm])
def test_legacy_files_and_saved_models(build: Callable[[], Any], tmp_path: Path) -> None:
    """The same network from HDF5, from ``model.export`` and from folders of MLflow, with either inside."""
    model = build()
    shape = model.input_shape[1:]
    model.save(tmp_path / "model.h5")
    model.export(tmp_path / "exported", verbose=False)
    logged = tmp_path / "logged" / "data"
    logged.mkdir(parents=True)
    (logged.parent / "MLmodel").write_text("flavors: {tensorflow: {data: data, model_type: keras}}\n")
    model.save(logged / "model.keras")
    (tmp_path / "module").mkdir()
    (tmp_path / "module/MLmodel").write_text("flavors: {tensorflow: {saved_model_dir: tfmodel}}\n")
    shutil.copytree(tmp_path / "exported", tmp_path / "module/tfmodel")
    found = {name: open_model(tmp_path / name) for name in ("model.h5", "exported", "logged", "module")}
    assert {foreign.format for foreign in found.values()} == {"HDF5 file of Keras", "SavedModel", "MLflow folder"}
    assert {agrees(foreign, model, shape).latent_dim for foreign in found.values()} == {4 if len(shape) > 1 else LATENT}


def test_subclassed_models(tmp_path: Path) -> None:
    """One with ``call``, from memory and exported."""
    model = networks.subclassed()
    model.export(tmp_path / "exported", verbose=False)
    for foreign in (of_keras(model, "Keras model"), open_model(tmp_path / "exported")):
        agrees(foreign, model, (WIDTH,))


def test_variational_models_answer_with_the_mean(tmp_path: Path) -> None:
    """From memory, exported, and with training steps of its own instead of a forward pass; never with a sample."""
    model = networks.variational()
    model.export(tmp_path / "exported", verbose=False)
    own = networks.OwnTraining()
    rows = rows_of((WIDTH,), 5)
    assert not np.allclose(model(rows), model(rows)), "it samples"
    for foreign, encoder, decoder in (
        (of_keras(model, "Keras model"), model.layers[1], model.layers[2]),
        (open_model(tmp_path / "exported"), model.layers[1], model.layers[2]),
        (of_keras(own, "Keras model"), own.encoder, own.decoder),
    ):
        parts = parts_of(foreign, (WIDTH,))
        mean = encoder(rows)[0]
        np.testing.assert_allclose(parts.encoder(rows), mean, atol=CLOSE)
        np.testing.assert_allclose(parts.network(rows), decoder(mean), atol=CLOSE)


def test_modules_with_signatures(tmp_path: Path) -> None:
    """``encode`` and ``decode``, or one signature of any name."""
    module = networks.Plain()
    tf.saved_model.save(module, str(tmp_path / "two"), {"encode": module.encode, "decode": module.decode})
    tf.saved_model.save(module, str(tmp_path / "one"), {"rebuild": module.reconstruct})
    rows = rows_of((WIDTH,), 5)
    for name in ("two", "one"):
        parts = parts_of(open_model(tmp_path / name), (WIDTH,))
        np.testing.assert_allclose(parts.network(rows), module.reconstruct(rows)["rebuilt"], atol=CLOSE)
        np.testing.assert_allclose(parts.encoder(rows), module.encode(rows)["code"], atol=CLOSE)


def test_two_files(tmp_path: Path) -> None:
    """An encoder and a decoder, of different formats."""
    model = networks.nested()
    encoder, decoder = model.layers
    encoder.save(tmp_path / "encoder.keras")
    decoder.export(tmp_path / "decoder", verbose=False)
    foreign = open_parts({"encoder": tmp_path / "encoder.keras", "decoder": tmp_path / "decoder"})
    parts = agrees(foreign, model, (WIDTH,))
    np.testing.assert_allclose(parts.encoder(rows_of((WIDTH,), 5)), encoder(rows_of((WIDTH,), 5)), atol=CLOSE)


def test_a_layer_may_be_named(tmp_path: Path) -> None:
    """So that a latent wider than a row can be taken too."""
    model = keras.Sequential([L.Input((WIDTH,)), L.Dense(12, name="broad"), L.Dense(WIDTH)])
    model.save(tmp_path / "model.keras")
    foreign = open_model(tmp_path / "model.keras")
    with pytest.raises(ConfigurationError, match=r"no autoencoder.*narrower than the 6 values.*broad"):
        parts_of(foreign, (WIDTH,))
    with pytest.raises(ConfigurationError, match=r"No layer wide .*broad"):
        parts_of(foreign, (WIDTH,), layer="wide")
    rows = rows_of((WIDTH,), 5)
    for name in ("broad", "broad_1"):  # its own name, and as TensorFlow has numbered it
        parts = parts_of(foreign, (WIDTH,), layer=name)
        np.testing.assert_allclose(parts.encoder(rows), model.layers[0](rows), atol=CLOSE)


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    """In one sentence that says what was found."""
    classifier = keras.Sequential([L.Input((WIDTH,)), L.Dense(3)])
    with pytest.raises(ConfigurationError, match=r"takes rows of shape \(6,\) and gives shape \(3,\)"):
        parts_of(of_keras(classifier, "Keras model"), (WIDTH,))
    left, right = keras.Input((2,), name="left"), keras.Input((4,), name="right")
    with pytest.raises(ConfigurationError, match=r"takes 2 inputs \(left, right\)"):
        of_keras(keras.Model([left, right], L.Concatenate()([left, right])), "Keras model")
    with pytest.raises(ConfigurationError, match=r"cannot be called with rows of shape \(5,\)"):
        parts_of(of_keras(networks.nested(), "Keras model"), (5,))
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "cut.keras").write_bytes(b"PK\x03\x04 half of a file")
    with pytest.raises(ConfigurationError, match=r"cut.keras is damaged"):
        open_model(tmp_path / "cut.keras")
    with pytest.raises(ConfigurationError, match=r"notes.txt is no model: a .keras or .h5 file"):
        open_model(tmp_path / "notes.txt")
    with pytest.raises(ConfigurationError, match="There is no file"):
        open_model(tmp_path / "nothing")
    model = networks.nested()
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ConfigurationError, match="holds weights alone"):
        open_model(tmp_path / "model.weights.h5")


def test_answers_that_differ_from_call_to_call_are_refused() -> None:
    """Noise around a mean can be left out; dropout that never ends cannot."""

    class Always(keras.layers.Layer):  # type: ignore[misc]
        def call(self, rows: Any) -> Any:
            return keras.random.dropout(rows, 0.5)

    model = keras.Sequential([L.Input((WIDTH,)), L.Dense(LATENT), Always(), L.Dense(WIDTH)])
    with pytest.raises(ConfigurationError, match="draws random numbers"):
        parts_of(of_keras(model, "Keras model"), (WIDTH,))


# --- trust ------------------------------------------------------------------------------------------------------------


def spoiled(path: Path, trace: Path) -> None:
    """A model with a layer of code that makes a folder when it is called, which Keras does when it loads it."""
    name = str(trace)
    code = L.Lambda(lambda rows: (__import__("os").makedirs(name, exist_ok=True), rows)[1], name="innocent")
    model = keras.Sequential([L.Input((WIDTH,)), L.Dense(LATENT), code, L.Dense(WIDTH)])
    model.save(path)
    trace.rmdir()


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_layers_of_code_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """Nothing of them runs; and where they are trusted, no operation of theirs is published."""
    trace = tmp_path / "trace"
    spoiled(tmp_path / name, trace)
    with pytest.raises(ConfigurationError, match=r"a Lambda layer 'innocent'.*--trust"):
        open_model(tmp_path / name)
    assert not trace.exists()
    parts = parts_of(open_model(tmp_path / name, trust=True), (WIDTH,))
    assert trace.exists()
    trace.rmdir()
    parts.network(rows_of((WIDTH,), 5))
    assert not trace.exists()
    assert parts.network.keras is None, "no file with code is kept for other tools"


def test_custom_objects_are_refused_by_name(tmp_path: Path) -> None:
    """Of layers and of functions, also where a file names any function of any module."""
    model = networks.variational_parts()[0]
    model.save(tmp_path / "custom.keras")
    with pytest.raises(ConfigurationError, match="the custom object Sampling"):
        open_model(tmp_path / "custom.keras")
    networks.nested().save(tmp_path / "plain.keras")
    with zipfile.ZipFile(tmp_path / "plain.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for replaced, what in (
        ('{"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}', "system"),
        ('{"module": "keras.utils", "class_name": "get_file", "config": {}}', "custom object get_file"),
        ('{"module": "os", "class_name": "Dense", "config": {}}', "custom object Dense"),
    ):
        config = files["config.json"].replace(b'"tanh"', replaced.encode(), 1)
        assert json.loads(config)
        with zipfile.ZipFile(tmp_path / "altered.keras", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, config if name == "config.json" else content)
        with pytest.raises(ConfigurationError, match=what):
            open_model(tmp_path / "altered.keras")


def test_saved_models_that_reach_out_are_refused_by_name(tmp_path: Path) -> None:
    """When they are called, and when they are only loaded."""
    traces = tmp_path / "traces"

    class Called(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, WIDTH), tf.float32)])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            tf.io.write_file(str(traces / "called"), "x")
            return x

    class Loaded(Called):
        """TensorFlow initializes tables while it loads."""

        def __init__(self, vocabulary: Path) -> None:
            super().__init__()
            initializer = tf.lookup.TextFileInitializer(str(vocabulary), tf.string, 0, tf.int64, 1)
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(input_signature=[tf.TensorSpec((None, WIDTH), tf.float32)])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            return x + tf.cast(self.table.size(), tf.float32)

    (tmp_path / "words").write_text("a\t1\n")
    tf.saved_model.save(Called(), str(tmp_path / "called"))
    tf.saved_model.save(Loaded(tmp_path / "words"), str(tmp_path / "loaded"))
    for name, operation in (("called", "WriteFile"), ("loaded", "InitializeTableFromTextFileV2")):
        with pytest.raises(ConfigurationError, match=f"{name} has the operation {operation}"):
            open_model(tmp_path / name)
    assert not traces.exists()


def test_pickles_are_refused(tmp_path: Path) -> None:
    """A folder of MLflow may hold nothing else."""
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {}}\n")
    (tmp_path / "python_model.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ConfigurationError, match=r"the pickle python_model.pkl"):
        open_model(tmp_path)
