"""How the process's C library keeps memory: bodies and tensors of many megabytes come and go with each bulk request."""

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
KEPT_BYTES: Final = 128 * 2**20
_LARGEST_ON_HEAP: Final = 32 * 2**20


def keep_freed_memory() -> None:
    """Let large buffers be used again instead of being given back to the kernel after each request.

    glibc maps each of them anew, which the kernel fills with zeros page by page: of a request of 12 MiB with an answer
    of as many that was 25 ms, more than the model took. At most ``KEPT_BYTES`` are kept. One arena for all threads,
    because the buffers are passed from one to the next. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_M_ARENA_MAX, 1)
