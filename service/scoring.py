"""Reconstruction error, p-value and threshold: the one definition, in numpy.

A SavedModel computes the same inside its graph; training takes thresholds from here, and tests compare the two.
Scores are compared in float32, the type that the graph returns, so that a score that equals a calibration score
does so everywhere.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.errors import InvalidOption

if TYPE_CHECKING:  # the client needs the rest of this module, and has no pydantic
    from service.schemas import PointScale

MOST_ERROR = 1e6
"""Times its mean in training: more than this of one point adds nothing, and would drown its neighbours' share."""


def reconstruction_error(rows: NDArray[Any], reconstructions: NDArray[Any]) -> NDArray[np.float32]:
    """Mean squared error of each row over its features, both arrays being (rows, ...) in scaled units.

    A missing value (NaN in ``rows``) cannot be wrong and adds nothing; the mean is still over all features, so that
    a row does not become more anomalous by telling less.
    """
    if rows.shape != reconstructions.shape:
        raise ValueError(f"rows {rows.shape} and reconstructions {reconstructions.shape} differ in shape")
    residual = rows.astype(np.float64) - reconstructions
    squared = np.square(np.where(np.isnan(rows), 0.0, residual))
    errors: NDArray[np.float32] = squared.reshape(len(rows), -1).mean(axis=1).astype(np.float32)
    return errors


def point_scores(
    errors: NDArray[Any], points: NDArray[Any], scale: "PointScale | None", *, first_slot: int | None = None
) -> NDArray[np.float32]:
    """Score of each point of a series.

    The network's squared error, a mean over all the windows that a point lies in, and the squared distance from what is
    typical of the time of day, each in units of its mean in training, are added. The sum is averaged over neighbouring
    points, with weights that fall linearly to 0 at ``scale.span`` points away on either side: a disturbance lasts.

    Args:
        errors: (windows, window), of windows that begin one point after the other.
        points: (points, channels), the readings of the windows, NaN where one is missing.
        scale: None gives the network's error alone.
        first_slot: the slot of the day that the first point lies in. None takes the one with which the points are
            nearest to what is typical.
    """
    count, window = errors.shape
    total, covering = np.zeros(count + window - 1), np.zeros(count + window - 1)
    for step in range(window):
        total[step : step + count] += errors[:, step]
        covering[step : step + count] += 1
    scores = total / covering
    if scale is not None:
        scores = np.minimum(scores / scale.error, MOST_ERROR) + np.minimum(
            _deviations(points, scale, first_slot), MOST_ERROR
        )
        scores = _moving_mean(_moving_mean(scores, scale.span), scale.span)
    return scores.astype(np.float32)


def _deviations(points: NDArray[Any], scale: "PointScale", first_slot: int | None) -> NDArray[np.float64]:
    """Squared distance of each point from what is typical of its slot of the day, a mean over channels."""
    typical, spread = np.array(scale.typical), np.sqrt(scale.spread)
    slots = (np.arange(len(points)) / scale.slot_points).astype(np.int64)

    def distances(first: int) -> Any:
        return np.nan_to_num((points - typical[(slots + first) % len(typical)]) / spread, posinf=np.inf, neginf=-np.inf)

    if first_slot is None:
        first_slot = int(np.argmin([np.abs(distances(first)).sum() for first in range(len(typical))]))
    deviations: NDArray[np.float64] = np.square(distances(first_slot)).mean(axis=1)
    return deviations


def _moving_mean(values: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """The mean over ``span // 2`` values on either side, of as many as there are."""
    at, sums = np.arange(len(values)), np.concatenate([[0.0], np.cumsum(values)])
    first, end = np.maximum(at - span // 2, 0), np.minimum(at + span // 2 + 1, len(values))
    means: NDArray[np.float64] = (sums[end] - sums[first]) / (end - first)
    return means


def conformal_p_values(scores: ArrayLike, calibration_scores: ArrayLike) -> NDArray[np.float32]:
    """(1 + number of calibration scores >= score) / (calibration rows + 1), for each score.

    On rows exchangeable with the calibration rows P(p <= a) <= a for every a, whatever the score is.

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (Springer, 2005); as a test for outliers
    Bates, Candès, Lei, Romano and Sesia, Testing for outliers with conformal p-values (Annals of Statistics 51, 2023).
    """
    ascending = _ascending(calibration_scores)
    at_least = len(ascending) - np.searchsorted(ascending, np.asarray(scores, np.float32), side="left")
    return ((1 + at_least) / (len(ascending) + 1)).astype(np.float32)


def conformal_threshold(calibration_scores: ArrayLike, false_alarm_rate: float) -> np.float32:
    """The threshold that a normal row exceeds with a probability of at most ``false_alarm_rate``.

    The k-th smallest calibration score, k = ceil((rows + 1) * (1 - false_alarm_rate)). The guarantee needs
    ``rows_needed(false_alarm_rate)`` calibration rows; with fewer the largest score is returned.

    Raises:
        InvalidOption: the rate is not between 0 and 1.
    """
    _check_rate(false_alarm_rate)
    ascending = _ascending(calibration_scores)
    # 1 - rate is inexact: (n + 1) * 0.99 must not be lifted over the integer that it stands for.
    rank = math.ceil((len(ascending) + 1) * (1 - false_alarm_rate) - 1e-9)
    threshold: np.float32 = ascending[min(len(ascending), max(rank, 1)) - 1]
    return threshold


def rows_needed(false_alarm_rate: float) -> int:
    """The least number of calibration rows with which a threshold can keep to the rate: 1 / rate - 1."""
    _check_rate(false_alarm_rate)
    return math.ceil(1 / false_alarm_rate - 1 - 1e-9)


def discoveries(
    scores: ArrayLike,
    p_values: ArrayLike,
    false_discovery_rate: float,
    *,
    calibration_rows: int,
    counts: ArrayLike | None = None,
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Flags of a batch by the Benjamini-Hochberg procedure, and what an answer says once for all rows.

    Of n rows those with the k least p-values are flagged, k being the largest with p_(k) <= k * rate / n. Where the
    normal rows are exchangeable with the calibration rows, the expected share of normal rows among those flagged is at
    most the rate. p-values are compared in float32, the type that they come in.

    Args:
        counts: number of rows that an entry of ``scores`` and ``p_values`` stands for, whose least score is given;
            None: one each.

    Returns:
        The flags, and ``threshold``: the least score that is flagged, None where none is; ``false_alarm_rate``: the
        share of calibration rows that score as high; the rate and ``calibration_rows`` as given; ``warning``: why no
        row is flagged, where more calibration rows might change that.

    Source: Benjamini and Hochberg (Journal of the Royal Statistical Society B 57, 1995); that conformal p-values keep
    to the rate: Bates, Candès, Lei, Romano and Sesia (Annals of Statistics 51, 2023).
    """
    p, score = np.asarray(p_values, np.float32), np.asarray(scores, np.float32)
    order = np.argsort(p)
    ranks = np.cumsum(np.ones(len(p)) if counts is None else np.asarray(counts)[order])
    rows = int(ranks[-1]) if len(p) else 0
    within = np.flatnonzero(p[order] <= (ranks * (false_discovery_rate / max(rows, 1))).astype(np.float32))
    limit = p[order][within[-1]] if len(within) else np.float32(0)
    flags = p <= limit
    once = {
        "threshold": score[flags].min() if len(within) else None,
        "false_alarm_rate": max(0, round(float(limit) * (calibration_rows + 1)) - 1) / calibration_rows,
        "false_discovery_rate": false_discovery_rate,
        "calibration_rows": calibration_rows,
    }
    together = math.ceil(rows / (false_discovery_rate * (calibration_rows + 1)) - 1e-9)
    if len(within) or together <= 1:
        return flags, once
    warning = f"Too few calibration rows: with {calibration_rows} no p-value is under {1 / (calibration_rows + 1):.2g}"
    if together > rows:
        needed = rows_needed(false_discovery_rate)
        warning += f", and a false discovery rate of {false_discovery_rate:g} needs {needed} for any row to be flagged."
    else:
        alone = math.ceil(rows / false_discovery_rate - 1 - 1e-9)
        warning += f". Of {rows} rows at least {together} are flagged or none; a single one needs {alone}."
    return flags, {**once, "warning": warning}


def float32_threshold(threshold: float) -> np.float32:
    """The float32 to compare scores with, so that the flags agree with the printed numbers.

    A float32 score is printed with as few digits as tell it from its neighbours, 0.1 for one that is really
    0.10000000149: a caller who sends 0.1 as threshold must not see the score 0.1 over it.
    """
    limit = float(np.finfo(np.float32).max)
    nearest = np.float32(min(max(threshold, -limit), limit))
    return np.nextafter(nearest, np.float32(-limit)) if float(str(nearest)) > threshold else nearest


def is_anomaly(scores: ArrayLike, threshold: float | np.float32) -> NDArray[np.bool_]:
    """``score > threshold``, strictly, in float32."""
    return np.asarray(scores, np.float32) > np.float32(threshold)


def alarm_rate(scores: ArrayLike, threshold: float | np.float32) -> float:
    """The share of scores over the threshold; on normal rows, the empirical false-alarm rate."""
    return float(is_anomaly(scores, threshold).mean())


def _ascending(calibration_scores: ArrayLike) -> NDArray[np.float32]:
    ascending = np.sort(np.asarray(calibration_scores, np.float32))
    if ascending.ndim != 1 or not len(ascending):
        raise ValueError("calibration scores must be one non-empty row of numbers")
    return ascending


def _check_rate(false_alarm_rate: float) -> None:
    if not 0 < false_alarm_rate < 1:
        raise InvalidOption("false_alarm_rate must be between 0 and 1.")
