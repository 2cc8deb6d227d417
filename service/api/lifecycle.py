"""The life of a request that runs a model, whichever protocol brought it, and the parts that all of them share.

Admitted, decoded, run, encoded, sent; then counted and logged. A protocol brings the functions between the bytes and
the rows; what all requests have in common stands here.
"""

import asyncio
import logging
import math
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np

from service import codecs
from service.api.access import Access, Role
from service.api.errors import log_failure
from service.api.exchange import CallerLeft, Exchange, Header, Reception
from service.api.signatures import Statistics
from service.batching import Batcher
from service.codecs.media_types import parse_preferences
from service.codecs.options import NO_OPTIONS
from service.errors import DeadlineExceeded, InvalidOption, TooLarge
from service.runtime import ModelManager
from service.runtime.loaded_model import LoadedModel
from service.runtime.traffic import LiveTraffic, flagged_rows
from service.schemas import Results, Rows, row_count
from service.settings import Settings
from service.telemetry import Stage, Telemetry, Tracing
from service.words import ANOMALY_SCORE, EXPLAIN, OPERATION_NAMED, POINT_ERRORS

log = logging.getLogger(__name__)

JSON: Final = b"application/json"
DEFLATE: Final = "deflate"
INLINE_BYTES: Final = 32 * 2**10
"""Bodies and results up to this size are decoded and encoded on the event loop: a thread costs more than the work."""
SMALL_BYTES: Final = 2**20
"""Bodies and results up to this size have threads of their own."""
MIN_COMPRESSED_BYTES: Final = 1024
MAX_FLAGGED: Final = 50
"""Row indices in the header of an answer."""
LEFT: Final = 499
"""Status in the metrics for callers who left before their answer."""
_LATE: Final = "The deadline passed while the request was decoded or encoded."

BatchKey = tuple[LoadedModel, str]
"""A loaded version and one of its signatures: rows of one key may share a batch."""

T = TypeVar("T")


class CodecThreads:
    """Threads that decode and encode. Small work has threads of its own, so that it waits behind nothing large."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(max_workers=2, thread_name_prefix="codec-small")
        self._large = ThreadPoolExecutor(max_workers=2, thread_name_prefix="codec-large")
        self._turns = asyncio.Semaphore(2)

    async def run(self, work: Callable[[], T], *, size: int, deadline: float) -> T:
        """The result of work on ``size`` bytes; ``deadline`` is an instant of the event loop's clock.

        Raises:
            DeadlineExceeded: it is not there by then. Work that has not begun is dropped; what has begun cannot be
                stopped and ends with nobody waiting.
        """
        threads = self._small if size <= SMALL_BYTES else self._large
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.get_running_loop().run_in_executor(threads, work)
        except TimeoutError as error:
            raise DeadlineExceeded(_LATE) from error

    @asynccontextmanager
    async def turn(self, deadline: float) -> AsyncIterator[None]:
        """Around large work in several steps: those who do such work together would hold all of it together.

        Raises:
            DeadlineExceeded: the turn did not come by then.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(_LATE) from error
        try:
            yield
        finally:
            self._turns.release()

    def close(self) -> None:
        self._small.shutdown(wait=False)
        self._large.shutdown(wait=False)


@dataclass
class Serving:
    """The parts of the service that requests use; one record for all of them."""

    settings: Settings
    limits: codecs.Limits
    manager: ModelManager
    access: Access
    telemetry: Telemetry
    tracing: Tracing
    reception: Reception
    threads: CodecThreads
    statistics: Statistics = field(default_factory=Statistics)
    traffic: LiveTraffic = field(init=False)
    batcher: Batcher[BatchKey] = field(init=False)
    """Only while the service runs."""
    draining: bool = False

    @property
    def not_ready_reason(self) -> str | None:
        return "The service is stopping." if self.draining else self.manager.not_ready_reason

    async def body(
        self,
        exchange: Exchange,
        limit: int,
        most: int,
        *,
        deadline: float = math.inf,
        begins: Callable[[bytes], int] | None = None,
    ) -> bytes | memoryview:
        """The body of a request without its content coding: at most ``limit`` bytes as it comes, ``most`` in the end.

        Raises:
            RequestError, QueueFull, CallerLeft: as ``Exchange.body`` and ``decompressed`` say.
        """
        body = await exchange.body(limit, deadline, begins)
        if b"content-encoding" not in exchange.headers:
            return body
        return await self.decompressed(body, exchange.content_encoding, most, deadline=deadline, hold=exchange.hold)

    async def decompressed(
        self, body: bytes | memoryview, encoding: str, most: int, *, deadline: float, hold: Callable[[int], None]
    ) -> bytes | memoryview:
        """A body without its content coding, at most ``most`` bytes. ``hold`` is told of them as they come out.

        Raises:
            UnsupportedMediaType, MalformedInput, TooLarge: as ``codecs.Decompression`` says.
            DeadlineExceeded: it took too long.
        """
        if encoding == "identity":
            return body
        decompression, held = codecs.Decompression(body, encoding, most), 0

        async def step() -> None:
            nonlocal held
            await self.threads.run(decompression.step, size=max(len(body), held), deadline=deadline)
            hold(len(decompression.content) - held)
            held = len(decompression.content)

        await step()
        if not decompression.is_complete:
            async with self.threads.turn(deadline):
                while not decompression.is_complete:
                    await step()
        return decompression.content


@dataclass(slots=True, eq=False)
class Reply:
    """An answer that is not sent yet.

    Not frozen, like ``Answer``: there is one for each request, and a frozen one takes longer to make.
    """

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    headers: Sequence[Header] = ()

    def compressed(self, accept_encoding: bytes | None) -> "Reply":
        """This answer in a content coding that its caller accepts, where its body is worth it."""
        if accept_encoding is None or len(self.body) < MIN_COMPRESSED_BYTES:
            return self
        coding = _coding(accept_encoding)
        if coding is None:
            return self
        body = zlib.compress(self.body, 1) if coding == DEFLATE else codecs.compress(self.body, coding)
        added = [(b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")]
        return replace(self, body=body, headers=[*self.headers, *added])


@lru_cache(maxsize=256)
def _coding(accept_encoding: bytes) -> str | None:
    """The coding that a caller likes best; deflate is for clients that know nothing else."""
    header = accept_encoding.decode("latin-1")
    chosen = codecs.choose_encoding(header)
    if chosen is None and any(name == DEFLATE and quality > 0 for name, quality in parse_preferences(header)):
        return DEFLATE
    return chosen


class Lifecycle:
    """One request: its stages, its count and its line in the access log.

    Attributes:
        deadline: an instant of the event loop's clock by which every stage has to end; a protocol sets it.
        exchange: the request over HTTP; gRPC sees to callers who leave by itself.
        flagged: indices of the rows that the answer flags; of a stream, in its last block.
        hold: counts bytes that the request is about to hold, or raises ``QueueFull``.
        loaded: the version that answers, when it is known.
        status: what the request is counted with.
    """

    __slots__ = (
        "_headers",
        "_operation",
        "_span",
        "_started",
        "deadline",
        "exchange",
        "flagged",
        "hold",
        "loaded",
        "serving",
        "status",
    )

    def __init__(
        self, serving: Serving, operation: str, headers: dict[bytes, bytes], exchange: Exchange | None = None
    ) -> None:
        self.loaded: LoadedModel | None = None
        self.flagged: list[int] = []
        self.status = LEFT
        self.deadline = math.inf
        self.exchange = exchange
        self.hold: Callable[[int], object] = int if exchange is None else exchange.hold
        self.serving = serving
        self._operation = operation
        self._headers = headers
        self._started = time.perf_counter()
        self._span: AbstractContextManager[Any] | None = None

    def admit(self) -> None:
        """Begin, where the caller may ask and there is room.

        Raises:
            Unauthenticated, Forbidden: as ``Access.check`` says.
            QueueFull, Draining: as the batcher says.
        """
        if self.serving.tracing.enabled:
            self._span = self.serving.tracing.request(self._operation, self._headers)
            self._span.__enter__()
        if self.serving.access.hashes:
            self.serving.access.check(self._headers, Role.CALLER)
        self.serving.batcher.check_room()

    async def stage(self, stage: Stage, work: Callable[[], T], size: int) -> T:
        """Make rows of bytes, or bytes of results: ``size`` bytes, off the event loop where they are many.

        Raises:
            DeadlineExceeded: it took too long.
        """
        serving, started = self.serving, time.perf_counter()
        if size <= INLINE_BYTES and not serving.tracing.enabled:
            result = work()
        else:
            with serving.tracing.stage(stage):
                is_small = size <= INLINE_BYTES
                result = work() if is_small else await serving.threads.run(work, size=size, deadline=self.deadline)
        serving.telemetry.stage_took(stage, time.perf_counter() - started)
        return result

    def refused(self, error: Exception, status: int) -> None:
        """Log and count an error that became an answer."""
        log_failure(error, status)
        if status in (429, 503, 504):
            self.serving.telemetry.refused(type(error).__name__)
        self.status = status

    def end(self) -> None:
        """Count and log the request; call once, when it is over."""
        if self._span is not None:
            self._span.__exit__(None, None, None)
        seconds, loaded = time.perf_counter() - self._started, self.loaded
        model = "" if loaded is None else loaded.name
        self.serving.telemetry.request_finished(self._operation, model, self.status, seconds)
        if self.serving.settings.access_log:
            version = None if loaded is None else loaded.version
            fields = {"operation": self._operation, "model": model, "version": version, "status": self.status}
            log.info("answered", extra={**fields, "ms": round(seconds * 1000, 3)})

    async def run(
        self,
        loaded: LoadedModel,
        signatures: tuple[str, ...],
        rows: Rows,
        options: codecs.Options,
        *,
        received: bytes | memoryview = b"",
        block_deadline: float | None = None,
        first_row: int = 0,
    ) -> codecs.Answer:
        """Run rows through the batcher under signatures that the version has, and complete their answer.

        Over HTTP it is given up when its caller leaves. The rows of a large body that are not part of what was
        ``received``, and large results, are counted before the model runs.

        Args:
            options: those of ``anomaly_score``.
            block_deadline: of a block of a stream, whose bytes and caller the stream itself looks after.
            first_row: index of the block's first row in the stream.

        Raises:
            CallerLeft: the caller has left.
            OperationNotSupported: points of a series are asked for, and the version was not trained on one.
            QueueFull, Draining, DeadlineExceeded, ModelFailed: as the batcher says.
            TooLarge, InvalidOption: more rows or features to explain than there may be.
        """
        serving, exchange = self.serving, self.exchange if block_deadline is None else None
        count, deadline = row_count(rows), self.deadline if block_deadline is None else block_deadline
        if options.explain is not None or EXPLAIN in signatures:
            if options.explain == "map" and loaded.schema.kind != "image":
                raise InvalidOption("The error map is for image models; give the number of features to explain.")
            if count > serving.settings.max_explain_rows:
                raise TooLarge(f"At most {serving.settings.max_explain_rows} rows of one request can be explained.")
        if len(received) > INLINE_BYTES:
            body = np.frombuffer(received, np.uint8)
            self.hold(sum(array.nbytes for array in rows.values() if not np.may_share_memory(array, body)))
        names = signatures if options.explain is None else (*signatures, EXPLAIN)
        result_bytes = count * sum([loaded.result_bytes.get(name, 0) for name in names])
        if result_bytes > INLINE_BYTES and block_deadline is None:
            self.hold(result_bytes)

        def submit(signature: str) -> Coroutine[Any, Any, Results]:
            if options.series and signature == ANOMALY_SCORE.name:
                signature = POINT_ERRORS
            return serving.batcher.submit((loaded, signature), rows, deadline=deadline)

        if exchange is not None:
            exchange.watch()
        try:
            explained = {} if options.explain is None else await submit(EXPLAIN)
            is_one = len(signatures) == 1
            results = await (submit(signatures[0]) if is_one else _side_by_side(map(submit, signatures)))
        except asyncio.CancelledError:
            if exchange is None:
                raise
            exchange.raise_reason()
        finally:
            if exchange is not None:
                exchange.watched()
        once = loaded.own_flags if ANOMALY_SCORE.name in signatures else {}
        serving.traffic.alerts.scored(loaded, rows, results, first_row=first_row)
        if options.series:
            # A long series takes a while: its time of day is looked for.
            results, once = await asyncio.to_thread(loaded.judge_points, results, rows, options)
        elif once and options is not NO_OPTIONS:
            results, once = loaded.judge(results, options)
        self.flagged = flagged_rows(results)
        return codecs.Answer(
            operation=OPERATION_NAMED.get(signatures[0], ANOMALY_SCORE),
            schema=loaded.schema,
            model=loaded.name,
            version=loaded.version,
            results=results,
            once=once,
            explain=options.explain,
            explained=explained,
            rows=rows,
        )


async def _side_by_side(runs: Iterable[Coroutine[Any, Any, Results]]) -> Results:
    """The results of several signatures together; the first that fails ends the others."""
    tasks = [asyncio.create_task(run) for run in runs]
    try:
        return {name: array for results in await asyncio.gather(*tasks) for name, array in results.items()}
    finally:
        for task in tasks:
            task.cancel()


async def serve(
    exchange: Exchange,
    life: Lifecycle,
    find: Callable[[], LoadedModel],
    answer: Callable[[Lifecycle, LoadedModel], Awaitable[Reply | None]],
    refusal: Callable[[Exception], Reply],
) -> None:
    """Answer one request over HTTP.

    ``find`` gives the version that it names. ``answer`` receives the body and gives the reply, or None when it has
    sent one itself. ``refusal`` makes the reply of an error.
    """
    reply: Reply | None = None
    try:
        life.admit()
        life.loaded = find()
        reply = await answer(life, life.loaded)
        if reply is not None:
            exchange.hold_only(len(reply.body))  # body, rows and results are gone by now
        life.status = 200
    except CallerLeft:
        pass
    except Exception as error:  # noqa: BLE001 - every error becomes an answer
        reply, life.flagged = refusal(error), []
        life.refused(error, reply.status)
    try:
        if reply is not None:
            named = () if life.loaded is None else model_headers(life.loaded.name, life.loaded.version)
            headers = [*reply.headers, *flagged_headers(life.flagged)]
            await exchange.answer(reply.status, reply.body, reply.media_type, headers, named)
    finally:
        exchange.release()
        life.end()


def flagged_headers(flagged: list[int]) -> tuple[Header, ...]:
    """The header of an answer that names the rows that it flags, by their indices; of many the first."""
    named = b",".join([b"%d" % row for row in flagged[:MAX_FLAGGED]])
    return ((b"x-flagged-rows", named + (b",..." if len(flagged) > MAX_FLAGGED else b"")),) if flagged else ()


@lru_cache(maxsize=1024)
def model_headers(model: str, version: int) -> tuple[Header, ...]:
    """The headers of an answer that name the version that gave it."""
    return (b"x-model-name", model.encode()), (b"x-model-version", b"%d" % version)
