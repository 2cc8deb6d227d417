"""Parts that the routes of the TensorFlow Serving and Open Inference protocols share.

They stand in front of FastAPI like the operation routes, and use the same keys, limits, queue, batcher and versions.
Clients of these protocols send no content type, so bodies are read as they come, and every error is
``{"error": "<text>"}``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Any, Final, TypeVar

import orjson
from starlette.types import Receive, Scope, Send

from service import codecs
from service.api.errors import log_failure, protocol_refusal
from service.api.exchange import CallerLeft, Exchange, Headers
from service.api.lifecycle import DEFLATE, JSON, Lifecycle, Reply, serve
from service.api.serving import INLINE_BYTES, Serving
from service.codecs.media_types import parse_preferences
from service.errors import MalformedInput
from service.runtime.loaded_model import LoadedModel
from service.schemas import Array, nbytes

OCTETS: Final = b"application/octet-stream"
MAX_CONTROL_BYTES: Final = 64 * 2**10
"""Of bodies that carry no rows."""

T = TypeVar("T")


def json_reply(body: Any, status: int = 200) -> Reply:
    return Reply(orjson.dumps(body), status)


def error_reply(status: int, text: str, headers: Headers | None = None) -> Reply:
    return Reply(orjson.dumps({"error": text}), status, JSON, headers or ())


def refusal(error: Exception) -> Reply:
    """The answer to an error."""
    status, text, headers = protocol_refusal(error)
    return error_reply(status, text, headers)


class ProtocolRoutes(ABC):
    """The routes of one protocol at the ASGI level."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    @abstractmethod
    def claims(self, path: str) -> bool:
        """Whether a path belongs to this protocol."""

    @abstractmethod
    async def reply(self, exchange: Exchange) -> Reply | None:
        """The answer to a request; None when it is sent already. Every error of the service's tree may be raised."""

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
            log_failure(error, reply.status)
        finally:
            exchange.release()
        if reply is not None:
            await exchange.answer(reply.status, reply.body, reply.media_type, reply.headers)
        return True

    async def serve(
        self,
        exchange: Exchange,
        operation: str,
        find: Callable[[], LoadedModel],
        answer: Callable[[Lifecycle, LoadedModel], Awaitable[Reply]],
    ) -> None:
        """Answer a request that runs a model."""
        await serve(exchange, Lifecycle(self._serving, operation, exchange.headers), find, answer, refusal)

    async def body(self, exchange: Exchange, limit: int, most: int, deadline: float = math.inf) -> bytes:
        """The whole body, decompressed: at most ``limit`` bytes as it comes, ``most`` in the end."""
        body = await exchange.body(limit, deadline)
        if b"content-encoding" not in exchange.headers:
            return body
        encoding = exchange.content_encoding
        return bytes(await self._serving.decompressed(body, encoding, most, deadline=deadline, hold=exchange.hold))

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

    async def decode(self, life: Lifecycle, exchange: Exchange, body: bytes | memoryview, work: Callable[[], T]) -> T:
        """Rows of a body."""
        if len(body) > INLINE_BYTES:
            exchange.hold(len(body))  # its arrays are about as large again
        return await life.stage("decode", work, len(body))

    async def encode(
        self, life: Lifecycle, exchange: Exchange, arrays: Iterable[Array], work: Callable[[], Reply]
    ) -> Reply:
        """The answer with its body, compressed where the caller asks for that."""
        accepted = exchange.headers.get(b"accept-encoding")
        coding = None if accepted is None else _coding(accepted)
        encode = work if coding is None else lambda: work().compressed(coding)
        return await life.stage("encode", encode, sum(map(nbytes, arrays)))


@lru_cache(maxsize=256)
def _coding(accept_encoding: bytes) -> str | None:
    """Deflate is for clients of these protocols that know nothing else."""
    header = accept_encoding.decode("latin-1")
    chosen = codecs.choose_encoding(header)
    if chosen is None and any(name == DEFLATE and quality > 0 for name, quality in parse_preferences(header)):
        return DEFLATE
    return chosen
