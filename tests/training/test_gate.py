"""The quality gate: what it measures, and what keeps a candidate out of production."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.runtime.loaded_model import LoadedModel
from service.schemas import INSTANCES, Column, InputSchema, Results, Rows
from service.scoring import conformal_threshold
from service.store import Calibration
from service.training.gate import Comparison, compare
from tests.conftest import COLUMNS, table_rows
from tests.fakes import fake_manifest

CENTER = table_rows(5000, seed=3).mean(axis=0)
SPREAD = table_rows(5000, seed=3).std(axis=0)


def version(
    number: int,
    *,
    noise: float = 0.1,
    stretch: float = 1.0,
    shift: float = 0.0,
    score: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    columns: tuple[str, ...] = COLUMNS,
) -> LoadedModel:
    """A version that misses every value by about ``noise`` spreads; its scores are stretched, its threshold shifted."""

    def reconstruct(rows: Rows) -> Results:
        drawn = np.random.default_rng(number).normal(size=rows[INSTANCES].shape)
        return {"reconstruction": (rows[INSTANCES] + noise * SPREAD * drawn).astype(np.float32)}

    def anomaly_score(rows: Rows) -> Results:
        scaled = (rows[INSTANCES] - CENTER) / SPREAD
        scores = np.nanmean(np.square(scaled), axis=1) if score is None else score(scaled)
        return {"score": (stretch * scores).astype(np.float32)}

    calibration = np.sort(anomaly_score({INSTANCES: table_rows(1000, seed=9)})["score"])
    threshold = float(conformal_threshold(calibration, 0.05)) + shift
    manifest = fake_manifest(number, {}).model_copy(
        update={
            "input": InputSchema(
                kind="tabular", row_shape=(len(columns),), columns=tuple(Column(name=name) for name in columns)
            ),
            "calibration": Calibration(
                rows=1000, false_alarm_rate=0.05, threshold=threshold, scores=tuple(map(float, calibration))
            ),
        }
    )
    return LoadedModel(manifest, {"reconstruct": reconstruct, "anomaly_score": anomaly_score})


def gate(candidate: LoadedModel, production: LoadedModel, *, labels: NDArray[np.bool_] | None = None) -> Comparison:
    return compare(candidate, production, {INSTANCES: table_rows(2000, seed=4)}, labels=labels)


def test_as_good_passes() -> None:
    """Another scale of scores is no difference; the common error is in spreads of the rows."""
    comparison = gate(version(2, stretch=7), version(1))
    assert comparison.passed
    assert comparison.error is not None
    assert comparison.error.candidate == pytest.approx(0.01, rel=0.05)
    assert comparison.rank_correlation == pytest.approx(1)
    assert comparison.flags_differ == 0
    assert comparison.alarm_rate is not None
    assert 0.03 < comparison.alarm_rate.candidate == comparison.alarm_rate.production < 0.07
    assert comparison.record()["passed"] is True


def test_a_greater_error_is_worse_and_a_little_is_not() -> None:
    """Within the tolerance it passes; beyond it, the sentence has both numbers."""
    assert gate(version(2, noise=0.101), version(1)).passed
    (reason,) = gate(version(2, noise=0.12), version(1)).worse
    assert "error is 0.0145" in reason
    assert gate(version(2, noise=0.05), version(1)).passed


def test_too_many_false_alarms_are_worse() -> None:
    """More than chance explains, and more than production has."""
    (reason,) = gate(version(2, shift=-0.8), version(1)).worse
    assert "instead of 5.00%" in reason
    assert gate(version(2, shift=-0.8), version(1, shift=-0.9)).passed
    assert gate(version(2, shift=0.5), version(1)).passed


def test_scores_that_have_nothing_in_common_are_worse() -> None:
    """A rank correlation near 0 keeps it out, on many rows."""
    strange = version(2, score=lambda scaled: np.sin(1000 * scaled[:, 0]) ** 2)
    (reason,) = gate(strange, version(1)).worse
    assert "rank correlation" in reason
    assert compare(strange, version(1), {INSTANCES: table_rows(20, seed=4)}).worse == ()


def test_labels_decide_where_there_are_some() -> None:
    """AUROC and AUPR of both; alarm rates are those of normal rows only."""
    rows = table_rows(2000, seed=4)
    labels = np.zeros(2000, np.bool_)
    labels[:200] = True
    rows[:200] += (4 * SPREAD * np.random.default_rng(0).normal(size=(200, 6))).astype(np.float32)
    blind = version(2, score=lambda scaled: np.square(scaled[:, 0]))
    comparison = compare(blind, version(1), {INSTANCES: rows}, labels=labels)
    assert comparison.auroc is not None
    assert comparison.alarm_rate is not None
    assert comparison.auroc.production > 0.95 > comparison.auroc.candidate
    assert comparison.alarm_rate.production < 0.08
    assert any("AUROC" in reason for reason in comparison.worse)
    assert compare(version(1), blind, {INSTANCES: rows}, labels=labels).passed


def test_gaps_and_wild_values_do_not_decide() -> None:
    """A missing value cannot be wrong; one huge value counts as ten spreads."""
    rows = table_rows(2000, seed=4)
    rows[::3, 2] = np.nan
    rows[0, 0] = 1e15
    comparison = compare(version(2), version(1), {INSTANCES: rows})
    assert comparison.error is not None
    assert comparison.error.candidate < 1


def test_other_columns_are_not_compared() -> None:
    """It says which, and does not pass."""
    (reason,) = gate(version(2, columns=(*COLUMNS[:-1], "height")), version(1)).worse
    assert reason == "Its columns are not those of production: height, score."
    (reason,) = gate(version(2, columns=COLUMNS[::-1]), version(1)).worse
    assert "the order differs" in reason


def test_no_rows_is_said() -> None:
    """Nothing is promoted on no evidence."""
    comparison = compare(version(2), version(1), {INSTANCES: table_rows(1, seed=4)[:0]})
    assert not comparison.passed
    assert "no rows" in comparison.worse[0]
