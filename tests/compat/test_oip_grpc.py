"""The Open Inference Protocol over gRPC, driven by Triton's own client."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.api.samples import digits
from tests.compat.conftest import grpc_url
from tests.live import LiveService

triton = pytest.importorskip("tritonclient.grpc", reason="`make clients` installs what this drives")
pb = pytest.importorskip("tritonclient.grpc.service_pb2")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

ROWS = np.array([[1, 2], [3, 4]], np.float32)
SERVICE = "/inference.GRPCInferenceService"


@pytest.fixture
def client(fakes: LiveService) -> Iterator[Any]:
    with triton.InferenceServerClient(grpc_url(fakes)) as client:
        yield client


@pytest.fixture
def channel(fakes: LiveService) -> Iterator[Any]:
    with grpc.insecure_channel(grpc_url(fakes)) as channel:
        yield channel


def infer_input(values: NDArray[Any], datatype: str = "FP32", *, name: str = "instances") -> Any:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def message(datatype: str = "FP32", shape: tuple[int, ...] = (2, 2), **contents: Any) -> Any:
    request = pb.ModelInferRequest(model_name="pumps")
    tensor = request.inputs.add(name="instances", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return request


def call(channel: Any, request: Any) -> Any:
    method = channel.unary_unary(
        f"{SERVICE}/ModelInfer",
        request_serializer=None if isinstance(request, bytes) else type(request).SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return method(request, timeout=30)


def refused(channel: Any, request: Any, code: str = "INVALID_ARGUMENT") -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, request)
    assert caught.value.code().name == code, caught.value.details()
    return str(caught.value.details())


def test_triton_health_and_metadata(client: Any) -> None:
    """Everything that the client asks of a server before it sends rows."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pumps")
    assert client.is_model_ready("pumps", "stable")
    assert not client.is_model_ready("pumps", "9")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata(as_json=True)["name"] == "autoencoder-service"
    metadata = client.get_model_metadata("pumps", as_json=True)
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "instances", "datatype": "FP32", "shape": ["-1", "2"]}]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_triton_infer(client: Any, compression: str | None) -> None:
    """Chosen outputs, in the order that they were named, compressed or not."""
    names = ("latent", "reconstruction", "error", "is_anomaly", "p_value")
    result = client.infer(
        "pumps",
        [infer_input(ROWS)],
        outputs=[triton.InferRequestedOutput(name) for name in names],
        request_id="r-1",
        parameters={"threshold": 2.5},
        compression_algorithm=compression,
    )
    assert result.as_numpy("latent").tolist() == [[1], [3]]
    assert result.as_numpy("reconstruction").tolist() == [[2, 2], [2, 2]]
    assert result.as_numpy("error").tolist() == [0.5, 2.5]
    assert result.as_numpy("is_anomaly").tolist() == [True, True]
    response = result.get_response()
    assert [output.name for output in response.outputs] == list(names)
    assert (response.id, response.model_name, response.model_version) == ("r-1", "pumps", "2")
    assert response.parameters["threshold"].double_param == 2.5


def test_triton_default_outputs_and_versions(client: Any) -> None:
    """No outputs named: those of the anomaly score; versions by number and alias."""
    result = client.infer("pumps", [infer_input(ROWS)])
    assert [output.name for output in result.get_response().outputs] == ["score", "p_value", "is_anomaly"]
    for version in ("1", "stable"):
        denoised = triton.InferRequestedOutput("denoised")
        result = client.infer("pumps", [infer_input(ROWS)], outputs=[denoised], model_version=version)
        assert result.as_numpy("denoised").tolist() == [[1, 1], [1, 1]]
        assert result.get_response().model_version == "1"


def test_triton_async(fakes: LiveService, client: Any) -> None:
    """Callbacks of the threaded client, and the client for asyncio."""
    from queue import SimpleQueue

    found: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
    for _ in range(4):
        client.async_infer("pumps", [infer_input(ROWS)], lambda result, error: found.put((result, error)))
    for _ in range(4):
        result, error = found.get(timeout=30)
        assert error is None
        assert result.as_numpy("score").tolist() == [3, 7]

    async def ask() -> list[float]:
        import tritonclient.grpc.aio as triton_aio

        async with triton_aio.InferenceServerClient(grpc_url(fakes)) as aio_client:
            result = await aio_client.infer("pumps", [infer_input(ROWS)])
            scores: list[float] = result.as_numpy("score").tolist()
            return scores

    assert asyncio.run(ask()) == [3, 7]


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (infer_input(ROWS, name="x"), "unexpected inference input 'x' for model 'pumps'"),
        (infer_input(ROWS.reshape(4, 1)), "unexpected shape for input 'instances'"),
        (infer_input(np.array([[b"a", b"b"]], object), "BYTES"), "data-type is 'BYTES'"),
        (infer_input(np.array([[1, np.nan]], np.float32)), "Row 0, column 1"),
    ],
)
def test_triton_errors_reach_the_caller(client: Any, tensor: Any, text: str) -> None:
    """Wrong names, shapes, types and values."""
    with pytest.raises(InferenceServerException, match=text) as caught:
        client.infer("pumps", [tensor])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_triton_unknown_model_version_and_output(client: Any) -> None:
    """NOT_FOUND for what is not there, INVALID_ARGUMENT for an output that the model does not have."""
    for arguments in ({"model_name": "nope"}, {"model_name": "pumps", "model_version": "9"}):
        with pytest.raises(InferenceServerException, match="Request for unknown model") as caught:
            client.infer(inputs=[infer_input(ROWS)], **arguments)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="unexpected inference output 'x' for model 'pumps'"):
        client.infer("pumps", [infer_input(ROWS)], outputs=[triton.InferRequestedOutput("x")])


def test_triton_repository(client: Any) -> None:
    """Index, load, and an unload that the policy of the store refuses."""
    index = client.get_model_repository_index(as_json=True)["models"]
    assert {"name": "pumps", "version": "1", "state": "READY"} in index
    client.load_model("pumps")
    with pytest.raises(InferenceServerException, match="failed to unload 'pumps'"):
        client.unload_model("pumps")


@pytest.mark.parametrize(
    ("datatype", "held"),
    [
        ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"),
        ("INT8", "int_contents"),
        ("INT32", "int_contents"),
        ("INT64", "int64_contents"),
        ("UINT16", "uint_contents"),
        ("UINT64", "uint64_contents"),
        ("BOOL", "bool_contents"),
    ],
)
def test_typed_contents(channel: Any, datatype: str, held: str) -> None:
    """Typed inputs get typed outputs."""
    values = [1, 0, 1, 1] if datatype != "BOOL" else [True, False, True, True]
    request = message(datatype)
    getattr(request.inputs[0].contents, held).extend(values)
    response = call(channel, request)
    assert not response.raw_output_contents
    score, p_value, flag = response.outputs
    assert list(score.contents.fp32_contents) == [1, 2]
    assert np.allclose(p_value.contents.fp32_contents, [0.8, 0.6])
    assert list(flag.contents.bool_contents) == [False, False]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda request: request.raw_input_contents.extend([ROWS.tobytes()] * 2), "expected 1 raw input contents"),
        (lambda request: request.raw_input_contents.append(ROWS.tobytes()), "contents field must not be specified"),
        (lambda request: request.inputs[0].shape.append(-1), "the shape of input"),
        (lambda request: request.inputs[0].shape.append(2**62), "elements for input"),
        (lambda request: request.inputs[0].contents.fp32_contents.pop(), "expected 4 elements"),
        (lambda request: setattr(request.inputs[0], "datatype", "FP16"), "raw_input_contents only"),
        (lambda request: setattr(request.inputs[0], "datatype", "X"), "needs a datatype"),
        (lambda request: request.inputs.add(name="instances", datatype="FP32"), "expected 4 elements|expected 1"),
        (lambda request: request.outputs.add(name="score") and request.outputs.add(name="score"), "requested twice"),
        (lambda request: setattr(request, "id", "x" * 1000), "'id'"),
        (lambda request: setattr(request.parameters["timeout"], "string_param", "1"), "'timeout'"),
        (lambda request: setattr(request.parameters["threshold"], "bool_param", True), "'threshold'"),
    ],
)
def test_bad_messages(channel: Any, change: Any, text: str) -> None:
    """Each is INVALID_ARGUMENT and says why."""
    import re

    request = message(fp32_contents=[1, 2, 3, 4])
    change(request)
    assert re.search(text, refused(channel, request))


def test_what_is_no_message(channel: Any) -> None:
    """Bytes of anything else."""
    for content in (b"\xff", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x07\x00", b"\x3a\x7f"):
        assert refused(channel, content) == "The request is not a message of this method."
    assert refused(channel, b"", "NOT_FOUND") == "Request for unknown model: '' is not found"


def test_unknown_methods(channel: Any) -> None:
    """UNIMPLEMENTED, as gRPC itself says it."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"{SERVICE}/ModelConfig")(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_checking(channel: Any) -> None:
    """For the server and each of its services, also for those who watch."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    services = ("", "inference.GRPCInferenceService", "tensorflow.serving.PredictionService")
    for name in services:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.tf
def test_triton_against_a_trained_model(trained: LiveService) -> None:
    """The same numbers as the service's own routes, for a few rows and for many."""
    names = ("latent", "reconstruction", "score", "p_value", "is_anomaly")
    with triton.InferenceServerClient(grpc_url(trained)) as client:
        for rows in (digits(5), np.tile(digits(50), (40, 1, 1))):
            outputs = [triton.InferRequestedOutput(name) for name in names]
            result = client.infer("digits", [infer_input(rows)], outputs=outputs)
            body = {"instances": rows.tolist()}
            own = {
                path: trained.post(f"/{path}", json=body).json() for path in ("encode", "reconstruct", "anomaly-score")
            }
            assert np.allclose(result.as_numpy("latent"), own["encode"]["latents"], rtol=1e-5, atol=1e-6)
            reconstructions = own["reconstruct"]["reconstructions"]
            assert np.allclose(result.as_numpy("reconstruction"), reconstructions, rtol=1e-5, atol=1e-5)
            assert np.allclose(result.as_numpy("score"), own["anomaly-score"]["scores"], rtol=1e-5)
            assert result.as_numpy("is_anomaly").tolist() == own["anomaly-score"]["is_anomaly"]
