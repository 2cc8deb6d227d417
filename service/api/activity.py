"""Rates and latencies of the service by interval, over the last quarter of an hour, for people who look.

Prometheus keeps the long history; this is a bounded window in memory, so that a look needs no other software.
"""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from fastapi import APIRouter, Depends
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel, ConfigDict, Field

from service.api.models import callers_only
from service.runtime.traffic import LiveTraffic
from service.telemetry import Telemetry

INTERVAL_S = 5.0
KEPT_INTERVALS = 180
STAGES = ("decode", "queue", "model", "encode", "request")
OUTCOMES = ("ok", "refused", "rejected", "failed")
Labels: TypeAlias = tuple[str, ...]
Reading: TypeAlias = Mapping[str, Mapping[Labels, float]]
"""Samples by metric, without ``autoencoder_``, and by the labels that matter here."""
METRICS: Final[Mapping[str, Labels]] = {
    "requests_total": ("status",),
    "rows_total": (),
    "scored_rows_total": (),
    "anomalies_total": (),
    "queue_rows": (),
    "stage_seconds_bucket": ("stage", "le"),
    "request_seconds_bucket": ("le",),
}
"""What the activity is made of: metrics and the labels by which their samples are told apart, others added up."""


class StageLatency(BaseModel):
    p50_ms: list[float | None] = Field(description="Median by interval; null where nothing happened.")
    p99_ms: list[float | None]


class AlertDetail(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    at: datetime
    model: str
    version: int
    request_id: str | None = Field(description="`X-Request-ID` of the request and of its answer.")
    row: int = Field(description="Index of the row in its request.")
    score: float
    p_value: float
    values: Any = Field(description="The row as in `instances`, where `alert_values` keeps it; null if it is long.")
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
class Interval:
    """The time between two readings."""

    at: float
    """End, in seconds since 1970."""
    seconds: float
    grown: Reading
    """How much each counter grew."""
    gauges: Reading
    """Values at the end."""
    latency_ms: Mapping[str, tuple[float | None, float | None]]
    """Median and 99th percentile by stage."""

    @classmethod
    def between(cls, before: Reading, after: Reading, *, seconds: float, at: float = 0.0) -> "Interval":
        """The difference of two readings of one service."""
        # A service that was started again counts from nothing, and a replaced worker may take its counts with it.
        grown = {
            metric: {key: max(0.0, value - before[metric].get(key, 0.0)) for key, value in values.items()}
            for metric, values in after.items()
            if metric.endswith(("_total", "_bucket", "_count", "_sum"))
        }
        buckets: dict[str, dict[float, float]] = {stage: {} for stage in STAGES}
        for metric in ("stage_seconds_bucket", "request_seconds_bucket"):
            for (*stage, edge), count in grown[metric].items():
                buckets[stage[0] if stage else "request"][float(edge)] = count
        latency = {stage: (quantile_ms(counts, 0.5), quantile_ms(counts, 0.99)) for stage, counts in buckets.items()}
        gauges = {metric: values for metric, values in after.items() if metric not in grown}
        kept = {metric: values for metric, values in grown.items() if not metric.endswith("_bucket")}
        return cls(at, max(seconds, 1e-9), kept, gauges, latency)

    def events(self, metric: str) -> float:
        """How much a counter grew, over all labels."""
        return sum(self.grown[metric].values())

    def gauge(self, metric: str) -> float:
        return sum(self.gauges.get(metric, {}).values())

    @property
    def requests(self) -> dict[str, float]:
        """Answered requests by outcome."""
        counts = dict.fromkeys(OUTCOMES, 0.0)
        for (status,), count in self.grown["requests_total"].items():
            counts[outcome_of(int(status))] += count
        return counts


class ActivityLog:
    """Reads the metrics every few seconds, over all worker processes."""

    def __init__(self, telemetry: Telemetry, *, interval_s: float = INTERVAL_S) -> None:
        self.since = datetime.now(UTC)
        self.interval_s = interval_s
        self.intervals: deque[Interval] = deque(maxlen=KEPT_INTERVALS)
        self._before: tuple[float, Reading] | None = None
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
            self.add(reading, now=time.monotonic(), at=time.time())
            await asyncio.sleep(self.interval_s)

    def add(self, reading: Reading, *, now: float, at: float) -> None:
        """Take in a reading made at the monotonic instant ``now``, which is ``at`` on the wall."""
        if self._before is not None:
            then, before = self._before
            self.intervals.append(Interval.between(before, reading, seconds=now - then, at=at))
        self._before = now, reading


def activity_routes(activity: ActivityLog, traffic: LiveTraffic) -> APIRouter:
    router = APIRouter(tags=["service"], dependencies=[Depends(callers_only)])

    @router.get("/activity", summary="Traffic, latency and alerts of the last quarter of an hour")
    async def show_activity() -> Activity:
        intervals = list(activity.intervals)
        requests = [each.requests for each in intervals]
        return Activity(
            since=activity.since,
            interval_s=activity.interval_s,
            at=[round(each.at, 1) for each in intervals],
            requests_per_s={
                name: [round(counts[name] / each.seconds, 3) for counts, each in zip(requests, intervals, strict=True)]
                for name in OUTCOMES
            },
            rows_per_s=[round(each.events("rows_total") / each.seconds, 2) for each in intervals],
            scored_rows=[int(each.events("scored_rows_total")) for each in intervals],
            anomalies=[int(each.events("anomalies_total")) for each in intervals],
            latency={
                stage: StageLatency(
                    p50_ms=[each.latency_ms[stage][0] for each in intervals],
                    p99_ms=[each.latency_ms[stage][1] for each in intervals],
                )
                for stage in STAGES
            },
            queue_rows=[int(each.gauge("queue_rows")) for each in intervals],
            alerts=[AlertDetail.model_validate(alert) for alert in traffic.alerts.latest()],
        )

    return router


def read(families: Iterable[Metric], metrics: Mapping[str, Labels] = METRICS) -> Reading:
    """The samples of some metrics, added up by the labels given; of drift the greatest."""
    reading: dict[str, dict[Labels, float]] = {metric: {} for metric in metrics}
    for family in families:
        for sample in family.samples:
            metric = sample.name.removeprefix("autoencoder_")
            if metric in metrics:
                key = tuple(sample.labels[label] for label in metrics[metric])
                known = reading[metric].get(key, 0.0)
                reading[metric][key] = max(known, sample.value) if "drift" in metric else known + sample.value
    return reading


def outcome_of(status: int) -> str:
    """How a request ended: answered, refused for load, rejected as wrong, or failed here."""
    if status < 400:
        return "ok"
    if status in (429, 503, 504):
        return "refused"
    return "failed" if status >= 500 else "rejected"


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
