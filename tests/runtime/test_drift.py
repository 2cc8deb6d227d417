"""Drift of live rows: the numbers against their definitions."""

from datetime import UTC, datetime

import numpy as np
import pytest

from service.runtime import drift
from service.runtime.drift import DriftMonitor, feature_reference
from service.schemas import Column, ColumnType, InputSchema
from service.store import Calibration, Manifest, RowCounts

SCHEMA = InputSchema(kind="tabular", row_shape=(2,), columns=(Column(name="a"), Column(name="b", may_be_missing=True)))


def manifest_of(rows: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Manifest:
    return Manifest(
        model="m",
        version=1,
        created=datetime.now(UTC),
        input=SCHEMA,
        signatures={},
        latent_dim=1,
        training={},
        seed=0,
        source="rows",
        source_sha256="0",
        row_counts=RowCounts(train=1, validation=1, calibration=1, test=1),
        libraries={},
        metrics={},
        calibration=Calibration(rows=100, false_alarm_rate=0.01, threshold=1, scores=tuple(np.linspace(0, 1, 100))),
        reference=feature_reference({"instances": rows}, SCHEMA),
        digests={},
    )


def rows_like(
    shift: float, *, missing: float = 0.0, seed: int = 0
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(400, 2)).astype(np.float32)
    rows[:, 0] += shift
    rows[random.random(400) < missing, 1] = np.nan
    return rows


def observed(*batches: np.ndarray[tuple[int, int], np.dtype[np.float32]], window_rows: int = 10_000) -> DriftMonitor:
    monitor = DriftMonitor(manifest_of(rows_like(0)), window_rows=window_rows)
    for batch in batches:
        for start in range(0, len(batch), drift.ROWS_AT_ONCE):
            part = batch[start : start + drift.ROWS_AT_ONCE]
            scores = np.full(len(part), 0.5, np.float32)
            monitor.observe({"instances": part}, {"score": scores, "is_anomaly": part[:, 0] > 2})
    return monitor


def test_the_same_rows_do_not_drift() -> None:
    """Rows of training shown again have an index of nothing."""
    report = observed(rows_like(0)).report()
    assert report.sampled_rows == 400
    assert all(feature.psi is not None and feature.psi < 0.001 for feature in report.features)
    assert all(feature.ks is not None and feature.ks < 0.01 for feature in report.features)


def test_few_rows_give_no_figure() -> None:
    """Before 100 rows there is no index, which would call any handful of rows a large shift; the 100th gives it."""
    report = observed(rows_like(0)[: drift.MIN_ROWS - 1]).report()
    assert [(feature.psi, feature.ks) for feature in (report.score, *report.features)] == [(None, None)] * 3
    report = observed(rows_like(0)[: drift.MIN_ROWS]).report()
    assert None not in [feature.psi for feature in (report.score, *report.features)]


def test_times_are_left_out() -> None:
    """A time column has no reference and no drift: live rows are always later than those of training."""
    columns = (
        Column(name="when", type=ColumnType.TIMESTAMP),
        Column(name="a"),
        Column(name="kind", type=ColumnType.CATEGORICAL),
    )
    schema = InputSchema(kind="tabular", row_shape=(1,), columns=columns)
    rows = {
        "instances": rows_like(0)[:, :1],
        "categories": np.full((400, 1), b"x", dtype=object),
        "timestamps": np.arange(400, dtype=np.int64)[:, None],
    }
    reference = feature_reference(rows, schema)
    assert [feature.name for feature in reference] == ["a", "kind"]
    as_before = (*reference, reference[0].model_copy(update={"name": "when"}))  # a version trained by an older release
    manifest = manifest_of(rows["instances"]).model_copy(update={"input": schema, "reference": as_before})
    monitor = DriftMonitor(manifest, window_rows=10_000)
    for start in range(0, 400, drift.ROWS_AT_ONCE):
        part = {name: array[start : start + drift.ROWS_AT_ONCE] for name, array in rows.items()}
        few = len(part["instances"])
        monitor.observe(part, {"score": np.full(few, 0.5, np.float32), "is_anomaly": np.zeros(few, bool)})
    assert [feature.name for feature in monitor.report().features] == ["a", "kind"]


def test_a_shifted_feature_is_the_one_that_is_named() -> None:
    """A column that moves by one standard deviation stands out, its neighbour does not."""
    moved, still = observed(rows_like(1.0, seed=1)).report().features
    assert moved.name == "a"
    assert moved.psi is not None
    assert moved.psi > 0.25
    # Two normal distributions one standard deviation apart: 2 * Phi(1/2) - 1 = 0.383.
    assert moved.ks == pytest.approx(0.383, abs=0.08)
    assert still.psi is not None
    assert still.psi < 0.1


def test_missing_values_are_counted_apart() -> None:
    """Missing values change the share of missing values, not the distribution of the others."""
    feature = observed(rows_like(0, missing=0.3)).report().features[1]
    assert feature.missing == pytest.approx(0.3, abs=0.06)
    assert feature.reference_missing == 0
    assert feature.psi is not None
    assert feature.psi < 0.1


def test_alerts_are_counted_over_all_rows() -> None:
    """The alert rate is that of all scored rows, also where the distributions are sampled."""
    rows = rows_like(0)
    report = observed(rows, rows, rows).report()
    assert report.scored_rows == 1200
    assert report.sampled_rows < 1200
    assert report.alert_rate == pytest.approx(float((rows[:, 0] > 2).mean()))


def test_old_rows_fade() -> None:
    """After enough new rows the old ones count half, so that drift that ends is seen to end."""
    assert observed(rows_like(0), window_rows=300).report().sampled_rows < 300


def test_a_repeated_value_gives_fewer_bins() -> None:
    """A column that is mostly zero has bins whose shares say so, and a constant one has a single bin."""
    rows = np.zeros((100, 2), np.float32)
    rows[:30, 0] = np.arange(1, 31)
    first, constant = feature_reference({"instances": rows}, SCHEMA)
    assert first.edges[0] == 0
    assert first.shares[0] == pytest.approx(0.7)
    assert sum(first.shares) == pytest.approx(1)
    assert constant.edges == ()
    assert constant.shares == (1,)


def test_histograms_show_training_and_live_side_by_side() -> None:
    """Only when asked for, and like the distances not before 100 rows; the live shares are those that moved."""
    monitor = observed(rows_like(1.0, seed=1))
    assert all(feature.histogram is None for feature in monitor.report().features)
    moved, still = (feature.histogram for feature in monitor.report(histograms=True).features)
    assert moved is not None
    assert still is not None
    assert len(moved.edges) + 1 == len(moved.training) == len(moved.live)
    assert (sum(moved.training), sum(moved.live)) == pytest.approx((1, 1))
    assert moved.training[-1] == pytest.approx(0.1, abs=0.01)
    assert moved.live[-1] > 0.3  # over the training rows' ninth decile lies what was over a standard deviation less
    np.testing.assert_allclose(still.live, still.training, atol=0.06)
    few = observed(rows_like(0)[: drift.MIN_ROWS - 1]).report(histograms=True)
    assert all(feature.histogram is None for feature in few.features)
