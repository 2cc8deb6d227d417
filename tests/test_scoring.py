"""The numpy definitions of errors, p-values and thresholds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidOption
from service.scoring import (
    alarm_rate,
    conformal_p_values,
    conformal_threshold,
    is_anomaly,
    reconstruction_error,
    rows_needed,
)

SCORES = st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=60)
RATES = st.floats(0.001, 0.999)


def test_error_is_the_mean_square_by_row() -> None:
    """Whatever the shape of a row, there is one error for each."""
    rows = np.array([[[1, 2], [3, 4]], [[0, 0], [0, 0]]], np.float32)
    errors = reconstruction_error(rows, rows + np.array([1, 3], np.float32))
    np.testing.assert_array_equal(errors, np.array([5, 5], np.float32))
    assert errors.dtype == np.float32


def test_missing_values_add_no_error() -> None:
    """A missing value is not wrong, and the mean stays over all features."""
    rows = np.array([[np.nan, 2.0], [np.nan, np.nan]], np.float32)
    np.testing.assert_array_equal(reconstruction_error(rows, np.zeros_like(rows)), np.array([2.0, 0.0], np.float32))


def test_error_of_different_shapes_is_refused() -> None:
    """Broadcasting would hide a mistake."""
    with pytest.raises(ValueError, match="differ in shape"):
        reconstruction_error(np.zeros((2, 3)), np.zeros((2, 1)))


def test_p_values_by_hand() -> None:
    """Ties count as at least as anomalous."""
    p_values = conformal_p_values([0, 1, 2, 2.5, 9], [2, 1, 3])
    np.testing.assert_allclose(p_values, [1, 1, 0.75, 0.5, 0.25])


@given(SCORES, RATES)
def test_threshold_and_p_value_agree(scores: list[float], rate: float) -> None:
    """Over the threshold means a p-value of at most the rate, wherever there are enough calibration rows."""
    threshold = conformal_threshold(scores, rate)
    above = np.nextafter(threshold, np.float32(np.inf))
    if len(scores) >= rows_needed(rate):
        assert conformal_p_values([above], scores)[0] <= rate + 1e-6
    else:
        assert threshold == np.float32(max(scores))


@given(SCORES, RATES)
def test_calibration_rows_keep_to_the_rate(scores: list[float], rate: float) -> None:
    """No more of the calibration rows than the rate are over the threshold that they gave."""
    assert alarm_rate(scores, conformal_threshold(scores, rate)) <= rate + 1e-9


def test_threshold_of_99_rows_at_one_percent() -> None:
    """The least number of rows that can keep to 1 %: the threshold is the greatest score, and 98 rows are too few."""
    assert rows_needed(0.01) == 99
    assert conformal_threshold(np.arange(99), 0.01) == 98
    assert conformal_threshold(np.arange(199), 0.01) == 197
    assert rows_needed(0.05) == 19


def test_false_alarms_keep_to_the_rate() -> None:
    """Averaged over calibrations, P(score > threshold) is at most the rate, and hardly less."""
    random = np.random.default_rng(0)
    rates = [
        alarm_rate(random.exponential(size=500), conformal_threshold(random.exponential(size=199), 0.05))
        for _ in range(400)
    ]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.004)


def test_is_anomaly_is_strict_in_float32() -> None:
    """A score that equals the threshold in float32 is not over it."""
    assert is_anomaly([0.1, 0.2], 0.1).tolist() == [False, True]


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_rates_are_refused(rate: float) -> None:
    """A rate is strictly between 0 and 1."""
    with pytest.raises(InvalidOption, match="between 0 and 1"):
        conformal_threshold([1.0], rate)
