"""What the routes of the TensorFlow Serving and Open Inference protocols share.

They stand in front of FastAPI like the operation routes, and use the same keys, limits, queue, batcher and versions.
Clients of these protocols send no content type, so bodies are read as they come, and every error is
``{"error": "<text>"}``.
"""

import logging
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, TypeVar

import orjson
from starlette.types import Receive, Scope, Send

from service import codecs
from service.api.errors import protocol_refusal
from service.api.exchange import CallerLeft, Exchange, Headers
from service.api.serving import INLINE_BYTES, INLINE_VALUES, LEFT, MIN_COMPRESSED_BYTES, Serving
from service.codecs.media_types import parse_preferences
from service.errors import MalformedInput, Unavailable
from service.runtime.loaded_model import LoadedModel
from service.schemas import Results

log = logging.getLogger(__name__)

JSON: Final = b"application/json"
OCTETS: Final = b"application/octet-stream"
MAX_CONTROL_BYTES: Final = 64 * 2**10
"""Of bodies that carry no rows."""
_DEFLATE: Final = "deflate"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is not sent yet."""

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    headers: Headers = field(default_factory=list)


def json_reply(body: Any, status: int = 200) -> Reply:
    return Reply(orjson.dumps(body), status)


def error_reply(status: int, text: str, headers: Headers | None = None) -> Reply:
    return Reply(orjson.dumps({"error": text}), status, JSON, headers or [])


def refusal(error: Exception) -> Reply:
    """The answer to an error."""
    status, text, headers = protocol_refusal(error)
    if status >= 500 and not isinstance(error, Unavailable):
        log.error("answered %d: %s", status, type(error).__name__, exc_info=error)
    return error_reply(status, text, headers)


class ProtocolRoutes(ABC):
    """The routes of one protocol at the ASGI level."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    @abstractmethod
    def claims(self, path: str) -> bool:
        """Whether a path belongs to this protocol."""

    @abstractmethod
    async def reply(self, exchange: Exchange) -> Reply:
        """The answer to a request. Every error of the service's tree may be raised."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer the request if its path is this protocol's; False when it is somebody else's."""
        if not self.claims(scope["path"]):
            return False
        exchange = Exchange(scope, receive, send, self._serving.reception)
        try:
            reply = await self.reply(exchange)
        except CallerLeft:
            return True
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            reply = refusal(error)
        finally:
            exchange.release()
        await exchange.answer(reply.status, reply.body, reply.media_type, reply.headers)
        return True

    async def measured(
        self,
        exchange: Exchange,
        operation: str,
        find: Callable[[], LoadedModel],
        work: Callable[[LoadedModel], Awaitable[Reply]],
    ) -> Reply:
        """Admit a request that runs the model, answer it, and count it whatever becomes of it."""
        serving, started = self._serving, time.perf_counter()
        loaded: LoadedModel | None = None
        reply: Reply | None = None
        with serving.tracing.request(operation, exchange.headers):
            try:
                serving.admit(exchange.headers)
                loaded = find()
                reply = await work(loaded)
            except CallerLeft:
                raise
            except Exception as error:  # noqa: BLE001 - every error becomes an answer
                reply = refusal(error)
                if reply.status in (429, 503, 504):
                    serving.telemetry.refused(type(error).__name__)
            finally:
                status = LEFT if reply is None else reply.status
                seconds = time.perf_counter() - started
                serving.telemetry.request_finished(operation, loaded.name if loaded else "", status, seconds)
        if loaded is None:
            return reply
        named = [(b"x-model-name", loaded.name.encode()), (b"x-model-version", b"%d" % loaded.version)]
        return replace(reply, headers=[*reply.headers, *named])

    async def body(self, exchange: Exchange, limit: int, most: int) -> bytes:
        """The whole body, decompressed: at most ``limit`` bytes as it comes, ``most`` in the end."""
        body = await exchange.body(limit)
        encoding = exchange.content_encoding
        if encoding == "identity":
            return body
        body = await self._serving.maybe_in_thread(False, lambda: codecs.decompress(body, encoding, most))
        exchange.hold(len(body))
        return body

    async def control_body(self, exchange: Exchange) -> dict[str, Any]:
        """The JSON object of a request that carries no rows; nothing is an empty one."""
        body = await self.body(exchange, MAX_CONTROL_BYTES, MAX_CONTROL_BYTES)
        try:
            given = orjson.loads(body) if body.strip() else {}
        except ValueError:
            raise MalformedInput("The body is not valid JSON.") from None
        if type(given) is not dict:
            raise MalformedInput("The body must be a JSON object.")
        return given

    async def decoded(self, exchange: Exchange, body: bytes | memoryview, work: Callable[[], T]) -> T:
        """Rows of a body, off the event loop where it is large."""
        started = time.perf_counter()
        inline = len(body) <= INLINE_BYTES
        if not inline:
            exchange.hold(len(body))  # its arrays are about as large again
        with self._serving.tracing.stage("decode"):
            result = await self._serving.maybe_in_thread(inline, work)
        self._serving.telemetry.stage_took("decode", time.perf_counter() - started)
        return result

    async def encoded(self, exchange: Exchange, results: Results, encode: Callable[[], Reply]) -> Reply:
        """An answer with its body, compressed where the caller asks for that."""
        started = time.perf_counter()
        coding = _coding(exchange.headers.get(b"accept-encoding", b""))
        inline = sum(array.size for array in results.values()) <= INLINE_VALUES
        with self._serving.tracing.stage("encode"):
            reply = await self._serving.maybe_in_thread(inline, lambda: _compressed(encode(), coding))
        self._serving.telemetry.stage_took("encode", time.perf_counter() - started)
        return reply


@lru_cache(maxsize=256)
def _coding(accept_encoding: bytes) -> str | None:
    """Deflate is for clients of these protocols that know nothing else."""
    header = accept_encoding.decode("latin-1")
    chosen = codecs.choose_encoding(header)
    if chosen is None and any(name == _DEFLATE and quality > 0 for name, quality in parse_preferences(header)):
        return _DEFLATE
    return chosen


def _compressed(reply: Reply, coding: str | None) -> Reply:
    if coding is None or len(reply.body) < MIN_COMPRESSED_BYTES:
        return reply
    body = zlib.compress(reply.body, 1) if coding == _DEFLATE else codecs.compress(reply.body, coding)
    added = [(b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")]
    return replace(reply, body=body, headers=[*reply.headers, *added])
