"""What the service does with rows, whatever protocol brought them. Knows no HTTP."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from service.batching import Batcher
from service.codecs import Answer, Options
from service.errors import InvalidOption, TooLarge
from service.runtime.loaded_model import LoadedModel
from service.schemas import Results, Rows, row_count
from service.words import ANOMALY_SCORE, EXPLAIN, OPERATION_NAMED, POINT_ERRORS

EXPLAIN_ROW_COST = 64
"""Explaining a row calls the network once a feature and candidate."""

BatchKey = tuple[LoadedModel, str]
"""A loaded version and one of its signatures: rows of one key may share a batch."""


@dataclass(slots=True, eq=False)
class Call:
    """The rows of one caller for one or more signatures of a version, which has them.

    ``deadline`` is an instant of the event loop's clock; the options are those of ``anomaly_score``.
    """

    loaded: LoadedModel
    signatures: tuple[str, ...]
    rows: Rows
    options: Options
    deadline: float

    @property
    def result_bytes(self) -> int:
        """Bytes of the results, by the shapes that the manifest gives them."""
        names = self.signatures if self.options.explain is None else (*self.signatures, EXPLAIN)
        return row_count(self.rows) * sum(map(self.loaded.result_bytes, names))


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
            OperationNotSupported: points of a series are asked for, and the version was not trained on one.
            QueueFull, Draining, DeadlineExceeded, ModelFailed: as the batcher says.
            TooLarge, InvalidOption: more rows or features to explain than there may be.
        """
        loaded, options, signatures = call.loaded, call.options, call.signatures
        if options.explain == "map" and loaded.schema.kind != "image":
            raise InvalidOption("The error map is for image models; give the number of features to explain.")
        if (options.explain is not None or EXPLAIN in signatures) and row_count(call.rows) > self._max_explain_rows:
            raise TooLarge(f"At most {self._max_explain_rows} rows of one request can be explained.")
        explained = {} if options.explain is None else await self._submit(call, EXPLAIN)
        if len(signatures) == 1:
            results = await self._submit(call, signatures[0])
        else:
            results = await self._together(call)
        once: dict[str, Any] = {}
        if ANOMALY_SCORE.name in signatures:
            judge = loaded.judge_points if options.series else loaded.judge
            results, once = judge(results, options)
        return Answer(
            operation=OPERATION_NAMED.get(signatures[0], ANOMALY_SCORE),
            schema=loaded.schema,
            model=loaded.name,
            version=loaded.version,
            results=results,
            once=once,
            explain=options.explain,
            explained=explained,
            rows=call.rows,
        )

    def _submit(self, call: Call, signature: str) -> Coroutine[Any, Any, Results]:
        if call.options.series and signature == ANOMALY_SCORE.name:
            signature = POINT_ERRORS
        row_cost = EXPLAIN_ROW_COST if signature == EXPLAIN else 1
        return self._batcher.submit((call.loaded, signature), call.rows, deadline=call.deadline, row_cost=row_cost)

    async def _together(self, call: Call) -> Results:
        """The results of several signatures, which run side by side; the first that fails ends the others."""
        tasks = [asyncio.create_task(self._submit(call, signature)) for signature in call.signatures]
        try:
            return {name: array for results in await asyncio.gather(*tasks) for name, array in results.items()}
        finally:
            for task in tasks:
                task.cancel()
