"""TensorFlow Serving's REST API: what its documentation and its server promise."""

import base64
import gzip
import json
import re
import subprocess
from typing import Any

import numpy as np
import pytest

from tests.api.samples import digits, payments
from tests.live import LiveService

PREDICT = "/v1/models/pumps:predict"
ROWS = [[1.0, 2.0], [3.0, 4.0]]
SCORED = [
    {"score": 3.0, "p_value": 0.4, "is_anomaly": False},
    {"score": 7.0, "p_value": 0.2, "is_anomaly": True},
]


def predict(live: LiveService, body: Any, path: str = PREDICT) -> Any:
    response = live.post(path, content=body if isinstance(body, str | bytes) else json.dumps(body))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def refused(live: LiveService, body: Any, status: int = 400, path: str = PREDICT) -> str:
    response = live.post(path, content=body if isinstance(body, str | bytes) else json.dumps(body))
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return str(response.json()["error"])


# --- predict --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "", "serving_default", "anomaly_score"])
def test_rows_in_rows_out(fakes: LiveService, name: str | None) -> None:
    """Several outputs are an object a row; the default signature is the anomaly score."""
    body = {"instances": ROWS} | ({} if name is None else {"signature_name": name})
    assert predict(fakes, body) == {"predictions": SCORED}


def test_columns_in_columns_out(fakes: LiveService) -> None:
    """``inputs``, with or without the name of the input, gives one array for each output."""
    expected = {"score": [3.0, 7.0], "p_value": [0.4, 0.2], "is_anomaly": [False, True]}
    for inputs in (ROWS, {"instances": ROWS}, {"instances": ROWS, "ignored": 1}):
        assert predict(fakes, {"inputs": inputs}) == {"outputs": expected}


def test_single_output_stands_for_itself(fakes: LiveService) -> None:
    """``encode`` has one output: no object around it in either format."""
    assert predict(fakes, {"signature_name": "encode", "instances": ROWS}) == {"predictions": [[1.0], [3.0]]}
    assert predict(fakes, {"signature_name": "encode", "inputs": ROWS}) == {"outputs": [[1.0], [3.0]]}


@pytest.mark.parametrize(
    ("signature", "outputs"),
    [
        ("reconstruct", {"reconstruction", "error"}),
        ("anomaly_score", {"score", "p_value", "is_anomaly"}),
        ("explain", {"contribution", "expected"}),
    ],
)
def test_every_signature_is_reached(fakes: LiveService, signature: str, outputs: set[str]) -> None:
    """By its name in the SavedModel."""
    answer = predict(fakes, {"signature_name": signature, "instances": ROWS})
    assert [set(row) for row in answer["predictions"]] == [outputs] * 2


def test_instances_may_be_objects_by_input(fakes: LiveService) -> None:
    """A model with one input may be given its name with each row."""
    assert predict(fakes, {"instances": [{"instances": row} for row in ROWS]}) == {"predictions": SCORED}


def test_floats_are_never_integers(fakes: LiveService) -> None:
    """Every float has a point or an exponent, for typed clients."""
    text = fakes.post(PREDICT, content=json.dumps({"instances": [[1, 2], [1e15, 1e15]]})).text
    scores = re.findall(r'"score":([^,}]+)', text)
    assert len(scores) == 2
    assert all("." in score or "e" in score for score in scores)


def test_other_keys_and_trailing_bytes_are_ignored(fakes: LiveService) -> None:
    """As TensorFlow Serving does."""
    assert predict(fakes, {"instances": ROWS, "extra": {"a": [1]}}) == {"predictions": SCORED}
    assert predict(fakes, json.dumps({"instances": ROWS}) + "\n garbage") == {"predictions": SCORED}


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/v1/models/pumps/versions/1:predict", 1),
        ("/v1/models/pumps/versions/2:predict", 2),
        ("/v1/models/pumps/labels/stable:predict", 1),
        ("/v1/models/pumps:predict", 2),
        ("/v1/models/%70umps:predict", 2),
    ],
)
def test_versions_and_labels(fakes: LiveService, path: str, version: int) -> None:
    """A version by its number, or by its alias as a label; the headers say which one ran."""
    response = fakes.post(path, content=json.dumps({"instances": ROWS, "signature_name": "denoise"}))
    assert response.json() == {"predictions": [[version, version]] * 2}
    assert response.headers["x-model-version"] == str(version)
    assert response.headers["x-model-name"] == "pumps"


def test_gzip_both_ways(fakes: LiveService) -> None:
    """A gzipped request; a gzipped answer where it is asked for."""
    body = gzip.compress(json.dumps({"instances": ROWS * 200}).encode())
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    response = fakes.post(PREDICT, content=body, headers=headers)
    assert response.headers["content-encoding"] == "gzip"
    assert response.json() == {"predictions": SCORED * 200}


@pytest.mark.tf
def test_curl_without_a_content_type(trained: LiveService) -> None:
    """``curl -d`` as the documentation of TensorFlow Serving shows it: the content type is that of a form."""
    body = json.dumps({"instances": digits(2).tolist()})
    command = ["curl", "-s", "-d", "@-", f"{trained.url}/v1/models/digits:predict"]
    done = subprocess.run(command, input=body, capture_output=True, text=True, check=True, timeout=30)
    own = trained.post("/anomaly-score", json=json.loads(body)).json()
    predictions = json.loads(done.stdout)["predictions"]
    assert np.allclose([row["score"] for row in predictions], own["scores"], rtol=1e-5)
    assert [row["is_anomaly"] for row in predictions] == own["is_anomaly"]


@pytest.mark.tf
def test_named_columns(trained: LiveService) -> None:
    """A model of named columns takes its input tensor, and as a convenience rows by column."""
    from tests.api.samples import named

    rows = payments(3)
    by_tensor = predict(trained, {"instances": rows.tolist()}, "/v1/models/payments:predict")
    by_column = predict(trained, {"instances": named(rows)}, "/v1/models/payments:predict")
    assert by_tensor == by_column
    assert len(by_tensor["predictions"]) == 3


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"a": 1}, "Missing 'inputs' or 'instances' key"),
        ({"instances": ROWS, "inputs": ROWS}, "not both"),
        ({"instances": ROWS, "signature_name": 3}, "'signature_name' key must be a string value."),
        ({"instances": ROWS, "signature_name": "nope"}, 'Serving signature name: "nope" not found in signature def'),
        ({"instances": []}, "non-empty"),
        ({"instances": 3}, "non-empty"),
        ({"instances": [[1, 2], [3]]}, "Row 1"),
        ({"instances": [[1, 2], {"instances": [1, 2]}]}, "Row 1"),
        ({"instances": [{"instances": [1, 2]}, [1, 2]]}, "same inputs"),
        ({"instances": [[1, "2"]]}, "must be a number"),
        ({"instances": [[1, True]]}, "must be a number"),
        ({"instances": [[1, None]]}, "may not be missing"),
        ({"instances": [[1, 1e39]]}, "float32"),
        ({"inputs": {"x": ROWS}}, "Missing named input: instances"),
        ([1], "JSON object"),
        ('{"instances": [[1, NaN]]}', "finite"),
        ('{"instances": [[1, -Infinity]]}', "finite"),
        ('{"instances": [[1, 2]', "JSON Parse error"),
        ("", "JSON Parse error: The document is empty"),
        (b"\xff\xfe", "JSON Parse error"),
        ("[" * 100_000, "not valid JSON"),
        ('{"instances": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
        ('{"instances": ' + "[" * 800 + "]" * 800 + "}", "Row 0"),
    ],
)
def test_bad_bodies(fakes: LiveService, body: Any, text: str) -> None:
    """Each is 400 and says why."""
    assert text in refused(fakes, body)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/models/nope:predict", 404, "Servable not found for request: Latest(nope)"),
        ("/v1/models/pumps/versions/7:predict", 404, "Servable not found for request: Specific(pumps, 7)"),
        ("/v1/models/pumps/versions/99999999999999999999:predict", 400, "Failed to convert version to numeric."),
        ("/v1/models/pumps/labels/canary:predict", 400, "Unrecognized servable version label: canary"),
        ("/v1/models/nope/labels/canary:predict", 400, "Unrecognized servable version label: canary"),
        ("/v1/models/pumps:explain", 400, "Malformed request: POST /v1/models/pumps:explain"),
        ("/v1/models/pumps", 400, "Malformed request: POST /v1/models/pumps"),
        ("/v1/nothing", 400, "Malformed request: POST /v1/nothing"),
    ],
)
def test_texts_of_wrong_paths(fakes: LiveService, path: str, status: int, text: str) -> None:
    """Word for word, as clients look for them."""
    assert refused(fakes, {"instances": ROWS}, status, path) == text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "PATCH"])
def test_wrong_methods_are_malformed(fakes: LiveService, method: str) -> None:
    """400 and not 405: TensorFlow Serving knows no other way to say it."""
    response = fakes.http.request(method, "/v1/models/pumps")
    assert response.status_code == 400
    assert method == "HEAD" or response.json() == {"error": f"Malformed request: {method} /v1/models/pumps"}


def test_classify_and_regress_do_not_fit(fakes: LiveService) -> None:
    """No signature is of those methods."""
    for method, kind in (("classify", "classification"), ("regress", "regression")):
        text = refused(fakes, {"examples": [{"x": 1}]}, 400, f"/v1/models/pumps:{method}")
        assert text.startswith(f"Expected {kind} signature method_name to be tensorflow/serving/{method}.")


def test_signature_that_a_version_lacks(fakes: LiveService) -> None:
    """A model that was not trained to denoise has no such signature."""
    text = refused(fakes, {"instances": ROWS, "signature_name": "denoise"}, 400, "/v1/models/valves:predict")
    assert text == 'Serving signature name: "denoise" not found in signature def'


@pytest.mark.parametrize("form", ['{"instances": [[1, %s]]}', '{"instances": [%s]}', '{"inputs": [[%s, 1]]}'])
def test_integers_of_hundreds_of_digits_are_the_callers_fault(fakes: LiveService, form: str) -> None:
    """No float holds them."""
    assert fakes.post("/v1/models/pumps:predict", content=form % ("2" * 400)).status_code == 400


def test_nothing_is_echoed_at_length(fakes: LiveService) -> None:
    """Names in texts are cut, and printable."""
    text = refused(fakes, {"instances": ROWS, "signature_name": "\x1b<é" + "x" * 5000})
    assert len(text) < 200
    assert text.isascii()
    assert "\x1b" not in text
    assert "secret" not in refused(fakes, {"instances": [["secret", 1]]})
    assert len(fakes.get("/v1/models/" + "y" * 3000 + "/z").text) < 300


# --- what there is --------------------------------------------------------------------------------------------------


def test_status(fakes: LiveService) -> None:
    """All versions, the newest first; one version; the one that a label names."""
    ok = {"error_code": "OK", "error_message": ""}
    listed = [{"version": str(version), "state": "AVAILABLE", "status": ok} for version in (2, 1)]
    assert fakes.get("/v1/models/pumps").json() == {"model_version_status": listed}
    assert fakes.get("/v1/models/pumps/versions/1").json() == {"model_version_status": listed[1:]}
    assert fakes.get("/v1/models/pumps/labels/stable").json() == {"model_version_status": listed[1:]}
    assert fakes.get("/v1/models").json() == {"models": ["pumps", "valves"]}


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/models/nope", 404, "Could not find any versions of model nope"),
        ("/v1/models/pumps/versions/7", 404, "Could not find version 7 of model pumps"),
        ("/v1/models/pumps/labels/x", 400, "Unrecognized servable version label: x"),
        ("/v1/models/versions/1", 400, None),
        ("/v1/models/metadata", 404, None),
    ],
)
def test_status_of_what_is_not_there(fakes: LiveService, path: str, status: int, text: str | None) -> None:
    """In TensorFlow Serving's words."""
    response = fakes.get(path)
    assert response.status_code == status
    assert text is None or response.json() == {"error": text}


def test_metadata(fakes: LiveService) -> None:
    """The signatures as the manifest has them, in TensorFlow Serving's shape of it."""
    body = fakes.get("/v1/models/pumps/versions/1/metadata").json()
    assert body["model_spec"] == {"name": "pumps", "signature_name": "", "version": "1"}
    signatures = body["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "anomaly_score", "encode", "reconstruct", "denoise", "explain"}
    default = signatures["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["inputs"]["instances"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}], "unknown_rank": False},
        "name": "serving_default_instances:0",
    }
    assert set(default["outputs"]) == {"score", "p_value", "is_anomaly"}


def test_base64_strings_are_for_strings_only(fakes: LiveService) -> None:
    """An object that is no row of this model is refused, whatever it holds."""
    encoded = {"b64": base64.b64encode(b"1.0").decode()}
    refused(fakes, {"instances": [[encoded, encoded]]})
