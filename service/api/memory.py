"""How the process's C library keeps memory: bodies and tensors of many megabytes come and go with each bulk request."""

import asyncio
import ctypes
import math
import sys
import time
from functools import cache
from typing import Any, Final

from service.api.exchange import Reception

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
KEPT_BYTES: Final = 128 * 2**20
_LARGEST_ON_HEAP: Final = 32 * 2**20
_KEPT_WHEN_CROWDED_BYTES: Final = 2**20
_TRIM_INTERVAL_S: Final = 0.01
"""A trim takes half a millisecond, during which nobody gets memory."""
QUIET_S: Final = 5.0
"""Without a large body or answer for so long, the memory that they left goes back to the kernel."""


def keep_freed_memory() -> None:
    """Let large buffers be used again instead of being given back to the kernel after each request.

    glibc maps each of them anew, which the kernel fills with zeros page by page: of a request of 12 MiB with an answer
    of as many that was 25 ms, more than the model took. At most ``KEPT_BYTES`` are kept. One arena for all threads,
    because the buffers are passed from one to the next. Does nothing where the C library is another.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_M_ARENA_MAX, 1)


class FreedMemory:
    """Gives kept memory back to the kernel: when large bodies and answers have stopped coming, and while requests hold
    so much that the holes between their buffers would be as much again. Slower requests are then the smaller evil.
    """

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._trim = _of_glibc("malloc_trim")
        self._large_at: float | None = None
        """When something large was last held, since memory was given back."""
        self._trimmed_at = -math.inf
        self._keeps = True
        if self._trim is not None:
            reception.when_crowded = self._keep_nothing

    def _keep_nothing(self) -> None:
        now = time.monotonic()
        if now - self._trimmed_at > _TRIM_INTERVAL_S:
            self._trimmed_at, self._keeps = now, False
            mallopt = _of_glibc("mallopt")
            mallopt(_M_TRIM_THRESHOLD, _KEPT_WHEN_CROWDED_BYTES)
            mallopt(_M_MMAP_THRESHOLD, _KEPT_WHEN_CROWDED_BYTES)
            self._trim(0)

    async def give_back(self, now: float) -> None:
        """Call often; ``now`` is monotonic."""
        if not self._keeps and not self._reception.is_crowded:
            self._keeps = True
            keep_freed_memory()
        if self._reception.was_large:
            self._reception.was_large, self._large_at = False, now
        elif self._large_at is not None and now - self._large_at > QUIET_S and self._trim is not None:
            self._large_at = None
            await asyncio.to_thread(self._trim, 0)


@cache
def _of_glibc(name: str) -> Any:
    """A function of the C library; None where it is another library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
