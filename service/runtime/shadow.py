"""Score a share of live traffic with the candidate as well, so that a promotion is decided on evidence.

The candidate's scores answer nobody. They are computed on a thread of their own, and dropped when that thread is
behind: a slow candidate costs its evidence, not the callers' time.
"""

import logging
import queue
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from pydantic import Field, computed_field

from service.runtime.loaded_model import LoadedModel
from service.schemas import Frozen, Results, Rows
from service.words import ANOMALY_SCORE

log = logging.getLogger(__name__)

CANDIDATE = "candidate"
MAX_WAITING = 8
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
class _Work:
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
        self._queue: queue.Queue[_Work | None] = queue.Queue(MAX_WAITING)
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
            self._queue.put_nowait(_Work(candidate, current, cut, results))

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                self._compare(work, work.candidate.run(ANOMALY_SCORE.name, work.rows))
            except Exception:
                # Another row shape, or a model that raises: evidence against the candidate, no more.
                report = self._current_report(work)
                self._reports[work.current.name] = report.model_copy(update={"failures": report.failures + 1})
                log.warning("candidate %r failed on live rows", work.candidate, exc_info=True)

    def _current_report(self, work: _Work) -> ShadowReport:
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

    def _compare(self, work: _Work, shadowed: Results) -> None:
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
