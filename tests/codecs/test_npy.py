"""npy bodies to rows and answers to npy."""

import io
from typing import Any

import numpy as np
import pytest

from service.codecs import Answer, decode_npy, encode_npy
from service.errors import InvalidRows, MalformedInput, NotAcceptable, TooLarge, UnsupportedMediaType
from service.words import ENCODE, RECONSTRUCT
from tests.codecs.samples import GAPPY, IMAGE, MIXED, NUMBERS, SMALL, VECTOR, npy

pytestmark = pytest.mark.timeout(60)  # a bomb must not make it hang

VALUES = np.arange(12, dtype=np.float64).reshape(2, 2, 3)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_real_dtype_is_read(dtype: str, byte_order: str, order: Any) -> None:
    """Either byte order and memory order, as float32."""
    array = np.array(VALUES, dtype=byte_order + dtype, order=order)
    rows = decode_npy(npy(array), IMAGE)
    assert rows["instances"].dtype == np.float32
    assert np.array_equal(rows["instances"], array.astype(np.float32))


def test_float32_is_not_copied() -> None:
    """The rows are a view of the body."""
    body = npy(np.ones((3, 4), np.float32))
    rows = decode_npy(body, VECTOR)["instances"]
    assert np.shares_memory(rows, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_format_version_is_read(version: tuple[int, int]) -> None:
    """The header's length has two or four bytes."""
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ones((1, 4)), version=version)
    assert decode_npy(sink.getvalue(), VECTOR)["instances"].tolist() == [[1, 1, 1, 1]]


def _with_header(header: str, content: bytes = b"") -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def test_a_header_may_be_written_otherwise() -> None:
    """Other writers use other orders and quotes."""
    header = '{"shape": (1, 4), "fortran_order": False, "descr": "<f4"}'
    assert decode_npy(_with_header(header, bytes(16)), VECTOR)["instances"].tolist() == [[0, 0, 0, 0]]


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x09\x00" + bytes(100), b"PK\x03\x04" + bytes(90),
        _with_header(HEADER % ("|O", "1, 4"), bytes(32)), _with_header(HEADER % ("<c8", "1, 4"), bytes(32)),
        _with_header(HEADER % ("<M8[s]", "1, 4"), bytes(32)), _with_header(HEADER % ("<f4", "-1, 4"), bytes(16)),
        _with_header(HEADER % ("<f4", "1, 4"), bytes(15)), _with_header(HEADER % ("<f4", "1, 4"), bytes(17)),
        _with_header(HEADER % ("<f4", "1 4"), bytes(16)), _with_header("__import__('os').getpid()", bytes(16)),
        _with_header("{'descr': '<f4', 'descr': '<f4', 'shape': (1, 4)}", bytes(16)),
        _with_header(HEADER % ("<f4", "1L, 4"), bytes(16)),
        _with_header("[" * 2000, bytes(16)), npy(np.array([[1, None]], dtype=object), allow_pickle=True),
    ],
)  # fmt: skip
def test_what_is_not_npy_is_malformed(body: bytes) -> None:
    """Nothing is evaluated or unpickled."""
    with pytest.raises(MalformedInput):
        decode_npy(body, VECTOR)


@pytest.mark.parametrize("shape", ["2684354560, 4", "999999999999999999, 999999999999999999"])
def test_a_header_claiming_gigabytes_allocates_nothing(shape: str) -> None:
    """The claim is compared with the body first."""
    with pytest.raises(MalformedInput, match="size"):
        decode_npy(_with_header(HEADER % ("<f4", shape), bytes(16)), VECTOR)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 2, 2), (0, 4)])
def test_another_shape_is_invalid(shape: tuple[int, ...]) -> None:
    """So is an array without rows."""
    with pytest.raises(InvalidRows):
        decode_npy(npy(np.ones(shape)), VECTOR)


def test_bad_values_are_named() -> None:
    """What is not finite in float32, missing where it may not be, or no boolean."""
    array = np.ones((3, 3))
    array[0, 1] = np.nan
    assert np.isnan(decode_npy(npy(array), NUMBERS)["instances"][0, 1])
    array[2, 0] = np.nan
    with pytest.raises(InvalidRows):
        decode_npy(npy(array), NUMBERS)
    array[2, 0] = 1
    array[1, 0], array[1, 1], array[2, 2] = np.nan, 1e39, 0.5
    with pytest.raises(InvalidRows) as caught:
        decode_npy(npy(array), NUMBERS)
    assert [(problem.row, problem.column, problem.problem) for problem in caught.value.problems] == [
        (1, "amount", "may not be missing"),
        (1, "age", "must be a finite number that fits into float32"),
        (2, "active", "must be true or false"),
    ]


def test_signalling_nans_are_missing_values() -> None:
    """Not every NaN is numpy's; the processor complains when it casts some."""
    odd = np.full(4, 0x7FF0000000000001, np.uint64).view(np.float64)
    with pytest.raises(InvalidRows):
        decode_npy(npy(odd.reshape(-1, 4)), VECTOR)


def test_missing_values_follow_the_schema() -> None:
    """NaN where the model takes it, infinity never."""
    array = np.array([[[1, np.nan], [2, 3]]])
    assert np.isnan(decode_npy(npy(array), GAPPY)["instances"][0, 0, 1])
    with pytest.raises(InvalidRows):
        decode_npy(npy(np.where(np.isnan(array), np.inf, array)), GAPPY)


def test_booleans_of_other_bytes_are_true() -> None:
    """Bytes that numpy would not write are still 0 or 1 to the model."""
    body = _with_header(HEADER % ("|b1", "1, 4"), bytes([0, 1, 2, 255]))
    assert decode_npy(body, VECTOR)["instances"].tolist() == [[0, 1, 1, 1]]


def test_limits_hold() -> None:
    """Too many rows are refused."""
    with pytest.raises(TooLarge):
        decode_npy(npy(np.ones((51, 4), np.float32)), VECTOR, limits=SMALL)


def test_npy_carries_only_numbers() -> None:
    """A model with categories needs another encoding, both ways."""
    with pytest.raises(UnsupportedMediaType):
        decode_npy(npy(np.ones((1, 2))), MIXED)
    results = {"reconstruction": np.ones((1, 2), np.float32), "error": np.ones(1, np.float32)}
    with pytest.raises(NotAcceptable):
        encode_npy(Answer(operation=RECONSTRUCT, schema=MIXED, model="m", version=1, results=results))


def test_the_answer_is_the_first_array() -> None:
    """numpy reads it back, without pickles."""
    latent = np.arange(6, dtype=np.float32).reshape(3, 2)
    body = encode_npy(Answer(operation=ENCODE, schema=VECTOR, model="m", version=1, results={"latent": latent}))
    assert np.array_equal(np.load(io.BytesIO(body), allow_pickle=False), latent)
