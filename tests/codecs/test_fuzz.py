"""Any bytes give rows or a ``RequestError``, and soon."""

import contextlib
import io
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.codecs import NdjsonDecoder, compress, decode_arrow, decode_image, decode_json, decode_npy
from service.errors import RequestError
from service.words import ANOMALY_SCORE, JPEG, PNG
from tests.codecs.samples import IMAGE, MIXED, NUMBERS, SCHEMAS, SMALL, VECTOR, npy
from tests.codecs.test_arrow import lists, stream
from tests.codecs.test_compression import decompress
from tests.mutation import mutated

pytestmark = pytest.mark.timeout(60)  # a hang is a fault too


def _image(kind: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(sink, format=kind)
    return sink.getvalue()


def _ndjson(body: bytes) -> None:
    decoder = NdjsonDecoder(NUMBERS, limits=SMALL, block_rows=3, max_line_bytes=200)
    list(decoder.feed(body[: len(body) // 2]))
    list(decoder.feed(body[len(body) // 2 :]))
    list(decoder.finish())


_TABLE = pa.table({"amount": [1.0, 2], "kind": pa.array(["a", "b"]).dictionary_encode(), "country": ["x", None]})
_NAMED = {"instances": [{"amount": 1.5, "kind": "a", "at": "2024-01-02T03:04:05Z", "active": True, "country": None}]}
_LINES = b'[1, null, 1]\n{"amount": 2, "active": true}\n[1.5e3, 2, 0]\n'

Case = tuple[bytes, Callable[[bytes], object]]
CASES: dict[str, Case] = {
    "json": (
        b'{"instances": [[1.5, -2e3, 0, 4], [1, 2, 3, 4]], "threshold": 1.5, "explain": 2}',
        partial(decode_json, schema=VECTOR, operation=ANOMALY_SCORE, limits=SMALL),
    ),
    "json-nested": (
        b'{"instances": [[[1.5, -2e3, 0], [4, 5, 6]]]}',
        partial(decode_json, schema=IMAGE, operation=ANOMALY_SCORE, limits=SMALL),
    ),
    "json-named": (orjson.dumps(_NAMED), partial(decode_json, schema=MIXED, operation=ANOMALY_SCORE, limits=SMALL)),
    "json-columns": (
        b'{"inputs": {"amount": [1, 2], "active": [true, 0]}}',
        partial(decode_json, schema=NUMBERS, operation=ANOMALY_SCORE, limits=SMALL),
    ),
    "ndjson": (_LINES, _ndjson),
    "npy": (npy(np.ones((2, 4))), partial(decode_npy, schema=VECTOR, limits=SMALL)),
    "arrow-lists": (stream(lists(np.ones((2, 4)))), partial(decode_arrow, schema=VECTOR, limits=SMALL)),
    "arrow-named": (stream(_TABLE), partial(decode_arrow, schema=MIXED, limits=SMALL)),
    "arrow-lz4": (stream(_TABLE, compression="lz4"), partial(decode_arrow, schema=MIXED, limits=SMALL)),
    "arrow-views": (
        stream(pa.table({"amount": [1.0], "kind": pa.array(["more than twelve bytes"], pa.string_view())})),
        partial(decode_arrow, schema=MIXED, limits=SMALL),
    ),
    "png": (_image("PNG"), partial(decode_image, schema=IMAGE, media_type=PNG, limits=SMALL)),
    "jpeg": (_image("JPEG"), partial(decode_image, schema=IMAGE, media_type=JPEG, limits=SMALL)),
    "gzip": (compress(b"some text " * 9, "gzip"), partial(decompress, encoding="gzip", max_bytes=100)),
    "zstd": (compress(b"some text " * 9, "zstd"), partial(decompress, encoding="zstd", max_bytes=100)),
}  # fmt: skip


def _try(body: bytes, decode: Callable[[bytes], object]) -> None:
    with contextlib.suppress(RequestError):
        decode(body)


@pytest.mark.parametrize("name", CASES)
def test_good_bodies_are_good(name: str) -> None:
    """What is mutated below starts out right."""
    body, decode = CASES[name]
    decode(body)


@pytest.mark.parametrize("name", CASES)
def test_mutants_are_refused_or_read(name: str) -> None:
    """Nothing but rows or a ``RequestError`` comes of a damaged body."""
    body, decode = CASES[name]
    chance = random.Random(name)
    for _ in range(750):
        _try(mutated(body, chance), decode)


@pytest.mark.parametrize("name", CASES)
def test_every_flipped_bit_is_refused_or_read(name: str) -> None:
    """One bit at a time, over the whole body."""
    body, decode = CASES[name]
    for at in range(len(body)):
        _try(body[:at] + bytes([body[at] ^ (1 << at % 8)]) + body[at + 1 :], decode)


@pytest.mark.parametrize("name", CASES)
def test_every_truncation_is_refused_or_read(name: str) -> None:
    """At every length."""
    body, decode = CASES[name]
    for length in range(len(body)):
        _try(body[:length], decode)


@settings(max_examples=200)
@given(st.binary(max_size=400), st.sampled_from(list(CASES)), st.sampled_from(list(SCHEMAS.values())))
def test_random_bytes_are_refused(body: bytes, name: str, schema: object) -> None:
    """By every decoder, for every schema that it takes."""
    decode = CASES[name][1]
    if isinstance(decode, partial) and "schema" in decode.keywords:
        decode = partial(decode.func, **{**decode.keywords, "schema": schema})
    _try(body, decode)
