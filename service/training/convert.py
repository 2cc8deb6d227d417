"""A version in the formats of other runtimes, each checked with the runtime that will use it.

ONNX and LiteRT files take raw rows and answer as the SavedModel does, but for the reasons of a score (``explain``). A
Keras file is the network alone, for fine-tuning.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from service.errors import ConfigurationError
from service.runtime.loaded_model import agree, sample_rows
from service.runtime.quiet import keras, tf
from service.schemas import INSTANCES, Results, Rows
from service.store import GOLDEN_OUTPUTS, KERAS_MODEL, Manifest, Store
from service.training.foreign import first_line
from service.words import ANOMALY_SCORE, OPERATION_NAMED, RECONSTRUCT

SPREADS: Final = {"none": 1.0, "0-255": 255.0}
"""Scales whose numbers are known by their names: raw values are so many times those that the network takes."""


def convert(store: Store, model: str, version: int, folder: Path, *, form: str) -> list[Path]:
    """Write a version into ``folder`` as ``onnx``, ``tflite`` or ``keras``; the files that were written.

    Raises:
        ModelNotFound, VersionNotFound, InvalidVersion: there is no such version, or it is damaged.
        ConfigurationError: a package is missing, or the version cannot be written in this format.
    """
    manifest = store.verify_digests(model, version)
    source = store.path(model, version)
    golden: dict[str, dict[str, Any]] = json.loads((source / GOLDEN_OUTPUTS).read_text(encoding="utf-8"))
    sample = sample_rows(source, manifest.input)
    with tempfile.TemporaryDirectory() as scratch:
        answers, files = _FORMATS[form](source, manifest, sample, Path(scratch))
        for signature, results in answers.items():
            wrong = next((name for name, found in results.items() if not agree(found, golden[signature][name])), None)
            if wrong is not None:
                raise ConfigurationError(
                    f"The {form} file answers otherwise than version {version}: {wrong} of {signature} differs."
                )
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(file, folder)) for file in files]


Written = tuple[Mapping[str, Results], list[Path]]
"""The answers of the new files to the sample rows, by signature, and the files."""


def _onnx(source: Path, manifest: Manifest, sample: Rows, folder: Path) -> Written:
    """A file for each operation."""
    try:
        import onnxruntime
        from tf2onnx import convert as tf2onnx
        from tf2onnx import tf_loader
    except ImportError as error:
        raise _missing("tf2onnx and onnxruntime", error) from error
    answers, files = dict[str, Results](), list[Path]()
    loaded = tf.saved_model.load(str(source))
    for signature, function in _functions(loaded, manifest).items():
        inputs = [tensor.name for tensor in function.inputs if tensor.dtype != tf.resource]
        outputs = [tensor.name for tensor in function.outputs]
        names = sorted(function.structured_outputs)
        renamed = dict(zip([*inputs, *outputs], [*sorted(sample), *names], strict=True))
        try:
            graph = tf_loader.from_function(function, inputs, outputs)
            written, _ = tf2onnx.from_graph_def(
                graph, input_names=inputs, output_names=outputs, tensors_to_rename=renamed
            )
            files.append(folder / f"{signature}.onnx")
            files[-1].write_bytes(written.SerializeToString())
            session = onnxruntime.InferenceSession(files[-1])
        except Exception as error:
            raise _refused("ONNX", manifest, error) from error
        answers[signature] = dict(zip(names, session.run(names, dict(sample)), strict=True))
    return answers, files


def _tflite(source: Path, manifest: Manifest, sample: Rows, folder: Path) -> Written:
    """One file with a signature for each operation."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise _missing("ai-edge-litert", error) from error
    module = tf.Module()
    module.loaded = tf.saved_model.load(str(source))
    functions, file = _functions(module.loaded, manifest), folder / "model.tflite"
    try:
        tf.saved_model.save(module, str(folder / "saved"), functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"), signature_keys=list(functions))
        file.write_bytes(converter.convert())
        interpreter = Interpreter(str(file))
        answers = {name: interpreter.get_signature_runner(name)(**sample) for name in functions}
    except Exception as error:
        raise _refused("LiteRT", manifest, error) from error
    return answers, [file]


def _keras(source: Path, manifest: Manifest, sample: Rows, folder: Path) -> Written:
    """The network alone. Its answers are checked where the scale of its rows is known by name."""
    if KERAS_MODEL not in manifest.digests:
        raise ConfigurationError(
            f"Version {manifest.version} of model {manifest.model} has no Keras file: it was made of another format, "
            "or of layers that are not Keras's own."
        )
    file = Path(shutil.copy(source / KERAS_MODEL, folder))
    try:
        network = keras.saving.load_model(file, compile=False)
    except Exception as error:
        raise _refused("Keras", manifest, error) from error
    spread = SPREADS.get(str(manifest.training.get("scale")))
    if spread is None:
        return {}, [file]
    rebuilt = np.asarray(network(sample[INSTANCES] / np.float32(spread), training=False)) * np.float32(spread)
    return {RECONSTRUCT.name: {"reconstruction": rebuilt}}, [file]


_FORMATS: Final[Mapping[str, Callable[[Path, Manifest, Rows, Path], Written]]] = {
    "onnx": _onnx,
    "tflite": _tflite,
    "keras": _keras,
}
FORMATS: Final = tuple(_FORMATS)


def _functions(loaded: Any, manifest: Manifest) -> dict[str, Any]:
    """Concrete functions of the operations of a loaded version, which are of use as long as that is kept."""

    def scored(**rows: Any) -> dict[str, Any]:
        # As ``service.training.graph.judge``, which looks p-values up in a way that only TensorFlow knows.
        score = loaded.signatures[ANOMALY_SCORE.name](**rows)["score"]
        calibration = np.array(manifest.calibrated.scores, np.float32)
        at_least = tf.reduce_sum(tf.cast(calibration >= score[:, None], tf.float32), axis=1)
        return {
            "score": score,
            "p_value": (at_least + 1) / np.float32(len(calibration) + 1),
            "is_anomaly": score > np.float32(manifest.calibrated.threshold),
        }

    functions = {}
    for name in OPERATION_NAMED:
        if name in manifest.signatures:
            function = scored if name == ANOMALY_SCORE.name else loaded.signatures[name]
            specs = loaded.signatures[name].structured_input_signature[1]
            named = {each: tf.TensorSpec(spec.shape, spec.dtype, name=each) for each, spec in specs.items()}
            traced = tf.function(lambda function=function, **rows: function(**rows), autograph=False)
            functions[name] = traced.get_concrete_function(**named)
    return functions


def _missing(packages: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(f"This needs {packages}: pip install 'autoencoder-service[export]' ({error.name}).")


def _refused(form: str, manifest: Manifest, error: Exception) -> ConfigurationError:
    reason = first_line(error)
    if form == "LiteRT" and "f64" in str(error):
        reason = "it computes in float64, for which LiteRT has no operations."
    return ConfigurationError(
        f"Version {manifest.version} of model {manifest.model} cannot be written for {form}: {reason}"
    )
