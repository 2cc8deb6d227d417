"""What the service does with rows, whatever protocol brought them. Knows no HTTP."""

from dataclasses import dataclass

import numpy as np

from service.batching import Batcher
from service.codecs import Answer, Options
from service.errors import InvalidOption, TooLarge
from service.runtime.loaded_model import LoadedModel
from service.schemas import ANOMALY_SCORE, EXPLAIN, Operation, Results, Rows, row_count
from service.scoring import conformal_threshold, float32_threshold

EXPLAIN_ROW_COST = 64
"""Explaining a row calls the network once a feature and candidate."""

BatchKey = tuple[LoadedModel, str]
"""A loaded version and one of its signatures: rows of one key may share a batch."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operation on the rows of one caller. ``deadline`` is an instant of the event loop's clock."""

    loaded: LoadedModel
    operation: Operation
    rows: Rows
    options: Options
    deadline: float


class Operations:
    """Runs calls through the batcher and completes their answers."""

    def __init__(self, batcher: Batcher[BatchKey], *, max_explain_rows: int) -> None:
        self._batcher = batcher
        self._max_explain_rows = max_explain_rows

    def check_room(self) -> None:
        self._batcher.check_room()

    async def run(self, call: Call) -> Answer:
        """
        Raises:
            OperationNotSupported: the version was not trained for it.
            QueueFull, Draining, DeadlineExceeded, ModelFailed: as the batcher says.
            TooLarge, InvalidOption: more rows or features to explain than there may be.
        """
        loaded, operation = call.loaded, call.operation
        loaded.require(operation)
        explained = await self._explain(call) if call.options.explain is not None else {}
        results = await self._batcher.submit((loaded, operation.name), call.rows, deadline=call.deadline)
        threshold: np.float32 | float | None = None
        false_alarm_rate: float | None = None
        if operation is ANOMALY_SCORE:
            results, threshold, false_alarm_rate = _judged(loaded, results, call.options)
        return Answer(
            operation=operation,
            schema=loaded.schema,
            model=loaded.name,
            version=loaded.version,
            results=results,
            threshold=threshold,
            false_alarm_rate=false_alarm_rate,
            explain=call.options.explain,
            contribution=explained.get("contribution"),
            expected=explained.get("expected"),
            rows=call.rows,
        )

    async def _explain(self, call: Call) -> Results:
        if call.options.explain == "map" and call.loaded.schema.kind != "image":
            raise InvalidOption("The error map is for image models; give the number of features to explain.")
        return await self.explain(call.loaded, call.rows, deadline=call.deadline)

    async def explain(self, loaded: LoadedModel, rows: Rows, *, deadline: float) -> Results:
        """The outputs of the signature ``explain``; the errors are those of ``run``."""
        if row_count(rows) > self._max_explain_rows:
            raise TooLarge(f"At most {self._max_explain_rows} rows of one request can be explained.")
        return await self._batcher.submit((loaded, EXPLAIN), rows, deadline=deadline, row_cost=EXPLAIN_ROW_COST)


def _judged(loaded: LoadedModel, results: Results, options: Options) -> tuple[Results, np.float32 | float, float]:
    """Scores with the flags, threshold and false-alarm rate that hold for this call."""
    if options.threshold is not None:
        over = np.count_nonzero(loaded.calibration_scores > float32_threshold(options.threshold))
        rate = float(over) / len(loaded.calibration_scores)
        flags = results["score"] > float32_threshold(options.threshold)
        return {**results, "is_anomaly": flags}, options.threshold, rate
    if options.false_alarm_rate is not None:
        threshold = np.float32(conformal_threshold(loaded.calibration_scores, options.false_alarm_rate))
        return {**results, "is_anomaly": results["score"] > threshold}, threshold, options.false_alarm_rate
    return results, loaded.threshold, loaded.false_alarm_rate
