"""What all routes that run a model work with, whatever the protocol."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from service import codecs
from service.api.access import Access, Role
from service.api.exchange import Exchange, Reception
from service.api.ops import Operations
from service.api.signatures import Statistics
from service.errors import DeadlineExceeded
from service.runtime import ModelManager
from service.settings import Settings
from service.telemetry import Telemetry, Tracing

INLINE_BYTES: Final = 32 * 2**10
"""Bodies and results up to this size are decoded and encoded on the event loop: a thread costs more than the work."""
SMALL_BYTES: Final = 2**20
"""Bodies and results up to this size have threads of their own."""
MIN_COMPRESSED_BYTES: Final = 1024
LEFT: Final = 499
"""Status in the metrics for callers who left before their answer."""

T = TypeVar("T")


class CodecThreads:
    """Threads that decode and encode. Small work has threads of its own, so that it waits behind nothing large."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(max_workers=2, thread_name_prefix="codec-small")
        self._large = ThreadPoolExecutor(max_workers=2, thread_name_prefix="codec-large")

    async def run(self, work: Callable[[], T], *, size: int, deadline: float) -> T:
        """The result of work on ``size`` bytes; ``deadline`` is an instant of the event loop's clock.

        Raises:
            DeadlineExceeded: it is not there by then. Work that has not begun is dropped; what has begun cannot be
                stopped and ends with nobody waiting.
        """
        threads = self._small if size <= SMALL_BYTES else self._large
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.get_running_loop().run_in_executor(threads, work)
        except TimeoutError as error:
            raise DeadlineExceeded("The deadline passed while the request was decoded or encoded.") from error

    def close(self) -> None:
        self._small.shutdown(wait=False)
        self._large.shutdown(wait=False)


@dataclass
class Serving:
    """The parts of the service that requests use; one record for all of them."""

    settings: Settings
    limits: codecs.Limits
    manager: ModelManager
    access: Access
    telemetry: Telemetry
    tracing: Tracing
    reception: Reception
    threads: CodecThreads
    statistics: Statistics = field(default_factory=Statistics)
    operations: Operations = field(init=False)
    """Only while the service runs."""
    draining: bool = False

    @property
    def not_ready_reason(self) -> str | None:
        return "The service is stopping." if self.draining else self.manager.not_ready_reason

    def admit(self, headers: dict[bytes, bytes]) -> None:
        """Refuse who may not ask, and everybody while there is no room.

        Raises:
            Unauthorized, Forbidden: as ``Access.check`` says.
            QueueFull, Draining: as the batcher says.
        """
        self.access.check(headers, Role.CALLER)
        self.operations.check_room()

    async def decompressed(
        self, exchange: Exchange, body: bytes | memoryview, most: int, deadline: float
    ) -> bytes | memoryview:
        """A body without its content coding, at most ``most`` bytes, which its exchange then holds.

        Raises:
            UnsupportedMediaType, MalformedInput, TooLarge: as ``codecs.decompress`` says.
            QueueFull: the service holds as many received bytes as it may.
            DeadlineExceeded: it took too long.
        """
        encoding = exchange.content_encoding
        if encoding == "identity":
            return body
        plain = await self.threads.run(
            lambda: codecs.decompress(bytes(body), encoding, most), size=len(body), deadline=deadline
        )
        exchange.hold(len(plain))
        return plain


def codec_limits(settings: Settings) -> codecs.Limits:
    return codecs.Limits(
        max_rows=settings.max_rows,
        max_depth=settings.max_depth,
        max_json_bytes=settings.max_json_bytes,
        max_decoded_bytes=settings.max_decoded_bytes,
        max_pixels=settings.max_pixels,
    )
