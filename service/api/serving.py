"""What all routes that run a model work with, whatever the protocol."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from service import codecs
from service.api.access import Access, Role
from service.api.exchange import Reception
from service.api.ops import Operations
from service.api.signatures import Statistics
from service.runtime import ModelManager
from service.settings import Settings
from service.telemetry import Telemetry, Tracing

INLINE_BYTES: Final = 32 * 2**10
"""Bodies up to this size are decoded on the event loop: handing them to a thread costs more than decoding them."""
INLINE_VALUES: Final = 8192
"""Answers up to this many numbers are encoded on the event loop."""
MIN_COMPRESSED_BYTES: Final = 1024
LEFT: Final = 499
"""Status in the metrics for callers who left before their answer."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Serving:
    """The parts of the service that requests use; one record for all of them."""

    settings: Settings
    limits: codecs.Limits
    manager: ModelManager
    operations: Callable[[], Operations]
    """Only while the service runs."""
    access: Access
    telemetry: Telemetry
    tracing: Tracing
    reception: Reception
    executor: Executor
    """For decoding and encoding what is too large for the event loop."""
    draining: Callable[[], bool]
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def not_ready_reason(self) -> str | None:
        return "The service is stopping." if self.draining() else self.manager.not_ready_reason

    def admit(self, headers: dict[bytes, bytes]) -> None:
        """Refuse who may not ask, and everybody while there is no room.

        Raises:
            Unauthorized, Forbidden: as ``Access.check`` says.
            QueueFull, Draining: as the batcher says.
        """
        self.access.check(headers, Role.CALLER)
        self.operations().check_room()

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, work)


def codec_limits(settings: Settings) -> codecs.Limits:
    return codecs.Limits(
        max_rows=settings.max_rows,
        max_depth=settings.max_depth,
        max_json_bytes=settings.max_json_bytes,
        max_decoded_bytes=settings.max_decoded_bytes,
        max_pixels=settings.max_pixels,
    )
