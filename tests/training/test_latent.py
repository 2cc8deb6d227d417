"""The width of the latent, found in the rows."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.training import load_config
from service.training.latent import choose_latent, intrinsic_dimension, settle_latent
from tests.conftest import table_rows


def standardised(rows: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = ((rows - rows.mean(axis=0)) / rows.std(axis=0)).astype(np.float32)
    return scaled


@pytest.mark.parametrize("causes", [2, 5, 9])
def test_finds_the_causes_behind_noisy_columns(causes: int) -> None:
    """Many columns of few causes: as many as there are, give or take one."""
    random = np.random.default_rng(causes)
    rows = random.normal(size=(600, causes)) @ random.normal(size=(causes, 40)) + 0.3 * random.normal(size=(600, 40))
    choice = choose_latent(standardised(rows), seed=0)
    assert abs(choice.width - causes) <= 1
    assert str(choice.width) in choice.reason
    assert "hidden values" in choice.reason


def test_few_rows_of_many_columns_do_not_get_a_wide_latent() -> None:
    """Where a third of the columns would be far too many."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(60, 4)) @ random.normal(size=(4, 300)) + random.normal(size=(60, 300))
    assert choose_latent(standardised(rows), seed=0).width <= 8


def test_a_curved_surface_gets_at_least_its_dimension() -> None:
    """A circle has no component that predicts, but is one-dimensional; a sheet of three angles is not less."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, size=(2000, 3))
    rows = np.concatenate([np.sin(angle), np.cos(angle), np.sin(2 * angle)], axis=1)
    assert intrinsic_dimension(rows) == pytest.approx(3, abs=0.7)
    assert 3 <= choose_latent(standardised(rows), seed=0).width <= 6


@pytest.mark.parametrize("shape", [(2, 2), (5, 2), (3, 50), (30, 3)])
def test_always_narrower_than_the_row(shape: tuple[int, int]) -> None:
    """However few rows or columns there are."""
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert 1 <= choose_latent(rows, seed=0).width < shape[1]


def test_rows_that_repeat_have_a_width() -> None:
    """Few distinct rows, columns that do not vary."""
    rows = np.zeros((200, 5), np.float32)
    rows[::2, 1] = 1
    assert 1 <= choose_latent(rows, seed=0).width <= 3


def test_same_seed_same_choice() -> None:
    """And what was configured is left alone."""
    rows = standardised(table_rows(500, seed=1))
    config, reason = settle_latent(load_config("dense", latent_dim="auto"), rows, features=rows.shape[1])
    assert (config, reason) == settle_latent(load_config("dense", latent_dim="auto"), rows, features=rows.shape[1])
    assert config.latent_dim == 2
    assert settle_latent(load_config("dense", latent_dim=4), rows, features=rows.shape[1]) == (
        load_config("dense", latent_dim=4),
        None,
    )
