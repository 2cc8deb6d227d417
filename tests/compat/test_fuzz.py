"""Whatever arrives: an answer that blames the caller, and never the service."""

import json
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compat.test_limits import GRPC_INFER, GRPC_PREDICT, INFER, PREDICT, calling, infer_message, predict_message
from tests.live import LiveService

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
LENGTHS = st.sampled_from(["", "0", "-1", "x", "7", "1e3", "99999", "9" * 40])
NUMBERS = st.integers(-3, 40) | st.sampled_from([2**31, 2**63, 2**70, 1.5, True, None, "8"])


def check(live: LiveService, path: str, content: bytes, headers: dict[str, str] | None = None) -> None:
    response = live.post(path, content=content, headers=headers)
    assert response.status_code in (200, 400, 404, 413, 415), (response.status_code, response.text, content)
    if response.status_code != 200:
        assert list(response.json()) == ["error"]
        assert len(response.content) < 1000


@QUICK
@given(body=st.binary(max_size=64), length=st.none() | LENGTHS, path=st.sampled_from([PREDICT, INFER]))
def test_any_bytes(fakes: LiveService, body: bytes, length: str | None, path: str) -> None:
    """With and without a length of the JSON in front."""
    check(fakes, path, body, None if length is None else {"Inference-Header-Content-Length": length})


@QUICK
@given(
    tensor=st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("instances") | JUNK,
            "shape": st.lists(NUMBERS, max_size=3) | JUNK,
            "datatype": st.sampled_from(["FP32", "FP64", "FP16", "BF16", "INT8", "UINT64", "BOOL", "BYTES", "X"])
            | JUNK,
            "data": st.lists(NUMBERS, max_size=6) | JUNK,
            "parameters": st.fixed_dictionaries({"binary_data_size": NUMBERS}) | JUNK,
        },
    ),
    more=st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "outputs", "parameters", "inputs"), JUNK)),
    blob=st.binary(max_size=40),
    off=st.integers(-2, 2),
)
def test_requests_that_are_nearly_right(
    fakes: LiveService, tensor: dict[str, Any], more: dict[str, Any], blob: bytes, off: int
) -> None:
    """JSON of the protocol's form with anything in it, and bytes behind it."""
    head = json.dumps({"inputs": [tensor], **more}).encode()
    check(fakes, INFER, head)
    check(fakes, INFER, head + blob, {"Inference-Header-Content-Length": str(len(head) + off)})


@QUICK
@given(body=st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name"]), JUNK))
def test_predict_bodies_that_are_nearly_right(fakes: LiveService, body: dict[str, Any]) -> None:
    """JSON of TensorFlow Serving's form with anything in it."""
    check(fakes, PREDICT, json.dumps(body).encode())


@QUICK
@given(edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6), cut=st.integers(0, 4))
def test_messages_with_flipped_bytes(fakes: LiveService, edits: list[tuple[int, int]], cut: int) -> None:
    """gRPC messages that were damaged on their way."""
    rows = np.array([[1, 2], [3, 4]], np.int8)  # of any value, numbers that every model can take
    messages = {GRPC_INFER: infer_message(rows, "INT8"), GRPC_PREDICT: predict_message(rows, 6)}
    with calling(fakes) as call:
        for method, message in messages.items():
            damaged = bytearray(message)
            for at, byte in edits:
                damaged[at % len(damaged)] = byte
            code = call(method, bytes(damaged[: len(damaged) - cut]))
            assert code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED")
