"""The candidate on live traffic, and drift, as operators see them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.store import Store
from tests.live import LiveService

pytestmark = pytest.mark.tf


def _shadow(live: LiveService, rows: int) -> dict[str, Any]:
    """The shadow report once it has so many rows; it is computed after the answers."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        report = live.get("/models/digits").json()["shadow"]
        if report is not None and report["rows"] >= rows:
            return dict(report)
        time.sleep(0.05)
    raise AssertionError("the candidate was not tried")


def test_a_candidate_is_compared_and_never_answers(serve: Callable[..., LiveService], store: Path) -> None:
    """The report holds what both versions say of the rows that were sent; the answers are the current version's."""
    opened = Store(store)
    opened.set_alias("digits", "production", 1)
    opened.set_alias("digits", "candidate", 2)
    live = serve(store, default_model="digits", shadow_share=1.0)
    rows = np.random.default_rng(0).uniform(0, 16, (40, 8, 8)).astype(np.float32)
    rows[:20] *= 0.1
    answer = live.post("/anomaly-score", json={"instances": rows.tolist()})
    assert answer.json()["model"]["version"] == 1
    report = _shadow(live, 40)
    loaded = live.service.manager.models["digits"].loaded
    current, candidate = (loaded[version].run("anomaly_score", {"instances": rows}) for version in (1, 2))
    assert (report["version"], report["against"], report["rows"], report["failures"]) == (2, 1, 40, 0)
    flags, others = candidate["is_anomaly"], current["is_anomaly"]
    assert report["both"] == int((flags & others).sum())
    assert report["disagreement"] == pytest.approx(float((flags != others).mean()))
    assert report["p_value_shift"] == pytest.approx(float((candidate["p_value"] - current["p_value"]).mean()), abs=1e-6)
    assert report["score_ratio"] == pytest.approx(float(candidate["score"].sum() / current["score"].sum()), rel=1e-4)
    assert 'autoencoder_shadow_rows_total{model="digits",version="2"} 40.0' in live.get("/metrics").text


def test_without_a_candidate_there_is_no_shadow(service: LiveService) -> None:
    """A model whose store names no candidate has none."""
    assert service.get("/models/digits").json()["shadow"] is None


def test_drift_is_shown_by_feature(serve: Callable[..., LiveService], trained_store: Path) -> None:
    """Rows whose column has moved show it in that column, in the scores and in the metrics."""
    from tests.conftest import table_rows

    live = serve(trained_store, default_model="payments")
    moved = table_rows(400, seed=5)
    moved[:, 1] += 40
    for start in range(0, 400, 50):
        names = ("amount", "age", "visits", "balance", "tenure", "score")
        rows = [dict(zip(names, row, strict=True)) for row in moved[start : start + 50].tolist()]
        assert live.post("/anomaly-score", json={"instances": rows}).status_code == 200
    report = live.get("/models/payments/drift").json()
    psi = {feature["name"]: feature["psi"] for feature in report["features"]}
    assert max(psi, key=lambda name: psi[name]) == "age"
    assert psi["age"] > 0.25 > psi["visits"]
    assert report["scored_rows"] == 400
    assert report["score"]["psi"] > 0.25
    assert report["alert_rate"] > 10 * report["false_alarm_rate"]
    assert 'autoencoder_feature_drift_psi{model="payments",version="1"}' in live.get("/metrics").text
