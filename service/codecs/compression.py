"""Content codings: gzip, deflate (zlib) and zstd, in pieces and never beyond a limit."""

import sys
import zlib
from functools import lru_cache
from typing import Any, Final

from service.codecs.media_types import parse_preferences
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
_SLICE_BYTES: Final = 64 * 2**10
_MAX_MEMBERS: Final = 4096
_MAX_ZSTD_WINDOW_LOG: Final = 23
"""8 MiB, which RFC 9659 lets every HTTP receiver have as its limit."""
_GZIP_LEVEL: Final = 1
_ZSTD_LEVEL: Final = 1
_NOT_COMPRESSED: Final = "The body is not compressed as its Content-Encoding says."
_TRUNCATED: Final = "The compressed body ends too early."


class Decompressor:
    """Decompress a body piece by piece. Not thread-safe.

    ``max_bytes`` bounds all that comes out, or with ``endless``, for a stream of any length, what one piece gives.

    Raises:
        UnsupportedMediaType: the encoding is unknown here.
    """

    def __init__(self, encoding: str | None, max_bytes: int, *, endless: bool = False) -> None:
        name = (encoding or "").strip().lower()
        name = _ALIASES.get(name, name)
        if name not in REQUEST_ENCODINGS:
            raise UnsupportedMediaType(f"Content-Encoding must be one of {', '.join(REQUEST_ENCODINGS)}.")
        self._encoding = name
        self._max_bytes = max_bytes
        self._endless = endless
        self._left = max_bytes
        self._members = 0
        self._inside = False
        self._stream: Any = None

    def feed(self, chunk: bytes) -> bytes:
        """The next decompressed bytes.

        Raises:
            TooLarge: it would be more than ``max_bytes``; no more than that is ever decompressed.
            MalformedInput: it is not compressed that way.
        """
        if self._endless:
            self._left = self._max_bytes
            self._members = min(self._members, 1)
        if self._encoding == "identity":
            return self._counted(chunk)
        # Slices bound what a stream of many tiny members copies again and again.
        pieces = [self._feed_slice(chunk[at : at + _SLICE_BYTES]) for at in range(0, len(chunk), _SLICE_BYTES)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> bytes:
        """Nothing more comes: check that the end was reached.

        Raises:
            MalformedInput: the body is truncated.
        """
        if self._encoding != "identity" and (self._inside or self._members == 0):
            raise MalformedInput(_TRUNCATED)
        return b""

    def _feed_slice(self, piece: bytes) -> bytes:
        found = []
        while piece:
            if not self._inside:
                self._begin_member()
            try:
                found.append(self._counted(self._stream.decompress(piece, self._left + 1)))
            except (zlib.error, zstd.ZstdError, EOFError):
                raise MalformedInput(_NOT_COMPRESSED) from None
            piece = self._rest()
        return found[0] if len(found) == 1 else b"".join(found)

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

    def _rest(self) -> bytes:
        """The bytes that the stream did not take: those behind the end of a member. Output is never held back."""
        if self._stream.eof:
            self._inside = False
            return bytes(self._stream.unused_data)
        return b"" if self._encoding == "zstd" else bytes(self._stream.unconsumed_tail)

    def _counted(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise TooLarge(f"The decompressed body may have at most {self._max_bytes} bytes.")
        return piece


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


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """A whole body at once; see ``Decompressor`` for the errors."""
    decompressor = Decompressor(encoding, max_bytes)
    return decompressor.feed(body) + decompressor.finish()


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
