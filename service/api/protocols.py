"""Parts that the routes of the TensorFlow Serving and Open Inference protocols share.

They stand in front of FastAPI like the operation routes, and use the same keys, limits, queue, batcher and versions.
Clients of these protocols send no content type, so bodies are read as they come, and every error is
``{"error": "<text>"}``.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import orjson
from starlette.types import Receive, Scope, Send

from service.api.errors import log_failure, protocol_refusal
from service.api.exchange import CallerLeft, Exchange, Headers
from service.api.lifecycle import JSON, Lifecycle, Reply, Serving, serve
from service.errors import MalformedInput
from service.runtime.loaded_model import LoadedModel

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
        await serve(exchange, Lifecycle(self._serving, operation, exchange.headers, exchange), find, answer, refusal)

    async def control_body(self, exchange: Exchange) -> dict[str, Any]:
        """The JSON object of a request that carries no rows; nothing is an empty one."""
        body = bytes(await self._serving.body(exchange, MAX_CONTROL_BYTES, MAX_CONTROL_BYTES))
        try:
            given = orjson.loads(body) if body.strip() else {}
        except ValueError:
            raise MalformedInput("The body is not valid JSON.") from None
        if type(given) is not dict:
            raise MalformedInput("The body must be a JSON object.")
        return given
