"""Request bodies are compressed where that saves time: not to this machine, and not what hardly gets smaller."""

import ipaddress
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Literal
from urllib.parse import urlsplit

MIN_BYTES = 16 * 2**10
SAMPLE_BYTES = 64 * 2**10
WORTH_IT = 0.75
"""Share of its size that a sample must shrink to. Numbers of full precision do not; categories and round numbers do."""

Mode = Literal["auto", "none", "gzip", "zstd"]


zstd: ModuleType | None
try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError:
    zstd = None


@dataclass(frozen=True, slots=True)
class BodyCompression:
    mode: Mode
    local: bool
    """Whether the service is on this machine, where bytes cost less than compressing them."""

    @classmethod
    def to(cls, url: str, mode: Mode) -> "BodyCompression":
        if mode not in ("auto", "none", "gzip", "zstd"):
            raise ValueError("compression must be auto, none, gzip or zstd.")
        if mode == "zstd" and zstd is None:
            raise ValueError("compression='zstd' needs backports-zstd: pip install backports-zstd.")
        host = urlsplit(url).hostname or ""
        with suppress(ValueError):  # a name
            return cls(mode, ipaddress.ip_address(host).is_loopback)
        return cls(mode, host == "localhost")

    @property
    def accepted(self) -> str | None:
        """Accept-Encoding of requests; None leaves it to the HTTP library, which knows what it can read."""
        if self.mode == "none" or (self.mode == "auto" and self.local):
            return "identity"
        return None if self.mode == "auto" else self.mode

    def compress(self, content: bytes) -> tuple[bytes, str | None]:
        """The body to send and its Content-Encoding."""
        if self.mode == "none" or (self.mode == "auto" and (self.local or len(content) < MIN_BYTES)):
            return content, None
        encoding = self.mode if self.mode != "auto" else "gzip" if zstd is None else "zstd"
        if self.mode == "auto":
            sample = content[:SAMPLE_BYTES]
            if len(_compressed(sample, encoding)) > WORTH_IT * len(sample):
                return content, None
        return _compressed(content, encoding), encoding


def _compressed(content: bytes, encoding: str) -> bytes:
    if encoding == "zstd" and zstd is not None:
        return bytes(zstd.compress(content, level=1))
    return zlib.compress(content, level=1, wbits=31)
