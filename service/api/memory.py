"""How the process's C library keeps memory: bodies and tensors of many megabytes come and go with each bulk request."""

import asyncio
import ctypes
import sys
from typing import Any, Final

from service.api.exchange import Reception

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
KEPT_BYTES: Final = 128 * 2**20
_LARGEST_ON_HEAP: Final = 32 * 2**20
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
    """Gives kept memory back to the kernel when large bodies and answers have stopped coming."""

    def __init__(self) -> None:
        self._trim = _of_glibc("malloc_trim")
        self._large_at: float | None = None
        """When something large was last held, since memory was given back."""

    async def give_back(self, now: float, reception: Reception) -> None:
        """Call often; ``now`` is monotonic."""
        if reception.was_large:
            reception.was_large, self._large_at = False, now
        elif self._large_at is not None and now - self._large_at > QUIET_S and self._trim is not None:
            self._large_at = None
            await asyncio.to_thread(self._trim, 0)


def _of_glibc(name: str) -> Any:
    """A function of the C library; None where it is another library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
