"""The life of a request that runs a model, whichever protocol brought it.

Admitted, decoded, run, encoded, sent; then counted and logged. A protocol brings the functions between the bytes and
the rows; what all requests have in common stands here.
"""

import logging
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from service import codecs
from service.api.errors import log_failure
from service.api.exchange import CallerLeft, Exchange, Headers
from service.api.ops import Call
from service.api.serving import INLINE_BYTES, LEFT, MIN_COMPRESSED_BYTES, Serving
from service.runtime.loaded_model import LoadedModel
from service.telemetry import Stage

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
    headers: Headers = field(default_factory=list)

    def compressed(self, coding: str | None) -> "Reply":
        """This answer in a content coding, where there is one and the body is worth it."""
        if coding is None or len(self.body) < MIN_COMPRESSED_BYTES:
            return self
        body = zlib.compress(self.body, 1) if coding == DEFLATE else codecs.compress(self.body, coding)
        added = [(b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")]
        return replace(self, body=body, headers=[*self.headers, *added])

    async def send(self, exchange: Exchange, more: Iterable[tuple[bytes, bytes]] = ()) -> None:
        await exchange.answer(self.status, self.body, self.media_type, [*self.headers, *more])


class Lifecycle:
    """A context around one request: its span, its stages, its count and its line in the access log.

    Attributes:
        deadline: an instant of the event loop's clock by which every stage has to end; a protocol sets it.
        loaded: the version that answers, when it is known.
        status: what the request is counted with.
    """

    __slots__ = ("_headers", "_operation", "_serving", "_span", "_started", "deadline", "loaded", "status")

    def __init__(self, serving: Serving, operation: str, headers: dict[bytes, bytes]) -> None:
        self.loaded: LoadedModel | None = None
        self.status = LEFT
        self.deadline = math.inf
        self._serving = serving
        self._operation = operation
        self._headers = headers
        self._started = time.perf_counter()
        self._span: AbstractContextManager[Any] = serving.tracing.request(operation, headers)

    def __enter__(self) -> Self:
        self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, trace)
        seconds, loaded = time.perf_counter() - self._started, self.loaded
        model = "" if loaded is None else loaded.name
        self._serving.telemetry.request_finished(self._operation, model, self.status, seconds)
        if self._serving.settings.access_log:
            version = None if loaded is None else loaded.version
            fields = {"operation": self._operation, "model": model, "version": version, "status": self.status}
            log.info("answered", extra={**fields, "ms": round(seconds * 1000, 3)})

    def admit(self, find: Callable[[], LoadedModel]) -> LoadedModel:
        """The version that answers, where the caller may ask and there is room."""
        self._serving.admit(self._headers)
        self.loaded = loaded = find()
        return loaded

    async def stage(self, stage: Stage, work: Callable[[], T], size: int) -> T:
        """Make rows of bytes, or bytes of results: ``size`` bytes, off the event loop where they are many.

        Raises:
            DeadlineExceeded: it took too long.
        """
        started = time.perf_counter()
        with self._serving.tracing.stage(stage):
            if size <= INLINE_BYTES:
                result = work()
            else:
                result = await self._serving.threads.run(work, size=size, deadline=self.deadline)
        self._serving.telemetry.stage_took(stage, time.perf_counter() - started)
        return result

    async def run(self, call: Call) -> codecs.Answer:
        """The errors are those of ``Operations.run``."""
        with self._serving.tracing.stage("run"):
            return await self._serving.operations().run(call)

    def refused(self, error: Exception, status: int) -> None:
        """Log and count an error that became an answer."""
        log_failure(error, status)
        if status in (429, 503, 504):
            self._serving.telemetry.refused(type(error).__name__)
        self.status = status


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
    with life:
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
                await reply.send(exchange, () if life.loaded is None else model_headers(life.loaded))
        finally:
            exchange.release()


def model_headers(loaded: LoadedModel) -> Headers:
    """The headers of an answer that name the version that gave it."""
    return [(b"x-model-name", loaded.name.encode()), (b"x-model-version", b"%d" % loaded.version)]
