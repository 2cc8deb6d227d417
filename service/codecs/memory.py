"""Memory that TensorFlow takes as it is, without a copy."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT: Final = 64
"""TensorFlow copies arrays whose address is no multiple of this, in bytes."""


def aligned_memory(size: int, begins: int = 0) -> NDArray[np.uint8]:
    """``size`` bytes for an array that begins at byte ``begins`` of them. They are not touched, so cost nothing yet."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -(memory.ctypes.data + begins) % _ALIGNMENT
    return memory[start : start + size]
