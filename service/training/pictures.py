"""Images from a folder of image files, its subfolders included: one file is one row."""

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.codecs.pixels import Picture, open_picture
from service.errors import DataError, MalformedInput, TooLarge
from service.schemas import Array, InputSchema

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".pgm": "PPM",
    ".ppm": "PPM",
}
"""Endings of the files that are read, and Pillow's name of their format."""
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
MAX_PIXELS = 2**24
"""Of one file: what claims more is not decoded, as a few kilobytes may claim gigabytes."""
MAX_NAMED = 3
"""Files of each ending that a note names."""
EIGHT_BIT = (0.0, 255.0)


def read_pictures(
    folder: Path, *, resize: tuple[int, int] | None = None
) -> tuple[NDArray[np.float32], InputSchema, tuple[str, ...]]:
    """Pixels of 0 to 255, (rows, height, width) where all images are grey, else (rows, height, width, 3), and notes.

    Files are taken in the order of their names, turned upright as their Exif data say; of several frames the first one.
    Transparency is dropped, and levels of 16 bits keep their fractions, as the service does with what it is sent.

    Args:
        resize: height and width that every image is brought to; without it they must all have one size.

    Raises:
        DataError: there are none, one cannot be read or is too large, or their sizes differ; names the file.
    """
    # Files that begin with a dot belong to file managers, not to the user.
    found = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    paths = [path for path in found if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise DataError(f"The folder {folder.name} holds no images ({', '.join(FORMATS)}).")
    sizes, is_grey = [], True
    for path in paths:
        picture = _opened(path, folder)
        sizes.append(picture.size)
        is_grey = is_grey and picture.is_grey
    size = resize or _common_size(sizes, paths, folder)
    shape = size if is_grey else (*size, 3)
    pixels = np.empty((len(paths), *shape), np.float32)
    for row, path in enumerate(paths):
        try:
            pixels[row] = _opened(path, folder).levels(1 if is_grey else 3, size) * 255
        except MalformedInput as error:
            raise _unreadable(path, folder) from error
    notes = _left_out([path for path in found if path.suffix.lower() not in SUFFIXES], folder)
    return pixels, InputSchema(kind="image", row_shape=shape, value_range=EIGHT_BIT), notes


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


def _left_out(paths: list[Path], folder: Path) -> tuple[str, ...]:
    """A sentence that counts the files that are not read, by their endings, and names some."""
    if not paths:
        return ()
    counts = Counter(path.suffix.lower() or "no ending" for path in paths)
    listed = ", ".join(f"{count} {ending}" for ending, count in counts.most_common(MAX_NAMED))
    named = ", ".join(str(path.relative_to(folder)) for path in paths[:MAX_NAMED])
    number = "1 file of other kinds was" if len(paths) == 1 else f"{len(paths)} files of other kinds were"
    return (f"In {folder.name} {number} left out ({listed}), such as {named}.",)


def _opened(path: Path, folder: Path) -> Picture:
    try:
        return open_picture(path.read_bytes(), FORMATS, MAX_PIXELS)
    except TooLarge as error:
        raise DataError(f"{path.relative_to(folder)}: {error} Make it smaller or leave it out.") from error
    except (OSError, MalformedInput) as error:
        raise _unreadable(path, folder) from error


def _unreadable(path: Path, folder: Path) -> DataError:
    return DataError(f"{path.relative_to(folder)} is not an image that can be read, or it is damaged; leave it out.")


def _common_size(sizes: list[tuple[int, int]], paths: list[Path], folder: Path) -> tuple[int, int]:
    height, width = sizes[0]
    for size, path in zip(sizes, paths, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{path.relative_to(folder)} is {size[0]} x {size[1]} pixels (height x width), but "
                f"{paths[0].relative_to(folder)} is {height} x {width}; --resize {height}x{width} makes them one size."
            )
    return height, width
