"""The parts that all routes that run a model share, whatever the protocol."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from service import codecs
from service.api.access import Access
from service.api.exchange import Exchange, Reception
from service.api.signatures import Statistics
from service.batching import Batcher
from service.errors import DeadlineExceeded
from service.runtime import ModelManager
from service.runtime.loaded_model import LoadedModel
from service.settings import Settings
from service.telemetry import Telemetry, Tracing

INLINE_BYTES: Final = 32 * 2**10
"""Bodies and results up to this size are decoded and encoded on the event loop: a thread costs more than the work."""
SMALL_BYTES: Final = 2**20
"""Bodies and results up to this size have threads of their own."""
MIN_COMPRESSED_BYTES: Final = 1024
LEFT: Final = 499
"""Status in the metrics for callers who left before their answer."""
_LATE: Final = "The deadline passed while the request was decoded or encoded."

BatchKey = tuple[LoadedModel, str]
"""A loaded version and one of its signatures: rows of one key may share a batch."""

T = TypeVar("T")


class CodecThreads:
    """Threads that decode and encode. Small work has threads of its own, so that it waits behind nothing large."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(max_workers=2, thread_name_prefix="codec-small")
        self._large = ThreadPoolExecutor(max_workers=2, thread_name_prefix="codec-large")
        self._turns = asyncio.Semaphore(2)

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
            raise DeadlineExceeded(_LATE) from error

    @asynccontextmanager
    async def turn(self, deadline: float) -> AsyncIterator[None]:
        """Around large work in several steps: those who do such work together would hold all of it together.

        Raises:
            DeadlineExceeded: the turn did not come by then.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(_LATE) from error
        try:
            yield
        finally:
            self._turns.release()

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
    batcher: Batcher[BatchKey] = field(init=False)
    """Only while the service runs."""
    draining: bool = False

    @property
    def not_ready_reason(self) -> str | None:
        return "The service is stopping." if self.draining else self.manager.not_ready_reason

    async def body(
        self,
        exchange: Exchange,
        limit: int,
        most: int,
        *,
        deadline: float = math.inf,
        begins: Callable[[bytes], int] | None = None,
    ) -> bytes | memoryview:
        """The body of a request without its content coding: at most ``limit`` bytes as it comes, ``most`` in the end.

        Raises:
            RequestError, QueueFull, CallerLeft: as ``Exchange.body`` and ``decompressed`` say.
        """
        body = await exchange.body(limit, deadline, begins)
        if b"content-encoding" not in exchange.headers:
            return body
        return await self.decompressed(body, exchange.content_encoding, most, deadline=deadline, hold=exchange.hold)

    async def decompressed(
        self, body: bytes | memoryview, encoding: str, most: int, *, deadline: float, hold: Callable[[int], None]
    ) -> bytes | memoryview:
        """A body without its content coding, at most ``most`` bytes. ``hold`` is told of them as they come out.

        Raises:
            UnsupportedMediaType, MalformedInput, TooLarge: as ``codecs.Decompression`` says.
            DeadlineExceeded: it took too long.
        """
        if encoding == "identity":
            return body
        decompression, held = codecs.Decompression(body, encoding, most), 0

        async def step() -> None:
            nonlocal held
            await self.threads.run(decompression.step, size=max(len(body), held), deadline=deadline)
            hold(len(decompression.content) - held)
            held = len(decompression.content)

        await step()
        if not decompression.is_complete:
            async with self.threads.turn(deadline):
                while not decompression.is_complete:
                    await step()
        return decompression.content


def codec_limits(settings: Settings) -> codecs.Limits:
    return codecs.Limits(
        max_rows=settings.max_rows,
        max_depth=settings.max_depth,
        max_json_bytes=settings.max_json_bytes,
        max_decoded_bytes=settings.max_decoded_bytes,
        max_pixels=settings.max_pixels,
    )
