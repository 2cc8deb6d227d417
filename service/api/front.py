"""The first look at every request: whose page sends it, and the fast way for operations."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Receive, Scope, Send

from service.api.errors import PROBLEM_TYPE, problem_body
from service.api.exchange import Headers, answer_headers, request_id
from service.api.lifecycle import Reply
from service.api.protocols import ProtocolRoutes, error_reply
from service.api.routes import OperationRoutes, Refusal
from service.settings import ENV_PREFIX, Settings, is_loopback
from service.telemetry import request_id_of_context

MAX_BODY_BYTES = 64 * 2**10
"""Of the routes that FastAPI answers: none of them takes more than a few words."""
_OWN_SITES: Final = (b"same-origin", b"none")
"""What ``Sec-Fetch-Site`` says of our own pages, and of what people do themselves."""

_CHANGES: Final = ("/rollback", "/load", "/unload")
"""Ends of the paths that change something with POST. ``PUT`` and ``DELETE`` no page sends without asking first."""
_FORM_TYPES: Final = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")
"""What the pages of any origin can send without asking first, in browsers that do not even say whose page it is."""


class AutoencoderApp(FastAPI):
    """FastAPI, with the operation routes in front of its request machinery, which costs more than the model does."""

    def __init__(
        self,
        operation_routes: OperationRoutes,
        protocol_routes: Sequence[ProtocolRoutes],
        settings: Settings,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._operation_routes = operation_routes
        self._protocol_routes = protocol_routes
        self._path_prefix = settings.root_path
        self._origins = frozenset(origin.encode() for origin in settings.allowed_origins)
        self._cors = CORSMiddleware(
            self._answer,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "DELETE"),
            allow_headers=("*",),
            expose_headers=("X-Model-Name", "X-Model-Version", "X-Request-ID", "Retry-After"),
        )
        names = frozenset(name.lower() for name in settings.allowed_hosts)
        self._any_host = not names and not settings.on_loopback
        self._serves = lru_cache(maxsize=256)(partial(_serves, names or None))

    def refusal(self, method: bytes, url: bytes, headers: Headers) -> Refusal | None:
        """The whole answer to a request that is refused for load; None where ``__call__`` is to answer it."""
        if any(name == b"origin" for name, _ in headers):
            return None
        if self._refused(method.decode("latin-1"), headers) is not None:
            return None
        return self._operation_routes.refusal(method, url, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        headers: Headers = scope["headers"]
        refused = self._refused(scope["method"], headers)
        if refused is not None:
            await self._refuse(scope, send, *refused)
        elif self._origins and any(name == b"origin" for name, _ in headers):
            await self._cors({**scope, "extensions": {}}, receive, send)  # whose headers no short cut may pass by
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await self._operation_routes.answer(scope, receive, send):
            return
        if scope["method"] == "POST" and scope["path"].endswith(_CHANGES) and _is_form(dict(scope["headers"])):
            await self._refuse(scope, send, 403, "What changes something is no form: send it as application/json.")
            return
        for routes in self._protocol_routes:
            if await routes.answer(scope, receive, send):
                return
        scope.update(root_path=self._path_prefix, path=self._path_prefix + scope["path"])
        await super().__call__(scope, _bounded(receive), _with_request_id(scope, send))

    def _refused(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence for a request under a name of others, or from a page of others; None for all else.

        Browsers say in ``Sec-Fetch-Site`` and ``Origin``, which no page can change, whose page sends a request; other
        programs send neither.
        """
        host = origin = site = None
        for name, value in headers:
            if name == b"host":
                host = value
                if not (self._any_host or self._serves(value)):
                    return 400, f"This host name is not served here: {ENV_PREFIX}ALLOWED_HOSTS names those that are."
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if site in _OWN_SITES or (site is None and (origin is None or origin.partition(b"://")[2] == host)):
            return None
        if origin in self._origins or b"*" in self._origins or (method == "GET" and _is_link(dict(headers))):
            return None
        return 403, f"Pages of this origin may not call the service: {ENV_PREFIX}ALLOWED_ORIGINS names those that may."

    async def _refuse(self, scope: Scope, send: Send, status: int, detail: str) -> None:
        given = request_id(dict(scope["headers"]))
        if any(routes.claims(scope["path"]) for routes in self._protocol_routes):
            refused = error_reply(status, detail)
        else:
            refused = Reply(problem_body(status, detail, given), status, PROBLEM_TYPE.encode())
        headers = answer_headers(refused.body, refused.media_type, given)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": refused.body})


def _serves(names: frozenset[str] | None, host: bytes) -> bool:
    """Whether a ``Host`` header gives one of ``names``; without any, a loopback name. The port does not count."""
    given = host.decode("latin-1").lower()
    name = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
    return is_loopback(name) if names is None else name in names


def _is_form(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower() in _FORM_TYPES


def _is_link(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser opens the answer as a page of its own, which the page that leads there cannot read."""
    return headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest") == b"document"


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
