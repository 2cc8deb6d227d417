"""The Open Inference Protocol over REST: Triton's own client, and requests as other clients send them."""

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.api.samples import digits
from tests.compat.conftest import http_url
from tests.live import LiveService

triton = pytest.importorskip("tritonclient.http", reason="`make clients` installs what this drives")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

INFER = "/v2/models/pumps/infer"
ROWS = np.array([[1, 2], [3, 4]], np.float32)
LENGTH = "Inference-Header-Content-Length"

TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
    },
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "server": {
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
    },
    "model": {
        "type": "object",
        "required": ["name", "platform"],
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": TENSOR},
            "outputs": {"type": "array", "items": TENSOR},
        },
    },
    "inference": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {
                "type": "array",
                "items": {
                    **TENSOR,
                    "required": [*TENSOR["required"], "data"],
                    "properties": {**TENSOR["properties"], "data": {"type": "array"}},
                },
            },
        },
    },
    "error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
}
"""What the protocol's OpenAPI document asks of each answer."""


@pytest.fixture
def client(fakes: LiveService) -> Iterator[Any]:
    with triton.InferenceServerClient(http_url(fakes)) as client:
        yield client


def infer_input(values: NDArray[Any], datatype: str = "FP32", *, binary: bool = True, name: str = "instances") -> Any:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def request(values: NDArray[Any] = ROWS, **more: Any) -> dict[str, Any]:
    tensor = {"name": "instances", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
    return {"inputs": [tensor], **more}


def binary_request(
    values: NDArray[Any] = ROWS, datatype: str = "FP32", size: int | None = None, **more: Any
) -> tuple[bytes, bytes]:
    """The JSON, and the bytes that belong behind it."""
    raw = values.tobytes()
    parameters = {"binary_data_size": len(raw) if size is None else size}
    tensor = {"name": "instances", "shape": list(values.shape), "datatype": datatype, "parameters": parameters}
    return json.dumps({"inputs": [tensor], **more}).encode(), raw


def answer(live: LiveService, body: Any, path: str = INFER) -> Any:
    response = live.post(path, content=json.dumps(body))
    assert response.status_code == 200, response.text
    jsonschema.validate(response.json(), PUBLISHED["inference"])
    return response.json()


def refused(live: LiveService, body: Any, status: int = 400, *, headers: dict[str, str] | None = None) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = live.post(INFER, content=content, headers=headers)
    assert response.status_code == status, response.text
    jsonschema.validate(response.json(), PUBLISHED["error"])
    assert response.headers["content-type"] == "application/json"
    return str(response.json()["error"])


# --- Triton's client ------------------------------------------------------------------------------------------------


def test_triton_health_and_metadata(client: Any) -> None:
    """Everything that the client asks of a server before it sends rows."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pumps")
    assert client.is_model_ready("pumps", "1")
    assert not client.is_model_ready("pumps", "9")
    assert not client.is_model_ready("nope")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("pumps")
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "instances", "datatype": "FP32", "shape": [-1, 2]}]
    assert {"latent", "score", "p_value", "is_anomaly", "reconstruction"} <= {o["name"] for o in metadata["outputs"]}
    assert client.get_model_config("pumps")["input"] == [{"name": "instances", "data_type": "TYPE_FP32", "dims": [2]}]


def test_triton_default_call_is_binary_both_ways(client: Any) -> None:
    """No outputs named: those of the anomaly score, as bytes."""
    result = client.infer("pumps", [infer_input(ROWS)])
    assert result.as_numpy("score").tolist() == [3, 7]
    assert result.as_numpy("is_anomaly").tolist() == [False, True]
    assert result.as_numpy("latent") is None
    assert all("binary_data_size" in output["parameters"] for output in result.get_response()["outputs"])


@pytest.mark.parametrize("binary_input", [False, True])
@pytest.mark.parametrize("binary_output", [False, True])
def test_triton_json_and_binary(client: Any, binary_input: bool, binary_output: bool) -> None:
    """Any mixture of the two gives the same numbers."""
    names = ("latent", "reconstruction", "error", "is_anomaly", "p_value")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_output) for name in names]
    result = client.infer("pumps", [infer_input(ROWS, binary=binary_input)], outputs=outputs, request_id="r-1")
    assert result.as_numpy("latent").tolist() == [[1], [3]]
    assert result.as_numpy("reconstruction").tolist() == [[2, 2], [2, 2]]
    assert result.as_numpy("error").tolist() == [0.5, 2.5]
    assert result.as_numpy("is_anomaly").tolist() == [False, True]
    response = result.get_response()
    assert [output["name"] for output in response["outputs"]] == list(names)
    assert response["id"] == "r-1"
    assert response["model_version"] == "2"


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_triton_compression_both_ways(client: Any, compression: str) -> None:
    """JSON and blobs are compressed together; the length of the JSON is what it was before."""
    rows = np.tile(ROWS, (500, 1))
    result = client.infer(
        "pumps",
        [infer_input(rows)],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert np.array_equal(result.as_numpy("score"), rows.sum(axis=1))


def test_triton_version_alias_and_parameters(client: Any) -> None:
    """A version by its number or alias; the threshold of a caller decides the flags and is echoed."""
    for version in ("1", "stable"):
        denoised = triton.InferRequestedOutput("denoised")
        result = client.infer("pumps", [infer_input(ROWS)], outputs=[denoised], model_version=version)
        assert result.as_numpy("denoised").tolist() == [[1, 1], [1, 1]]
        assert result.get_response()["model_version"] == "1"
    result = client.infer("pumps", [infer_input(ROWS)], parameters={"threshold": 2.5}, timeout=5_000_000)
    assert result.as_numpy("is_anomaly").tolist() == [True, True]
    assert result.get_response()["parameters"] == {"threshold": 2.5, "false_alarm_rate": 0.25}
    result = client.infer("pumps", [infer_input(ROWS)], parameters={"false_discovery_rate": 0.1})
    assert result.as_numpy("is_anomaly").tolist() == [False, False]
    warned = result.get_response()["parameters"]
    assert (warned["false_discovery_rate"], warned["calibration_rows"], "threshold" in warned) == (0.1, 4, False)
    assert "needs 9 for any row" in warned["warning"]
    result = client.infer("pumps", [infer_input(ROWS)], parameters={"false_alarm_rate": 0.5})
    assert result.get_response()["parameters"] == {"threshold": 2.0, "false_alarm_rate": 0.5}


def test_triton_async(fakes: LiveService) -> None:
    """``async_infer`` of the threaded client, and the client for asyncio."""
    with triton.InferenceServerClient(http_url(fakes), concurrency=4) as client:
        pending = [client.async_infer("pumps", [infer_input(ROWS + at)]) for at in range(8)]
        sums = [call.get_result().as_numpy("score").tolist() for call in pending]
    assert sums == [[3 + 2 * at, 7 + 2 * at] for at in range(8)]

    async def ask() -> list[float]:
        import tritonclient.http.aio as triton_aio

        async with triton_aio.InferenceServerClient(http_url(fakes)) as client:
            result = await client.infer("pumps", [infer_input(ROWS)])
            scores: list[float] = result.as_numpy("score").tolist()
            return scores

    assert asyncio.run(ask()) == [3, 7]


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (infer_input(ROWS, name="x"), "unexpected inference input 'x' for model 'pumps'"),
        (infer_input(ROWS.reshape(4, 1)), "unexpected shape for input 'instances'"),
        (infer_input(ROWS.reshape(4)), "unexpected shape for input 'instances'"),
        (infer_input(np.array([[b"a", b"b"]], object), "BYTES"), "data-type is 'BYTES'"),
    ],
)
def test_triton_errors_reach_the_caller(client: Any, tensor: Any, text: str) -> None:
    """Wrong names, shapes and types: the client finds the text where it looks for it."""
    with pytest.raises(InferenceServerException, match=text) as caught:
        client.infer("pumps", [tensor])
    assert caught.value.status() == "400"


def test_triton_unknown_model_version_and_output(client: Any) -> None:
    """404 for what is not there, 400 for an output that the model does not have."""
    for arguments in ({"model_name": "nope"}, {"model_name": "pumps", "model_version": "9"}):
        with pytest.raises(InferenceServerException, match="Request for unknown model") as caught:
            client.infer(inputs=[infer_input(ROWS)], **arguments)
        assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="unexpected inference output 'x' for model 'pumps'"):
        client.infer("pumps", [infer_input(ROWS)], outputs=[triton.InferRequestedOutput("x")])


@pytest.mark.parametrize("datatype", ["FP16", "FP64", "INT8", "INT32", "INT64", "UINT8", "UINT64", "BOOL"])
@pytest.mark.parametrize("binary", [False, True])
def test_other_numbers_become_float32(client: Any, datatype: str, binary: bool) -> None:
    """Every real datatype is taken, as in the other encodings; JSON has no 16-bit floats."""
    if datatype == "FP16" and not binary:
        return
    kinds = {"FP16": "f2", "FP64": "f8", "BOOL": "?"}
    kind = kinds.get(datatype) or f"{datatype[0].lower()}{int(datatype.lstrip('UINT')) // 8}"
    result = client.infer("pumps", [infer_input(ROWS.clip(0, 1).astype(kind), datatype, binary=binary)])
    assert result.as_numpy("score").tolist() == [2, 2]


def test_triton_repository_and_statistics(client: Any) -> None:
    """Index, load, and an unload that the policy of the store refuses; counts of what was inferred."""
    index = client.get_model_repository_index()
    assert {"name": "pumps", "version": "1", "state": "READY", "reason": ""} in index
    client.load_model("pumps")
    with pytest.raises(InferenceServerException, match="failed to unload 'pumps'"):
        client.unload_model("pumps")
    with pytest.raises(InferenceServerException, match="failed to load 'nope'"):
        client.load_model("nope")
    before = client.get_inference_statistics("valves")["model_stats"][0]
    client.infer("valves", [infer_input(ROWS)])
    after = client.get_inference_statistics("valves")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert {stats["name"] for stats in client.get_inference_statistics()["model_stats"]} == {"pumps", "valves"}


@pytest.mark.tf
def test_triton_against_a_trained_model(trained: LiveService) -> None:
    """The same numbers as the service's own routes."""
    rows = digits(5)
    with triton.InferenceServerClient(http_url(trained)) as client:
        names = ("latent", "reconstruction", "error", "denoised", "score", "p_value", "is_anomaly", "contribution")
        result = client.infer("digits", [infer_input(rows)], outputs=[triton.InferRequestedOutput(n) for n in names])
    body = {"instances": rows.tolist()}
    own = {path: trained.post(f"/{path}", json=body).json() for path in ("encode", "reconstruct", "anomaly-score")}
    assert np.allclose(result.as_numpy("latent"), own["encode"]["latents"], rtol=1e-5, atol=1e-6)
    assert np.allclose(result.as_numpy("reconstruction"), own["reconstruct"]["reconstructions"], rtol=1e-5, atol=1e-5)
    assert np.allclose(result.as_numpy("score"), own["anomaly-score"]["scores"], rtol=1e-5)
    assert result.as_numpy("is_anomaly").tolist() == own["anomaly-score"]["is_anomaly"]
    assert result.as_numpy("denoised").shape == rows.shape
    assert np.allclose(result.as_numpy("contribution").sum(axis=(1, 2)), 1, atol=1e-4)


# --- the protocol itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(fakes: LiveService, path: str) -> None:
    """With and without the last slash."""
    response = fakes.get(path)
    assert response.status_code == 200
    jsonschema.validate(response.json(), PUBLISHED["server"])


def test_bodies_of_health_and_models(fakes: LiveService) -> None:
    """Clients read the status, or the body, or both."""
    assert fakes.get("/v2/health/live").json() == {"live": True}
    assert fakes.get("/v2/health/ready").json() == {"ready": True}
    assert fakes.get("/v2/models/pumps/ready").json() == {"name": "pumps", "ready": True}
    assert fakes.get("/v2/models/pumps/versions/1/ready").json() == {"name": "pumps", "ready": True}
    assert fakes.get("/v2/models").json() == {"models": ["pumps", "valves"]}
    jsonschema.validate(fakes.get("/v2/models/pumps/versions/1").json(), PUBLISHED["model"])


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[1.0, 2], [3, 4e0]]])
def test_flat_and_nested_data(fakes: LiveService, data: Any) -> None:
    """Row by row, in either form; unknown keys are ignored."""
    tensor = {"name": "instances", "shape": [2, 2], "datatype": "FP32", "data": data, "unknown": 1}
    body = answer(fakes, {"id": "42", "model_name": "x", "inputs": [tensor], "outputs": [{"name": "score"}]})
    assert body == {
        "model_name": "pumps",
        "model_version": "2",
        "id": "42",
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [2], "data": [3, 7]}],
        "parameters": {"threshold": 3.0, "false_alarm_rate": 0.25},
    }


def test_large_json_takes_the_fast_path_to_the_same_numbers(fakes: LiveService) -> None:
    """Above a few kilobytes the numbers are read in one piece."""
    rows = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    scores = answer(fakes, request(rows, outputs=[{"name": "score"}]))["outputs"][0]["data"]
    assert np.allclose(scores, rows.sum(axis=1), rtol=1e-5, atol=1e-6)
    body = request(rows)
    body["inputs"][0]["data"][7] = "x"
    assert "must be of type FP32" in refused(fakes, body)
    body = request(rows)
    body["inputs"][0]["data"].pop()
    assert "1200 elements" in refused(fakes, body)


def test_one_call_computes_only_what_is_asked(fakes: LiveService) -> None:
    """Signatures run by output: one for the latent, two where outputs of two are named."""

    def runs(*names: str) -> int:
        path = "/v2/models/pumps/versions/2/stats"
        before = fakes.get(path).json()["model_stats"][0]["execution_count"]
        answer(fakes, request(outputs=[{"name": name} for name in names]))
        after = fakes.get(path).json()["model_stats"][0]["execution_count"]
        return int(after - before)

    assert runs("latent") == 1
    assert runs("score", "p_value", "is_anomaly") == 1
    assert runs("error", "latent", "reconstruction") == 2


def test_raw_request(fakes: LiveService) -> None:
    """Nothing but the bytes of one tensor: as many rows as they make, answered as bytes."""
    response = fakes.post(INFER, content=ROWS.tobytes(), headers={LENGTH: "0"})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    header = json.loads(response.content[:length])
    assert [output["name"] for output in header["outputs"]] == ["score", "p_value", "is_anomaly"]
    assert np.frombuffer(response.content[length:], "<f4", 2).tolist() == [3, 7]
    assert refused(fakes, ROWS.tobytes()[:-1], headers={LENGTH: "0"}).startswith("input byte size mismatch")
    assert refused(fakes, b"", headers={LENGTH: "0"})


def test_output_chooses_its_own_encoding(fakes: LiveService) -> None:
    """``binary_data`` of an output is stronger than ``binary_data_output`` of the request."""
    body = request(
        parameters={"binary_data_output": True},
        outputs=[{"name": "score"}, {"name": "p_value", "parameters": {"binary_data": False}}],
    )
    response = fakes.post(INFER, content=json.dumps(body))
    length = int(response.headers[LENGTH])
    first, second = json.loads(response.content[:length])["outputs"]
    assert first["parameters"] == {"binary_data_size": 8}
    assert "data" not in first
    assert np.allclose(second["data"], [0.4, 0.2])
    assert struct.unpack("<2f", response.content[length:]) == (3, 7)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_binary_request(fakes: LiveService, encoding: str, compress: Any) -> None:
    """``deflate`` is zlib's wrapper."""
    head, raw = binary_request()
    response = fakes.post(
        INFER, content=compress(head + raw), headers={LENGTH: str(len(head)), "Content-Encoding": encoding}
    )
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["data"] == [3, 7]


@pytest.mark.parametrize(
    ("size", "tail", "text"),
    [
        (None, b"x", "unexpected additional input data for model 'pumps'"),
        (20, b"", "unexpected size for input 'instances', expecting 4 additional bytes for model 'pumps'"),
        (12, b"", "input byte size mismatch for input 'instances' for model 'pumps'. Expected 16, got 12"),
        (-1, b"", "'binary_data_size' of input 'instances' must be a whole number"),
        (2**70, b"", "'binary_data_size'"),
    ],
)
def test_sizes_of_binary_tensors(fakes: LiveService, size: int | None, tail: bytes, text: str) -> None:
    """Too few bytes, too many, and sizes that are none."""
    head, raw = binary_request(size=size)
    assert text in refused(fakes, head + raw + tail, headers={LENGTH: str(len(head))})


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "99999999", "9" * 30, ""])
def test_lengths_that_are_none(fakes: LiveService, length: str) -> None:
    """Of the JSON: no number, or more than there is."""
    head, raw = binary_request()
    assert "Inference-Header-Content-Length" in refused(fakes, head + raw, headers={LENGTH: length})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": None}, "Unable to parse 'inputs'"),
        ({"inputs": []}, "expected 1 inputs but got 0"),
        ({"inputs": [1]}, "Every input must be an object"),
        ({"outputs": "score"}, "'outputs' must be an array"),
        ({"outputs": [{"name": "score"}, {"name": "score"}]}, "requested twice"),
        ({"outputs": [{"name": "score", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "score", "parameters": {"shared_memory_region": "x"}}]}, "shared memory"),
        ({"outputs": [{"name": "score", "parameters": {"binary_data": 1}}]}, "'binary_data'"),
        ({"parameters": [1]}, "'parameters' of the request"),
        ({"parameters": {"threshold": "high"}}, "'threshold'"),
        ({"parameters": {"threshold": 1, "false_alarm_rate": 0.1}}, "not both"),
        ({"parameters": {"timeout": -1}}, "'timeout'"),
        ({"parameters": {"threshold": 1}, "outputs": [{"name": "latent"}]}, "needs an output of anomaly_score"),
        ({"id": "x" * 1000}, "'id'"),
        ({"id": 7}, "'id'"),
    ],
)
def test_bad_requests(fakes: LiveService, change: dict[str, Any], text: str) -> None:
    """Each is 400 and says why."""
    assert text in refused(fakes, {**request(), **change})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"datatype": "FLOAT"}, "needs a 'datatype'"),
        ({"datatype": ["FP32"]}, "needs a 'datatype'"),
        ({"datatype": "FP16"}, "JSON cannot carry FP16"),
        ({"datatype": "INT32", "data": [1, 2, 3, 2**40]}, "must be of type INT32"),
        ({"datatype": "INT32", "data": [1, 2, 3, 4.0]}, "must be of type INT32"),
        ({"datatype": "BYTES", "data": ["a", "b", "c", "d"]}, "data-type is 'BYTES'"),
        ({"shape": [2, -2]}, "the shape of input"),
        ({"shape": [2, 2.0]}, "the shape of input"),
        ({"shape": [2, True]}, "the shape of input"),
        ({"shape": 4}, "the shape of input"),
        ({"shape": [0, 2], "data": []}, "There are no rows"),
        ({"shape": [2**62, 2**62]}, "elements for input"),
        ({"data": [1, 2, 3]}, "expected 4 elements"),
        ({"data": [[1, 2], 3, 4]}, "nested arrays"),
        ({"data": [1, 2, 3, True]}, "must be of type FP32"),
        ({"data": [1, 2, 3, None]}, "may not be missing"),
        ({"data": None}, "neither 'data' nor"),
        ({"name": 3}, "Every input must be an object with a 'name'"),
        ({"parameters": {"shared_memory_region": "x"}}, "shared memory"),
    ],
)
def test_bad_tensors(fakes: LiveService, change: dict[str, Any], text: str) -> None:
    """Each is 400 and says why."""
    body = request()
    body["inputs"][0] |= change
    assert text in refused(fakes, body)


def test_non_finite_values(fakes: LiveService) -> None:
    """Not even as bytes, where the model knows no missing values."""
    for value in (np.nan, np.inf):
        head, raw = binary_request(np.array([[1, value]], np.float32))
        assert "Row 0, column 1" in refused(fakes, head + raw, headers={LENGTH: str(len(head))})


def test_routes_that_are_not_there(fakes: LiveService) -> None:
    """404 and 405 in the protocol's form of errors."""
    for method, path, status in (
        ("GET", "/v2/nothing", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/pumps", 405),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/pumps/versions/77/ready", 404),
        ("GET", "/v2/models/nope/stats", 404),
        ("POST", "/v2/models/pumps/generate", 404),
    ):
        response = fakes.http.request(method, path)
        assert response.status_code == status, path
        jsonschema.validate(response.json(), PUBLISHED["error"])
        assert (status == 405) == ("allow" in response.headers)


def test_repository_bodies(fakes: LiveService) -> None:
    """An index of what is ready; what is no JSON object is refused."""
    assert len(fakes.post("/v2/repository/index", content='{"ready": true}').json()) == 3
    assert fakes.post("/v2/repository/index").status_code == 200
    for body in ("[1]", "{", '{"ready": 1}'):
        assert fakes.post("/v2/repository/index", content=body).status_code == 400
    response = fakes.post("/v2/repository/models/pumps/load", content='{"parameters": {"config": "{}"}}')
    assert response.status_code == 400
