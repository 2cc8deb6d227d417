"""Inputs of models with categories and timestamps, which have more than one tensor, through both protocols' codecs."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from service.codecs import Limits
from service.codecs.infer import InferAnswer, WantedOutput, decode_infer, encode_infer
from service.codecs.predict import decode_predict, encode_predictions
from service.codecs.tensors import Tensor, array_from_bytes, bytes_of_array, objects, rows_from_tensors
from service.errors import InvalidRows, MalformedInput, RequestError, TooLarge
from service.schemas import MISSING_TIMESTAMP, Column, ColumnType, InputSchema, Rows

SCHEMA = InputSchema(
    kind="tabular",
    row_shape=(2,),
    columns=(
        Column(name="amount"),
        Column(name="country", type=ColumnType.CATEGORICAL),
        Column(name="age", may_be_missing=True),
        Column(name="city", type=ColumnType.CATEGORICAL, may_be_missing=True),
        Column(name="when", type=ColumnType.TIMESTAMP, may_be_missing=True),
    ),
)
NUMBERS = [[1.5, 2], [3, None]]
LABELS = [["DE", "Köln"], ["FR", ""]]
TIMES = [[1_700_000_000_000], [MISSING_TIMESTAMP]]
MODEL = "payments"


def assert_rows(rows: Rows) -> None:
    assert rows["instances"].dtype == np.float32
    assert np.array_equal(rows["instances"], np.array([[1.5, 2], [3, np.nan]], np.float32), equal_nan=True)
    assert rows["categories"].tolist() == [[b"DE", "Köln".encode()], [b"FR", b""]]
    assert rows["timestamps"].tolist() == TIMES
    assert rows["timestamps"].dtype == np.int64


def predict(body: Any) -> Rows:
    return decode_predict(json.dumps(body).encode(), SCHEMA, model=MODEL, limits=Limits()).rows


def infer(inputs: list[dict[str, Any]], blobs: bytes = b"") -> Rows:
    head = json.dumps({"inputs": inputs}).encode()
    return decode_infer(head + blobs, len(head), SCHEMA, model=MODEL, limits=Limits()).rows


def test_predict_by_rows_and_columns() -> None:
    """Every row, or every column, names all inputs; strings may be base64."""
    assert_rows(predict({"inputs": {"instances": NUMBERS, "categories": LABELS, "timestamps": TIMES}}))
    rows = [
        {"instances": numbers, "categories": labels, "timestamps": times}
        for numbers, labels, times in zip(NUMBERS, LABELS, TIMES, strict=True)
    ]
    assert_rows(predict({"instances": rows}))
    rows[0]["categories"] = [{"b64": base64.b64encode(label.encode()).decode()} for label in LABELS[0]]
    assert_rows(predict({"instances": rows}))


def test_predict_takes_objects_by_column() -> None:
    """As in the service's own JSON."""
    when = "2023-11-14T22:13:20Z"
    assert_rows(
        predict(
            {
                "instances": [
                    {"amount": 1.5, "age": 2, "country": "DE", "city": "Köln", "when": when},
                    {"amount": 3, "country": "FR"},
                ]
            }
        )
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"instances": NUMBERS}, "expecting list of objects as multiple input tensors required"),
        ({"inputs": NUMBERS}, "expecting an object as multiple input tensors required"),
        ({"inputs": {"instances": NUMBERS, "categories": LABELS}}, "Missing named input: timestamps"),
        ({"inputs": {"instances": NUMBERS, "categories": LABELS[:1], "timestamps": TIMES}}, "same first dimension"),
        ({"inputs": {"instances": NUMBERS, "categories": [["DE"], ["FR"]], "timestamps": TIMES}}, "unexpected shape"),
        ({"inputs": {"instances": NUMBERS, "categories": [["DE"], "FR"], "timestamps": TIMES}}, "nested arrays"),
        ({"inputs": {"instances": NUMBERS, "categories": [[1, 2]] * 2, "timestamps": TIMES}}, "type BYTES"),
        ({"inputs": {"instances": NUMBERS, "categories": [[{"b64": "!"}, ""]] * 2, "timestamps": TIMES}}, "base64"),
        ({"inputs": {"instances": NUMBERS, "categories": LABELS, "timestamps": [[1.0], [2]]}}, "type INT64"),
        ({"inputs": {"instances": [[None, 1]] * 2, "categories": LABELS, "timestamps": TIMES}}, "do not fit"),
        ({"inputs": {"instances": NUMBERS, "categories": [["", ""]] * 2, "timestamps": TIMES}}, "do not fit"),
        ({"inputs": {"instances": NUMBERS, "categories": LABELS, "timestamps": [[2**62]] * 2}}, "do not fit"),
    ],
)
def test_predict_refuses(body: Any, text: str) -> None:
    """What does not fit, and why."""
    with pytest.raises((InvalidRows, MalformedInput), match=text):
        predict(body)


def test_infer_in_json_and_in_bytes() -> None:
    """Strings behind their lengths, times as int64, in any order of the inputs."""
    shapes = {"timestamps": [2, 1], "instances": [2, 2], "categories": [2, 2]}
    values: dict[str, Any] = {"timestamps": TIMES, "instances": NUMBERS, "categories": LABELS}
    types = {"timestamps": "INT64", "instances": "FP64", "categories": "BYTES"}
    assert_rows(infer([{"name": n, "shape": shapes[n], "datatype": types[n], "data": values[n]} for n in shapes]))
    numbers = np.array([[1.5, 2], [3, np.nan]], np.float64)
    labels = b"".join(struct.pack("<I", len(x.encode())) + x.encode() for row in LABELS for x in row)
    blobs = {"timestamps": np.array(TIMES).tobytes(), "instances": numbers.tobytes(), "categories": labels}
    inputs = [
        {"name": n, "shape": shapes[n], "datatype": types[n], "parameters": {"binary_data_size": len(blobs[n])}}
        for n in shapes
    ]
    assert_rows(infer(inputs, b"".join(blobs.values())))


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00ab", b"\x01\x00\x00", b"\x01\x00\x00\x00a"])
def test_strings_of_wrong_lengths(raw: bytes) -> None:
    """Cut short, or of another number."""
    with pytest.raises(MalformedInput, match=r"string data|elements"):
        array_from_bytes(raw, "BYTES", (2,), name="x", model=MODEL)


def test_a_raw_request_needs_a_single_input() -> None:
    """There is nothing that says where one ends."""
    with pytest.raises(MalformedInput, match="one input"):
        decode_infer(b"abcd", 0, SCHEMA, model=MODEL, limits=Limits())


def test_json_in_front_of_bytes_has_a_limit_of_its_own() -> None:
    """Binary bodies may be larger than JSON may be."""
    body = b'{"inputs": []' + b" " * 100 + b"}"
    with pytest.raises(TooLarge, match="at most 50 bytes"):
        decode_infer(body, len(body), SCHEMA, model=MODEL, limits=Limits(max_json_bytes=50))


def test_bfloat16() -> None:
    """The upper half of a float32."""
    schema = InputSchema(kind="tabular", row_shape=(2,))
    bits = (np.array([[1.5, -2]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    rows = rows_from_tensors([Tensor("instances", "BF16", bits)], schema, model=MODEL, limits=Limits())
    assert rows["instances"].tolist() == [[1.5, -2]]


def test_labels_that_are_no_text() -> None:
    """Bytes of a category must be UTF-8."""
    tensors = [
        Tensor("instances", "FP32", np.zeros((1, 2), np.float32)),
        Tensor("categories", "BYTES", objects([b"\xff", b"x"]).reshape(1, 2)),
        Tensor("timestamps", "INT64", np.zeros((1, 1), np.int64)),
    ]
    with pytest.raises(InvalidRows) as caught:
        rows_from_tensors(tensors, SCHEMA, model=MODEL, limits=Limits())
    assert [(problem.row, problem.column) for problem in caught.value.problems] == [(0, "country")]


def test_strings_in_answers() -> None:
    """Reconstructed labels: text in JSON, lengths and bytes in binary."""
    labels = objects([b"DE", "Köln".encode()]).reshape(1, 2)
    assert json.loads(encode_predictions({"x": labels}, by_row=True)) == {"predictions": [["DE", "Köln"]]}
    both = {"x": labels, "score": np.array([3], np.float32)}
    assert json.loads(encode_predictions(both, by_row=True)) == {"predictions": [{"x": ["DE", "Köln"], "score": 3.0}]}
    assert json.loads(encode_predictions(both, by_row=False)) == {"outputs": {"x": [["DE", "Köln"]], "score": [3.0]}}
    outputs = [(WantedOutput("x"), labels), (WantedOutput("y", binary=True), labels)]
    body, length = encode_infer(InferAnswer(MODEL, 3, "", {}, outputs))
    assert length is not None
    first, second = json.loads(body[:length])["outputs"]
    assert first == {"name": "x", "datatype": "BYTES", "shape": [1, 2], "data": ["DE", "Köln"]}
    assert second["parameters"] == {"binary_data_size": len(body) - length}
    again = array_from_bytes(body[length:], "BYTES", (1, 2), name="y", model=MODEL)
    assert again.tolist() == labels.tolist()


def test_numbers_are_neither_copied_in_nor_out() -> None:
    """Large tensors are views of what was received, and of what the model gave."""
    content = np.arange(6, dtype=np.float32).tobytes()
    values = array_from_bytes(content, "FP32", (3, 2), name="instances", model=MODEL)
    assert not values.flags.owndata
    assert np.shares_memory(np.frombuffer(bytes_of_array(values), np.uint8), values)


def test_containers_are_counted_before_they_are_made() -> None:
    """Megabytes of empty arrays are refused at once."""
    for body in (b'{"instances": [' + b"[]," * 400_000 + b"[]]}", b'{"inputs": [' + b"{}," * 400_000 + b"{}]}"):
        with pytest.raises(RequestError):
            decode_predict(body, SCHEMA, model=MODEL, limits=Limits(max_rows=100))
        with pytest.raises(RequestError):
            decode_infer(body, None, SCHEMA, model=MODEL, limits=Limits(max_rows=100))
