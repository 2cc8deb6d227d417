"""What every request passes first: its host name, its request id, and the fast way for operations."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from service.api.errors import PROBLEM_TYPE, problem_body
from service.api.exchange import Headers, answer_headers, request_id
from service.api.protocols import ProtocolRoutes, Reply, error_reply
from service.api.routes import OperationRoutes, Refusal
from service.telemetry import request_id_of_context

MAX_BODY_BYTES = 64 * 2**10
"""Of the routes that FastAPI answers: none of them takes more than a few words."""


class AutoencoderApp(FastAPI):
    """FastAPI, with the operation routes in front of its request machinery, which costs more than the model does."""

    def __init__(
        self,
        operation_routes: OperationRoutes,
        protocol_routes: Sequence[ProtocolRoutes] = (),
        *,
        allowed_hosts: tuple[str, ...],
        path_prefix: str,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._operation_routes = operation_routes
        self._protocol_routes = protocol_routes
        self._path_prefix = path_prefix
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    def refusal(self, method: bytes, url: bytes, headers: Headers) -> Refusal | None:
        """The whole answer to a request that is refused for load; None where ``__call__`` is to answer it."""
        if self._allowed_hosts and _host(headers) not in self._allowed_hosts:
            return None
        return self._operation_routes.refusal(method, url, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif self._allowed_hosts and _host(scope["headers"]) not in self._allowed_hosts:
            await self._refuse_host(scope, send)
        elif not (
            await self._operation_routes.answer(scope, receive, send)
            or await self._answer_protocol(scope, receive, send)
        ):
            scope.update(root_path=self._path_prefix, path=self._path_prefix + scope["path"])
            await super().__call__(scope, _bounded(receive), _with_request_id(scope, send))

    async def _answer_protocol(self, scope: Scope, receive: Receive, send: Send) -> bool:
        for routes in self._protocol_routes:
            if await routes.answer(scope, receive, send):
                return True
        return False

    async def _refuse_host(self, scope: Scope, send: Send) -> None:
        given, detail = request_id(dict(scope["headers"])), "This host name is not served here."
        if any(routes.claims(scope["path"]) for routes in self._protocol_routes):
            refused = error_reply(400, detail)
        else:
            refused = Reply(problem_body(400, detail, given), 400, PROBLEM_TYPE.encode())
        headers = answer_headers(refused.body, refused.media_type, given)
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": refused.body})


def _host(headers: Headers) -> str:
    """The host name that a request gives, without its port, in lower case."""
    given = next((value for name, value in headers if name == b"host"), b"").decode("latin-1").lower()
    if given.startswith("["):
        return str(given[1:].partition("]")[0])
    return str(given.partition(":")[0])


def _bounded(receive: Receive) -> Receive:
    """FastAPI collects the whole body of a request, before it looks at a key."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413)  # FastAPI takes every other error here for a broken body
        return message

    return receive_bounded


def _with_request_id(scope: Scope, send: Send) -> Send:
    given = request_id(dict(scope["headers"]))
    request_id_of_context.set(given)

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", given.encode())]
        await send(message)

    return send_with_id
