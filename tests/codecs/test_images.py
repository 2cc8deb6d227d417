"""PNG and JPEG to rows and answers to PNG."""

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "media_type"), [("PNG", PNG), ("JPEG", JPEG)])
def test_images_are_turned_upright(orientation: int, kind: str, media_type: str) -> None:
    """As their Exif data say, whose height and width are those before."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    side = Image.fromarray(np.kron(GREY, np.ones((8, 8), np.uint8)))
    sink = io.BytesIO()
    side.save(sink, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    upright = ImageOps.exif_transpose(Image.open(sink))
    schema = InputSchema(kind="image", row_shape=(upright.height, upright.width), value_range=(0.0, 255.0))
    rows = decode_image(sink.getvalue(), schema, media_type=media_type)["instances"]
    np.testing.assert_array_equal(rows[0], np.asarray(upright))


def test_exif_data_that_are_damaged_turn_nothing() -> None:
    """Neither cut short nor with an orientation that there is not."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 9
    whole = exif.tobytes()
    flat = np.full((2, 3), 100, np.uint8)
    for damaged in (whole, whole[:14], whole[:18], b"Exif\0\0", b"Exif\0\0XX" + whole[8:]):
        rows = decode_image(picture(flat, "JPEG", exif=damaged), IMAGE, media_type=JPEG)["instances"]
        np.testing.assert_allclose(rows, 100 / 255, atol=0.02)


def test_metadata_cost_nothing() -> None:
    """60 MiB of comments and profiles are not looked into, whether or not they are what they say."""
    pixels = picture(GREY)
    junk = [_chunk(kind, b"x" * 2**24) for kind in (b"iCCP", b"zTXt", b"iTXt", b"juNk")]
    body = pixels[:33] + b"".join(junk) + pixels[33:]
    np.testing.assert_allclose(decode_image(body, IMAGE, media_type=PNG)["instances"], GREY[None] / 255, rtol=1e-6)
    segment = b"\xff\xe2\xff\xff" + b"ICC_PROFILE\0\1\1".ljust(65_533, b"x")
    plain = picture(GREY, "JPEG")
    rows = decode_image(plain[:2] + segment * 900 + plain[2:], IMAGE, media_type=JPEG)["instances"]
    np.testing.assert_array_equal(rows, decode_image(plain, IMAGE, media_type=JPEG)["instances"])


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


def _countless(name: str) -> tuple[bytes, str]:
    """An image with millions of parts beside its pixels, and its media type."""
    png, jpeg = picture(GREY), picture(GREY, "JPEG")
    if name == "scans":
        progressive = picture(GREY, "JPEG", progressive=True)
        scan = progressive.rindex(b"\xff\xda")
        return progressive[:scan] + progressive[scan:-2] * 100_000 + progressive[-2:], JPEG
    segment = {"segments": b"\xff\xe1\0\2", "comments": b"\xff\xfe\0\2", "tables": b"\xff\xdb\0\2", "fill": b"\xff"}
    if name in segment:
        return jpeg[:2] + segment[name] * (60 * 2**20 // len(segment[name])) + jpeg[2:], JPEG
    return png[:33] + _chunk(name.encode(), b"") * (5 * 2**20) + png[33:], PNG


@pytest.mark.parametrize("name", ["segments", "comments", "tables", "fill", "scans", "iCCP", "juNk", "IDAT", "PLTE"])
def test_images_of_countless_parts_are_refused(name: str) -> None:
    """Before Pillow reads them one by one, in seconds to a minute."""
    body, media_type = _countless(name)
    started = time.process_time()
    with pytest.raises(TooLarge, match="may have at most"):
        decode_image(body, IMAGE, media_type=media_type)
    assert time.process_time() - started < 2


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


@pytest.mark.slow
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
