"""``autoencoder top``: figures from two scrapes of a live service, and the screen made of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from service.cli import app
from service.cli.figures import between, parse
from service.client import Client
from tests.fakes import load_fake
from tests.live import LiveService

Serve = Callable[..., LiveService]


def top(url: str) -> Result:
    return CliRunner().invoke(app, ["top", "--once", "--interval", "0.1", "--url", url], env={"COLUMNS": "160"})


@pytest.fixture
def live(fake_store: Path, serve: Serve) -> LiveService:
    return serve(fake_store, load=load_fake)


def test_figures_of_an_interval(live: LiveService) -> None:
    """Requests, rows, batches and alerts of the time between two scrapes, and nothing of the time before."""
    rows = np.full((10, 2), 1.0, np.float32)
    with Client(live.url) as client:
        client.anomaly_score(rows)
        before = parse(client.metrics())
        for _ in range(4):
            client.anomaly_score(rows)
        live.post("/anomaly-score", json={"instances": [["x", 1]]})
        after = parse(client.metrics())
    figures = between(before, after, seconds=2.0)
    assert figures.interval.requests == {"ok": 4.0, "rejected": 1.0}
    assert figures.interval.rows == 40.0
    assert figures.mean_batch_rows == 10.0
    scored = figures.by_version["pumps", 2]
    assert scored.scored_per_s == 20.0
    flagged = live.post("/anomaly-score", json={"instances": rows.tolist()}).json()["is_anomaly"]
    assert scored.alert_rate == sum(flagged) / len(flagged)
    for stage in ("decode", "queue", "model", "encode", "request"):
        p50, p99 = figures.interval.latency_ms[stage]
        assert p50 is not None
        assert p99 is not None
        assert 0 <= p50 <= p99
    assert figures.queue == {"requests": 0.0, "rows": 0.0, "bytes": 0.0}
    assert figures.refusals_per_s == {}
    assert figures.memory_bytes is not None
    assert figures.memory_bytes > 2**20


def test_a_service_that_was_started_again(live: LiveService) -> None:
    """Its counters begin anew: figures are never negative."""
    with Client(live.url) as client:
        before = parse(client.metrics())
        client.anomaly_score(np.ones((5, 2), np.float32))
        after = parse(client.metrics())
    figures = between(after, before, seconds=1.0)
    assert figures.interval.rows == 0.0
    assert figures.mean_batch_rows is None
    assert all(each.scored_per_s == 0.0 for each in figures.by_version.values())


def test_one_screen(live: LiveService) -> None:
    """Address, rates, stages, versions with their aliases; exit code 0."""
    live.http.put("/models/pumps/aliases/production", json={"version": 1})
    live.post("/anomaly-score", json={"instances": [[1, 2]]})
    result = top(live.url)
    assert result.exit_code == 0, result.output
    for expected in (live.url, "requests/s", "whole request", "refusals     none", "pumps", "production", "available"):
        assert expected in result.output


def test_nobody_there() -> None:
    """One sentence, exit code 1."""
    result = top("http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.output.startswith("autoencoder: ")
    assert len(result.output.splitlines()) == 1
