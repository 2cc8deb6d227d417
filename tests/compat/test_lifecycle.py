"""What every request that runs a model leaves behind, whichever protocol brought it: a log line, times, counts."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from service.api.grpc.messages import message_class
from service.settings import Settings
from tests.compat.conftest import grpc_url
from tests.conftest import _fake_store
from tests.fakes import load_fake
from tests.live import LiveService, serve_live

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    root = _fake_store(tmp_path_factory.mktemp("lifecycle"))
    settings = Settings(store=root, port=0, grpc_port=0, default_model="pumps", access_log=True)
    with serve_live(settings, load=load_fake) as live:
        yield live


def _post(path: str, body: dict[str, Any]) -> Callable[[LiveService], int]:
    return lambda live: live.http.post(path, json=body).status_code


def _call(method: str, message: Any) -> Callable[[LiveService], int]:
    def call(live: LiveService) -> int:
        with grpc.insecure_channel(grpc_url(live)) as channel:
            try:
                channel.unary_unary(method)(message.SerializeToString(), timeout=30)
            except grpc.RpcError as error:
                return {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404}[error.code().name]
        return 200

    return call


def _predict_message(width: int) -> Any:
    message = message_class("tensorflow.serving.PredictRequest")()
    message.model_spec.name = "pumps"
    tensor = message.inputs["instances"]
    tensor.dtype = 1
    for size in (1, width):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend([1.0] * width)
    return message


def _infer_message(width: int) -> Any:
    message = message_class("inference.ModelInferRequest")(model_name="pumps")
    tensor = message.inputs.add(name="instances", datatype="FP32", shape=(1, width))
    tensor.contents.fp32_contents.extend([1.0] * width)
    return message


def _infer_body(width: int) -> dict[str, Any]:
    return {"inputs": [{"name": "instances", "datatype": "FP32", "shape": [1, width], "data": [1.0] * width}]}


PREDICT, INFER = "/tensorflow.serving.PredictionService/Predict", "/inference.GRPCInferenceService/ModelInfer"
ROUTES: dict[str, tuple[str, Callable[[int], Callable[[LiveService], int]]]] = {
    "native": ("anomaly_score", lambda width: _post("/anomaly-score", {"instances": [[1.0] * width]})),
    "v1": ("predict", lambda width: _post("/v1/models/pumps:predict", {"instances": [[1.0] * width]})),
    "v2": ("infer", lambda width: _post("/v2/models/pumps/infer", _infer_body(width))),
    "predict over gRPC": ("predict", lambda width: _call(PREDICT, _predict_message(width))),
    "infer over gRPC": ("infer", lambda width: _call(INFER, _infer_message(width))),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_protocol_logs_times_and_counts(
    logged: LiveService, caplog: pytest.LogCaptureFixture, route: str
) -> None:
    """One line of the access log, one decode and one encode, one request, for each request that is answered."""
    operation, request = ROUTES[route]
    before = _counts(logged, operation, 200)
    with caplog.at_level(logging.INFO, "service.api"):
        assert request(2)(logged) == 200
        lines = _lines(caplog)
    assert [
        (line.operation, line.model, line.version, line.status)  # type: ignore[attr-defined]
        for line in lines
    ] == [(operation, "pumps", 2, 200)]
    assert [after - earlier for after, earlier in zip(_counts(logged, operation, 200), before, strict=True)] == [1] * 3


@pytest.mark.parametrize("route", ROUTES)
def test_every_protocol_logs_and_counts_refusals(
    logged: LiveService, caplog: pytest.LogCaptureFixture, route: str
) -> None:
    """The same of a request whose rows do not fit, with the status that its caller gets."""
    operation, request = ROUTES[route]
    with caplog.at_level(logging.INFO, "service.api"):
        status = request(3)(logged)
        lines = _lines(caplog)
    assert status in (400, 422)
    assert [(line.operation, line.status) for line in lines] == [(operation, status)]  # type: ignore[attr-defined]
    assert _counts(logged, operation, status)[2] >= 1


def _lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The lines of the access log: a request is logged after its answer was sent."""
    deadline = time.monotonic() + 5
    lines: list[logging.LogRecord] = []
    while not lines and time.monotonic() < deadline:
        time.sleep(0.05)
        lines = [record for record in caplog.records if record.getMessage() == "answered"]
    return lines


def _counts(live: LiveService, operation: str, status: int) -> list[float]:
    registry = live.service.telemetry.registry
    stages = [
        registry.get_sample_value("autoencoder_stage_seconds_count", {"stage": stage}) or 0.0
        for stage in ("decode", "encode")
    ]
    labels = {"operation": operation, "model": "pumps", "status": str(status)}
    return [*stages, registry.get_sample_value("autoencoder_requests_total", labels) or 0.0]
