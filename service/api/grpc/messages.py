"""Message classes made of ``protos/``, and the few bytes of protobuf's wire format that are written by hand.

``descriptors.pb`` is what protoc makes of the .proto files. Its messages have the names that
TensorFlow, Triton's client and others register too, in a pool that a process has one of; ours stay in a pool of their
own, so that all of them can be in one process.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from service.errors import MalformedInput, TooLarge

DESCRIPTORS: Final = "descriptors.pb"
_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2
_FIXED: Final = {1: 8, 5: 4}
_MAX_VARINT: Final = 10
_FIELD_BYTES: Final = 128
"""What a short field takes when it is parsed and its value is an element of an array."""
_MIN_FIELD_BYTES: Final = 2
_MAX_DEPTH: Final = 100
"""As protobuf has it."""
_COUNTED_BYTES: Final = 2**20
_MAX_SPLIT_FIELDS: Final = 2**14
_PACKED_BYTES: Final = {
    FieldDescriptor.CPPTYPE_INT32: 4,
    FieldDescriptor.CPPTYPE_UINT32: 4,
    FieldDescriptor.CPPTYPE_ENUM: 4,
    FieldDescriptor.CPPTYPE_INT64: 8,
    FieldDescriptor.CPPTYPE_UINT64: 8,
    FieldDescriptor.CPPTYPE_BOOL: 1,
}
"""Types whose packed values may be one byte each on the wire: what a value takes in memory."""
_NOT_A_MESSAGE: Final = "The request is not a message of this method."


@cache
def descriptor_pool() -> DescriptorPool:
    pool = DescriptorPool()
    described = FileDescriptorSet.FromString((files("service.api.grpc") / DESCRIPTORS).read_bytes())
    for file in described.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@cache
def message_class(full_name: str) -> Any:
    """The class of a message by its full name, such as ``inference.ModelInferRequest``."""
    return GetMessageClass(descriptor_pool().FindMessageTypeByName(full_name))


def parse(full_name: str, content: bytes | memoryview) -> Any:
    """
    Raises:
        MalformedInput: the bytes are not such a message.
    """
    try:
        return message_class(full_name).FromString(content)
    except DecodeError:
        raise MalformedInput(_NOT_A_MESSAGE) from None


def check_parsed_size(full_name: str, content: bytes | memoryview, most: int) -> None:
    """Check that the fields of a message take about ``most`` bytes when they are parsed, which may be 64 times its own.

    Raises:
        MalformedInput: the bytes are not a message.
        TooLarge: they take more.
    """
    if len(content) * (_FIELD_BYTES // _MIN_FIELD_BYTES) <= most:
        return
    size, inside = 0, [(_costs(full_name), 0, len(content))]
    while inside:
        costs, at, end = inside.pop()
        while at < end:
            tag, first = content[at], at + 2
            if tag < 0x80 and not tag & 5 and first <= end and content[at + 1] < 0x80:
                # As below, for short fields, of which there may be many.
                at = first + content[at + 1] if tag & _LENGTH_DELIMITED else first
            else:
                tag, at = _read_varint(content, at)
                first, at = _value(content, at, tag & 7)
            size += _FIELD_BYTES
            cost = costs.get(tag)
            if type(cost) is int:
                size += cost * _varints(content, first, at)
            if size > most:
                raise TooLarge(f"The message has more fields and values than fit into {most} bytes.")
            if type(cost) is str and at > first:
                inside.append((costs, at, end))
                costs, at, end = _costs(cost), first, at
            if len(inside) > _MAX_DEPTH:
                raise MalformedInput(_NOT_A_MESSAGE)
        if at > end:
            raise MalformedInput(_NOT_A_MESSAGE)


def _varints(content: bytes | memoryview, at: int, end: int) -> int:
    """The number of packed values, a part after the other: an array of comparisons is as large as they are."""
    values = np.frombuffer(content, np.uint8, end - at, at)
    parts = (values[part : part + _COUNTED_BYTES] for part in range(0, len(values), _COUNTED_BYTES))
    return sum(int(np.count_nonzero(part < 0x80)) for part in parts)


@cache
def _costs(full_name: str) -> Mapping[int, str | int]:
    """Fields of a message that need a look, by tag: the name of their message, or bytes of a packed value."""
    found: dict[int, str | int] = {}
    for described in descriptor_pool().FindMessageTypeByName(full_name).fields:
        tag = described.number << 3 | _LENGTH_DELIMITED
        if described.message_type is not None:
            found[tag] = described.message_type.full_name
        elif described.cpp_type in _PACKED_BYTES:
            found[tag] = _PACKED_BYTES[described.cpp_type]
    return found


def split_field(content: bytes | memoryview, number: int) -> tuple[bytes, list[memoryview]]:
    """A message without one of its fields of bytes, and the values of that field, which are not copied.

    Raises:
        MalformedInput: the bytes are not a message.
        TooLarge: it has too many fields.
    """
    view, at, rest, values = memoryview(content), 0, [], []
    while at < len(content):
        start = at
        tag, at = _read_varint(content, at)
        first, at = _value(content, at, tag & 7)
        if tag == number << 3 | _LENGTH_DELIMITED:
            values.append(view[first:at])
        else:
            rest.append(view[start:at])
        if len(values) + len(rest) > _MAX_SPLIT_FIELDS:
            raise TooLarge(f"The message may have at most {_MAX_SPLIT_FIELDS} inputs, outputs and parameters.")
    return b"".join(rest), values


def _value(content: bytes | memoryview, at: int, wire_type: int) -> tuple[int, int]:
    """Where the value of a field begins and ends."""
    if wire_type == _VARINT:
        end = _read_varint(content, at)[1]
    elif wire_type == _LENGTH_DELIMITED:
        length, at = _read_varint(content, at)
        end = at + length
    else:
        end = at + _FIXED.get(wire_type, len(content) + 1)
    if end > len(content):
        raise MalformedInput(_NOT_A_MESSAGE)
    return at, end


def _read_varint(content: bytes | memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    for byte in content[at : at + _MAX_VARINT]:
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at
    raise MalformedInput(_NOT_A_MESSAGE)


def message_bytes(message: Message, parts: Iterable[bytes | memoryview] = ()) -> bytes:
    """A message, and behind it fields that were written by hand: arrays go in with one copy and no parsing."""
    return b"".join([message.SerializeToString(), *parts])


def field(number: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """A field of bytes, text, a message or packed numbers: tag, length, and the parts of its content."""
    tag = number << 3 | _LENGTH_DELIMITED
    return [_varint(tag), _varint(sum(map(len, parts))), *parts]


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
