"""A version that was made without rows: it encodes and reconstructs, and every way to a score says how to get one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from service.api.grpc.messages import message_class
from service.cli import app
from service.client import Client
from service.errors import Conflict, OperationNotSupported
from service.pipelines import Scorer
from service.pipelines.remote import RemoteScorer
from service.store import Store
from tests.fakes import load_fake, publish_fake
from tests.live import LiveService

ROWS = {"instances": [[1.0, 2.0], [3.0, 4.0]]}
SENTENCE = (
    "Version 1 of model 'pumps' is not calibrated: `autoencoder recalibrate pumps 1 --rows ROWS` makes one that scores."
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    publish_fake(Store(folder), is_calibrated=False)
    return folder


@pytest.fixture
def live(root: Path, serve: Callable[..., LiveService]) -> LiveService:
    return serve(root, load=load_fake, grpc_port=0)


def test_it_encodes_and_reconstructs_and_says_how_it_would_score(live: LiveService) -> None:
    """409 with the command, for all that needs scores: the operation, its thresholds and drift."""
    assert live.get("/readyz").json() == {"ready": True}
    assert live.post("/encode", json=ROWS).json()["latents"] == [[1.0], [3.0]]
    assert live.post("/reconstruct", json=ROWS).json()["reconstructions"] == [[1.0, 1.0]] * 2
    for answer in (
        live.post("/anomaly-score", json=ROWS),
        live.post("/anomaly-score", content=b"", headers={"Content-Type": "application/x-ndjson"}),
        live.get("/models/pumps/versions/1/calibration"),
        live.get("/models/pumps/drift"),
    ):
        assert (answer.status_code, answer.json()["detail"]) == (409, SENTENCE)


def test_it_is_shown(live: LiveService) -> None:
    """Available, with null for its calibration; metrics and activity are those of any other."""
    assert live.get("/models").json()["models"][0]["versions"][0]["state"] == "available"
    detail = live.get("/models/pumps").json()["version"]
    assert detail["calibration"] is None
    assert detail["state"] == "available"
    assert "anomaly_score" not in detail["signatures"]
    for path in ("/metrics", "/activity", "/openapi.json"):
        assert live.get(path).status_code == 200


def test_tensorflow_serving_lacks_the_signature(live: LiveService) -> None:
    """What runs by default is the reconstruction."""
    answer = live.post("/v1/models/pumps:predict", json={"instances": [[1.0, 2.0]]})
    assert answer.json() == {"predictions": [{"reconstruction": [1.0, 1.0], "error": 0.5}]}
    asked = {**ROWS, "signature_name": "anomaly_score"}
    refused = live.post("/v1/models/pumps:predict", json=asked)
    assert (refused.status_code, "anomaly_score" in refused.json()["error"]) == (400, True)
    metadata = live.get("/v1/models/pumps/metadata").json()["metadata"]["signature_def"]["signature_def"]
    assert set(metadata) == {"serving_default", "encode", "reconstruct", "denoise", "explain"}
    assert set(metadata["serving_default"]["outputs"]) == {"reconstruction", "error"}
    with grpc.insecure_channel(f"127.0.0.1:{live.service.grpc_port}") as channel:
        request = message_class("tensorflow.serving.GetModelMetadataRequest")(metadata_field=["signature_def"])
        request.model_spec.name = "pumps"
        method = channel.unary_unary("/tensorflow.serving.PredictionService/GetModelMetadata")
        assert b"reconstruct" in method(request.SerializeToString(), timeout=30)


def test_open_inference_lacks_the_outputs(live: LiveService) -> None:
    """Of a request that names no outputs, the answer is the reconstruction."""
    outputs = {each["name"] for each in live.get("/v2/models/pumps").json()["outputs"]}
    assert outputs == {"latent", "reconstruction", "error", "denoised", "contribution", "expected"}
    inputs = [{"name": "instances", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]
    answer = live.post("/v2/models/pumps/infer", json={"inputs": inputs}).json()
    assert {each["name"] for each in answer["outputs"]} == {"reconstruction", "error"}
    wanted = {"inputs": inputs, "outputs": [{"name": "score"}]}
    assert live.post("/v2/models/pumps/infer", json=wanted).status_code == 400


def test_no_candidate_that_scores_nothing_is_tried(root: Path, serve: Callable[..., LiveService]) -> None:
    """It would fail on every batch."""
    store = Store(root)
    publish_fake(store)
    store.set_alias("pumps", "candidate", 1)
    live = serve(root, load=load_fake, shadow_share=1.0)
    assert live.post("/anomaly-score", json=ROWS).status_code == 200
    assert live.get("/models/pumps").json()["shadow"] is None


@pytest.mark.parametrize("remote", [False, True])
def test_files_are_encoded_and_not_scored(remote: bool, live: LiveService, root: Path) -> None:
    """From the store, and through the service."""

    def scorer(operation: str) -> Any:
        return (
            RemoteScorer(live.url, "pumps", operation=operation) if remote else Scorer(str(root), "pumps", 1, operation)
        )

    assert scorer("encode").calibration_rows == 0
    with pytest.raises(OperationNotSupported) as caught:
        scorer("anomaly_score")
    assert str(caught.value) == SENTENCE


def test_the_client_raises_the_sentence(live: LiveService) -> None:
    """As for any operation that a version lacks."""
    with Client(live.url) as client, pytest.raises(Conflict, match="autoencoder recalibrate pumps 1"):
        client.anomaly_score([[1.0, 2.0]])


def test_the_commands_list_it(root: Path) -> None:
    """Without a threshold."""
    listed = CliRunner().invoke(app, ["models", "list", "--store", str(root)])
    assert "none" in listed.output
    shown = CliRunner().invoke(app, ["models", "show", "pumps", "--store", str(root)])
    assert '"calibration": null' in shown.output
