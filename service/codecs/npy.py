"""NumPy's npy format: one array ``(rows, *row_shape)``.

numpy parses the header, which may hold literals only; objects are never unpickled, and nothing is allocated because of
what a header claims.
"""

import math
from ast import literal_eval
from functools import lru_cache
from io import BytesIO
from tokenize import TokenError
from typing import Any, Final

import numpy as np

from service.codecs.answers import Answer
from service.codecs.rows import (
    Limits,
    check_numbers,
    check_row_count,
    shape_words,
    to_float32,
)
from service.errors import InvalidRows, MalformedInput, NotAcceptable, RowProblem, UnsupportedMediaType
from service.schemas import INSTANCES, Array, InputSchema, Rows

_LENGTH_BYTES: Final = {1: 2, 2: 4, 3: 4}
"""Bytes of the length of a header, by format version. Versions 2 and 3 differ in how names of fields are written."""
_MAX_HEADER_BYTES: Final = 4096
_MAX_SIZE: Final = 2**62
_REAL: Final = frozenset(
    np.dtype(f"{order}{kind}")
    for order in "<>"
    for kind in ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
)
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
    start = npy_begins(body)
    if not 0 < start <= min(len(body), _MAX_HEADER_BYTES):
        raise MalformedInput(_NOT_NPY)
    shape, fortran_order, dtype = _parse_header(bytes(body[:start]))
    count = math.prod(shape)
    if count * dtype.itemsize != len(body) - start:
        raise MalformedInput("The size of the npy body is not that of its header.")
    if len(shape) != len(schema.row_shape) + 1 or shape[1:] != schema.row_shape:
        raise InvalidRows([RowProblem(None, None, shape_words(schema).replace("must be", "each row must be", 1))])
    check_row_count(shape[0], schema, limits)
    values: Array = np.frombuffer(body, dtype=dtype, count=count, offset=start)
    if fortran_order:
        values = values.reshape(shape, order="F")
    numbers = np.require(to_float32(values), dtype=np.float32, requirements=["C", "A"]).reshape(shape)
    check_numbers(numbers, schema)
    return {INSTANCES: numbers}


def npy_begins(head: bytes | memoryview) -> int:
    """The offset of the array in an npy body that begins with ``head``; 0 if it is none."""
    length_bytes = _LENGTH_BYTES.get(head[6], 0) if len(head) > 12 and head[:6] == np.lib.format.MAGIC_PREFIX else 0
    return 8 + length_bytes + int.from_bytes(head[8 : 8 + length_bytes], "little") if length_bytes else 0


@lru_cache(maxsize=256)
def _parse_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, memory order and dtype that a header says; callers send the same one again and again."""
    file = BytesIO(head)
    try:
        literal_eval(head[8 + _LENGTH_BYTES[head[6]] :].decode("latin-1"))  # else numpy tries it as one of Python 2
        version, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, TypeError, MemoryError, RecursionError, SyntaxError, OverflowError, TokenError):
        raise MalformedInput(_NOT_NPY) from None
    if dtype not in _REAL:
        raise MalformedInput("The npy array must be of booleans, integers or floats.")
    if any(not 0 <= size < _MAX_SIZE for size in shape):
        raise MalformedInput(_NOT_NPY)
    return shape, fortran_order, dtype


def encode_npy(answer: Answer) -> bytes:
    """The first array of the operation, without pickles.

    Raises:
        NotAcceptable: the answer has columns that are not numbers.
    """
    if not answer.schema.arrays_only and answer.has_named_columns(answer.operation.results[0][1]):
        raise NotAcceptable("npy cannot carry the categories or times of this model; ask for JSON or Arrow.")
    array = np.ascontiguousarray(answer.results[answer.operation.results[0][1]])
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return b"".join((head.getvalue(), array.data))
