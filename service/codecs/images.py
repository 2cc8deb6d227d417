"""PNG and JPEG: one image is one row of an image model."""

import io
from typing import Final

import numpy as np

from service.codecs.answers import Answer
from service.codecs.pixels import open_picture
from service.codecs.rows import Limits, check_numbers, check_row_count
from service.errors import InvalidRows, NotAcceptable, UnsupportedMediaType
from service.schemas import INSTANCES, InputSchema, Rows

_FORMATS: Final = {"image/png": "PNG", "image/jpeg": "JPEG"}
_CHANNELS: Final = (1, 3, 4)
_DEFAULT_RANGE: Final = (0.0, 1.0)


def image_size(schema: InputSchema) -> tuple[int, int, int] | None:
    """Height, width and channels of a model's rows, or None where a row is no image."""
    shape = schema.row_shape if schema.kind == "image" else ()
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return shape[0], shape[1], shape[2]
    return None


def decode_image(
    body: bytes | memoryview,
    schema: InputSchema,
    *,
    media_type: str,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> Rows:
    """One row of an image, upright as its Exif data say, scaled into the model's ``value_range``, grey or colour as the
    model needs.

    Raises:
        MalformedInput: not such an image.
        InvalidRows: an image of another size than the model's.
        TooLarge: more pixels than the limit, or more parts than any encoder makes; known before a pixel is decoded.
        UnsupportedMediaType: the model does not take images.
    """
    size = image_size(schema)
    if size is None:
        raise UnsupportedMediaType("This model does not take images.")
    check_row_count(1, schema, limits)
    picture = open_picture(body, (_FORMATS[media_type],), limits.max_pixels)
    if picture.size != size[:2]:
        height, width = picture.size
        raise InvalidRows(
            [], f"The image is {width} x {height} pixels (width x height); this model takes {size[1]} x {size[0]}."
        )
    levels = picture.levels(size[2])
    low, high = schema.value_range or _DEFAULT_RANGE
    numbers = (low + levels * (high - low)).astype(np.float32).reshape(1, *schema.row_shape)
    check_numbers(numbers, schema)
    return {INSTANCES: numbers}


def encode_png(answer: Answer) -> bytes:
    """The reconstructed or denoised row as a PNG of 8 bits, clipped to the model's ``value_range``.

    Raises:
        NotAcceptable: the answer is not one image.
    """
    from PIL import Image

    size = image_size(answer.schema)
    array = answer.results[answer.operation.results[0][1]]
    if size is None or array.shape[1:] != answer.schema.row_shape:
        raise NotAcceptable("This answer is not an image.")
    if len(array) != 1:
        raise NotAcceptable("A PNG holds one row; ask for JSON, npy or Arrow.")
    low, high = answer.schema.value_range or _DEFAULT_RANGE
    levels = np.clip((array[0].astype(np.float64) - low) / (high - low), 0, 1)
    pixels = np.rint(levels * 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels.reshape(size if size[2] > 1 else size[:2])).save(sink, format="PNG")
    return sink.getvalue()
