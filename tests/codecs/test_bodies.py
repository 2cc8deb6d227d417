"""Bodies of any media type."""

import io
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from PIL import Image

from service.codecs import ARRAY_BEGINS, Answer, Decoded, Limits, answer_types, decode, encode
from service.errors import InvalidOption, NotAcceptable, UnsupportedMediaType
from service.schemas import Array, InputSchema
from service.words import ANOMALY_SCORE, ARROW, DENOISE, ENCODE, JPEG, JSON, NDJSON, NPY, OPERATIONS, PNG, RECONSTRUCT
from tests.codecs.samples import IMAGE, NUMBERS, npy
from tests.codecs.test_arrow import lists, stream

PIXELS = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
VALUES = (PIXELS / 255).astype(np.float32)[None]


def decoded(media_type: str, body: bytes | memoryview, **more: Any) -> Decoded:
    given: dict[str, Any] = {"schema": IMAGE, "operation": ANOMALY_SCORE, "query": {}, "limits": Limits()} | more
    return decode(media_type, body, **given)


def _png() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PIXELS).save(sink, format="PNG")
    return sink.getvalue()


BODIES = {
    JSON: orjson.dumps({"instances": VALUES}, option=orjson.OPT_SERIALIZE_NUMPY),
    NPY: npy(VALUES),
    ARROW: stream(lists(VALUES)),
    PNG: _png(),
}


@pytest.mark.parametrize("media_type", BODIES)
def test_every_encoding_gives_the_same_rows(media_type: str) -> None:
    """As they are."""
    np.testing.assert_allclose(decoded(media_type, BODIES[media_type]).rows["instances"], VALUES, rtol=1e-6)


@pytest.mark.parametrize("media_type", ARRAY_BEGINS)
def test_it_is_foreseen_where_the_numbers_of_a_body_begin(media_type: str) -> None:
    """From its first bytes; they are read there and not copied, whatever holds the body."""
    body = memoryview(bytearray(BODIES[media_type]))
    rows = decoded(media_type, body).rows["instances"]
    whole = np.frombuffer(body, np.uint8)
    assert np.shares_memory(rows, whole)
    assert rows.ctypes.data - whole.ctypes.data == ARRAY_BEGINS[media_type](BODIES[media_type][:1000])


@pytest.mark.parametrize("media_type", ARRAY_BEGINS)
@pytest.mark.parametrize(
    "head", [b"", b"x", b"\x93NUMPY", b"\xff" * 8, b"\xff" * 100, bytes(100), b"\x93NUMPY\x02\x00\xff"]
)
def test_a_guess_where_numbers_begin_never_fails(media_type: str, head: bytes) -> None:
    """It is made before anything is known of the body."""
    assert ARRAY_BEGINS[media_type](head) >= 0


@pytest.mark.parametrize("media_type", [NPY, ARROW, PNG])
def test_options_come_from_the_query(media_type: str) -> None:
    """Where the body is not JSON."""
    assert decoded(media_type, BODIES[media_type], query={"explain": "3"}).options.explain == 3
    with pytest.raises(InvalidOption):
        decoded(JSON, BODIES[JSON], query={"explain": "3"})


def test_only_arrow_is_passed_through() -> None:
    """And only when it was asked for."""
    assert decoded(ARROW, BODIES[ARROW]).table is None
    assert decoded(ARROW, BODIES[ARROW], query={"passthrough": "true"}).table.column_names == ["instances"]
    with pytest.raises(InvalidOption):
        decoded(NPY, BODIES[NPY], query={"passthrough": "true"})


def test_unknown_encodings_are_refused() -> None:
    """And images, of a model that takes none."""
    with pytest.raises(UnsupportedMediaType):
        decoded("text/plain", b"")
    with pytest.raises(UnsupportedMediaType):
        decoded(JPEG, BODIES[PNG], schema=NUMBERS)


RESULTS: dict[str, dict[str, Array]] = {
    "encode": {"latent": np.ones((1, 2), np.float32)},
    "reconstruct": {"reconstruction": VALUES, "error": np.ones(1, np.float32)},
    "denoise": {"denoised": VALUES},
    "anomaly_score": {
        "score": np.ones(1, np.float32),
        "p_value": np.ones(1, np.float32),
        "is_anomaly": np.array([True]),
    },
}


def _answer(operation: Any, schema: InputSchema = IMAGE) -> Answer:
    results = RESULTS[operation.name]
    return Answer(operation=operation, schema=schema, model="m", version=3, results=results, once={"threshold": 0.5})


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_operation_answers_in_every_encoding(operation: Any) -> None:
    """With the same numbers."""
    answer = _answer(operation)
    name, output = operation.results[0]
    first = answer.results[output]
    table = pa.ipc.open_stream(encode(ARROW, answer)).read_all()
    answered = (
        orjson.loads(encode(JSON, answer))[name],
        [orjson.loads(line)[output] for line in encode(NDJSON, answer).splitlines()],
        np.load(io.BytesIO(encode(NPY, answer))),
        table.column(name).to_pylist(),
    )
    assert all(np.array_equal(np.array(values, dtype=first.dtype), first) for values in answered)
    assert answer_types(operation)[:4] == (JSON, NPY, ARROW, NDJSON)


def test_images_answer_in_png() -> None:
    """Where the answer is an image."""
    for operation in (RECONSTRUCT, DENOISE):
        assert answer_types(operation)[-1] == PNG
        assert np.asarray(Image.open(io.BytesIO(encode(PNG, _answer(operation))))).tolist() == PIXELS.tolist()
    for operation in (ENCODE, ANOMALY_SCORE):
        assert PNG not in answer_types(operation)
        with pytest.raises(NotAcceptable):
            encode(PNG, _answer(operation))
