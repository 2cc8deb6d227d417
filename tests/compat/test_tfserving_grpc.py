"""TensorFlow Serving's gRPC services, driven by the stubs of ``tensorflow-serving-api``."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.api.samples import digits
from tests.compat.conftest import grpc_url
from tests.live import LiveService

pytestmark = pytest.mark.tf

reason = "`make clients` installs what this drives"
serving = pytest.importorskip("tensorflow_serving.apis", reason=reason)

ROWS = np.array([[1, 2], [3, 4]], np.float32)


@pytest.fixture
def channel(fakes: LiveService) -> Iterator[Any]:
    with grpc.insecure_channel(grpc_url(fakes)) as channel:
        yield channel


def predict_request(rows: Any = ROWS, *, name: str = "instances", dtype: Any = None, **spec: Any) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.pop("model", "pumps")
    if "version" in spec:
        request.model_spec.version.value = spec.pop("version")
    for key, value in spec.items():
        setattr(request.model_spec, key, value)
    request.inputs[name].CopyFrom(tf.make_tensor_proto(rows, dtype=dtype))
    return request


def predict(channel: Any, request: Any) -> Any:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)


def arrays(response: Any) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def refused(call: Any, *arguments: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return caught.value.code().name, str(caught.value.details())


def test_predict(channel: Any) -> None:
    """The default signature; the version that ran; numbers where clients look for them."""
    response = predict(channel, predict_request())
    found = arrays(response)
    assert found["score"].tolist() == [3, 7]
    assert found["is_anomaly"].tolist() == [False, True]
    assert found["score"].dtype == np.float32
    assert list(response.outputs["score"].float_val) == [3, 7]
    assert list(response.outputs["is_anomaly"].bool_val) == [False, True]
    assert response.model_spec.name == "pumps"
    assert response.model_spec.version.value == 2
    assert response.model_spec.signature_name == "serving_default"


@pytest.mark.parametrize(
    ("spec", "version"), [({"version": 1}, 1), ({"version_label": "stable"}, 1), ({"version": 2}, 2), ({}, 2)]
)
def test_versions_and_labels(channel: Any, spec: dict[str, Any], version: int) -> None:
    """A version by its number, or by its alias as a label."""
    response = predict(channel, predict_request(signature_name="denoise", **spec))
    assert arrays(response)["denoised"].tolist() == [[version, version]] * 2
    assert response.model_spec.version.value == version


def test_output_filter(channel: Any) -> None:
    """Only what is asked for is answered."""
    request = predict_request(signature_name="reconstruct")
    assert set(predict(channel, request).outputs) == {"reconstruction", "error"}
    request.output_filter.append("error")
    assert set(predict(channel, request).outputs) == {"error"}
    request.output_filter.append("x")
    code, text = refused(predict, channel, request)
    assert code == "INVALID_ARGUMENT"
    assert "output tensor alias not found in signature: x" in text


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64", "uint8", "float16", "bfloat16", "bool", "uint64"])
def test_other_numbers_become_float32(channel: Any, dtype: str) -> None:
    """Also a single value, which TensorFlow does not send as bytes but in its own field, once for all."""
    import tensorflow as tf

    response = predict(channel, predict_request(tf.cast(ROWS > 0, dtype).numpy(), dtype=tf.as_dtype(dtype)))
    assert arrays(response)["score"].tolist() == [2, 2]
    request = predict_request(tf.cast([[1]], dtype).numpy(), dtype=tf.as_dtype(dtype))
    request.inputs["instances"].tensor_shape.dim[1].size = 2
    assert arrays(predict(channel, request))["score"].tolist() == [2]


@pytest.mark.parametrize(
    ("request_of", "code", "text"),
    [
        ({"model": "nope"}, "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        ({"version": 7}, "NOT_FOUND", "Servable not found for request: Specific(pumps, 7)"),
        ({"version_label": "x"}, "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
        ({"signature_name": "x"}, "INVALID_ARGUMENT", 'Serving signature name: "x" not found in signature def'),
        ({"name": "x"}, "INVALID_ARGUMENT", "unexpected inference input 'x' for model 'pumps'"),
        ({"rows": ROWS.reshape(4)}, "INVALID_ARGUMENT", "unexpected shape"),
        ({"rows": np.array([["a", "b"]])}, "INVALID_ARGUMENT", "data-type is 'BYTES'"),
        ({"rows": np.array([[1, np.nan]], np.float32)}, "INVALID_ARGUMENT", "Row 0, column 1"),
        ({"rows": np.array([[1, 2j]])}, "INVALID_ARGUMENT", "dtype that is not supported"),
    ],
)
def test_errors(channel: Any, request_of: dict[str, Any], code: str, text: str) -> None:
    """TensorFlow Serving's codes, and its texts where clients look for them."""
    found = refused(predict, channel, predict_request(**request_of))
    assert found[0] == code
    assert text in found[1]


def test_shapes_that_promise_too_much(channel: Any) -> None:
    """One value stands for all that follow: a few bytes must not become a terabyte."""
    request = predict_request(np.array([[1.0]], np.float32))
    request.inputs["instances"].tensor_shape.dim[0].size = 2**40
    code, _ = refused(predict, channel, request)
    assert code == "RESOURCE_EXHAUSTED"
    request.inputs["instances"].tensor_shape.dim[0].size = -1
    assert refused(predict, channel, request)[0] == "INVALID_ARGUMENT"


def test_metadata(channel: Any) -> None:
    """The signatures, as TensorFlow's own messages."""
    from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "pumps"
    response = stub.GetModelMetadata(request, timeout=30)
    assert response.model_spec.version.value == 2
    signatures = metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    default = signatures.signature_def["serving_default"]
    assert default.method_name == "tensorflow/serving/predict"
    assert default.inputs["instances"].dtype == 1
    assert [dim.size for dim in default.inputs["instances"].tensor_shape.dim] == [-1, 2]
    assert set(default.outputs) == {"score", "p_value", "is_anomaly"}
    del request.metadata_field[:]
    assert refused(stub.GetModelMetadata, request)[0] == "INVALID_ARGUMENT"
    request = metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    assert refused(stub.GetModelMetadata, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")


def test_model_status(channel: Any) -> None:
    """All versions, one of them, and a model that is not there."""
    from tensorflow_serving.apis import get_model_status_pb2 as status_pb2
    from tensorflow_serving.apis import model_service_pb2_grpc

    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = status_pb2.GetModelStatusRequest()
    request.model_spec.name = "pumps"
    statuses = stub.GetModelStatus(request, timeout=30).model_version_status
    assert [status.version for status in statuses] == [2, 1]
    assert {status.state for status in statuses} == {status_pb2.ModelVersionStatus.AVAILABLE}
    assert {status.status.error_code for status in statuses} == {0}
    request.model_spec.version.value = 1
    assert [s.version for s in stub.GetModelStatus(request, timeout=30).model_version_status] == [1]
    request.model_spec.name = "nope"
    assert refused(stub.GetModelStatus, request) == ("NOT_FOUND", "Could not find any versions of model nope")


def test_classify_is_not_there(channel: Any) -> None:
    """UNIMPLEMENTED: no signature is of that method."""
    from tensorflow_serving.apis import classification_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    assert refused(stub.Classify, classification_pb2.ClassificationRequest())[0] == "UNIMPLEMENTED"


def test_a_trained_model(trained: LiveService) -> None:
    """The same numbers as the service's own routes; images go through as they are."""
    rows = digits(9)
    with grpc.insecure_channel(grpc_url(trained)) as channel:
        found = arrays(predict(channel, predict_request(rows, model="digits")))
        latents = arrays(predict(channel, predict_request(rows, model="digits", signature_name="encode")))
    own = trained.post("/anomaly-score", json={"instances": rows.tolist()}).json()
    assert np.allclose(found["score"], own["scores"], rtol=1e-5)
    assert found["is_anomaly"].tolist() == own["is_anomaly"]
    encoded = trained.post("/encode", json={"instances": rows.tolist()}).json()
    assert np.allclose(latents["latent"], encoded["latents"], rtol=1e-5, atol=1e-6)
