"""What rows, operations and numbers share."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.schemas import all_finite

LARGEST = np.finfo(np.float32).max


@pytest.mark.parametrize("shape", [(0,), (3,), (4, 5, 6), (300, 70)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_that_is_not_finite_is_found_anywhere(shape: tuple[int, ...], dtype: type) -> None:
    """One NaN or infinity, at the first, a middle or the last place; and none where there is none."""
    numbers: NDArray[np.floating] = np.ones(shape, dtype)
    assert all_finite(numbers)
    for wrong in (np.nan, np.inf, -np.inf):
        for at in {0, numbers.size // 2, numbers.size - 1} if numbers.size else ():
            spoilt = numbers.copy()
            spoilt.reshape(-1)[at] = wrong
            assert not all_finite(spoilt)


def test_very_large_numbers_are_finite() -> None:
    """Although the sum of their squares is not."""
    assert all_finite(np.full(20_000, LARGEST))
    assert not all_finite(np.append(np.full(20_000, LARGEST), np.float32(np.nan)))


def test_numbers_need_not_be_contiguous() -> None:
    """Every second column of an array."""
    numbers = np.ones((6000, 8), np.float32)
    numbers[:, 1] = np.nan
    assert all_finite(numbers[:, ::2])
    assert not all_finite(numbers[:, 1::2])
