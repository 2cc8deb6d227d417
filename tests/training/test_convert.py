"""``autoencoder models export``: a version in other formats, checked with the runtimes that will use them."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from service.cli import app
from service.errors import ConfigurationError
from service.runtime.quiet import keras
from service.schemas import INSTANCES, InputSchema
from service.store import GOLDEN_OUTPUTS, SAMPLE_REQUEST, Store
from service.training.convert import convert
from service.training.data import Dataset, check_dataset
from service.training.foreign import Foreign, of_keras
from service.training.imported import Wishes, import_config, import_model
from tests.training import networks
from tests.training.networks import rows_of

pytestmark = [
    pytest.mark.tf,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the converters
    pytest.mark.filterwarnings("ignore::UserWarning:tensorflow"),
]


CONVERTERS = Path(sys.prefix) / "export"


def taken_in(foreign: Foreign, store: Path, model: str, *, scale: str = "0-255") -> None:
    """Import with rows from 0 to 255."""
    shape = tuple(size or 1 for size in foreign.row_shape or ())
    kind: Any = "image" if len(shape) > 1 else "tabular"
    dataset = Dataset({INSTANCES: 255 * rows_of(shape, 200)}, InputSchema(kind=kind, row_shape=shape), "rows", "")
    import_model(
        foreign,
        import_config(),
        Wishes(scale=scale),
        name="model",
        rows=lambda: check_dataset(dataset),
        store=store,
        model=model,
        verify=lambda _: None,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``pictures``, of built-in layers, and ``subclassed``."""
    root = tmp_path_factory.mktemp("store")
    taken_in(of_keras(networks.convolutional(), "Keras model"), root, "pictures")
    taken_in(of_keras(networks.subclassed(), "Keras model"), root, "subclassed", scale="standard")
    return root


@pytest.fixture
def converters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages that `make clients` installs into a folder of their own, after all others."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(CONVERTERS)])


@pytest.fixture
def golden(store: Path) -> SimpleNamespace:
    """The sample rows of ``pictures`` and the answers to them."""
    folder = Store(store).path("pictures", 1)
    request, answers = (json.loads((folder / name).read_text()) for name in (SAMPLE_REQUEST, GOLDEN_OUTPUTS))
    return SimpleNamespace(rows=np.array(request["instances"], np.float32), answers=answers)


def agrees(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), rtol=1e-3, atol=1e-4)


def test_keras_takes_the_network_on(store: Path, golden: SimpleNamespace, tmp_path: Path) -> None:
    """It is the network alone: its rows are scaled."""
    arguments = ["models", "export", "pictures", str(tmp_path), "--format", "keras", "--store", str(store)]
    done = CliRunner().invoke(app, arguments)
    assert done.output.strip() == str(tmp_path / "model.keras")
    network = keras.saving.load_model(tmp_path / "model.keras")
    agrees(255 * network(golden.rows / 255), golden.answers["reconstruct"]["reconstruction"])
    with pytest.raises(ConfigurationError, match="has no Keras file: it was made of another format, or of layers"):
        convert(Store(store), "subclassed", 1, tmp_path, form="keras")


@pytest.mark.usefixtures("converters")
def test_lite_files_answer_as_the_version_does(store: Path, golden: SimpleNamespace, tmp_path: Path) -> None:
    """One file with a signature for each operation; raw rows in."""
    lite = pytest.importorskip("ai_edge_litert.interpreter", reason="`make clients` installs this")
    (file,) = convert(Store(store), "pictures", 1, tmp_path, form="tflite")
    interpreter = lite.Interpreter(str(file))
    assert set(interpreter.get_signature_list()) == {"encode", "reconstruct", "anomaly_score"}
    for name in interpreter.get_signature_list():
        answer = interpreter.get_signature_runner(name)(instances=golden.rows)
        for output, expected in golden.answers[name].items():
            agrees(answer[output], expected)
    with pytest.raises(ConfigurationError, match="it computes in float64, for which LiteRT has no operations"):
        convert(Store(store), "subclassed", 1, tmp_path / "other", form="tflite")
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("converters")
def test_onnx_files_answer_as_the_version_does(store: Path, golden: SimpleNamespace, tmp_path: Path) -> None:
    """A file for each operation, whose inputs and outputs have the names of the signature's; float64 too."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="`make clients` installs this")
    files = convert(Store(store), "pictures", 1, tmp_path, form="onnx")
    assert {file.stem for file in files} == {"encode", "reconstruct", "anomaly_score"}
    for file in files:
        session = onnxruntime.InferenceSession(file)
        names = [each.name for each in session.get_outputs()]
        answer = dict(zip(names, session.run(names, {"instances": golden.rows}), strict=True))
        for output, expected in golden.answers[file.stem].items():
            agrees(answer[output], expected)
    assert len(convert(Store(store), "subclassed", 1, tmp_path, form="onnx")) == 3


def test_a_file_that_answers_otherwise_is_not_handed_out(tmp_path: Path) -> None:
    """Here the Keras file is that of another network."""
    (tmp_path / "store").mkdir()
    mixed_up = replace(of_keras(networks.convolutional(), "Keras model"), keras=networks.convolutional())
    taken_in(mixed_up, tmp_path / "store", "other")
    with pytest.raises(ConfigurationError, match="answers otherwise than version 1: reconstruction of reconstruct"):
        convert(Store(tmp_path / "store"), "other", 1, tmp_path / "out", form="keras")
    assert not (tmp_path / "out").exists()
