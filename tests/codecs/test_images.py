"""PNG and JPEG to rows and answers to PNG."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.codecs import Answer, Limits, decode_image, encode_png
from service.errors import InvalidRows, MalformedInput, NotAcceptable, TooLarge, UnsupportedMediaType
from service.schemas import Array, InputSchema
from service.words import DENOISE, JPEG, PNG, RECONSTRUCT
from tests.codecs.samples import IMAGE, NUMBERS, VECTOR

pytestmark = pytest.mark.timeout(60)  # a bomb must not make it hang

COLOUR = InputSchema(kind="image", row_shape=(2, 3, 3), value_range=(-1.0, 1.0))
BYTES = InputSchema(kind="image", row_shape=(2, 3, 1), value_range=(0.0, 255.0))
GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)


def picture(pixels: Array, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format=kind, **options)
    return sink.getvalue()


def test_grey_levels_are_scaled() -> None:
    """From 0..255 into the model's range, in its shape."""
    rows = decode_image(picture(GREY), IMAGE, media_type=PNG)["instances"]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, GREY[None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(decode_image(picture(GREY), BYTES, media_type=PNG)["instances"][0, ..., 0], GREY)


def test_sixteen_bits_are_scaled() -> None:
    """From 0..65535."""
    rows = decode_image(picture(GREY.astype(np.uint16) * 257), IMAGE, media_type=PNG)["instances"]
    np.testing.assert_allclose(rows, GREY[None] / 255, rtol=1e-6)
    rows = decode_image(picture(GREY.astype(np.uint16) * 257), COLOUR, media_type=PNG)["instances"]
    np.testing.assert_allclose(rows[0, ..., 2], GREY / 127.5 - 1, atol=1e-6)


def test_colour_and_grey_are_converted() -> None:
    """Into as many channels as the model has."""
    colour = np.stack([GREY, GREY, GREY], axis=2)
    np.testing.assert_allclose(
        decode_image(picture(colour), IMAGE, media_type=PNG)["instances"], GREY[None] / 255, 1e-6
    )
    rows = decode_image(picture(GREY), COLOUR, media_type=PNG)["instances"]
    np.testing.assert_allclose(rows[0], colour / 127.5 - 1, atol=1e-6)


def test_jpeg_is_read() -> None:
    """Within its losses."""
    flat = np.full((2, 3), 100, np.uint8)
    rows = decode_image(picture(flat, "JPEG"), IMAGE, media_type=JPEG)["instances"]
    np.testing.assert_allclose(rows, 100 / 255, atol=0.02)


def test_another_size_is_invalid() -> None:
    """The error says both sizes."""
    with pytest.raises(InvalidRows, match=r"2 x 3 pixels \(width x height\); this model takes 3 x 2"):
        decode_image(picture(GREY.T.copy()), IMAGE, media_type=PNG)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [5_000, 12_000, 60_000, 2**31 - 1])
def test_a_pixel_bomb_is_not_decoded(side: int) -> None:
    """Its header is enough to refuse it."""
    with pytest.raises(TooLarge):
        decode_image(_png(side, side, b""), IMAGE, media_type=PNG)


def test_the_pixel_limit_comes_before_the_size() -> None:
    """As a setting."""
    with pytest.raises(TooLarge):
        decode_image(picture(GREY), IMAGE, media_type=PNG, limits=Limits(max_pixels=5))
    decode_image(picture(GREY), IMAGE, media_type=PNG, limits=Limits(max_pixels=6))


def test_a_bomb_behind_the_right_header_gives_no_more_pixels() -> None:
    """A gigabyte of zeros for six pixels."""
    rows = decode_image(_png(3, 2, bytes(2**27)), IMAGE, media_type=PNG)["instances"]
    assert not rows.any()


def test_what_is_no_such_image_is_malformed() -> None:
    """Truncated, empty, of the other kind, or of a kind that was not said."""
    png, jpeg = picture(GREY), picture(GREY, "JPEG")
    for body in (b"", png[:20], png[:-30], jpeg, picture(GREY, "GIF"), picture(GREY, "BMP"), b"x" * 100):
        with pytest.raises(MalformedInput):
            decode_image(body, IMAGE, media_type=PNG)
    for body in (png, jpeg[:100]):
        with pytest.raises(MalformedInput):
            decode_image(body, IMAGE, media_type=JPEG)


def test_other_models_take_no_images() -> None:
    """Neither tables nor rows without height and width."""
    for schema in (NUMBERS, VECTOR):
        with pytest.raises(UnsupportedMediaType):
            decode_image(picture(GREY), schema, media_type=PNG)


@pytest.mark.parametrize("schema", [IMAGE, BYTES, COLOUR])
def test_an_answer_comes_back_as_it_was_sent(schema: InputSchema) -> None:
    """To the level."""
    body = picture(np.stack([GREY, GREY // 2, GREY // 3], axis=2) if schema is COLOUR else GREY)
    rows = decode_image(body, schema, media_type=PNG)["instances"]
    answer = Answer(operation=DENOISE, schema=schema, model="m", version=1, results={"denoised": rows})
    assert np.array_equal(decode_image(encode_png(answer), schema, media_type=PNG)["instances"], rows)


def test_levels_out_of_range_are_clipped() -> None:
    """They do not wrap around."""
    values = np.array([[[-5, 0.5, 9], [0, 1, 1.001]]], np.float32)
    answer = Answer(operation=RECONSTRUCT, schema=IMAGE, model="m", version=1, results={"reconstruction": values})
    assert np.asarray(Image.open(io.BytesIO(encode_png(answer)))).tolist() == [[0, 128, 255], [0, 255, 255]]


def test_a_png_is_one_image() -> None:
    """Several rows or no image cannot be one."""
    two = Answer(operation=DENOISE, schema=IMAGE, model="m", version=1, results={"denoised": np.ones((2, 2, 3))})
    table = Answer(operation=DENOISE, schema=NUMBERS, model="m", version=1, results={"denoised": np.ones((1, 3))})
    for answer in (two, table):
        with pytest.raises(NotAcceptable):
            encode_png(answer)
