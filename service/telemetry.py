"""Metrics, logs and traces. Knows nothing of models or HTTP: it is told names, numbers and seconds.

Label sets are bounded: operations, stages and reasons are fixed lists, models and versions come from the store.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np
import orjson
import structlog
from numpy.typing import NDArray
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
P_VALUE_EDGES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_P_VALUE_EDGES = np.asarray(P_VALUE_EDGES, np.float32)

TRACE_HEADERS = ("traceparent", "tracestate")

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST

Stage = Literal["decode", "queue", "model", "encode"]

request_id_of_context: ContextVar[str | None] = ContextVar("request_id", default=None)


class _Values(Histogram):
    """A histogram that takes many values at once: one by one, they cost more than all else that is counted."""

    def observe_all(self, values: list[float]) -> None:
        for at, count in enumerate(np.bincount(np.searchsorted(self._upper_bounds, values)).tolist()):
            if count:
                self._buckets[at].inc(count)
        self._sum.inc(sum(values))


class Telemetry:
    """All metrics of one process. In several worker processes prometheus_client adds them up through files.

    What comes with each request or batch is appended to lists, which ``flush`` counts: call it a few times a second.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry, multiprocess_mode="livesum")
        seconds = partial(_Values, buckets=LATENCY_BUCKETS_S, registry=self._registry)
        version = ["model", "version"]
        self._requests = counter("autoencoder_requests", "Answered requests.", ["operation", "model", "status"])
        text = "Time from the first byte of a request to its answer."
        self._request_seconds = seconds("autoencoder_request_seconds", text, ["operation"])
        text = "Time of a request by stage; model: time of a batch."
        self._stage_seconds = seconds("autoencoder_stage_seconds", text, ["stage"])
        self._rows = counter("autoencoder_rows", "Rows answered.", ["operation", "model"])
        text = "Rows in one call of the model."
        self._batch_rows = _Values("autoencoder_batch_rows", text, buckets=ROW_BUCKETS, registry=self._registry)
        self._queue_requests = gauge("autoencoder_queue_requests", "Requests that wait for the model.")
        self._queue_rows = gauge("autoencoder_queue_rows", "Rows that wait for the model.")
        self._queue_bytes = gauge("autoencoder_queue_bytes", "Input bytes that wait for the model.")
        self._refusals = counter("autoencoder_refusals", "Requests refused for load.", ["reason"])
        text = "1 for every version in memory."
        self._loaded = gauge("autoencoder_version_loaded", text, version, multiprocess_mode="max")
        self._ready = gauge("autoencoder_ready", "1 when the default model answers.", multiprocess_mode="min")
        text = "Scored rows by p-value; `p_value_up_to` is the upper edge of a bucket."
        self._scored = counter("autoencoder_scored_rows", text, [*version, "p_value_up_to"])
        self._anomalies = counter("autoencoder_anomalies", "Scored rows over the version's threshold.", version)
        self._loop_lag = seconds("autoencoder_event_loop_lag_seconds", "How late the event loop runs a timer.")
        self._shadow_rows = counter("autoencoder_shadow_rows", "Live rows that the candidate scored as well.", version)
        text = "Of these, rows on whose flag the candidate and the version that answered differ."
        self._shadow_disagreements = counter("autoencoder_shadow_disagreements", text, version)
        text = "Population stability index of live scores against the calibration's."
        self._score_drift = gauge("autoencoder_score_drift_psi", text, version, multiprocess_mode="livemax")
        text = "Population stability index of the feature that moved most from the training rows."
        self._feature_drift = gauge("autoencoder_feature_drift_psi", text, version, multiprocess_mode="livemax")
        self._row_children: dict[tuple[str, str], Counter] = {}
        self._finished: dict[tuple[str, str, int], list[float]] = {}
        self._took: dict[Stage, list[float]] = {"decode": [], "queue": [], "model": [], "encode": []}
        self._batches: list[float] = []
        self._flushing = threading.Lock()

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of this process, up to date."""
        self.flush()
        return self._registry

    def flush(self) -> None:
        """Count what was appended since the last time. May be called on any thread."""
        with self._flushing:
            for (operation, model, status), appended in list(self._finished.items()):
                seconds = _taken(appended)
                if seconds:
                    self._requests.labels(operation, model, status).inc(len(seconds))
                    self._request_seconds.labels(operation).observe_all(seconds)
            for stage, appended in self._took.items():
                self._stage_seconds.labels(stage).observe_all(_taken(appended))
            self._batch_rows.observe_all(_taken(self._batches))

    def request_finished(self, operation: str, model: str, status: int, seconds: float) -> None:
        finished = self._finished.get((operation, model, status))
        if finished is None:
            finished = self._finished[operation, model, status] = []
        finished.append(seconds)

    def rows_answered(self, operation: str, model: str, rows: int) -> None:
        child = self._row_children.get((operation, model))
        if child is None:
            child = self._row_children[operation, model] = self._rows.labels(operation, model)
        child.inc(rows)

    def stage_took(self, stage: Stage, seconds: float) -> None:
        self._took[stage].append(seconds)

    def batch_ran(self, rows: int, queue_s: float, model_s: float) -> None:
        self._batches.append(rows)
        self._took["queue"].append(queue_s)
        self._took["model"].append(model_s)

    def queue_changed(self, requests: int, rows: int, size_bytes: int) -> None:
        self._queue_requests.set(requests)
        self._queue_rows.set(rows)
        self._queue_bytes.set(size_bytes)

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def rows_scored(
        self, model: str, version: int, p_values: NDArray[np.float32], is_anomaly: NDArray[np.bool_]
    ) -> None:
        """Count the p-values (rows,) and flags (rows,) of one batch. May be called on any thread."""
        counts = np.bincount(np.searchsorted(_P_VALUE_EDGES, p_values), minlength=len(P_VALUE_EDGES))
        for bucket in np.flatnonzero(counts[: len(P_VALUE_EDGES)]):
            self._scored.labels(model, version, P_VALUE_EDGES[bucket]).inc(int(counts[bucket]))
        anomalies = int(np.count_nonzero(is_anomaly))
        if anomalies:
            self._anomalies.labels(model, version).inc(anomalies)

    def rows_shadowed(self, model: str, version: int, rows: int, disagreements: int) -> None:
        self._shadow_rows.labels(model, version).inc(rows)
        self._shadow_disagreements.labels(model, version).inc(disagreements)

    def drifted(self, model: str, version: int, *, score: float, worst_feature: float) -> None:
        self._score_drift.labels(model, version).set(score)
        self._feature_drift.labels(model, version).set(worst_feature)

    def loop_lagged(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def models_changed(self, loaded: set[tuple[str, int]], *, ready: bool) -> None:
        self._ready.set(ready)
        for gauge in (self._loaded, self._score_drift, self._feature_drift):
            gauge.clear()
        for model, version in loaded:
            self._loaded.labels(model, version).set(1)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format, over all worker processes."""
        return generate_latest(self._of_all_workers())

    def families(self) -> list[Metric]:
        """The metrics as objects of prometheus_client."""
        return list(self._of_all_workers().collect())

    def _of_all_workers(self) -> CollectorRegistry:
        self.flush()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self._registry
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry


def _taken(values: list[float]) -> list[float]:
    """Take the present items out of a list, while others may append."""
    taken = values[:]
    del values[: len(taken)]
    return taken


_NO_SPAN: AbstractContextManager[None] = nullcontext()


class Tracing:
    """OpenTelemetry spans of requests, if a collector is configured; otherwise does nothing.

    A caller's ``traceparent`` is continued; without one, a share of the requests is traced.
    """

    def __init__(self, endpoint: str | None, *, share: float, exporter: "SpanExporter | None" = None) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        self.enabled = endpoint is not None or exporter is not None
        if endpoint is None and exporter is None:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        resource = Resource.create({"service.name": "autoencoder-service"})
        self._provider = sdk.TracerProvider(sampler=ParentBasedTraceIdRatio(share), resource=resource)
        exporter = exporter or OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("service")

    def request(self, name: str, headers: Mapping[bytes, bytes]) -> "AbstractContextManager[Span | None]":
        """A span around one request, within that of its caller where the headers name one."""
        if self._tracer is None:
            return _NO_SPAN
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        caller = {key: headers[key.encode()].decode("latin-1") for key in TRACE_HEADERS if key.encode() in headers}
        return self._tracer.start_as_current_span(name, context=extract(caller), kind=SpanKind.SERVER)

    def stage(self, name: Stage | Literal["run"]) -> "AbstractContextManager[Span | None]":
        """A span below that of the request."""
        return _NO_SPAN if self._tracer is None else self._tracer.start_as_current_span(name)

    def shutdown(self) -> None:
        """Send the remaining spans. Blocks."""
        if self._provider is not None:
            self._provider.shutdown()


def _add_request_id(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = request_id_of_context.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def _without_colors(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leave out uvicorn's second copy of a message, which has escape sequences in it."""
    event.pop("color_message", None)
    return event


def configure_logging(level: str, log_format: Literal["json", "console"]) -> None:
    """Send every log record, ours and the libraries', to standard error as one JSON object or one line of text."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        _without_colors,
        _add_request_id,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":

        def as_json(event: Any, **_options: Any) -> str:
            return orjson.dumps(event, default=str).decode()

        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(as_json)]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    try:
        # A descriptor of its own: number 2 points at nothing while TensorFlow is imported, also on another thread.
        own = os.dup(sys.stderr.fileno())
        stream: TextIO = open(own, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    except OSError:  # not a file, as under a test runner
        stream = sys.stderr
    to_stderr = logging.StreamHandler(stream)
    to_stderr.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [to_stderr]
    root.setLevel(level.upper())
