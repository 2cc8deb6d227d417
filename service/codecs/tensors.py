"""Typed tensors, as the TensorFlow Serving and Open Inference protocols send them, to rows and back.

Both protocols speak of the inputs of a model's signatures: ``instances``, and where the model has such columns
``categories`` and ``timestamps`` (``service.schemas``). Numbers of any type become float32, as in every encoding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from service.codecs.rows import (
    EARLIEST_MS,
    LATEST_MS,
    MISSING,
    NOT_A_TIME,
    NOT_SECONDS,
    NOT_UNICODE,
    Limits,
    check_numbers,
    check_row_count,
    invalid_rows,
    probably_seconds,
    to_float32,
)
from service.errors import InvalidRows, MalformedInput, RowProblem
from service.schemas import CATEGORIES, INSTANCES, MISSING_TIMESTAMP, TIMESTAMPS, Array, InputSchema, Rows, TensorInput

BYTES: Final = "BYTES"
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # its bits; numpy has no such type
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatypes of the Open Inference Protocol whose elements have one size."""
DATATYPES: Final = frozenset((*DTYPES, BYTES))

_NAMES: Final = {"bool": "BOOL", "string": BYTES, "float16": "FP16", "bfloat16": "BF16"}
_INTEGERS: Final = frozenset(name for name in DTYPES if "INT" in name)
_ACCEPTED: Final[Mapping[str, frozenset[str]]] = {
    INSTANCES: frozenset(DTYPES),
    CATEGORIES: frozenset((BYTES,)),
    TIMESTAMPS: _INTEGERS - {"UINT64"},
}
_JSON_TYPES: Final[Mapping[str, set[type]]] = {"F": {int, float, type(None)}, "I": {int}, "U": {int}, "B": {bool}}
_LENGTH: Final = 4
_MAX_SHOWN: Final = 64
_MAX_DIMENSIONS: Final = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input of a request. Strings are objects: the UTF-8 of each."""

    name: str
    datatype: str
    values: Array
    """In the shape that the request gives."""


def datatype_of(dtype: str) -> str:
    """A numpy or TensorFlow dtype by its name in the Open Inference Protocol: ``float32`` is ``FP32``."""
    known = _NAMES.get(dtype)
    if known is not None:
        return known
    kind = np.dtype(dtype)
    return f"FP{8 * kind.itemsize}" if kind.kind == "f" else kind.name.upper()


def datatype_of_array(array: Array) -> str:
    return BYTES if array.dtype.kind in "OSU" else datatype_of(array.dtype.name)


def shown(name: object) -> str:
    """A caller's name for something as the protocols want it repeated: printable ASCII, and no more than that."""
    if type(name) is str and len(name) <= _MAX_SHOWN and name.isascii() and name.isprintable():
        return name
    text = str(name)[:_MAX_SHOWN]
    return "".join(character if " " <= character <= "~" else "?" for character in text)


# --- rows -----------------------------------------------------------------------------------------------------------


def rows_from_tensors(tensors: Sequence[Tensor], schema: InputSchema, *, model: str, limits: Limits) -> Rows:
    """Check names, types, shapes and values of the inputs of a request.

    Raises:
        InvalidRows: they are not inputs of this model, or not rows of it.
        TooLarge: too many rows or numbers.
    """
    wanted = {known.name: known for known in schema.inputs}
    given = {tensor.name: tensor for tensor in tensors}
    if len(tensors) != len(wanted) or given.keys() != wanted.keys():
        _refuse_names([tensor.name for tensor in tensors], list(wanted), model)
    for name, known in wanted.items():
        _check_tensor(given[name], known, model)
    counts = {len(tensor.values) for tensor in tensors}
    if len(counts) > 1:
        raise InvalidRows([], f"the inputs of model '{model}' must all have the same first dimension")
    check_row_count(counts.pop(), schema, limits)
    return {name: _CHECKED[name](given[name], schema) for name in wanted}


def _refuse_names(given: Sequence[str], wanted: Sequence[str], model: str) -> NoReturn:
    for name in given:
        if name not in wanted:
            raise InvalidRows([], f"unexpected inference input '{shown(name)}' for model '{model}'")
    missing = [name for name in wanted if name not in given]
    lacks = f"; missing input '{missing[0]}'" if missing else ""
    raise InvalidRows([], f"expected {len(wanted)} inputs but got {len(given)} inputs for model '{model}'{lacks}")


def _check_tensor(tensor: Tensor, known: TensorInput, model: str) -> None:
    if tensor.datatype not in _ACCEPTED[known.name]:
        raise InvalidRows(
            [],
            f"inference input '{known.name}' data-type is '{shown(tensor.datatype)}', "
            f"but model '{model}' expects '{known.datatype}'",
        )
    shape = tensor.values.shape
    if len(shape) != len(known.row_shape) + 1 or shape[1:] != known.row_shape:
        raise InvalidRows(
            [],
            f"unexpected shape for input '{known.name}' for model '{model}'. "
            f"Expected {_listed(known.shape)}, got {_listed(shape)}",
        )


def _listed(shape: Sequence[int]) -> str:
    return f"[{','.join(str(size) for size in shape[:8])}{',…' if len(shape) > 8 else ''}]"


def _numbers(tensor: Tensor, schema: InputSchema) -> NDArray[np.float32]:
    values = tensor.values
    if tensor.datatype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    numbers = np.require(to_float32(values), dtype=np.float32, requirements=["C", "A"])
    check_numbers(numbers, schema)
    return numbers


def _labels(tensor: Tensor, schema: InputSchema) -> Array:
    """Labels as UTF-8; a missing one is empty."""
    problems = []
    for (row, at), label in np.ndenumerate(tensor.values):
        column = schema.categories[at]
        if not label and not column.may_be_missing:
            problems.append(RowProblem(row, column.name, MISSING))
        elif not _is_utf8(label):
            problems.append(RowProblem(row, column.name, NOT_UNICODE))
    if problems:
        raise invalid_rows(problems)
    return tensor.values


def _is_utf8(label: bytes) -> bool:
    try:
        label.decode()
    except UnicodeDecodeError:
        return False
    return True


def _times(tensor: Tensor, schema: InputSchema) -> Array:
    """Milliseconds since 1970; a missing time is the smallest int64."""
    times = np.require(tensor.values, dtype=np.int64, requirements=["C", "A"])
    missing = times == MISSING_TIMESTAMP
    refused = missing & ~np.array([column.may_be_missing for column in schema.timestamps], dtype=np.bool_)
    seconds = np.stack([probably_seconds(times[:, at], c) for at, c in enumerate(schema.timestamps)], axis=1)
    bad = refused | seconds | (~missing & ((times < EARLIEST_MS) | (times > LATEST_MS)))
    if bad.any():
        words = np.where(missing, MISSING, np.where(seconds, NOT_SECONDS, NOT_A_TIME))
        raise invalid_rows(
            RowProblem(int(row), schema.timestamps[at].name, str(words[row, at])) for row, at in np.argwhere(bad)
        )
    return times


_CHECKED: Final = {INSTANCES: _numbers, CATEGORIES: _labels, TIMESTAMPS: _times}


# --- bytes ----------------------------------------------------------------------------------------------------------


def array_from_bytes(raw: bytes | memoryview, datatype: str, shape: tuple[int, ...], *, name: str, model: str) -> Array:
    """A tensor of little-endian bytes, row by row, without copying it. Strings: uint32 length and bytes of each.

    Raises:
        MalformedInput: the bytes are not as many as the shape says.
    """
    if datatype == BYTES:
        return shaped(strings_from_bytes(raw, name=name, model=model), shape, name=name, model=model)
    expected = math.prod(shape) * DTYPES[datatype].itemsize
    if expected != len(raw):
        raise MalformedInput(
            f"input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {len(raw)}"
        )
    return np.frombuffer(raw, dtype=DTYPES[datatype]).reshape(shape)


def strings_from_bytes(raw: bytes | memoryview, *, name: str, model: str) -> Array:
    """Flat strings, each behind its length."""
    found, at, end = [], 0, len(raw)
    while at < end:
        start = at + _LENGTH
        at = start + int.from_bytes(raw[at:start], "little")
        if at > end or start > end:
            raise MalformedInput(f"incomplete string data for input '{name}' for model '{model}'")
        found.append(bytes(raw[start:at]))
    return objects(found)


def objects(values: Sequence[Any]) -> Array:
    """A flat array of Python objects."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def shaped(flat: Array, shape: tuple[int, ...], *, name: str, model: str) -> Array:
    """
    Raises:
        MalformedInput: not as many elements as the shape says.
    """
    if math.prod(shape) != flat.size:
        raise MalformedInput(
            f"expected {math.prod(shape)} elements for input '{name}' for model '{model}', got {flat.size}"
        )
    return flat.reshape(shape)


def bytes_of_array(array: Array) -> bytes | memoryview:
    """The bytes that ``array_from_bytes`` reads; no copy where the array is contiguous."""
    if array.dtype.kind in "OSU":
        parts = [_utf8(value) for value in array.reshape(-1).tolist()]
        return b"".join(chain.from_iterable((len(part).to_bytes(_LENGTH, "little"), part) for part in parts))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _utf8(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def checked_shape(shape: Any, name: str) -> tuple[int, ...]:
    """
    Raises:
        MalformedInput: not a shape: whole numbers that are not negative.
    """
    fits = isinstance(shape, Sequence) and not isinstance(shape, str | bytes) and len(shape) <= _MAX_DIMENSIONS
    if not fits or any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise MalformedInput(f"the shape of input '{name}' must be an array of non-negative whole numbers")
    return tuple(shape)


# --- JSON -----------------------------------------------------------------------------------------------------------


def array_from_json(
    values: Any, datatype: str, shape: tuple[int, ...] | None = None, *, name: str, model: str
) -> Array:
    """Flat or nested JSON values as a tensor; without ``shape`` in the shape that they have.

    Raises:
        MalformedInput: ragged, of another number, or not of this type.
    """
    flat, nesting = _flattened(values, name)
    array = _typed(flat, datatype, name)
    if shape is not None:
        return shaped(array, shape, name=name, model=model)
    if math.prod(nesting) != array.size:
        raise MalformedInput(f"the values of input '{name}' must be nested arrays of equal lengths")
    return array.reshape(nesting)


def _flattened(values: Any, name: str) -> tuple[Sequence[Any], tuple[int, ...]]:
    """All leaves in order, and the lengths at each level where they are all equal."""
    if type(values) is not list:
        raise MalformedInput(f"the values of input '{name}' must be an array")
    level, nesting = values, [len(values)]
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list}:
            raise MalformedInput(f"the values of input '{name}' must be nested arrays of equal lengths")
        lengths = set(map(len, level))
        nesting.append(lengths.pop() if len(lengths) == 1 else -1)
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return level, tuple(nesting)


def _typed(flat: Sequence[Any], datatype: str, name: str) -> Array:
    wrong = MalformedInput(f"the values of input '{name}' must be of type {datatype}")
    if datatype in ("FP16", "BF16"):
        raise MalformedInput(f"JSON cannot carry {datatype} tensors: send input '{name}' as binary")
    allowed = {str} if datatype == BYTES else _JSON_TYPES["F" if datatype.startswith("FP") else datatype[0]]
    if not allowed.issuperset(map(type, flat)):
        raise wrong
    try:
        if datatype == BYTES:
            return objects([value.encode() for value in flat])
        return np.array(flat, dtype=np.float64 if datatype.startswith("FP") else DTYPES[datatype])
    except (OverflowError, UnicodeEncodeError):
        raise wrong from None


def json_values(array: Array) -> Any:
    """An array in the form that orjson writes; strings are read as UTF-8."""
    if array.dtype.kind in "OSU":
        texts = [_utf8(value).decode(errors="replace") for value in array.reshape(-1).tolist()]
        return objects(texts).reshape(array.shape).tolist()
    return np.ascontiguousarray(array)
