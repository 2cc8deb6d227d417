"""The last rows that were called anomalies: when, by which version, how strange, and which columns are at fault.

Explaining a row costs many passes of the network, so it is done on a thread of its own, a few rows a second; alerts
that come faster are kept without their columns. The values themselves are forgotten unless they are to be kept.
"""

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from service.codecs.answers import Answer, contributions
from service.runtime.loaded_model import LoadedModel
from service.schemas import Results, Rows
from service.words import ANOMALY_SCORE, EXPLAIN

log = logging.getLogger(__name__)

MAX_ALERTS = 100
MAX_ALERTS_OF_A_BATCH = 10
MAX_WAITING = 8
PAUSE_S = 0.5
"""Between two explanations, so that a flood of alerts costs no more than a trickle."""
COLUMNS = 3


@dataclass(slots=True)
class Alert:
    at: datetime
    model: str
    version: int
    score: float
    p_value: float
    columns: tuple[Mapping[str, Any], ...] | None = None
    """The largest contributions, as ``contributions`` gives them; without the values unless these are kept."""


_Work = tuple[Alert, LoadedModel, Rows]


class Alerts:
    """The last rows over the threshold. Receives every scored batch on the model's thread; its size is bounded."""

    def __init__(self, *, keep_values: bool, pause_s: float = PAUSE_S) -> None:
        self._keep_values = keep_values
        self._pause_s = pause_s
        self._alerts: deque[Alert] = deque(maxlen=MAX_ALERTS)
        self._waiting: deque[_Work] = deque(maxlen=MAX_WAITING)
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

    def scored(self, loaded: LoadedModel, rows: Rows, results: Results) -> None:
        """Keep the rows of one batch that are over the version's threshold."""
        flagged = np.flatnonzero(results["is_anomaly"])
        if not len(flagged):
            return
        now = datetime.now(UTC)
        for row in flagged[-MAX_ALERTS_OF_A_BATCH:].tolist():
            score, p_value = float(results["score"][row]), float(results["p_value"][row])
            alert = Alert(now, loaded.name, loaded.version, score, p_value)
            self._alerts.append(alert)
            if loaded.supports(EXPLAIN):
                # A copy: a view would keep the whole batch in memory.
                one = {name: array[row : row + 1].copy() for name, array in rows.items()}
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
                alert.columns = self._explain(loaded, rows)
            except Exception as error:  # noqa: BLE001 - an alert without its columns is still one
                log.warning("an alert of model %s could not be explained: %s", loaded.name, type(error).__name__)
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
