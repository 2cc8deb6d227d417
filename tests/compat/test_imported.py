"""A model that was trained elsewhere, through the official clients of other servers: it answers as Keras does."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from service.runtime.quiet import tf
from service.schemas import INSTANCES, InputSchema
from service.settings import Settings
from service.training.data import Dataset, check_dataset
from service.training.foreign import of_keras
from service.training.imported import Wishes, import_config, import_model
from tests.compat.conftest import grpc_url, http_url
from tests.compat.test_tfserving_grpc import arrays, predict, predict_request
from tests.live import LiveService, serve_live
from tests.training import networks
from tests.training.networks import WIDTH, rows_of

pytestmark = [pytest.mark.tf, pytest.mark.slow]
pytest.importorskip("tensorflow_serving.apis", reason="`make clients` installs what this drives")
ROWS = rows_of((WIDTH,), 5)


@pytest.fixture(scope="module")
def taken_in(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store with ``halves``, and what Keras says of ``ROWS``."""
    store, model = tmp_path_factory.mktemp("imported"), networks.nested()
    dataset = Dataset({INSTANCES: rows_of((WIDTH,), 200)}, InputSchema(kind="tabular", row_shape=(WIDTH,)), "rows", "")
    import_model(
        of_keras(model, "Keras model"),
        import_config(),
        Wishes(),
        name="model",
        rows=lambda: check_dataset(dataset),
        store=store,
        model="halves",
        verify=lambda _: None,
    )
    return SimpleNamespace(store=store, expected=model(ROWS, training=False).numpy())


@pytest.fixture(scope="module")
def live(taken_in: SimpleNamespace) -> Iterator[LiveService]:
    with serve_live(Settings(store=taken_in.store, port=0, grpc_port=0)) as live:
        yield live


def close(found: Any, taken_in: SimpleNamespace) -> None:
    np.testing.assert_allclose(found, taken_in.expected, atol=1e-5)


def test_tensorflow_serving(live: LiveService, taken_in: SimpleNamespace) -> None:
    """``tensorflow-serving-api``."""
    with grpc.insecure_channel(grpc_url(live)) as channel:
        found = predict(channel, predict_request(ROWS, model="halves", signature_name="reconstruct"))
        close(arrays(found)["reconstruction"], taken_in)
        assert set(predict(channel, predict_request(ROWS, model="halves")).outputs) == {
            "score",
            "p_value",
            "is_anomaly",
        }


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_triton(transport: str, live: LiveService, taken_in: SimpleNamespace) -> None:
    """``tritonclient``."""
    triton = pytest.importorskip(f"tritonclient.{transport}")
    tensor = triton.InferInput("instances", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS)
    wanted = [triton.InferRequestedOutput("reconstruction")]
    with triton.InferenceServerClient(http_url(live) if transport == "http" else grpc_url(live)) as client:
        close(client.infer("halves", [tensor], outputs=wanted).as_numpy("reconstruction"), taken_in)


def test_a_bare_load(taken_in: SimpleNamespace) -> None:
    """TensorFlow alone."""
    bare = tf.saved_model.load(str(Path(taken_in.store) / "halves" / "1"))
    close(bare.signatures["reconstruct"](instances=tf.constant(ROWS))["reconstruction"], taken_in)
