"""Images from a folder of PNG and JPEG files, its subfolders included: one file is one row."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import Array, InputSchema

SUFFIXES = {".png", ".jpg", ".jpeg"}
FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 2**24
"""Of one file: what claims more is not decoded, as a few kilobytes may claim gigabytes."""
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
GREY = ("1", "L", "LA", *SIXTEEN_BIT)
EIGHT_BIT = (0.0, 255.0)


def read_pictures(folder: Path, *, resize: tuple[int, int] | None = None) -> tuple[NDArray[np.float32], InputSchema]:
    """Pixels of 0 to 255, (rows, height, width) where all images are grey, else (rows, height, width, 3).

    Files are taken in the order of their names. Transparency is dropped, as the service does with what it is sent.

    Args:
        resize: height and width that every image is brought to; without it they must all have one size.

    Raises:
        DataError: there are none, one cannot be read or is too large, or their sizes differ; names the file.
    """
    paths = sorted(_find(folder))
    if not paths:
        raise DataError(f"The folder {folder.name} holds no PNG or JPEG files.")
    heads = [_head(path, folder) for path in paths]
    size = resize or _common_size([size for size, _ in heads], paths, folder)
    is_grey = all(mode in GREY for _, mode in heads)
    shape = size if is_grey else (*size, 3)
    pixels = np.empty((len(paths), *shape), np.float32)
    for row, path in enumerate(paths):
        pixels[row] = _pixels(path, folder, size=size, is_grey=is_grey)
    return pixels, InputSchema(kind="image", row_shape=shape, value_range=EIGHT_BIT)


def resized(images: Array, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Images of 8 bits (rows, height, width[, channels]) brought to another height and width.

    Raises:
        DataError: they are not of 8 bits, or have other than 1, 3 or 4 channels.
    """
    from PIL import Image

    if images.dtype != np.uint8 or images.ndim not in {3, 4} or (images.ndim == 4 and images.shape[3] not in {1, 3, 4}):
        raise DataError("Only images of 8 bits with 1, 3 or 4 channels can be resized.")
    flat = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
    done = [np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)) for image in flat]
    return np.stack(done).reshape(len(images), *size, *images.shape[3:])


def _find(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        # Files that begin with a dot belong to file managers, not to the user.
        yield from (Path(parent, name) for name in names if _is_picture(name))


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _head(path: Path, folder: Path) -> tuple[tuple[int, int], str]:
    """Height, width and mode, without decoding the pixels."""
    with _opened(path, folder) as image:
        width, height = image.size
        return (height, width), image.mode


def _opened(path: Path, folder: Path) -> Any:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Pillow warns from its own limit on; ours is below it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(path, folder) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(path, folder) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path, folder)
    return image


def _too_large(path: Path, folder: Path) -> DataError:
    return DataError(f"{path.relative_to(folder)} has more than {MAX_PIXELS} pixels; make it smaller or leave it out.")


def _unreadable(path: Path, folder: Path) -> DataError:
    return DataError(f"{path.relative_to(folder)} is not a PNG or JPEG image, or it is damaged; leave it out.")


def _common_size(sizes: list[tuple[int, int]], paths: list[Path], folder: Path) -> tuple[int, int]:
    height, width = sizes[0]
    for size, path in zip(sizes, paths, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{path.relative_to(folder)} is {size[0]} x {size[1]} pixels (height x width), but "
                f"{paths[0].relative_to(folder)} is {height} x {width}; --resize {height}x{width} makes them one size."
            )
    return height, width


def _pixels(path: Path, folder: Path, *, size: tuple[int, int], is_grey: bool) -> NDArray[np.uint8]:
    from PIL import Image

    with _opened(path, folder) as image:
        try:
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise _unreadable(path, folder) from error
        if image.mode in SIXTEEN_BIT:
            levels = np.asarray(image, np.float64) * (255 / 65_535)
            flat = Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))
        else:
            flat = image
        flat = flat.convert("L" if is_grey else "RGB")
        if (flat.height, flat.width) != size:
            flat = flat.resize(size[::-1], Image.Resampling.LANCZOS)
        return np.asarray(flat)
