"""Models of other programs, read without running what they bring along.

A file is looked at before anything loads it: layers of code, custom objects, pickles and operations that touch files or
processes are refused by name.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError
from service.runtime.quiet import keras, tf
from service.store import MANIFEST
from service.training.frozen import dangers

SAVED_MODEL = "saved_model.pb"
MLFLOW = "MLmodel"
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
CODE_LAYERS = frozenset({"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})
FILE_LAYERS = frozenset({"StringLookup", "IntegerLookup", "TextVectorization"})
"""Layers that may name files to be read."""
PICKLES = ("*.pkl", "*.pickle", "*.cloudpickle", "*.joblib")
ENCODES, DECODES = ("encode", "encoder", "embed"), ("decode", "decoder")


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A model of another program, loaded and not yet called."""

    call: Callable[[Any], Any] | None
    """Rows to whatever it returns. Builds graph when traced. None where only the halves can be called."""
    row_shape: tuple[int | None, ...] | None
    """None where the model does not say; so for sizes."""
    dtype: Any
    format: str
    """Words for the model card."""
    halves: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None
    """Encoder and decoder, where the model names them."""
    keras: Any = None
    """The Keras model itself, where it consists of built-in layers."""
    keep: Any = None
    """What must stay alive while ``call`` is used."""


def open_model(path: Path, *, trust: bool = False) -> Foreign:
    """Read a ``.keras`` or ``.h5`` file, a SavedModel folder, or a folder that MLflow logged.

    Raises:
        ConfigurationError: it is none of these, it would run code, or it cannot be loaded.
    """
    if not path.exists():
        raise ConfigurationError(f"There is no file or folder {path}.")
    if path.is_dir():
        return _open_folder(path, trust=trust)
    is_keras = zipfile.is_zipfile(path)
    if not is_keras and path.read_bytes()[:4] != b"\x89HDF":
        if path.suffix in KERAS_SUFFIXES:
            raise ConfigurationError(f"{path.name} is damaged, or no file of Keras.")
        raise ConfigurationError(
            f"{path.name} is no model: a .keras or .h5 file, a SavedModel folder or an MLflow folder can be imported."
        )
    config = _config_of_archive(path) if is_keras else _config_of_hdf5(path)
    found = next(_code_in(config), None)
    if found and not trust:
        raise ConfigurationError(
            f"{path.name} has {found}, which may run any code when it is loaded: --trust loads it, if you know where "
            "it is from. Or call model.export(folder) where it was made, and import that folder, which holds no Python."
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:
        raise ConfigurationError(f"Keras cannot load {path.name}: {first_line(error)}") from error
    return of_keras(model, "Keras file" if is_keras else "HDF5 file of Keras")


def _open_folder(path: Path, *, trust: bool) -> Foreign:
    if (path / MLFLOW).is_file():
        inside = [*path.rglob(SAVED_MODEL), *path.rglob("*.keras"), *path.rglob("*.h5")]
        if not inside:
            pickles = sorted(file.name for pattern in PICKLES for file in path.rglob(pattern))
            what = f"the pickle {pickles[0]}" if pickles else "no TensorFlow or Keras model"
            raise ConfigurationError(f"The MLflow folder {path.name} holds {what}, which cannot be imported.")
        found = inside[0].parent if inside[0].name == SAVED_MODEL else inside[0]
        return replace(open_model(found, trust=trust), format="MLflow folder")
    if (path / MANIFEST).is_file():
        raise ConfigurationError(
            f"{path.name} is a version of this service already; `autoencoder recalibrate` takes it on with other rows."
        )
    if not (path / SAVED_MODEL).is_file():
        files = [*sorted(path.glob("*.keras")), *sorted(path.glob("*.h5"))]
        if len(files) == 1:
            return open_model(files[0], trust=trust)
        raise ConfigurationError(f"The folder {path.name} holds no {SAVED_MODEL}, {MLFLOW}, .keras or .h5 file.")
    return _open_saved_model(path, trust=trust)


def _open_saved_model(path: Path, *, trust: bool) -> Foreign:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    content = SavedModel()
    try:
        content.ParseFromString((path / SAVED_MODEL).read_bytes())
        graph = content.meta_graphs[0]
    except Exception as error:
        raise ConfigurationError(f"{path.name}/{SAVED_MODEL} is damaged.") from error
    if not graph.HasField("object_graph_def"):
        raise ConfigurationError(f"{path.name} is a SavedModel of TensorFlow 1; save it again with TensorFlow 2.")
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    # What the loader calls or can be asked to call; the functions that save and restore are not among it.
    found = next(dangers(functions, graph.object_graph_def.concrete_functions), None)
    if found and not trust:
        raise ConfigurationError(
            f"{path.name} has the operation {found}, which reaches beyond the model, to files, processes or a network: "
            "--trust loads it, if you know where it is from."
        )
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise ConfigurationError(f"TensorFlow cannot load {path.name}: {first_line(error)}") from error
    signatures = {name: function for name, function in loaded.signatures.items() if not name.startswith("__")}
    if not signatures:
        raise ConfigurationError(f"{path.name} has no signatures: save it with tf.saved_model.save(…, signatures=…).")
    encode, decode = (
        next((signatures[name] for name in signatures if name.lower().startswith(words)), None)
        for words in (ENCODES, DECODES)
    )
    both = encode is not None and decode is not None
    halves = (partial(_of_one_input, encode), partial(_of_one_input, decode)) if both else None
    names = ["serving_default", *(name for name in signatures if "reconstruct" in name.lower())]
    name = next((name for name in names if name in signatures), None)
    if name is None and halves is None and len(signatures) == 1:
        (name,) = signatures
    if name is None and halves is None:
        raise ConfigurationError(
            f"{path.name} has the signatures {', '.join(sorted(signatures))}; none is serving_default, and no two are "
            "named encode and decode."
        )
    function: Any = encode if halves is not None else signatures[name or ""]
    call = None if halves is not None else partial(_of_one_input, function)
    inputs = function.structured_input_signature[1]
    if len(inputs) != 1:
        raise ConfigurationError(
            f"{path.name} takes {len(inputs)} inputs ({', '.join(sorted(inputs))}); one is served."
        )
    (spec,) = inputs.values()
    shape = None if spec.shape.rank is None else tuple(spec.shape[1:])
    if spec.shape.rank is not None and spec.shape[0] is not None:
        raise ConfigurationError(f"{path.name} takes batches of {spec.shape[0]} rows only; save it for any number.")
    return Foreign(call, shape, spec.dtype, "SavedModel", halves, keep=loaded)


def _of_one_input(function: Any, rows: Any) -> Any:
    """Call a signature of one input."""
    ((name, spec),) = function.structured_input_signature[1].items()
    return function(**{name: tf.cast(rows, spec.dtype)})


def of_keras(model: Any, words: str) -> Foreign:
    """A Keras model in memory. ``words``: its format."""
    shape = getattr(model, "input_shape", None) if getattr(model, "built", False) else None
    if isinstance(shape, (list, dict)):
        names = ", ".join(str(each.name) for each in tf.nest.flatten(model.inputs))
        raise ConfigurationError(f"The model takes {len(shape)} inputs ({names}); one is served.")
    encoder, decoder = (getattr(model, name, None) for name in ("encoder", "decoder"))
    halves = None
    if callable(encoder) and callable(decoder):
        halves = (partial(encoder, training=False), partial(decoder, training=False))
        shape = shape or getattr(encoder, "input_shape", None)
    dtype = tf.as_dtype(model.inputs[0].dtype if getattr(model, "inputs", None) else "float32")
    # A model whose training steps call encoder and decoder themselves may have no forward pass of its own.
    call = None if type(model).call is keras.Model.call else partial(model, training=False)
    return Foreign(
        call, tuple(shape[1:]) if shape else None, dtype, words, halves, model if _is_plain(model) else None, model
    )


def _is_plain(model: Any) -> bool:
    """Whether a Keras model consists of built-in layers, so that any tool can load it."""
    is_graph = isinstance(model, keras.Sequential) or type(model).__name__ == "Functional"
    return is_graph and model.built and next(_code_in(keras.saving.serialize_keras_object(model)), None) is None


def joined(encoder: Foreign, decoder: Foreign) -> Foreign:
    """Two models as one."""
    return replace(
        encoder,
        call=None,
        halves=(called(encoder), called(decoder)),
        keras=None,
        format=f"two files: {encoder.format} and {decoder.format}",
        keep=(encoder, decoder),
    )


def called(model: Foreign) -> Callable[[Any], Any]:
    if model.call is None:
        raise ConfigurationError("--encoder and --decoder each take a model of one part.")
    return model.call


def named_outputs(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        return {str(name): tf.convert_to_tensor(value) for name, value in outputs.items()}
    listed = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return {str(number): tf.convert_to_tensor(value) for number, value in enumerate(listed)}


def latent_of(outputs: Any) -> Any:
    """The latent of an encoder; of a variational one, which gives mean, log-variance and a sample, the mean."""
    named = named_outputs(outputs)
    return next((value for name, value in named.items() if "mean" in name.lower()), next(iter(named.values())))


def _config_of_archive(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConfigurationError(f"{path.name} is no .keras file, or it is damaged.") from error


def _config_of_hdf5(path: Path) -> Any:
    import h5py  # type: ignore[import-untyped]

    try:
        with h5py.File(path) as file:
            config = file.attrs.get("model_config")
    except OSError as error:
        raise ConfigurationError(f"{path.name} is damaged: {first_line(error)}") from error
    if config is None:
        raise ConfigurationError(f"{path.name} holds weights alone; save the whole model.")
    return json.loads(config)


def _code_in(config: Any) -> Iterator[str]:
    """Words for each part of a Keras configuration that is code, or names code or files to be read."""
    if isinstance(config, list):
        for each in config:
            yield from _code_in(each)
    if not isinstance(config, dict):
        return
    kind, module = config.get("class_name"), str(config.get("module") or "keras")
    if isinstance(kind, str):
        name = (config.get("config") or {}).get("name") if isinstance(config.get("config"), dict) else None
        where = f" '{name}'" if name else ""
        if kind in CODE_LAYERS:
            yield f"a {kind} layer{where}"
        elif kind in FILE_LAYERS:
            yield f"a {kind} layer{where}, which may name a file to be read,"
        elif kind == "function":
            if config.get("config") not in _built_in_functions():
                yield f"the custom function {config.get('config')}"
        elif kind not in _built_in_classes() or module.partition(".")[0] not in {"keras", "builtins"}:
            yield f"the custom object {kind}{where}"
    for key, each in config.items():
        if key != "compile_config":  # it is not loaded
            yield from _code_in(each)


def _built_in_classes() -> frozenset[str]:
    places = (
        "layers",
        "models",
        "initializers",
        "regularizers",
        "constraints",
        "dtype_policies",
        "random",
        "quantizers",
    )
    classes = {
        name
        for place in places
        for name, found in vars(getattr(keras, place, None) or type).items()
        if isinstance(found, type)
    }
    inner = {"Functional", "InputLayer", "__tensor__", "__numpy__", "__keras_tensor__", "__ellipsis__", "slice"}
    return frozenset(classes | inner)


def _built_in_functions() -> frozenset[str]:
    return frozenset(name for place in (keras.activations, keras.initializers) for name in vars(place))


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
