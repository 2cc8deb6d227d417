"""PNG and JPEG: one image is one row of an image model."""

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.codecs.answers import Answer
from service.codecs.rows import Limits, check_numbers, check_row_count, plan_of, rows_from_arrays
from service.errors import InvalidRows, MalformedInput, NotAcceptable, RequestError, TooLarge, UnsupportedMediaType
from service.schemas import InputSchema, Rows

_FORMATS: Final = {"image/png": "PNG", "image/jpeg": "JPEG"}
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_SIXTEEN_BIT: Final = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_DEFAULT_RANGE: Final = (0.0, 1.0)
_NOT_AN_IMAGE: Final = "The body is not an image of this kind, or it is damaged."


def image_size(schema: InputSchema) -> tuple[int, int, int] | None:
    """Height, width and channels of a model's rows, or None where a row is no image."""
    shape = schema.row_shape if schema.kind == "image" else ()
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if len(shape) == 3 and shape[2] in _MODES:
        return shape[0], shape[1], shape[2]
    return None


def decode_image(
    body: bytes,
    schema: InputSchema,
    *,
    media_type: str,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> Rows:
    """One row of an image, its levels scaled into the model's ``value_range``, grey or colour as the model needs.

    Raises:
        MalformedInput: not such an image.
        InvalidRows: an image of another size than the model's.
        TooLarge: more pixels than the limit; known before any of them is decoded.
        UnsupportedMediaType: the model does not take images.
    """
    size = image_size(schema)
    if size is None:
        raise UnsupportedMediaType("This model does not take images.")
    plan = plan_of(schema)
    check_row_count(1, plan, limits)
    levels = _levels(body, _FORMATS[media_type], size, limits)
    low, high = schema.value_range or _DEFAULT_RANGE
    numbers = (low + levels * (high - low)).astype(np.float32).reshape(1, *plan.row_shape)
    check_numbers(numbers, plan)
    return rows_from_arrays(numbers)


def _levels(body: bytes, kind: str, size: tuple[int, int, int], limits: Limits) -> NDArray[np.float64]:
    """Levels from 0 to 1 of the image's pixels."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(body), formats=(kind,)) as image:
            _check_size(image.size, size, limits)
            image.load()
            return _as_levels(image, size[2])
    except RequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(limits) from None
    except Exception as error:
        raise MalformedInput(_NOT_AN_IMAGE) from error


def _too_many_pixels(limits: Limits) -> TooLarge:
    return TooLarge(f"An image may have at most {limits.max_pixels} pixels.")


def _check_size(found: tuple[int, int], size: tuple[int, int, int], limits: Limits) -> None:
    width, height = found
    if width * height > limits.max_pixels:
        raise _too_many_pixels(limits)
    if (height, width) != size[:2]:
        raise InvalidRows(
            [], f"The image is {width} x {height} pixels (width x height); this model takes {size[1]} x {size[0]}."
        )


def _as_levels(image: Any, channels: int) -> NDArray[np.float64]:
    if image.mode in _SIXTEEN_BIT:
        grey = np.asarray(image, dtype=np.float64) / 65_535
        if channels == 1:
            return grey
        colour = np.repeat(grey[..., None], channels, axis=2)
        colour[..., 3:] = 1.0
        return colour
    return np.asarray(image.convert(_MODES[channels]), dtype=np.float64) / 255


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
