"""``autoencoder top``: the interval between two readings of a live service, and the screen made of it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from service.api.activity import STAGES, Interval
from service.cli import app
from service.cli.top import reading_of
from service.client import Client
from tests.fakes import load_fake
from tests.live import LiveService

Serve = Callable[..., LiveService]


def top(url: str, *, width: int = 160) -> Result:
    return CliRunner().invoke(app, ["top", "--once", "--interval", "0.1", "--url", url], env={"COLUMNS": str(width)})


@pytest.fixture
def live(fake_store: Path, serve: Serve) -> LiveService:
    return serve(fake_store, load=load_fake)


def test_figures_of_an_interval(live: LiveService) -> None:
    """Requests, rows, batches and alerts of the time between two scrapes, and nothing of the time before."""
    rows = np.full((10, 2), 1.0, np.float32)
    rows[:3] = 5
    with Client(live.url) as client:
        client.anomaly_score(rows)
        before = reading_of(client.metrics())
        for _ in range(4):
            client.anomaly_score(rows)
        live.post("/anomaly-score", json={"instances": [["x", 1]]})
        after = reading_of(client.metrics())
    interval = Interval.between(before, after, seconds=2.0)
    assert interval.requests == {"ok": 4.0, "rejected": 1.0, "refused": 0.0, "failed": 0.0}
    assert interval.events("rows_total") == 40.0
    assert (interval.events("batch_rows_count"), interval.events("batch_rows_sum")) == (4.0, 40.0)
    assert interval.grown["scored_rows_total"]["pumps", "2"] == 40.0
    assert interval.grown["anomalies_total"]["pumps", "2"] == 12.0
    for stage in STAGES:
        p50, p99 = interval.latency_ms[stage]
        assert p50 is not None
        assert p99 is not None
        assert 0 <= p50 <= p99
    assert [interval.gauge(f"queue_{name}") for name in ("requests", "rows", "bytes")] == [0.0, 0.0, 0.0]
    assert interval.events("refusals_total") == 0.0
    assert interval.gauge("process_resident_memory_bytes") > 2**20


def test_a_service_that_was_started_again(live: LiveService) -> None:
    """Its counters begin anew: figures are never negative."""
    with Client(live.url) as client:
        before = reading_of(client.metrics())
        client.anomaly_score(np.ones((5, 2), np.float32))
        after = reading_of(client.metrics())
    interval = Interval.between(after, before, seconds=1.0)
    assert interval.events("rows_total") == interval.events("batch_rows_count") == 0.0
    assert all(count == 0.0 for counts in interval.grown.values() for count in counts.values())


def test_one_screen(live: LiveService) -> None:
    """Address, rates, stages, versions with their aliases; exit code 0."""
    live.http.put("/models/pumps/aliases/production", json={"version": 1})
    live.post("/anomaly-score", json={"instances": [[1, 2]]})
    result = top(live.url)
    assert result.exit_code == 0, result.output
    for expected in (live.url, "requests/s", "whole request", "refusals     none", "pumps", "production", "available"):
        assert expected in result.output


def test_a_terminal_of_80_columns(live: LiveService) -> None:
    """Every name and figure is whole, each version on lines of its own; a drift only from 100 scored rows on."""
    for alias in ("production", "candidate"):
        live.http.put(f"/models/pumps/aliases/{alias}", json={"version": 2})
    for rows in (50, 49):
        live.post("/anomaly-score", json={"instances": [[1, 2]] * rows})
    lines = top(live.url, width=80).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    version = next(line for line in lines if line.strip().startswith("pumps 2"))
    assert version.split()[2:] == ["available", "production", "0.0"]
    live.post("/anomaly-score", json={"instances": [[1, 2]]})
    lines = top(live.url, width=80).output.splitlines()
    version = next(line for line in lines if line.strip().startswith("pumps 2"))
    assert re.fullmatch(r"available production 0\.0( \d+\.\d{3}){2}", " ".join(version.split()[2:]))


def test_nobody_there() -> None:
    """One sentence, exit code 1."""
    result = top("http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.output.startswith("autoencoder: ")
    assert len(result.output.splitlines()) == 1
