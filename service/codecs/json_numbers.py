"""The numbers of a JSON body, handed to numpy without a Python object for each (simdjson).

That they have the shape of rows is proven, or they are given up; nothing is judged here. A large body is read in
pieces of whole rows: what simdjson needs for a piece stays in the processor's cache, where that of the whole body
would be several times its size in fresh memory, and the interpreter is free for other threads between two pieces.
"""

import re
import threading
from functools import cache
from itertools import chain
from typing import Any, Final

import numpy as np
import simdjson
from numpy.typing import NDArray

from service.codecs.memory import aligned_memory
from service.codecs.rows import Limits
from service.schemas import FEW_VALUES, INSTANCES, InputSchema
from service.words import SCORE_OPTIONS

PIECE_BYTES: Final = 2**17
"""Bodies up to this size are read whole; of larger ones, pieces of this size and the rest of a row."""
_MAX_OUTLINE_BYTES: Final = 2**12
_MAX_KEPT_PARSER_BYTES: Final = 2**20
_MAX_FLOAT32: Final = float(np.finfo(np.float32).max)
_SQUARES_OF_FLOAT32: Final = 1e76
"""Numbers whose squares sum to less fit into float32."""

_SCALARS: Final = frozenset((float, int, str, type(None)))

_local = threading.local()


def decode_numbers_fast(
    body: bytes,
    schema: InputSchema,
    limits: Limits,
    *,
    under: tuple[str, ...] = (INSTANCES,),
    beside: tuple[str, ...] = SCORE_OPTIONS,
) -> tuple[NDArray[np.float32], dict[str, Any], str] | None:
    """Float32 numbers ``(rows, *row_shape)`` of a JSON object, the scalars beside them, and the key that they had.

    None where that is not all: the numbers stand under one of the keys ``under``, and each key ``beside`` at most once.
    """
    if not schema.arrays_only or (schema.columns and body.find(b"{", body.find(b"{") + 1) >= 0):
        return None
    # Numbers come flattened. Their nesting is proven by the lengths of all arrays and by there being no other brackets.
    count, more = divmod(body.count(b"[") - 1, schema.arrays_in_row)
    try:
        if more or not 0 < count <= limits.max_rows or 4 * count * schema.width > limits.max_decoded_bytes:
            return None
        document, content = _outline(body)
        if len(document) > 1 + len(beside):
            return None  # looking up each of very many keys takes quadratic time
        keys = list(document.keys())
        (key,) = keys if len(keys) == 1 else [key for key in keys if key in under]
        scalars = {key: document[key] for key in keys if key in beside} if len(keys) > 1 else {}
        if key not in under or len(scalars) + 1 != len(keys) or not _SCALARS.issuperset(map(type, scalars.values())):
            return None
        if content is None:
            numbers = _values_of(document[key], count, schema).astype(np.float32).reshape(count, *schema.row_shape)
        else:
            numbers = _read_pieces(body, content, document[key], count, schema)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None
    has_booleans = not schema.boolean_at or np.isin(numbers[:, schema.boolean_at], (0, 1)).all()
    return (numbers, scalars, key) if has_booleans else None


def _outline(body: bytes) -> tuple[Any, slice | None]:
    """A JSON value; of a large body without the content of its outermost array, with the place of that content.

    The array is empty then. There can be no other: it lies between the first opening and the last closing bracket.

    Raises:
        ValueError: not JSON, or too much of a large body is outside its array.
        RuntimeError: nested too deeply.
    """
    if len(body) <= PIECE_BYTES:
        return _parser_for(len(body)).parse(body), None
    start, stop = body.find(b"[") + 1, body.rfind(b"]")
    if not 0 < start <= stop or start + len(body) - stop > _MAX_OUTLINE_BYTES:
        raise ValueError
    # Not with the kept parser: it is busy as long as the outline is looked at, and needed for the pieces.
    return simdjson.Parser().parse(body[:start] + body[stop:]), slice(start, stop)


def _parser_for(length: int) -> Any:
    # A parser keeps the memory of its largest document and must not be shared by threads.
    if length > _MAX_KEPT_PARSER_BYTES:
        return simdjson.Parser()
    parser = getattr(_local, "parser", None)
    if parser is None:
        parser = _local.parser = simdjson.Parser()
    return parser


def _read_pieces(body: bytes, content: slice, emptied: Any, count: int, schema: InputSchema) -> NDArray[np.float32]:
    """The numbers of an array whose content was left out of ``emptied``."""
    if not isinstance(emptied, simdjson.Array):
        raise TypeError
    numbers = aligned_memory(4 * count * schema.width).view(np.float32).reshape(count, *schema.row_shape)
    row_end, view = _row_end(len(schema.row_shape)), memoryview(body)
    row, start = 0, content.start
    while start <= content.stop:
        found = row_end.search(body, min(start + PIECE_BYTES, content.stop), content.stop)
        stop = found.end() - 1 if found else content.stop
        piece = b"".join((b"[", view[start:stop], b"]"))
        rows = _parser_for(len(piece)).parse(piece)
        end = row + len(rows)
        if not row < end <= count:
            raise ValueError
        numbers[row:end] = _values_of(rows, end - row, schema).reshape(end - row, *schema.row_shape)
        row, start = end, stop + 1
        del rows  # the parser takes the next piece only when nothing is left of this one
    if row != count:
        raise ValueError
    return numbers


def _values_of(rows: Any, count: int, schema: InputSchema) -> NDArray[np.float64]:
    """The values of ``count`` rows of the right shape, flat; all of them fit into float32."""
    if len(rows) != count:
        raise ValueError
    level = [rows]
    for size in schema.row_shape:
        level = list(chain.from_iterable(level))
        if set(map(len, level)) != {size}:
            raise ValueError
    values = np.frombuffer(rows.as_buffer(of_type="d"))
    is_small = len(values) <= FEW_VALUES and np.vdot(values, values) < _SQUARES_OF_FLOAT32
    if not is_small and not (values.min() >= -_MAX_FLOAT32 and values.max() <= _MAX_FLOAT32):
        raise ValueError
    return values


@cache
def _row_end(dimensions: int) -> re.Pattern[bytes]:
    """The closing brackets of a row that another one follows, and the comma between them."""
    return re.compile(rb"\][ \t\r\n]*" * dimensions + b",")
