"""What the service did in the last quarter of an hour, for people who look: rates and latencies by interval.

Prometheus keeps the long history; this is a bounded window in memory, so that a look needs no other software.
"""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel, Field

from service.api.models import callers_only
from service.runtime.traffic import LiveTraffic
from service.telemetry import Telemetry

INTERVAL_S = 5.0
KEPT_INTERVALS = 180
STAGES = ("decode", "queue", "model", "encode", "request")


class StageLatency(BaseModel):
    p50_ms: list[float | None] = Field(description="Median by interval; null where nothing happened.")
    p99_ms: list[float | None]


class AlertDetail(BaseModel):
    at: datetime
    model: str
    version: int
    score: float
    p_value: float
    columns: list[dict[str, Any]] | None = Field(
        description="What contributed most: `feature` and `share`; `observed` and `expected` only where the setting "
        "`alert_values` keeps them. Null where alerts came faster than they are explained."
    )


class Activity(BaseModel):
    """Rates and latencies of the last quarter of an hour, the oldest interval first, and the last alerts."""

    since: datetime = Field(description="Start of this process.")
    interval_s: float
    at: list[float] = Field(description="End of each interval, in seconds since 1970.")
    requests_per_s: dict[str, list[float]] = Field(description="By outcome: `ok`, `refused`, `rejected`, `failed`.")
    rows_per_s: list[float]
    scored_rows: list[int] = Field(description="Rows scored in each interval.")
    anomalies: list[int] = Field(description="Of these, rows over the threshold of their version.")
    latency: dict[str, StageLatency] = Field(description="By stage; `request` is the whole.")
    queue_rows: list[int] = Field(description="Rows that waited for the model at the end of each interval.")
    alerts: list[AlertDetail] = Field(description="The newest first. Of this worker process alone.")


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one instant."""

    requests: dict[str, float]
    rows: float
    scored: float
    anomalies: float
    buckets: dict[str, dict[float, float]]
    """Cumulative counts by upper edge in seconds, by stage."""
    queue_rows: float


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two readings."""

    at: float
    seconds: float
    requests: dict[str, float]
    rows: float
    scored: float
    anomalies: float
    latency_ms: dict[str, tuple[float | None, float | None]]
    queue_rows: float


@dataclass
class Window:
    """The last intervals, bounded."""

    kept: int = KEPT_INTERVALS
    intervals: deque[Interval] = field(init=False)
    _before: tuple[float, Reading] | None = None

    def __post_init__(self) -> None:
        self.intervals = deque(maxlen=self.kept)

    def add(self, reading: Reading, *, now: float, at: float) -> None:
        """Take in a reading made at the monotonic instant ``now``, which is ``at`` on the wall."""
        if self._before is not None:
            then, before = self._before
            self.intervals.append(_difference(before, reading, seconds=max(now - then, 1e-9), at=at))
        self._before = now, reading


class ActivityLog:
    """Reads the metrics every few seconds, over all worker processes."""

    def __init__(self, telemetry: Telemetry, *, interval_s: float = INTERVAL_S) -> None:
        self.since = datetime.now(UTC)
        self.interval_s = interval_s
        self.window = Window()
        self._telemetry = telemetry
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            reading = read(await asyncio.to_thread(self._telemetry.families))
            self.window.add(reading, now=time.monotonic(), at=time.time())
            await asyncio.sleep(self.interval_s)


def activity_routes(activity: ActivityLog, traffic: LiveTraffic) -> APIRouter:
    router = APIRouter(tags=["service"], dependencies=[Depends(callers_only)])

    @router.get("/activity", summary="Traffic, latency and alerts of the last quarter of an hour")
    async def show_activity() -> Activity:
        intervals = list(activity.window.intervals)
        outcomes = ("ok", "refused", "rejected", "failed")
        return Activity(
            since=activity.since,
            interval_s=activity.interval_s,
            at=[round(each.at, 1) for each in intervals],
            requests_per_s={
                name: [round(each.requests.get(name, 0.0) / each.seconds, 3) for each in intervals] for name in outcomes
            },
            rows_per_s=[round(each.rows / each.seconds, 2) for each in intervals],
            scored_rows=[int(each.scored) for each in intervals],
            anomalies=[int(each.anomalies) for each in intervals],
            latency={
                stage: StageLatency(
                    p50_ms=[each.latency_ms[stage][0] for each in intervals],
                    p99_ms=[each.latency_ms[stage][1] for each in intervals],
                )
                for stage in STAGES
            },
            queue_rows=[int(each.queue_rows) for each in intervals],
            alerts=[
                AlertDetail(
                    at=alert.at,
                    model=alert.model,
                    version=alert.version,
                    score=alert.score,
                    p_value=alert.p_value,
                    columns=None if alert.columns is None else [dict(column) for column in alert.columns],
                )
                for alert in traffic.alerts.latest()
            ],
        )

    return router


def read(families: Iterable[Metric]) -> Reading:
    """The counters of interest among all metrics."""
    requests: dict[str, float] = {}
    sums = dict.fromkeys(("rows", "scored_rows", "anomalies", "queue_rows"), 0.0)
    buckets: dict[str, dict[float, float]] = {stage: {} for stage in STAGES}
    for family in families:
        for sample in family.samples:
            name = sample.name.removeprefix("autoencoder_")
            if name == "requests_total":
                outcome = outcome_of(int(sample.labels["status"]))
                requests[outcome] = requests.get(outcome, 0.0) + sample.value
            elif name.removesuffix("_total") in sums:
                sums[name.removesuffix("_total")] += sample.value
            elif name in ("stage_seconds_bucket", "request_seconds_bucket"):
                counts = buckets[sample.labels.get("stage", "request")]
                edge = float(sample.labels["le"])
                counts[edge] = counts.get(edge, 0.0) + sample.value
    return Reading(requests, sums["rows"], sums["scored_rows"], sums["anomalies"], buckets, sums["queue_rows"])


def outcome_of(status: int) -> str:
    """What became of a request: answered, refused for load, rejected as wrong, or failed here."""
    if status < 400:
        return "ok"
    if status in (429, 503, 504):
        return "refused"
    return "failed" if status >= 500 else "rejected"


def _difference(before: Reading, after: Reading, *, seconds: float, at: float) -> Interval:
    requests = {name: _grown(before.requests.get(name, 0.0), value) for name, value in after.requests.items()}
    latency = {}
    for stage in STAGES:
        then, now = before.buckets[stage], after.buckets[stage]
        counts = {edge: _grown(then.get(edge, 0.0), count) for edge, count in now.items()}
        latency[stage] = (quantile_ms(counts, 0.5), quantile_ms(counts, 0.99))
    return Interval(
        at=at,
        seconds=seconds,
        requests=requests,
        rows=_grown(before.rows, after.rows),
        scored=_grown(before.scored, after.scored),
        anomalies=_grown(before.anomalies, after.anomalies),
        latency_ms=latency,
        queue_rows=after.queue_rows,
    )


def _grown(before: float, after: float) -> float:
    """A worker that was replaced may take its counts with it."""
    return max(0.0, after - before)


def quantile_ms(counts: dict[float, float], level: float) -> float | None:
    """A quantile of a histogram of seconds, linear within a bucket; None when it is empty.

    Args:
        counts: cumulative counts by upper edge. What lies over the last finite edge counts as that edge.
    """
    edges = sorted(counts)
    cumulative = [counts[edge] for edge in edges]
    if not cumulative or cumulative[-1] <= 0:
        return None
    rank = level * cumulative[-1]
    at = bisect_left(cumulative, rank)
    low = edges[at - 1] if at else 0.0
    high = edges[at] if edges[at] != float("inf") else low
    below = cumulative[at - 1] if at else 0.0
    share = (rank - below) / (cumulative[at] - below) if cumulative[at] > below else 1.0
    return round(1000 * (low + share * (high - low)), 3)
