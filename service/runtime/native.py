"""SavedModels called through TensorFlow's C API, which the wheel's ``libtensorflow_cc`` exports and keeps stable.

Python's TensorFlow takes seconds to import and 150 MB more, and a process that only calls signatures needs nothing
of it. The functions are those of ``tensorflow/c/c_api.h``, the layout of strings that of
``tensorflow/c/tf_tstring.h``.
"""

import ctypes
import importlib.util
import os
from collections.abc import Iterable, Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from itertools import starmap
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.codecs.tensors import objects
from service.runtime.quiet import silent_stderr
from service.schemas import Results, Rows

LIBRARY: Final = "libtensorflow_cc.so.2"
TAG: Final = b"serve"
STRING: Final = 7
CONFIG: Final = b"\x10\x01\x28" + b"\xff" * 9 + b"\x01"
"""A ConfigProto with ``intra_op_parallelism_threads`` of 1 and ``inter_op_parallelism_threads`` of -1: all work is done
by the thread that calls. Handing parts of a matrix to other threads takes as long as a whole row does."""

DTYPES: Final = {
    number: np.dtype(name)
    for number, name in {
        **{1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", STRING: "O"},
        **{9: "i8", 10: "?", 17: "u2", 19: "f2", 22: "u4", 23: "u8"},
    }.items()
}
"""numpy's types by ``TF_DataType``."""
CODES: Final = {
    3: "InvalidArgument",
    4: "DeadlineExceeded",
    5: "NotFound",
    8: "ResourceExhausted",
    9: "FailedPrecondition",
}
"""Some names by ``TF_Code``."""

SMALL, _LARGE, OFFSET, VIEW = range(4)
"""Kinds of TF_TString: the lowest two bits of the first byte, above which the size stands."""
STRING_WORDS: Final = 3
"""A TF_TString is three words of 8 bytes."""


class NotAvailable(Exception):
    """The library or one of its functions is missing."""


class NativeError(Exception):
    """What TensorFlow reported, after the name of its code: ``InvalidArgument: …``."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = CODES.get(code, str(code))


class _Output(ctypes.Structure):
    _fields_ = (("operation", c_void_p), ("index", c_int))


class _Buffer(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p))


_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "TF_NewStatus": (c_void_p, ()),
    "TF_DeleteStatus": (None, (c_void_p,)),
    "TF_GetCode": (c_int, (c_void_p,)),
    "TF_Message": (c_char_p, (c_void_p,)),
    "TF_NewSessionOptions": (c_void_p, ()),
    "TF_DeleteSessionOptions": (None, (c_void_p,)),
    "TF_SetConfig": (None, (c_void_p, c_char_p, c_size_t, c_void_p)),
    "TF_NewGraph": (c_void_p, ()),
    "TF_DeleteGraph": (None, (c_void_p,)),
    "TF_NewBuffer": (POINTER(_Buffer), ()),
    "TF_DeleteBuffer": (None, (POINTER(_Buffer),)),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        (c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, POINTER(_Buffer), c_void_p),
    ),
    "TF_CloseSession": (None, (c_void_p, c_void_p)),
    "TF_DeleteSession": (None, (c_void_p, c_void_p)),
    "TF_GraphOperationByName": (c_void_p, (c_void_p, c_char_p)),
    "TF_AllocateTensor": (c_void_p, (c_int, POINTER(c_int64), c_int, c_size_t)),
    "TF_DeleteTensor": (None, (c_void_p,)),
    "TF_TensorData": (c_void_p, (c_void_p,)),
    "TF_NumDims": (c_int, (c_void_p,)),
    "TF_Dim": (c_int64, (c_void_p, c_int)),
    "TF_SessionRun": (
        None,
        (
            *(c_void_p, c_void_p),
            *(POINTER(_Output), POINTER(c_void_p), c_int),
            *(POINTER(_Output), POINTER(c_void_p), c_int),
            *(c_void_p, c_int, c_void_p, c_void_p),
        ),
    ),
}


@cache
def library() -> Any:
    """TensorFlow's library, with the types of its functions declared. Takes a quarter of a second the first time.

    Raises:
        NotAvailable: it is not installed here, or lacks a function.
    """
    found = importlib.util.find_spec("tensorflow")
    folders = (found.submodule_search_locations if found else None) or []
    path = next((path for folder in folders if (path := Path(folder, LIBRARY)).exists()), None)
    if path is None:
        raise NotAvailable(f"{LIBRARY} is not installed.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with silent_stderr():  # with global symbols its BoringSSL would replace Python's OpenSSL
            loaded = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NotAvailable(str(error)) from error
    return loaded


class _Status:
    """A TF_Status for one call; what it reports is raised at the end of the block."""

    def __init__(self, tf: Any) -> None:
        self._tf = tf

    def __enter__(self) -> int:
        status: int = self._tf.TF_NewStatus()
        self._status = status
        return status

    def __exit__(self, kind: object, *_: object) -> None:
        code = self._tf.TF_GetCode(self._status)
        message = self._tf.TF_Message(self._status).decode("utf-8", "replace") if code else ""
        self._tf.TF_DeleteStatus(self._status)
        if code and kind is None:
            raise NativeError(code, message)


class _Session:
    """A loaded SavedModel: its graph, variables and tables, which go when nothing uses them."""

    def __init__(self, folder: Path) -> None:
        self._tf = tf = library()
        self._graph = self._session = None
        options, meta_graph = tf.TF_NewSessionOptions(), tf.TF_NewBuffer()
        try:
            with _Status(self._tf) as status:
                tf.TF_SetConfig(options, CONFIG, len(CONFIG), status)
            self._graph = tf.TF_NewGraph()
            with _Status(self._tf) as status:
                self._session = tf.TF_LoadSessionFromSavedModel(
                    options, None, os.fsencode(folder), byref(c_char_p(TAG)), 1, self._graph, meta_graph, status
                )
            found = meta_graph.contents
            self.signatures = dict(_signatures(memoryview(ctypes.string_at(found.data, found.length))))
        finally:
            tf.TF_DeleteBuffer(meta_graph)
            tf.TF_DeleteSessionOptions(options)

    def __del__(self) -> None:
        if self._session is not None:
            with _Status(self._tf) as status:
                self._tf.TF_CloseSession(self._session, status)
            with _Status(self._tf) as status:
                self._tf.TF_DeleteSession(self._session, status)
        if self._graph is not None:
            self._tf.TF_DeleteGraph(self._graph)

    def tensors(self, named: Iterable[tuple[str, int]]) -> Any:
        """Tensors of the graph by name (``dense/Relu:0``) and type, as an array of TF_Output.

        Raises:
            NotAvailable: one has a type or is of a kind (sparse, composite) that is not read here.
        """
        found = []
        for name, number in named:
            operation, _, index = name.rpartition(":")
            handle = self._tf.TF_GraphOperationByName(self._graph, operation.encode())
            if handle is None or number not in DTYPES:
                raise NotAvailable(f"The tensor '{name}' is not a plain one.")
            found.append(_Output(handle, int(index)))
        return (_Output * len(found))(*found)

    def run(self, inputs: Any, values: Any, outputs: Any) -> Any:
        """The tensors that ``outputs`` name, which the caller must delete. Blocks, without the interpreter's lock."""
        results = (c_void_p * len(outputs))()
        with _Status(self._tf) as status:
            self._tf.TF_SessionRun(
                *(self._session, None, inputs, values, len(inputs), outputs, results, len(outputs)),
                *(None, 0, None, status),
            )
        return results


class NativeSignature:
    """One signature of a SavedModel that was loaded by ``load_signatures``. Safe to call from several threads."""

    def __init__(self, session: _Session, signature: "_SignatureDef") -> None:
        self._session = session
        self._inputs = [(name, number) for name, (_, number) in signature.inputs.items()]
        self._outputs = [(name, number) for name, (_, number) in signature.outputs.items()]
        self._fed = session.tensors(signature.inputs.values())
        self._fetched = session.tensors(signature.outputs.values())

    def __call__(self, rows: Rows) -> Results:
        """Arrays with the rows first in, arrays with the rows first out. Blocks.

        Raises:
            NativeError: TensorFlow could not compute them.
        """
        tensors: list[_Tensor] = []
        kept = []  # bytes that strings point to
        for name, number in self._inputs:
            array = rows[name]
            tensors.append(tensor := _Tensor.of(number, array.shape))
            kept.append(tensor.fill(array))
        values = (c_void_p * len(tensors))(*[tensor.handle for tensor in tensors])
        results = [
            _Tensor(handle, number)
            for handle, (_, number) in zip(
                self._session.run(self._fed, values, self._fetched), self._outputs, strict=True
            )
        ]
        return {name: tensor.array() for (name, _), tensor in zip(self._outputs, results, strict=True)}


class _Tensor:
    """A TF_Tensor, deleted when neither this object nor an array that shows its memory is left."""

    __slots__ = ("__array_interface__", "_delete", "_number", "_shape", "handle")

    def __init__(self, handle: int, number: int, shape: tuple[int, ...] | None = None) -> None:
        tf = library()
        self.handle = handle
        self._delete = tf.TF_DeleteTensor
        self._number = number
        self._shape = (
            tuple(tf.TF_Dim(handle, axis) for axis in range(tf.TF_NumDims(handle))) if shape is None else shape
        )

    @classmethod
    def of(cls, number: int, shape: tuple[int, ...]) -> "_Tensor":
        """A tensor with memory of its own, where TensorFlow wants it aligned."""
        size = 8 * STRING_WORDS if number == STRING else DTYPES[number].itemsize
        length = size * int(np.prod(shape, dtype=np.int64))
        handle = library().TF_AllocateTensor(number, (c_int64 * len(shape))(*shape), len(shape), length)
        return cls(handle, number, shape)

    def __del__(self) -> None:
        self._delete(self.handle)

    def _memory(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        if 0 in shape:
            return np.empty(shape, dtype)
        data = library().TF_TensorData(self.handle)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype, "data": (data, False)}
        return np.asarray(self)

    def fill(self, array: NDArray[Any]) -> object:
        """Copy an array of this tensor's shape into it. What is returned must live as long as the tensor is used."""
        if self._number != STRING:
            self._memory(self._shape, DTYPES[self._number].str)[...] = array
            return None
        values = [value if isinstance(value, bytes) else str(value).encode() for value in array.flat]
        content = np.frombuffer(b"".join([*values, b"\0"]), np.uint8)
        sizes = np.fromiter(map(len, values), np.uint64, len(values))
        words = self._memory((len(values), STRING_WORDS), "<u8")
        words[:, 0] = sizes << np.uint64(2) | np.uint64(VIEW)
        words[:, 1] = np.uint64(content.ctypes.data) + np.cumsum(sizes) - sizes
        words[:, 2] = 0
        return content

    def array(self) -> NDArray[Any]:
        """Its values: numbers in its own memory, strings as a copy."""
        if self._number != STRING:
            return self._memory(self._shape, DTYPES[self._number].str)
        strings = starmap(ctypes.string_at, zip(*self._strings(), strict=True))
        return objects(list(strings)).reshape(self._shape)

    def _strings(self) -> tuple[list[int], list[int]]:
        """Address and size of each string."""
        count = int(np.prod(self._shape, dtype=np.int64))
        words = self._memory((count, STRING_WORDS), "<u8")
        own = np.uint64(words.ctypes.data) + np.uint64(8 * STRING_WORDS) * np.arange(count, dtype=np.uint64)
        kinds = words[:, 0] & np.uint64(3)
        small, view = kinds == SMALL, kinds == VIEW
        if np.any(kinds == OFFSET):
            raise NativeError(12, "Strings of a memory-mapped file are not supported.")
        sizes = np.where(small, words[:, 0] & np.uint64(0xFF), words[:, 0]) >> np.uint64(2)
        addresses = np.where(small, own + np.uint64(1), np.where(view, words[:, 1], words[:, 2]))
        return addresses.tolist(), sizes.tolist()


def load_signatures(folder: Path) -> dict[str, NativeSignature]:
    """The signatures of a SavedModel, by name.

    Raises:
        NotAvailable: TensorFlow's library is not installed here, or is another than expected.
        NativeError: it cannot load what is in the folder.
    """
    session = _Session(folder)
    return {name: NativeSignature(session, signature) for name, signature in session.signatures.items()}


# --- the little of a MetaGraphDef that is needed --------------------------------------------------------------------

_Tensors: TypeAlias = dict[str, tuple[str, int]]
"""By name of an input or output: the name of its tensor in the graph, and its TF_DataType."""


class _SignatureDef(NamedTuple):
    inputs: _Tensors
    outputs: _Tensors


_SIGNATURES_FIELD: Final = 5
_INTERNAL: Final = "__saved_model"
"""What names signatures that run when a SavedModel is loaded begins with."""
_INPUTS_FIELD, _OUTPUTS_FIELD = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _signatures(meta_graph: memoryview) -> Iterator[tuple[str, _SignatureDef]]:
    """The signatures of a MetaGraphDef (``tensorflow/core/protobuf/meta_graph.proto``)."""
    for field, entry in _fields(meta_graph):
        if field == _SIGNATURES_FIELD:
            name, signature = _map_entry(entry)
            inputs: _Tensors = {}
            outputs: _Tensors = {}
            for part, value in _fields(signature):
                if part in (_INPUTS_FIELD, _OUTPUTS_FIELD):
                    key, tensor = _map_entry(value)
                    about = dict(_fields(tensor))
                    (inputs if part == _INPUTS_FIELD else outputs)[key] = (
                        str(about.get(1, b""), "utf-8"),
                        about.get(2, 0),
                    )
            if not name.startswith(_INTERNAL):
                yield name, _SignatureDef(inputs, outputs)


def _map_entry(entry: memoryview) -> tuple[str, memoryview]:
    parts = dict(_fields(entry))
    return str(parts[1], "utf-8"), parts.get(2, memoryview(b""))


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Fields of a serialised protobuf message: the number of each, with an integer or a view of bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value: Any
            value, at = _varint(message, at)
        else:
            size = 8 if kind == _FIXED64 else 4
            if kind == _BYTES:
                size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
