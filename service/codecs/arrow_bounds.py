"""Bounds of a decoded Arrow IPC stream, read from its metadata before any of it is decoded.

Arrow allocates the length that each compressed buffer claims. Its metadata are flatbuffers; the few fields needed here
are read directly, following the layouts in Arrow's ``format/Message.fbs``.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final

from service.codecs.rows import Limits
from service.errors import MalformedInput, TooLarge

_MAX_MESSAGES: Final = 4096
_HEADER: Final = 2
_DICTIONARY_DATA: Final = 1
_BATCH_LENGTH: Final = 0
_BATCH_BUFFERS: Final = 2
_BATCH_COMPRESSION: Final = 3
_LENGTH_PREFIX: Final = 8
_MESSAGE_PREFIX: Final = struct.Struct("<II")


def arrow_begins(head: bytes) -> int:
    """The offset of the first batch's numbers in a stream that begins with ``head``: a guess, 0 if there is none.

    Behind the schema and the metadata of the batch, each with a marker and its length in front.
    """
    at = 0
    for _ in range(2):
        if len(head) < at + _MESSAGE_PREFIX.size:
            return 0
        at += _MESSAGE_PREFIX.size + _MESSAGE_PREFIX.unpack_from(head, at)[1]
    return at


def check_stream_bounds(body: bytes | memoryview, limits: Limits) -> None:
    """Check the number of messages and rows, and the size that compressed buffers claim.

    Raises:
        TooLarge: over a limit.
        MalformedInput: the metadata cannot be read. ``pyarrow.ArrowException`` and OSError may come too.
    """
    import pyarrow as pa

    rows = claimed = 0
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(pa.py_buffer(body))):
        if number >= _MAX_MESSAGES:
            raise TooLarge(f"An Arrow stream may have at most {_MAX_MESSAGES} messages.")
        if message.type not in ("record batch", "dictionary"):
            continue
        try:
            batch = _Table.root(message.metadata.to_pybytes()).table(_HEADER)
            if message.type == "dictionary":
                batch = batch.table(_DICTIONARY_DATA)
            else:
                rows += max(batch.int64(_BATCH_LENGTH), 0)
            claimed += sum(_claimed_sizes(batch, message.body))
        except (struct.error, IndexError):
            raise MalformedInput("The body is not an Arrow stream.") from None
        if rows > limits.max_rows:
            raise TooLarge(f"A request may have at most {limits.max_rows} rows.")
        if claimed > limits.max_decoded_bytes:
            raise TooLarge(f"The decoded rows may take at most {limits.max_decoded_bytes} bytes.")


def _claimed_sizes(batch: "_Table", body: Any) -> Iterator[int]:
    if not batch.has(_BATCH_COMPRESSION) or body is None:
        return
    for offset, length in batch.int64_pairs(_BATCH_BUFFERS):
        if length >= _LENGTH_PREFIX and 0 <= offset <= body.size - _LENGTH_PREFIX:
            (claimed,) = struct.unpack_from("<q", body, offset)
            yield max(claimed, 0)


class _Table:
    """A flatbuffer table. Wrong offsets raise ``struct.error`` or IndexError."""

    def __init__(self, buffer: bytes, at: int) -> None:
        self._buffer = buffer
        self._at = at
        self._fields = at - self._read("<i", at)

    @classmethod
    def root(cls, buffer: bytes) -> "_Table":
        return cls(buffer, struct.unpack_from("<I", buffer, 0)[0])

    def has(self, field: int) -> bool:
        return self._place(field) is not None

    def table(self, field: int) -> "_Table":
        at = self._required(field)
        return _Table(self._buffer, at + self._read("<I", at))

    def int64(self, field: int) -> int:
        at = self._place(field)
        return 0 if at is None else self._read("<q", at)

    def int64_pairs(self, field: int) -> Iterator[tuple[int, int]]:
        at = self._place(field)
        if at is None:
            return
        vector = at + self._read("<I", at)
        start, size = vector + 4, 16 * self._read("<I", vector)
        if start + size > len(self._buffer):
            raise IndexError(size)
        yield from struct.iter_unpack("<qq", memoryview(self._buffer)[start : start + size])

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._read("<H", self._fields):
            return None
        offset = self._read("<H", self._fields + entry)
        return self._at + offset if offset else None

    def _required(self, field: int) -> int:
        at = self._place(field)
        if at is None:
            raise IndexError(field)
        return at

    def _read(self, kind: str, at: int) -> int:
        if at < 0:
            raise IndexError(at)
        return int(struct.unpack_from(kind, self._buffer, at)[0])
