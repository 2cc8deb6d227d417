"""NumPy's npy format: one array ``(rows, *row_shape)``.

The header is matched against a grammar and not evaluated, objects are never unpickled, and nothing is allocated
because of what a header claims.
"""

import math
import re
from typing import Final

import numpy as np

from service.codecs.answers import Answer
from service.codecs.rows import (
    Limits,
    check_numbers,
    check_row_count,
    rows_from_arrays,
    shape_words,
    to_float32,
)
from service.errors import InvalidRows, MalformedInput, NotAcceptable, RowProblem, UnsupportedMediaType
from service.schemas import Array, InputSchema, Rows

_MAGIC: Final = b"\x93NUMPY"
_LENGTH_BYTES: Final = {1: 2, 2: 4, 3: 4}
_MAX_HEADER_BYTES: Final = 4096
_ENTRY: Final = r"""['"](?:descr['"]\s*:\s*['"]%s['"]|fortran_order['"]\s*:\s*%s|shape['"]\s*:\s*\(%s\))"""
_ANY_ENTRY: Final = _ENTRY % (r"[^'\"\s]{1,8}", r"(?:True|False)", r"[0-9L,\s]{0,512}")
_HEADER: Final = re.compile(rf"\{{\s*{_ANY_ENTRY}(?:\s*,\s*{_ANY_ENTRY}){{2}}\s*(?:,\s*)?\}}\s*", re.ASCII)
_DESCR: Final = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?)(b1|[iu][1248]|f[248])['"]""", re.ASCII)
_OTHER_DESCR: Final = re.compile(r"""['"]descr['"]""")
_ORDER: Final = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE: Final = re.compile(r"""['"]shape['"]\s*:\s*\(([^)]*)\)""")
_SIZES: Final = re.compile(r"\s*(?:[0-9]{1,18}L?\s*(?:,\s*[0-9]{1,18}L?\s*){0,31},?)?\s*", re.ASCII)
_NOT_NPY: Final = "The body is not an npy array."


def decode_npy(body: bytes | memoryview, schema: InputSchema, *, limits: Limits = Limits()) -> Rows:  # noqa: B008 (frozen)
    """Rows of an npy body of any real dtype, byte order and memory order; float32 is not copied.

    Raises:
        MalformedInput: not npy, not real numbers, or of another size than its header says.
        InvalidRows: an array, but not rows of this model.
        TooLarge: too many rows or numbers.
        UnsupportedMediaType: the model has columns that are not numbers.
    """
    if not schema.arrays_only:
        raise UnsupportedMediaType("npy cannot carry the categories or times of this model; send JSON or Arrow.")
    dtype, fortran_order, shape, start = _parse_header(body)
    count = math.prod(shape)
    if count * dtype.itemsize != len(body) - start:
        raise MalformedInput("The size of the npy body is not that of its header.")
    _check_shape(shape, schema, limits)
    values: Array = np.frombuffer(body, dtype=dtype, count=count, offset=start)
    if fortran_order:
        values = values.reshape(shape, order="F")
    numbers = np.require(to_float32(values), dtype=np.float32, requirements=["C", "A"]).reshape(shape)
    check_numbers(numbers, schema)
    return rows_from_arrays(numbers)


def npy_begins(head: bytes) -> int:
    """Where the array begins in an npy body that begins with ``head``: a guess, 0 where it cannot be told."""
    length_bytes = _LENGTH_BYTES.get(head[6], 0) if len(head) > 12 else 0
    return 8 + length_bytes + int.from_bytes(head[8 : 8 + length_bytes], "little") if length_bytes else 0


def _parse_header(body: bytes | memoryview) -> tuple[np.dtype[np.generic], bool, tuple[int, ...], int]:
    if len(body) < 10 or body[:6] != _MAGIC or body[6] not in _LENGTH_BYTES:
        raise MalformedInput(_NOT_NPY)
    start = 8 + _LENGTH_BYTES[body[6]]
    end = start + int.from_bytes(body[8:start], "little")
    if end - start > _MAX_HEADER_BYTES or end > len(body):
        raise MalformedInput(_NOT_NPY)
    header = bytes(body[start:end]).decode("latin-1")
    descr, order, sizes = _DESCR.findall(header), _ORDER.findall(header), _SHAPE.findall(header)
    if not _HEADER.fullmatch(header) or len(_OTHER_DESCR.findall(header)) != 1 or len(order) != 1 or len(sizes) != 1:
        raise MalformedInput(_NOT_NPY)
    if not descr:
        raise MalformedInput("The npy array must be of booleans, integers or floats.")
    if not _SIZES.fullmatch(sizes[0]):
        raise MalformedInput(_NOT_NPY)
    shape = tuple(int(size.strip().rstrip("L")) for size in sizes[0].split(",") if size.strip())
    return np.dtype("".join(descr[0])), order[0] == "True", shape, end


def _check_shape(shape: tuple[int, ...], schema: InputSchema, limits: Limits) -> None:
    if len(shape) != len(schema.row_shape) + 1 or shape[1:] != schema.row_shape:
        raise InvalidRows([RowProblem(None, None, shape_words(schema).replace("must be", "each row must be", 1))])
    check_row_count(shape[0], schema, limits)


def encode_npy(answer: Answer) -> bytes:
    """The first array of the operation, without pickles.

    Raises:
        NotAcceptable: the answer has columns that are not numbers.
    """
    if not answer.schema.arrays_only and answer.has_named_columns(answer.operation.results[0][1]):
        raise NotAcceptable("npy cannot carry the categories or times of this model; ask for JSON or Arrow.")
    array = np.ascontiguousarray(answer.results[answer.operation.results[0][1]])
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    padding = -(len(_MAGIC) + 4 + len(header) + 1) % 64
    text = (header + " " * padding + "\n").encode("latin-1")
    return b"".join((_MAGIC, b"\x01\x00", len(text).to_bytes(2, "little"), text, array.tobytes()))
