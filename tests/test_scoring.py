"""The numpy definitions of errors, p-values and thresholds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidOption
from service.schemas import PointScale
from service.scoring import (
    alarm_rate,
    conformal_p_values,
    conformal_threshold,
    discoveries,
    is_anomaly,
    point_scores,
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


def test_point_scores_are_means_over_the_windows_that_cover_a_point() -> None:
    """Three windows of two points: the middle ones lie in two of them. Without units nothing else counts."""
    errors = np.array([[1, 2], [4, 6], [8, 9]], np.float32)
    np.testing.assert_allclose(point_scores(errors, np.zeros((4, 1)), None), [1, 3, 7, 9])


def test_point_scores_by_hand() -> None:
    """Errors and distances in their units, averaged with weights 1, 2, 3, 2, 1 of as many points as there are."""
    errors = np.full((8, 2), 6.0)
    points = np.zeros((9, 2))
    points[4] = [4, np.nan]
    scale = PointScale(error=3, typical=((0, 0),), spread=(4, 1), slot_points=9, span=3)
    expected = 2 + (4 / 2) ** 2 / 2 * np.array([0, 0, 1, 2, 3, 2, 1, 0, 0]) / 9
    np.testing.assert_allclose(point_scores(errors, points, scale), expected, rtol=1e-6)


def test_points_are_compared_with_their_time_of_day() -> None:
    """Four slots of two points; where a series begins is found from its values."""
    typical = ((0,), (5,), (9,), (2,))
    scale = PointScale(error=1, typical=typical, spread=(1,), slot_points=2, span=1)
    points = np.repeat(np.roll([0, 5, 9, 2], -3), 2)[:, None].astype(float)
    errors = np.zeros((7, 2))
    assert point_scores(errors, points, scale).tolist() == [0] * 8
    assert point_scores(errors, points, scale, first_slot=3).tolist() == [0] * 8
    assert point_scores(errors, points, scale, first_slot=0)[:2].tolist() == [4, 4]


def test_one_absurd_point_leaves_the_others_alone() -> None:
    """Beyond its neighbours, scores are what they were to six digits."""
    random = np.random.default_rng(0)
    scale = PointScale(error=1, typical=((0,),), spread=(1,), slot_points=500, span=5)
    errors, points = random.uniform(size=(499, 2)), random.normal(size=(500, 1))
    before = point_scores(errors, points, scale)
    errors[100], points[100] = 1e30, 1e30
    after = point_scores(errors, points, scale)
    np.testing.assert_allclose(np.delete(after, np.s_[90:112]), np.delete(before, np.s_[90:112]), rtol=1e-6)
    assert after[100] > 1000


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


def test_discoveries_by_hand() -> None:
    """Of five rows three: the third least p-value is at most 3/5 of the rate, though the second is over 2/5 of it."""
    flags, once = discoveries([9, 1, 8, 2, 7], [0.01, 0.9, 0.05, 0.2, 0.06], 0.1, calibration_rows=99)
    assert flags.tolist() == [True, False, True, False, True]
    assert (once["threshold"], once["false_discovery_rate"], once["calibration_rows"]) == (7, 0.1, 99)
    assert once["false_alarm_rate"] == 5 / 99  # p = 0.06: five of 99 calibration rows score as high
    assert "warning" not in once


def test_equal_p_values_are_flagged_together() -> None:
    """A p-value at its bound counts, in float32 as it was printed; entries may stand for several rows."""
    flags, once = discoveries([5, 6, 1], np.array([0.1, 0.1, 1.0], np.float32), 0.15, calibration_rows=9)
    assert flags.tolist() == [True, True, False]
    assert once["threshold"] == 5
    merged, _ = discoveries([5, 1], np.array([0.1, 1.0], np.float32), 0.15, calibration_rows=9, counts=[2, 1])
    assert merged.tolist() == [True, False]


def test_no_rows_no_discoveries() -> None:
    """An empty batch has no flags and no warning."""
    flags, once = discoveries([], [], 0.1, calibration_rows=9)
    assert (len(flags), once["threshold"], "warning" in once) == (0, None, False)


@pytest.mark.parametrize(
    ("rows", "rate", "words"),
    [
        (5, 0.05, "0.05 needs 19 for any row to be flagged"),
        (20, 0.2, "Of 20 rows at least 10 are flagged or none; a single one needs 99"),
        (2, 0.3, None),
    ],
)
def test_too_few_calibration_rows_are_named(rows: int, rate: float, words: str | None) -> None:
    """With nine of them no p-value is under 0.1; the numbers of the sentence hold."""
    scores, calibration = np.arange(rows, dtype=np.float32), np.full(9, 0.5, np.float32)
    p_values = np.ones(rows, np.float32)
    flags, once = discoveries(scores, p_values, rate, calibration_rows=len(calibration))
    assert not flags.any()
    assert once.get("warning") is None if words is None else words in once["warning"]
    together = 10 if rows == 20 else rows
    p_values[:together] = 0.1
    assert discoveries(scores, p_values, rate, calibration_rows=9)[0].sum() == (together if rate > 0.05 else 0)


@pytest.mark.parametrize("anomalies", [0, 5, 40])
def test_the_false_discovery_rate_holds(anomalies: int) -> None:
    """Over 500 batches with calibration rows of their own, within three standard errors; and anomalies are found."""
    random = np.random.default_rng(anomalies)
    rate, rows, shares, found = 0.2, 100, [], 0
    for _ in range(500):
        calibration = random.normal(size=400)
        scores = random.normal(size=rows)
        scores[:anomalies] += 4
        p_values = conformal_p_values(scores, calibration)
        flags, _ = discoveries(scores, p_values, rate, calibration_rows=len(calibration))
        shares.append(flags[anomalies:].sum() / max(1, flags.sum()))
        found += flags[:anomalies].sum()
    assert np.mean(shares) <= rate + 3 * np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) > 0.02
    assert found > 0.5 * 500 * anomalies or not anomalies
