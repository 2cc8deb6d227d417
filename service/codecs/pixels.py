"""Image files to levels of pixels: the one decoder of image bodies and of training files."""

import io
import re
import struct
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import MalformedInput, TooLarge

_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_SIXTEEN_BIT: Final = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GREY: Final = ("1", "L", "LA", *_SIXTEEN_BIT)
_MAX_PARTS: Final = 16_384
"""Chunks of a PNG or segments of a JPEG. Enough for 64 MiB in pieces of 4 KiB."""
_MAX_SCANS: Final = 100
"""Scans of a progressive JPEG, each of which costs a pass over all pixels. Encoders make about ten."""
_NOT_AN_IMAGE: Final = "The body is not an image of this kind, or it is damaged."

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG: Final = b"\xff\xd8"
_FILL, _SCAN, _END, _EXIF_SEGMENT, _COMMENT = 0xFF, 0xDA, 0xD9, 0xE1, 0xFE
_APPLICATION: Final = range(0xE0, 0xF0)
_COLOUR_SEGMENTS: Final = (0xE0, 0xEE)
"""JFIF and Adobe, which say how the components make colours."""
_SCAN_END: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_ORIENTATION: Final = 0x0112


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file whose header was read, and whose pixels were not."""

    image: Any
    """The image, as Pillow opened it."""
    orientation: int | None
    """Orientation as in Exif, 1 to 8; None to let Pillow read it."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        width, height = self.image.size
        return (width, height) if (self.orientation or 1) >= 5 else (height, width)

    @property
    def is_grey(self) -> bool:
        """Whether each pixel has one level in all channels, however the file holds them.

        Raises:
            MalformedInput: the pixels are damaged.
        """
        if self.image.mode in _GREY:
            return True
        levels = self.levels(3)
        return bool((levels == levels[..., :1]).all())

    def levels(self, channels: int, resize: tuple[int, int] | None = None) -> NDArray[np.float64]:
        """Levels from 0 to 1 of the upright image, (height, width), or (height, width, channels) for 3 and 4 channels.

        Args:
            resize: height and width that it is brought to.

        Raises:
            MalformedInput: the pixels are damaged.
        """
        from PIL import Image, ImageOps

        try:
            self.image.load()
            if self.orientation is None:
                image = ImageOps.exif_transpose(self.image)
            else:
                turn = _turns().get(self.orientation)
                image = self.image if turn is None else self.image.transpose(turn)
            if is_deep := image.mode in _SIXTEEN_BIT:
                image = Image.fromarray(np.asarray(image, dtype=np.float32))
            else:
                image = image.convert(_MODES[channels])
            if resize is not None and image.size != resize[::-1]:
                image = image.resize(resize[::-1], Image.Resampling.LANCZOS)
            levels = np.asarray(image, dtype=np.float64)
        except Exception as error:
            raise MalformedInput(_NOT_AN_IMAGE) from error
        if not is_deep:
            return levels / 255
        grey = (levels / 65_535).clip(0, 1)
        if channels == 1:
            return grey
        colour = np.repeat(grey[..., None], channels, axis=2)
        colour[..., 3:] = 1.0
        return colour


def open_picture(content: bytes | memoryview, formats: tuple[str, ...], max_pixels: int) -> Picture:
    """Read the header of an image file.

    Of PNG and JPEG Pillow gets only what says something about pixels: its readers of metadata take seconds and
    gigabytes for a few megabytes that were made for it.

    Args:
        formats: Pillow's names of those that it may have.

    Raises:
        MalformedInput: no such image.
        TooLarge: more pixels, chunks, segments or scans than are decoded.
    """
    from PIL import Image

    content, orientation = _without_metadata(content)
    try:
        with warnings.catch_warnings():
            # Pillow warns from a limit of its own on.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError:
        raise _too_many_pixels(max_pixels) from None
    except Exception as error:
        raise MalformedInput(_NOT_AN_IMAGE) from error
    if image.width * image.height > max_pixels:
        raise _too_many_pixels(max_pixels)
    return Picture(image, orientation)


def _too_many_pixels(most: int) -> TooLarge:
    return TooLarge(f"An image may have at most {most} pixels.")


def _turns() -> dict[int, Any]:
    """The transpositions that make an image upright, by orientation."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


def _without_metadata(content: bytes | memoryview) -> tuple[bytes | memoryview, int | None]:
    """A PNG or JPEG without its metadata, and its orientation; other files as they are."""
    if content[: len(_PNG)] == _PNG:
        return _png_pixels(content)
    if content[: len(_JPEG)] == _JPEG:
        return _jpeg_pixels(content)
    return content, None


def _png_pixels(content: bytes | memoryview) -> tuple[bytes, int]:
    view, at, kept, exif = memoryview(content), len(_PNG), [memoryview(_PNG)], b""
    for _ in range(_MAX_PARTS):
        kind, end = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4])
        if kind in _PNG_PIXELS:
            kept.append(view[at:end])
        elif kind == b"eXIf":
            exif = bytes(view[at + 8 : end - 4])
        if kind == b"IEND" or end >= len(content):
            return b"".join(kept), _orientation(exif)
        at = end
    raise TooLarge(f"A PNG may have at most {_MAX_PARTS} chunks.")


def _jpeg_pixels(content: bytes | memoryview) -> tuple[bytes, int]:
    view, at, kept, exif, scans = memoryview(content), len(_JPEG), [memoryview(_JPEG)], b"", 0
    for _ in range(_MAX_PARTS):
        if len(content) < at + 4 or content[at] != _FILL:
            return b"".join([*kept, content[at : at + 2]]), _orientation(exif)  # damaged, or its end
        kind, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if kind == _FILL:
            end = at + 1
        elif kind == _END:
            return b"".join([*kept, content[at : at + 2]]), _orientation(exif)
        elif kind == _SCAN:
            scans += 1
            if scans > _MAX_SCANS:
                raise TooLarge(f"A JPEG may have at most {_MAX_SCANS} scans.")
            found = _SCAN_END.search(content, end)
            end = len(content) if found is None else found.start()
            kept.append(view[at:end])
        elif kind == _EXIF_SEGMENT:
            exif = exif or bytes(view[at + 10 : end]) if content[at + 4 : at + 10] == b"Exif\0\0" else exif
        elif kind in _COLOUR_SEGMENTS or not (kind in _APPLICATION or kind == _COMMENT):
            kept.append(view[at:end])
        at = end
    raise TooLarge(f"A JPEG may have at most {_MAX_PARTS} segments.")


def _orientation(exif: bytes) -> int:
    """The orientation that Exif data of TIFF's form name; 1, upright, where they name none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _kind, _count, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
