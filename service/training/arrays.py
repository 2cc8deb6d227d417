"""Arrays without column names, from NPY, NPZ and IDX files, and the bundled digits."""

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import Array, InputSchema

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
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as stream:
            zeros, code, dimensions = stream.read(2), *stream.read(2)
            if zeros != b"\0\0" or code not in IDX_TYPES:
                raise DataError("The file is not in the IDX format.")
            shape = tuple(int(size) for size in np.frombuffer(stream.read(4 * dimensions), ">u4"))
            content = stream.read()
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


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
