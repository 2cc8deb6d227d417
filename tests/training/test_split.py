"""Which rows go where."""

import numpy as np
import pytest

from service.errors import ConfigurationError
from service.training import load_config
from service.training.config import SplitShares
from service.training.split import split_rows


@pytest.mark.parametrize("rows", [10, 11, 33, 1797, 60_000])
def test_every_row_goes_to_one_part(rows: int) -> None:
    """No row is in two parts, none is lost, and no part is empty."""
    split = split_rows(rows, load_config())
    together = np.concatenate([split.train, split.validation, split.calibration, split.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(rows))
    assert min(split.counts.model_dump().values()) >= 1


def test_same_seed_same_split() -> None:
    """The seed decides, and only it."""
    first, again, other = (split_rows(500, load_config(seed=seed)).calibration for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_large_sets_keep_most_rows_for_fitting() -> None:
    """A million rows need no 400,000 held back, unless that was asked for."""
    assert split_rows(1_000_000, load_config()).counts.train == 987_500
    shares = SplitShares(train=0.25, validation=0.25, calibration=0.25, test=0.25)
    assert split_rows(1_000_000, load_config(split=shares)).counts.train == 250_000


def test_too_few_rows_to_fit_are_refused() -> None:
    """Shares that leave nothing to fit end in a sentence."""
    shares = SplitShares(train=0.01, validation=0.33, calibration=0.33, test=0.33)
    with pytest.raises(ConfigurationError, match="for fitting"):
        split_rows(10, load_config(split=shares))
