"""What the service does with rows, whatever protocol brought them. Knows no HTTP."""

from dataclasses import dataclass

import numpy as np

from service.batching import Batcher
from service.codecs import Answer, Options
from service.errors import InvalidOption, TooLarge
from service.runtime.loaded_model import LoadedModel
from service.schemas import Results, Rows, row_count
from service.words import ANOMALY_SCORE, EXPLAIN, POINT_ERRORS, Operation

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

    @property
    def is_full(self) -> bool:
        """Whether new calls are refused now."""
        return self._batcher.is_full

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
        signature = POINT_ERRORS if call.options.series else operation.name
        results = await self._batcher.submit((loaded, signature), call.rows, deadline=call.deadline)
        threshold: np.float32 | float | None = None
        false_alarm_rate: float | None = None
        if operation is ANOMALY_SCORE:
            judge = loaded.judge_points if call.options.series else loaded.judge
            results, threshold, false_alarm_rate = judge(
                results, threshold=call.options.threshold, false_alarm_rate=call.options.false_alarm_rate
            )
        return Answer(
            operation=operation,
            schema=loaded.schema,
            model=loaded.name,
            version=loaded.version,
            results=results,
            threshold=threshold,
            false_alarm_rate=false_alarm_rate,
            explain=call.options.explain,
            explained=explained,
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
