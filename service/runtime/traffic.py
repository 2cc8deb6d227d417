"""Live rows: counts, drift, the last alerts with the columns at fault, and the candidate on a share of the traffic.

Explaining a row costs passes of the network, so it is done on a thread of its own, a few rows a second, and logged
there; alerts that come faster are kept without their columns. Values are forgotten unless they are to be kept.

The candidate scores a share of the batches as well, so that a promotion is decided on evidence. Its scores answer
nobody. They are computed on a thread of their own, and dropped when that thread is behind.
"""

import logging
import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import Field, computed_field

from service.codecs.answers import Answer, contributions, instances_of
from service.runtime.drift import DriftMonitor, DriftReport
from service.runtime.loaded_model import LoadedModel
from service.runtime.manager import ModelManager, ModelStatus
from service.schemas import Frozen, Results, Rows, row_count, take_rows
from service.telemetry import Telemetry, request_id_of_context
from service.words import ANOMALY_SCORE, EXPLAIN

# --- the last alerts --------------------------------------------------------------------------------------------------


log = logging.getLogger(__name__)

MAX_ALERTS = 100
MAX_ALERTS_OF_A_REQUEST = 10
MAX_WAITING = 8
PAUSE_S = 0.5
"""Between two explanations, so that a flood of alerts costs no more than a trickle."""
MAX_KEPT_FEATURES = 1024
"""Longer rows, large images say, are not kept: a hundred would take hundreds of megabytes."""
COLUMNS = 3
LOGGED = ("model", "version", "request_id", "row", "score", "p_value")
"""Fields of an alert in the log, beside the reason."""


@dataclass(slots=True)
class Alert:
    at: datetime
    model: str
    version: int
    request_id: str | None
    row: int
    """Index in the request."""
    score: float
    p_value: float
    values: Any = None
    """The row as a JSON request has it, where the values are kept."""
    columns: tuple[Mapping[str, Any], ...] | None = None
    """The largest contributions, as ``contributions`` gives them; without the values unless these are kept."""


def flagged_rows(results: Results) -> list[int]:
    """Indices of the flagged rows."""
    indices: list[int] = np.flatnonzero(results["is_anomaly"]).tolist() if "is_anomaly" in results else []
    return indices


_Explained = tuple[Alert, LoadedModel, Rows]


class Alerts:
    """The last rows over the threshold. Receives the rows of every scored request; its size is bounded."""

    def __init__(self, *, keep_values: bool, pause_s: float = PAUSE_S) -> None:
        self._keep_values = keep_values
        self._pause_s = pause_s
        self._alerts: deque[Alert] = deque(maxlen=MAX_ALERTS)
        self._waiting: deque[_Explained] = deque(maxlen=MAX_ALERTS_OF_A_REQUEST)
        self._arrived = threading.Semaphore(0)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="alerts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._arrived.release()
        if self._thread is not None:
            self._thread.join(5)

    def scored(self, loaded: LoadedModel, rows: Rows, results: Results, *, first_row: int = 0) -> None:
        """Keep the last of a request's rows that are over the version's threshold; of a stream's block, which begins
        with its row ``first_row``."""
        now, request_id = datetime.now(UTC), request_id_of_context.get()
        for at in flagged_rows(results)[-MAX_ALERTS_OF_A_REQUEST:]:
            score, p_value = float(results["score"][at]), float(results["p_value"][at])
            alert = Alert(now, loaded.name, loaded.version, request_id, first_row + at, score, p_value)
            one = take_rows(rows, [at])  # a copy: a view would keep the whole request in memory
            if self._keep_values and loaded.schema.features <= MAX_KEPT_FEATURES:
                (alert.values,) = instances_of(one, loaded.schema)
            self._alerts.append(alert)
            self._waiting.append((alert, loaded, one))
            self._arrived.release()

    def latest(self) -> list[Alert]:
        """The kept alerts, newest first."""
        return list(self._alerts)[::-1]

    def _work(self) -> None:
        while not self._stopped.is_set():
            self._arrived.acquire()
            try:
                alert, loaded, rows = self._waiting.pop()  # the newest is what people look at
            except IndexError:
                continue  # pushed out by newer ones, or it is time to stop
            try:
                alert.columns = self._explain(loaded, rows) if loaded.supports(EXPLAIN) else None
            except Exception as error:  # noqa: BLE001 - an alert without its columns is still one
                log.warning("an alert of model %s could not be explained: %s", loaded.name, type(error).__name__)
            reason = ", ".join(f"{each['feature']} {each['share']:.0%}" for each in alert.columns or ())
            fields = {name: getattr(alert, name) for name in LOGGED}
            log.info("alert", extra={**fields, "reason": reason})
            del loaded, rows  # while it waits for the next it must not keep a version in memory
            self._stopped.wait(self._pause_s)

    def _explain(self, loaded: LoadedModel, rows: Rows) -> tuple[Mapping[str, Any], ...]:
        explained = loaded.run(EXPLAIN, rows)
        answer = Answer(
            operation=ANOMALY_SCORE,
            schema=loaded.schema,
            model=loaded.name,
            version=loaded.version,
            results={},
            explain=COLUMNS,
            explained=explained,
            rows=rows,
        )
        kept = {"feature", "share", *(("observed", "expected") if self._keep_values else ())}
        (found,) = contributions(answer)
        return tuple(
            {
                name: value.item() if isinstance(value, np.generic) else value
                for name, value in one.items()
                if name in kept
            }
            for one in found
        )


# --- the candidate beside the version that answers --------------------------------------------------------------------


CANDIDATE = "candidate"
ROWS_AT_ONCE = 256


class ShadowReport(Frozen):
    """Comparison of the candidate with the version that answered, over all rows that both scored."""

    version: int = Field(description="The candidate.")
    against: int = Field(description="The version that answered.")
    since: datetime
    rows: int
    both: int = Field(description="Rows that both call anomalies.")
    only_candidate: int
    only_current: int
    p_value_shift: float = Field(description="Mean p-value of the candidate less that of the current version.")
    p_value_distance: float = Field(description="Mean absolute difference of the p-values.")
    score_ratio: float | None = Field(description="Mean score of the candidate over that of the current version.")
    failures: int = Field(description="Batches on which the candidate failed.")

    @computed_field(description="Share of rows on whose flag the two differ.")
    def disagreement(self) -> float:
        return (self.only_candidate + self.only_current) / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class Compared:
    candidate: LoadedModel
    current: LoadedModel
    rows: Rows
    results: Results


class Shadow:
    """Compares candidates with the versions that answer. ``offer`` is cheap and never blocks."""

    def __init__(
        self,
        find_candidate: Callable[[str], LoadedModel | None],
        *,
        share: float,
        observe: Callable[[str, int, int, int], None] = lambda model, version, rows, disagreements: None,
    ) -> None:
        self._find_candidate = find_candidate
        self._share = share
        self._observe = observe
        self._reports: dict[str, ShadowReport] = {}
        self._sums: dict[str, tuple[float, float]] = {}
        self._queue: queue.Queue[Compared | None] = queue.Queue(MAX_WAITING)
        self._random = random.Random()  # noqa: S311 - a sample, not a secret
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with suppress(queue.Full):  # a daemon thread: the process does not wait for it
            self._queue.put_nowait(None)

    def report(self, model: str) -> ShadowReport | None:
        return self._reports.get(model)

    def offer(self, current: LoadedModel, rows: Rows, results: Results) -> None:
        """Score a batch with the model's candidate too, for the configured share of batches."""
        candidate = self._find_candidate(current.name)
        if candidate is None or candidate is current or self._random.random() >= self._share:
            return
        cut = {name: array[:ROWS_AT_ONCE] for name, array in rows.items()}
        with suppress(queue.Full):
            self._queue.put_nowait(Compared(candidate, current, cut, results))

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                self._compare(work, work.candidate.run(ANOMALY_SCORE.name, work.rows))
            except Exception:
                # Another row shape, or a model that raises: evidence against the candidate, no more.
                report = self._current_report(work)
                self._reports[work.current.name] = report.model_copy(update={"failures": report.failures + 1})
                log.warning("candidate %r failed on live rows", work.candidate, exc_info=True)

    def _current_report(self, work: Compared) -> ShadowReport:
        """The running report; a new one when either version has changed."""
        name = work.current.name
        report = self._reports.get(name)
        if report is None or (report.version, report.against) != (work.candidate.version, work.current.version):
            self._sums[name] = 0.0, 0.0
            counts = dict.fromkeys(("rows", "both", "only_candidate", "only_current", "failures"), 0)
            return ShadowReport(
                version=work.candidate.version,
                against=work.current.version,
                since=datetime.now(UTC),
                p_value_shift=0.0,
                p_value_distance=0.0,
                score_ratio=None,
                **counts,
            )
        return report

    def _compare(self, work: Compared, shadowed: Results) -> None:
        name, report = work.current.name, self._current_report(work)
        count = len(shadowed["score"])
        current = {output: array[:count] for output, array in work.results.items()}
        flags, others = shadowed["is_anomaly"], current["is_anomaly"]
        shift = shadowed["p_value"].astype(np.float64) - current["p_value"]
        sums = self._sums[name]
        sums = sums[0] + float(shadowed["score"].sum()), sums[1] + float(current["score"].sum())
        self._sums[name] = sums
        rows = report.rows + count
        only_candidate, only_current = int((flags & ~others).sum()), int((others & ~flags).sum())
        changed = {
            "rows": rows,
            "both": report.both + int((flags & others).sum()),
            "only_candidate": report.only_candidate + only_candidate,
            "only_current": report.only_current + only_current,
            "p_value_shift": (report.p_value_shift * report.rows + float(shift.sum())) / rows,
            "p_value_distance": (report.p_value_distance * report.rows + float(np.abs(shift).sum())) / rows,
            "score_ratio": sums[0] / sums[1] if sums[1] else None,
        }
        self._reports[name] = report.model_copy(update=changed)
        self._observe(name, work.candidate.version, count, only_candidate + only_current)


# --- all of it --------------------------------------------------------------------------------------------------------


class LiveTraffic:
    """Runs every batch, on the model's thread or the event loop, and counts by batch, not by request."""

    def __init__(
        self,
        manager: ModelManager,
        telemetry: Telemetry,
        *,
        shadow_share: float,
        drift_window_rows: int,
        alert_values: bool = False,
    ) -> None:
        self._manager = manager
        self._telemetry = telemetry
        self._drift_window_rows = drift_window_rows
        self._monitors: Mapping[LoadedModel, DriftMonitor] = {}
        self._candidates: Mapping[str, LoadedModel] = {}
        """The candidate of each model that has one in memory."""
        self._shadow = Shadow(self._candidate, share=shadow_share, observe=telemetry.rows_shadowed)
        self.alerts = Alerts(keep_values=alert_values)

    def start(self) -> None:
        self._shadow.start()
        self.alerts.start()

    def stop(self) -> None:
        self._shadow.stop()
        self.alerts.stop()

    def models_changed(self, models: Mapping[str, ModelStatus]) -> None:
        """Watch the versions that are loaded now, and forget all others."""
        loaded = [version for model in models.values() for version in model.loaded.values()]
        self._monitors = {
            version: self._monitors.get(version) or self._monitor(version)
            for version in loaded
            if version.supports(ANOMALY_SCORE.name)
        }
        candidates = {name: model.loaded.get(model.serving.get(CANDIDATE, 0)) for name, model in models.items()}
        self._candidates = {
            name: candidate
            for name, candidate in candidates.items()
            if candidate is not None and candidate.supports(ANOMALY_SCORE.name)
        }

    def _monitor(self, loaded: LoadedModel) -> DriftMonitor:
        return DriftMonitor(loaded.manifest, window_rows=self._drift_window_rows)

    def _candidate(self, model: str) -> LoadedModel | None:
        return self._candidates.get(model)

    def inline_rows(self, key: tuple[LoadedModel, str]) -> int:
        """The number of rows that a version's signature answers within a millisecond."""
        return key[0].inline_rows[key[1]]

    def run(self, key: tuple[LoadedModel, str], rows: Rows) -> Results:
        """Run a batch of a version's signature, and count it."""
        loaded, signature = key
        results = loaded.run(signature, rows)
        self._telemetry.rows_answered(signature, loaded.name, row_count(rows))
        if signature != ANOMALY_SCORE.name:
            return results
        self._telemetry.rows_scored(loaded.name, loaded.version, results["p_value"], results["is_anomaly"])
        monitor = self._monitors.get(loaded)
        if monitor is not None:
            monitor.observe(rows, results)
        if loaded.name in self._candidates:
            self._shadow.offer(loaded, rows, results)
        return results

    def drift(self, loaded: LoadedModel, *, histograms: bool = False) -> DriftReport | None:
        monitor = self._monitors.get(loaded)
        return monitor.report(histograms=histograms) if monitor else None

    def shadow(self, model: str) -> ShadowReport | None:
        return self._shadow.report(model)

    def publish_drift(self) -> None:
        """Bring the drift metrics up to date; called when they are read."""
        for loaded, monitor in self._monitors.items():
            report = monitor.report()
            if report.score.psi is not None:
                worst = max((feature.psi or 0.0 for feature in report.features), default=0.0)
                self._telemetry.drifted(loaded.name, loaded.version, score=report.score.psi, worst_feature=worst)
