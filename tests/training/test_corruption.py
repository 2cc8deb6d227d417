"""Noise for denoising: what each kind does, and that it is reproducible."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.schemas import InputSchema
from service.training import load_config

pytestmark = pytest.mark.tf

ROWS = np.random.default_rng(0).uniform(0.2, 0.8, (500, 8)).astype(np.float32)


def corrupt(kind: str, level: float, *, schema_kind: Any = "image", seed: int = 0) -> NDArray[np.float32]:
    from service.training.fit import Corruptor
    from service.training.scaling import fit_scaling

    schema = InputSchema(kind=schema_kind, row_shape=(8,), value_range=(0.0, 1.0) if schema_kind == "image" else None)
    config = load_config("dense", corruption=kind, corruption_level=level)
    limits = (np.full(8, -3, np.float32), np.full(8, 3, np.float32))
    corruptor = Corruptor(config, fit_scaling(ROWS, schema, config), limits=limits)
    return np.asarray(corruptor.corrupt(ROWS, [0, seed]))


def test_gaussian_noise_has_its_deviation() -> None:
    """Unbounded values get normal noise of the level."""
    noise = corrupt("gaussian", 0.7, schema_kind="tabular") - ROWS
    assert noise.std() == pytest.approx(0.7, rel=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.05)


def test_gaussian_noise_keeps_pixels_in_range() -> None:
    """A noisy pixel is still one."""
    noisy = corrupt("gaussian", 0.7)
    assert noisy.min() == 0
    assert noisy.max() == 1


def test_masking_hits_its_share() -> None:
    """A share of pixels turns black; the others stay."""
    noisy = corrupt("masking", 0.3)
    assert (noisy == 0).mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(noisy[noisy != 0], ROWS[noisy != 0])


def test_masked_columns_look_missing() -> None:
    """In a table a masked value becomes what a missing one becomes: the scaled median."""
    noisy = corrupt("masking", 0.3, schema_kind="tabular")
    median = (np.median(ROWS, axis=0) - ROWS.mean(axis=0)) / ROWS.std(axis=0)
    hit = noisy != ROWS
    np.testing.assert_allclose(noisy[hit], np.broadcast_to(median, ROWS.shape)[hit], atol=1e-5)


def test_salt_and_pepper_are_the_limits() -> None:
    """Half of the values hit become the least, half the greatest."""
    noisy = corrupt("salt_and_pepper", 0.4)
    assert (noisy == -3).mean() == pytest.approx(0.2, abs=0.03)
    assert (noisy == 3).mean() == pytest.approx(0.2, abs=0.03)
    assert (noisy == ROWS).mean() == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_and_pepper"])
def test_the_seed_decides(kind: str) -> None:
    """Same seed, same noise."""
    np.testing.assert_array_equal(corrupt(kind, 0.3, seed=1), corrupt(kind, 0.3, seed=1))
    assert not np.array_equal(corrupt(kind, 0.3, seed=1), corrupt(kind, 0.3, seed=2))


def test_none_changes_nothing() -> None:
    """Without corruption the inputs are the targets."""
    np.testing.assert_array_equal(corrupt("none", 0.3), ROWS)
