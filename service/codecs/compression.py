"""Content codings: gzip, deflate (zlib) and zstd, in pieces and never beyond a limit."""

import sys
import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from service.codecs.media_types import parse_preferences
from service.codecs.rows import aligned_memory
from service.errors import MalformedInput, TooLarge, UnsupportedMediaType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REQUEST_ENCODINGS: Final = ("gzip", "deflate", "zstd", "identity")
ANSWER_ENCODINGS: Final = ("zstd", "gzip")
_ALIASES: Final = {"x-gzip": "gzip", "": "identity"}
_GZIP_WBITS: Final = 31
_ZLIB_WBITS: Final = 15
_ZLIB_BEGINS: Final = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
PIECE_BYTES: Final = 256 * 2**10
_SLICE_BYTES: Final = 64 * 2**10
_STEP_PIECES: Final = 4
_MAX_MEMBERS: Final = 4096
_MAX_ZSTD_WINDOW_LOG: Final = 23
"""8 MiB, which RFC 9659 lets every HTTP receiver have as its limit."""
_GZIP_LEVEL: Final = 1
_ZSTD_LEVEL: Final = 1
_NOT_COMPRESSED: Final = "The body is not compressed as its Content-Encoding says."
_TRUNCATED: Final = "The compressed body ends too early."


class Decompressor:
    """Decompress a body piece by piece. Not thread-safe.

    Raises:
        UnsupportedMediaType: the encoding is unknown here.
    """

    def __init__(self, encoding: str | None, max_bytes: int) -> None:
        name = (encoding or "").strip().lower()
        name = _ALIASES.get(name, name)
        if name not in REQUEST_ENCODINGS:
            raise UnsupportedMediaType(f"Content-Encoding must be one of {', '.join(REQUEST_ENCODINGS)}.")
        self._encoding = name
        self._max_bytes = self._left = max_bytes
        self._members = 0
        self._inside = False
        self._stream: Any = None

    def pieces(self, chunk: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """The next decompressed bytes, at most ``PIECE_BYTES`` each time. Exhaust the iterator before the next call.

        Raises:
            TooLarge: all that came out would be more than ``max_bytes``.
            MalformedInput: it is not compressed that way.
        """
        # Slices bound what is copied again and again: behind each of many tiny members, or each piece.
        for at in range(0, len(chunk), _SLICE_BYTES):
            piece = chunk[at : at + _SLICE_BYTES]
            if self._encoding == "identity":
                self._count(piece)
                yield piece
            else:
                yield from self._pieces_of_slice(piece)

    def finish(self) -> None:
        """Nothing more comes: check that the end was reached.

        Raises:
            MalformedInput: the body is truncated.
        """
        if self._encoding != "identity" and (self._inside or self._members == 0):
            raise MalformedInput(_TRUNCATED)

    def _pieces_of_slice(self, rest: bytes | memoryview) -> Iterator[bytes]:
        is_held_back = False
        while rest or is_held_back:
            if not self._inside:
                self._begin_member()
            try:
                piece = self._stream.decompress(rest, PIECE_BYTES)
            except (zlib.error, zstd.ZstdError, EOFError):
                raise MalformedInput(_NOT_COMPRESSED) from None
            if self._stream.eof:
                self._inside = is_held_back = False
                rest = self._stream.unused_data
            else:
                is_held_back = len(piece) == PIECE_BYTES
                rest = b"" if self._encoding == "zstd" else self._stream.unconsumed_tail
            self._count(piece)
            yield piece

    def _begin_member(self) -> None:
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise MalformedInput("The compressed body has too many parts.")
        self._inside = True
        if self._encoding == "zstd":
            options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _MAX_ZSTD_WINDOW_LOG}
            self._stream = zstd.ZstdDecompressor(options=options)
        else:
            self._stream = zlib.decompressobj(_GZIP_WBITS if self._encoding == "gzip" else _ZLIB_WBITS)

    def _count(self, piece: bytes | memoryview) -> None:
        self._left -= len(piece)
        if self._left < 0:
            raise TooLarge(f"The decompressed body may have at most {self._max_bytes} bytes.")


class Decompression:
    """A whole body that is decompressed step by step, each a bounded piece of work. Not thread-safe.

    Attributes:
        content: what came out until now.
        is_complete: that is all.

    Raises:
        UnsupportedMediaType: the encoding is unknown here.
    """

    def __init__(self, body: bytes | memoryview, encoding: str | None, max_bytes: int) -> None:
        self.content: bytes | memoryview = b""
        self.is_complete = False
        self._decompressor = Decompressor(encoding, max_bytes)
        self._pieces = self._decompressor.pieces(body)
        self._max_bytes = max_bytes
        self._memory: memoryview | None = None

    def step(self) -> None:
        """Decompress up to a MiB more.

        Raises:
            TooLarge: it is more than ``max_bytes``.
            MalformedInput: it is not compressed that way, or truncated.
        """
        pieces = list(islice(self._pieces, _STEP_PIECES))
        self.is_complete = len(pieces) < _STEP_PIECES
        if self.is_complete:
            self._decompressor.finish()
        if not self.content:
            self.content = b"".join(pieces)
            return
        if self._memory is None:
            self._memory = aligned_memory(self._max_bytes).data
            self._memory[: len(self.content)] = self.content
        for piece in pieces:
            size = len(self.content)
            self._memory[size : size + len(piece)] = piece
            self.content = self._memory[: size + len(piece)]


class Compressor:
    """Compress an answer piece by piece, each piece readable at once by the receiver. ``encoding``: gzip or zstd."""

    def __init__(self, encoding: str) -> None:
        self._zstd = encoding == "zstd"
        self._stream: Any = (
            zstd.ZstdCompressor(level=_ZSTD_LEVEL) if self._zstd else zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WBITS)
        )

    def feed(self, chunk: bytes) -> bytes:
        if self._zstd:
            return bytes(self._stream.compress(chunk, mode=zstd.ZstdCompressor.FLUSH_BLOCK))
        return bytes(self._stream.compress(chunk) + self._stream.flush(zlib.Z_SYNC_FLUSH))

    def finish(self) -> bytes:
        return bytes(self._stream.flush())


def compression_of(message: bytes) -> str | None:
    """The coding of a compressed protobuf message, by its first bytes; no message that is not compressed has them."""
    if message.startswith(b"\x1f\x8b"):
        return "gzip"
    return "deflate" if message[:2] in _ZLIB_BEGINS else None


def compress(body: bytes, encoding: str) -> bytes:
    """A whole answer, fast rather than small. ``encoding``: gzip or zstd."""
    if encoding == "zstd":
        return bytes(zstd.compress(body, level=_ZSTD_LEVEL))
    stream = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WBITS)
    return stream.compress(body) + stream.flush()


@lru_cache(maxsize=256)
def choose_encoding(accept_encoding: str | None) -> str | None:
    """The best of zstd and gzip that an Accept-Encoding header allows; None to send the answer as it is."""
    qualities = {_ALIASES.get(name, name): quality for name, quality in parse_preferences(accept_encoding or "")}
    fallback = qualities.get("*", 0.0)
    best = max(ANSWER_ENCODINGS, key=lambda name: qualities.get(name, fallback))  # the first of equals
    quality = qualities.get(best, fallback)
    return best if quality > 0 and quality >= qualities.get("identity", 0.0) else None
