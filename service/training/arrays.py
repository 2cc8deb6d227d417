"""Arrays without column names, from NPY, NPZ and IDX files, and the bundled digits."""

import gzip
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.codecs.pixels import Picture, open_picture
from service.errors import DataError, MalformedInput, TooLarge
from service.schemas import Array, InputSchema
from service.tables.files import GZIP_MARK

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_npy(path: Path) -> Array:
    """Raises DataError when it is not an array of numbers."""
    try:
        return np.asarray(np.load(path, allow_pickle=False, mmap_mode="r"))
    except (ValueError, OSError, EOFError) as error:
        raise DataError("The file is not an NPY array of numbers, or it is damaged.") from error


def read_npz(path: Path) -> Array:
    """The array named ``X``, else the first one of two or more dimensions.

    Raises:
        DataError: there is none.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            names = ["X"] if "X" in arrays.files else arrays.files
            found = (arrays[name] for name in names)
            chosen = next((array for array in found if array.ndim >= 2), None)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError("The file is not an NPZ archive of arrays of numbers, or it is damaged.") from error
    if chosen is None:
        raise DataError("The NPZ archive has no array of two or more dimensions.")
    return np.asarray(chosen)


def read_idx(path: Path) -> Array:
    """Read an IDX file, plain or gzipped: the format of the MNIST files.

    Raises:
        DataError: it is not one.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP_MARK) else content
        zeros, code, dimensions = content[:2], *content[2:4]
        if zeros != b"\0\0" or code not in IDX_TYPES:
            raise DataError("The file is not in the IDX format.")
        shape = tuple(int(size) for size in np.frombuffer(content[4 : 4 + 4 * dimensions], ">u4"))
        content = content[4 + 4 * dimensions :]
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError("The IDX file cannot be read: it is damaged.") from error
    dtype = np.dtype(IDX_TYPES[code])
    if len(shape) != dimensions or len(content) != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise DataError("The IDX file is cut short, or longer than it says.")
    return np.frombuffer(content, dtype).reshape(shape)


def load_digits() -> tuple[NDArray[np.float32], InputSchema]:
    """The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels from 0 to 16.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI Machine Learning Repository, 1998).
    """
    from sklearn.datasets import load_digits as bundled_digits

    images = np.asarray(bundled_digits().images, np.float32)
    return images, InputSchema(kind="image", row_shape=(8, 8), value_range=(0.0, 16.0))


def check_array(array: Array) -> tuple[NDArray[np.float32], InputSchema]:
    """Float32 rows and their schema: two dimensions are unnamed columns, three and four are images.

    Raises:
        DataError: the shape, the type or a value does not fit; the sentence names row and column.
    """
    if array.dtype.kind not in "biuf":
        raise DataError("The array holds neither numbers nor booleans.")
    if array.ndim not in {2, 3, 4}:
        raise DataError(
            f"The array has {array.ndim} dimension(s); a table has 2 (rows, columns), "
            "images have 3 or 4 (rows, height, width[, channels])."
        )
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(array, np.float32)
    _check_values(rows)
    row_shape = tuple(int(size) for size in rows.shape[1:])
    if array.ndim == 2:
        return rows, InputSchema(kind="tabular", row_shape=row_shape, may_be_missing=bool(np.isnan(rows).any()))
    limits = (0.0, 255.0) if array.dtype == np.uint8 else _value_range(rows)
    missing = bool(np.isnan(rows).any())
    return rows, InputSchema(kind="image", row_shape=row_shape, may_be_missing=missing, value_range=limits)


def _value_range(rows: NDArray[np.float32]) -> tuple[float, float]:
    """Fractions are taken to mean [0, 1]; otherwise what was seen."""
    if rows.size == 0:
        return (0.0, 1.0)
    low, high = float(np.nanmin(rows)), float(np.nanmax(rows))
    return (0.0, 1.0) if low >= 0 and 0 < high <= 1 else (low, high)


def _check_values(rows: NDArray[np.float32]) -> None:
    infinite = np.isinf(rows)
    if infinite.any():
        row, *place = (int(index[0]) for index in np.nonzero(infinite))
        where = ", ".join(str(index + 1) for index in place)
        raise DataError(f"Row {row + 1}, column {where}: the number is infinite or too large for float32.")
    if len(rows) and rows.size:
        empty = np.isnan(rows).all(axis=0)
        if rows.ndim == 2 and empty.any():
            raise DataError(f"Column {int(np.flatnonzero(empty)[0]) + 1} has no values; leave it out of the array.")
        if empty.all():
            raise DataError("The array has no values.")


# --- images -----------------------------------------------------------------------------------------------------------


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
"""Most pixels of one file: a few kilobytes may claim gigabytes, so one that claims more is not decoded."""
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
        with _reading(path, folder) as picture:
            sizes.append(picture.size)
            is_grey = is_grey and picture.is_grey
    size = resize or _common_size(sizes, paths, folder)
    shape = size if is_grey else (*size, 3)
    pixels = np.empty((len(paths), *shape), np.float32)
    for row, path in enumerate(paths):
        with _reading(path, folder) as picture:
            pixels[row] = picture.levels(1 if is_grey else 3, size) * 255
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


@contextmanager
def _reading(path: Path, folder: Path) -> Iterator[Picture]:
    try:
        yield open_picture(path.read_bytes(), FORMATS, MAX_PIXELS)
    except TooLarge as error:
        raise DataError(f"{path.relative_to(folder)}: {error} Make it smaller or leave it out.") from error
    except (OSError, MalformedInput) as error:
        raise DataError(
            f"{path.relative_to(folder)} is not an image that can be read, or it is damaged; leave it out."
        ) from error


def _common_size(sizes: list[tuple[int, int]], paths: list[Path], folder: Path) -> tuple[int, int]:
    height, width = sizes[0]
    for size, path in zip(sizes, paths, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{path.relative_to(folder)} is {size[0]} x {size[1]} pixels (height x width), but "
                f"{paths[0].relative_to(folder)} is {height} x {width}; --resize {height}x{width} makes them one size."
            )
    return height, width
