"""The life of a request that runs a model, whichever protocol brought it.

Admitted, decoded, run, encoded, sent; then counted and logged. A protocol brings the functions between the bytes and
the rows; what all requests have in common stands here.
"""

import asyncio
import logging
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeVar

from service import codecs
from service.api.errors import log_failure
from service.api.exchange import CallerLeft, Exchange, Header
from service.api.ops import Call
from service.api.serving import INLINE_BYTES, LEFT, MIN_COMPRESSED_BYTES, Serving
from service.runtime.loaded_model import LoadedModel
from service.telemetry import NO_SPAN, Stage

log = logging.getLogger(__name__)

JSON: Final = b"application/json"
DEFLATE: Final = "deflate"

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Reply:
    """An answer that is not sent yet.

    Not frozen, like ``Call`` and ``Answer``: there is one for each request, and a frozen one takes longer to make.
    """

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    headers: Sequence[Header] = ()

    def compressed(self, coding: str | None) -> "Reply":
        """This answer in a content coding, where there is one and the body is worth it."""
        if coding is None or len(self.body) < MIN_COMPRESSED_BYTES:
            return self
        body = zlib.compress(self.body, 1) if coding == DEFLATE else codecs.compress(self.body, coding)
        added = [(b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")]
        return replace(self, body=body, headers=[*self.headers, *added])


class Lifecycle:
    """One request: its stages, its count and its line in the access log.

    Attributes:
        deadline: an instant of the event loop's clock by which every stage has to end; a protocol sets it.
        hold: counts bytes that the request is about to hold, or raises ``QueueFull``; a protocol sets it.
        loaded: the version that answers, when it is known.
        status: what the request is counted with.
    """

    __slots__ = ("_headers", "_started", "deadline", "hold", "loaded", "operation", "serving", "status")

    def __init__(self, serving: Serving, operation: str, headers: dict[bytes, bytes]) -> None:
        self.loaded: LoadedModel | None = None
        self.status = LEFT
        self.deadline = math.inf
        self.hold: Callable[[int], object] = int
        self.serving = serving
        self.operation = operation
        self._headers = headers
        self._started = time.perf_counter()

    def admit(self, find: Callable[[], LoadedModel]) -> LoadedModel:
        """The version that answers, where the caller may ask and there is room."""
        self.serving.admit(self._headers)
        self.loaded = loaded = find()
        return loaded

    async def stage(self, stage: Stage, work: Callable[[], T], size: int) -> T:
        """Make rows of bytes, or bytes of results: ``size`` bytes, off the event loop where they are many.

        Raises:
            DeadlineExceeded: it took too long.
        """
        serving, started = self.serving, time.perf_counter()
        with serving.tracing.stage(stage) if serving.tracing.enabled else NO_SPAN:
            if size <= INLINE_BYTES:
                result = work()
            else:
                result = await serving.threads.run(work, size=size, deadline=self.deadline)
        serving.telemetry.stage_took(stage, time.perf_counter() - started)
        return result

    async def run(self, call: Call, exchange: Exchange | None = None) -> codecs.Answer:
        """Run a call. Over HTTP it is given up when its caller leaves; gRPC sees to that itself.

        Raises:
            CallerLeft: the caller has left.
            AutoencoderError: as ``Operations.run`` and ``hold`` say.
        """
        serving, size = self.serving, call.result_bytes
        if size > INLINE_BYTES:
            self.hold(size)
        with serving.tracing.stage("run") if serving.tracing.enabled else NO_SPAN:
            if exchange is None:
                return await serving.operations.run(call)
            exchange.watch()
            try:
                return await serving.operations.run(call)
            except asyncio.CancelledError:
                exchange.raise_reason()
            finally:
                exchange.watched()

    def refused(self, error: Exception, status: int) -> None:
        """Log and count an error that became an answer."""
        log_failure(error, status)
        if status in (429, 503, 504):
            self.serving.telemetry.refused(type(error).__name__)
        self.status = status

    def end(self) -> None:
        """Count and log the request; call once, when it is over."""
        seconds, loaded = time.perf_counter() - self._started, self.loaded
        model = "" if loaded is None else loaded.name
        self.serving.telemetry.request_finished(self.operation, model, self.status, seconds)
        if self.serving.settings.access_log:
            version = None if loaded is None else loaded.version
            fields = {"operation": self.operation, "model": model, "version": version, "status": self.status}
            log.info("answered", extra={**fields, "ms": round(seconds * 1000, 3)})


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
    life.hold = exchange.hold
    serving = life.serving
    with serving.tracing.request(life.operation, exchange.headers) if serving.tracing.enabled else NO_SPAN:
        reply: Reply | None = None
        try:
            reply = await answer(life, life.admit(find))
            if reply is not None:
                exchange.hold_only(len(reply.body))  # body, rows and results are gone by now
            life.status = 200
        except CallerLeft:
            pass
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            reply = refusal(error)
            life.refused(error, reply.status)
        try:
            if reply is not None:
                named = () if life.loaded is None else model_headers(life.loaded.name, life.loaded.version)
                await exchange.answer(reply.status, reply.body, reply.media_type, reply.headers, named)
        finally:
            exchange.release()
            life.end()


@lru_cache(maxsize=1024)
def model_headers(model: str, version: int) -> tuple[Header, ...]:
    """The headers of an answer that name the version that gave it."""
    return (b"x-model-name", model.encode()), (b"x-model-version", b"%d" % version)
