"""Both protocols on both transports keep the limits, keys and deadlines of the other routes."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from service.api.access import hash_key
from service.api.grpc.messages import message_class
from tests.compat.conftest import grpc_url
from tests.fakes import RAISES, SECRET, Gate, load_fake
from tests.live import LiveService

ROWS = np.array([[1, 2], [3, 4]], np.float32)
PREDICT, INFER = "/v1/models/pumps:predict", "/v2/models/pumps/infer"
V1_BODY = json.dumps({"instances": ROWS.tolist()})
V2_BODY = json.dumps({"inputs": [{"name": "instances", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
BODIES = {PREDICT: V1_BODY, INFER: V2_BODY}
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC_PREDICT = "/tensorflow.serving.PredictionService/Predict"


def infer_message(rows: Any = ROWS, datatype: str = "FP32") -> bytes:
    request = message_class("inference.ModelInferRequest")(model_name="pumps")
    request.inputs.add(name="instances", datatype=datatype, shape=rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    content: bytes = request.SerializeToString()
    return content


def predict_message(rows: Any = ROWS, dtype: int = 1) -> bytes:
    request = message_class("tensorflow.serving.PredictRequest")()
    request.model_spec.name = "pumps"
    proto = request.inputs["instances"]
    proto.dtype, proto.tensor_content = dtype, rows.tobytes()
    for size in rows.shape:
        proto.tensor_shape.dim.add(size=size)
    content: bytes = request.SerializeToString()
    return content


MESSAGES: dict[str, Callable[..., bytes]] = {GRPC_INFER: infer_message, GRPC_PREDICT: predict_message}


@contextmanager
def calling(live: LiveService) -> Iterator[Callable[..., str]]:
    """Call a gRPC method with bytes: the name of the status code that it ends with."""
    with grpc.insecure_channel(grpc_url(live)) as channel:

        def call(method: str, content: bytes, **arguments: Any) -> str:
            try:
                channel.unary_unary(method)(content, timeout=arguments.pop("timeout", 30), **arguments)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        yield call


@pytest.fixture
def started(serve: Callable[..., LiveService], fake_store: Path) -> Callable[..., LiveService]:
    return partial(serve, fake_store, load=load_fake, grpc_port=0)


def test_off_by_default(serve: Callable[..., LiveService], fake_store: Path) -> None:
    """Nothing listens for gRPC unless a port is set."""
    assert serve(fake_store, load=load_fake).service.grpc_port is None


def test_keys_over_http(started: Callable[..., LiveService]) -> None:
    """No key, a wrong one, a caller's and an admin's; probes need none."""
    live = started(key_hashes=(hash_key("caller"),), admin_key_hashes=(hash_key("admin"),))
    for path, body in BODIES.items():
        refused = live.post(path, content=body)
        assert refused.status_code == 401
        assert list(refused.json()) == ["error"]
        assert refused.headers["www-authenticate"] == "Bearer"
        assert live.post(path, content=body, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert live.post(path, content=body, headers={"Authorization": "Bearer caller"}).status_code == 200
        assert live.post(path, content=body, headers={"X-API-Key": "caller"}).status_code == 200
    for path in ("/v1/models", "/v1/models/pumps", "/v1/models/pumps/metadata", "/v2", "/v2/models/pumps"):
        assert live.get(path).status_code == 401, path
        assert live.get(path, headers={"X-API-Key": "caller"}).status_code == 200, path
    assert live.get("/v2/health/live").status_code == live.get("/v2/health/ready").status_code == 200
    load = "/v2/repository/models/pumps/load"
    assert [live.post(load, headers={"X-API-Key": key}).status_code for key in ("x", "caller", "admin")] == [
        401,
        403,
        200,
    ]


def test_keys_over_grpc(started: Callable[..., LiveService]) -> None:
    """The same keys, as metadata; health checking needs none."""
    live = started(key_hashes=(hash_key("caller"),), admin_key_hashes=(hash_key("admin"),))
    load = message_class("inference.RepositoryModelLoadRequest")(model_name="pumps").SerializeToString()
    with calling(live) as call:
        for method, message in MESSAGES.items():
            assert call(method, message()) == "UNAUTHENTICATED"
            assert call(method, message(), metadata=(("x-api-key", "wrong"),)) == "UNAUTHENTICATED"
            assert call(method, message(), metadata=(("x-api-key", "caller"),)) == "OK"
            assert call(method, message(), metadata=(("authorization", "Bearer caller"),)) == "OK"
        for name, key, code in (("x-api-key", "caller", "PERMISSION_DENIED"), ("x-api-key", "admin", "OK")):
            method = "/inference.GRPCInferenceService/RepositoryModelLoad"
            assert call(method, load, metadata=((name, key),)) == code
        assert call("/inference.GRPCInferenceService/ServerMetadata", b"") == "UNAUTHENTICATED"
        assert call("/inference.GRPCInferenceService/ServerReady", b"") == "OK"
        assert call("/grpc.health.v1.Health/Check", b"") == "OK"


def test_sizes_over_http(started: Callable[..., LiveService]) -> None:
    """Bodies, JSON, rows, and what a small body decompresses to."""
    live = started(max_json_bytes=2000, max_body_bytes=6000, max_decoded_bytes=6000, max_rows=100)
    for path, body in BODIES.items():
        padded = body + " " * 3000
        refused = live.post(path, content=padded)
        assert refused.status_code == 413
        assert list(refused.json()) == ["error"]
        compressed = gzip.compress(padded.encode())
        assert len(compressed) < 300
        assert live.post(path, content=compressed, headers={"Content-Encoding": "gzip"}).status_code == 413
        assert live.post(path, content=body).status_code == 200
    many = np.zeros((101, 2), np.float32)
    head = json.dumps(
        {
            "inputs": [
                {"name": "instances", "shape": [101, 2], "datatype": "FP32", "parameters": {"binary_data_size": 808}}
            ]
        }
    )
    length = {"Inference-Header-Content-Length": str(len(head))}
    assert live.post(INFER, content=head.encode() + many.tobytes(), headers=length).status_code == 413
    assert live.post(INFER, content=head.encode() + bytes(7000), headers=length).status_code == 413
    assert (
        live.post(INFER, content=b"{" + b" " * 3000, headers={**length, **{next(iter(length)): "3001"}}).status_code
        == 413
    )


def test_sizes_over_grpc(started: Callable[..., LiveService]) -> None:
    """Messages, rows, and what a small message decompresses to."""
    live = started(max_body_bytes=100_000, max_rows=100)
    with calling(live) as call:
        for method, message in MESSAGES.items():
            assert call(method, message(np.zeros((101, 2), np.float32))) == "RESOURCE_EXHAUSTED"
            large = message(np.zeros((100_000, 2), np.float32))
            assert call(method, large) == "RESOURCE_EXHAUSTED"
            assert call(method, large, compression=grpc.Compression.Gzip) == "RESOURCE_EXHAUSTED"
            assert call(method, message()) == "OK"


def test_deadlines(started: Callable[..., LiveService]) -> None:
    """The header, the parameter in microseconds, and gRPC's own deadline; what is late is not run."""
    gate = Gate()
    live = started(load=partial(load_fake, before=gate))
    with_timeout = json.dumps({**json.loads(V2_BODY), "parameters": {"timeout": 50_000}})
    try:
        for path, body, headers in (
            (PREDICT, V1_BODY, {"X-Timeout-Ms": "50"}),
            (INFER, V2_BODY, {"X-Timeout-Ms": "50"}),
            (INFER, with_timeout, {}),
        ):
            response = live.post(path, content=body, headers=headers)
            assert response.status_code == 504, response.text
            assert list(response.json()) == ["error"]
        with calling(live) as call:
            for method, message in MESSAGES.items():
                assert call(method, message(), timeout=0.1) == "DEADLINE_EXCEEDED"
    finally:
        gate.opened.set()


def test_a_full_queue(started: Callable[..., LiveService]) -> None:
    """429 with Retry-After, and RESOURCE_EXHAUSTED."""
    from threading import Thread

    gate = Gate()
    live = started(load=partial(load_fake, before=gate), max_queue_requests=1)
    senders = [Thread(target=live.post, args=(PREDICT,), kwargs={"content": V1_BODY}) for _ in range(2)]
    try:
        senders[0].start()
        gate.await_call()
        senders[1].start()
        while live.service.batcher.queued_rows == 0:
            senders[1].join(0.01)
        for path, body in BODIES.items():
            refused = live.post(path, content=body)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
        with calling(live) as call:
            assert {call(method, message()) for method, message in MESSAGES.items()} == {"RESOURCE_EXHAUSTED"}
    finally:
        gate.opened.set()
        for sender in senders:
            sender.join(30)


@pytest.mark.filterwarnings("ignore")
def test_a_failing_model_says_nothing_of_itself(fakes: LiveService) -> None:
    """500 and INTERNAL, without the text of the exception."""
    rows = np.array([[RAISES, 1]], np.float32)
    response = fakes.post(PREDICT, content=json.dumps({"instances": rows.tolist()}))
    assert response.status_code == 500
    assert response.json() == {"error": "The model failed on these rows."}
    with grpc.insecure_channel(grpc_url(fakes)) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(GRPC_INFER)(infer_message(rows), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in caught.value.details()


def test_host_names(started: Callable[..., LiveService]) -> None:
    """A wrong host name is refused in the form of the route that was asked for."""
    live = started(allowed_hosts=("models.example",))
    for path in ("/v1/models", "/v2"):
        refused = live.get(path)
        assert refused.status_code == 400
        assert list(refused.json()) == ["error"]
        assert live.get(path, headers={"Host": "models.example"}).status_code == 200


def test_not_ready(serve: Callable[..., LiveService], tmp_path: Path) -> None:
    """An empty store: live, not ready, and every answer says so."""
    (tmp_path / "empty").mkdir()
    live = serve(tmp_path / "empty", load=load_fake, grpc_port=0)
    assert live.get("/v2/health/live").status_code == 200
    ready = live.get("/v2/health/ready")
    assert ready.status_code == 503
    assert list(ready.json()) == ["error"]
    assert live.post(PREDICT, content=V1_BODY).status_code == 404
    assert live.post(INFER, content=V2_BODY).status_code == 404
    with calling(live) as call, grpc.insecure_channel(grpc_url(live)) as channel:
        assert call(GRPC_INFER, infer_message()) == "NOT_FOUND"
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30)
        assert message_class("grpc.health.v1.HealthCheckResponse").FromString(answer).status == 2


def test_kserve_v1_status_is_asked_for(started: Callable[..., LiveService]) -> None:
    """KServe's fields stand beside TensorFlow Serving's only where the setting says so."""
    assert set(started(kserve_v1=False).get("/v1/models/pumps").json()) == {"model_version_status"}
    body = started(kserve_v1=True).get("/v1/models/pumps").json()
    assert set(body) == {"model_version_status", "name", "ready"}
    assert body["ready"] is True


def test_metrics_count_them(fakes: LiveService) -> None:
    """Requests of both protocols stand in the metrics by operation, model and status."""
    fakes.post(PREDICT, content=V1_BODY)
    fakes.post("/v2/models/nope/infer", content=V2_BODY)
    with calling(fakes) as call:
        call(GRPC_INFER, infer_message())
    metrics = fakes.get("/metrics").text
    assert 'autoencoder_requests_total{model="pumps",operation="predict",status="200"}' in metrics
    assert 'autoencoder_requests_total{model="pumps",operation="infer",status="200"}' in metrics
    assert 'autoencoder_requests_total{model="",operation="infer",status="404"}' in metrics


def test_grpc_stops_with_the_service(fake_store: Path) -> None:
    """A call under way is answered; then the port is closed."""
    from concurrent.futures import ThreadPoolExecutor

    from service.settings import Settings
    from tests.live import serve_live

    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        with serve_live(Settings(store=fake_store, port=0, grpc_port=0), load=partial(load_fake, before=gate)) as live:
            url = grpc_url(live)
            channel = grpc.insecure_channel(url)
            pending = pool.submit(channel.unary_unary(GRPC_INFER), infer_message(), timeout=30)
            gate.await_call()
            gate.opened.set()
        assert pending.result(30)
        channel.close()
        with grpc.insecure_channel(url) as again, pytest.raises(grpc.RpcError) as caught:
            again.unary_unary(GRPC_INFER)(infer_message(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
