"""The first look at every request: whose page sends it; then the operations, from a request's bytes to its answer's.

Operations are answered below FastAPI's request machinery; all else goes on to the other protocols and to FastAPI,
which also documents the operations (``openapi.py``).
"""

import asyncio
import math
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Receive, Scope, Send

from service import codecs
from service.api.access import Role
from service.api.errors import PROBLEM_TYPE, problem, problem_body
from service.api.exchange import Exchange, Headers, answer_headers, request_id
from service.api.lifecycle import INLINE_BYTES, Lifecycle, Reply, Serving, serve
from service.api.protocols import ProtocolRoutes, error_reply
from service.api.streams import NdjsonExchange
from service.errors import AutoencoderError, QueueFull
from service.runtime import Target
from service.runtime.loaded_model import LoadedModel
from service.runtime.manager import DEFAULT
from service.schemas import nbytes
from service.settings import ENV_PREFIX, is_loopback
from service.telemetry import request_id_of_context
from service.words import JPEG, JSON, NDJSON, OPERATIONS, PNG, Operation

Refusal = tuple[int, Headers, bytes]
"""Status, headers and body."""

_BY_PATH = {f"/{operation.path}": (operation, DEFAULT) for operation in OPERATIONS}
_OPERATION = "|".join(operation.path for operation in OPERATIONS)
_PATTERN = re.compile(
    r"/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+)|/aliases/(?P<alias>[^/]+))?"
    rf"/(?P<operation>{_OPERATION})"
)
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


MAX_BODY_BYTES = 64 * 2**10
"""Of the routes that FastAPI answers: none of them takes more than a few words."""
_OWN_SITES: Final = (b"same-origin", b"none")
"""What ``Sec-Fetch-Site`` says of our own pages, and of what people do themselves."""

_CHANGES: Final = ("/rollback", "/load", "/unload")
"""Ends of the paths that change something with POST. ``PUT`` and ``DELETE`` no page sends without asking first."""
_FORM_TYPES: Final = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")
"""What the pages of any origin can send without asking first, in browsers that do not even say whose page it is."""


def match(path: str) -> tuple[Operation, Target] | None:
    """The operation and its target that a path names, or None when it is no operation route."""
    default = _BY_PATH.get(path)
    if default is not None:
        return default
    found = _PATTERN.fullmatch(path)
    if found is None:
        return None
    version = found["version"]
    if version is not None and not _VERSION.fullmatch(version):
        return None
    target = Target(found["model"], int(version) if version else None, found["alias"])
    return _BY_PATH[f"/{found['operation']}"][0], target


class AutoencoderApp(FastAPI):
    """FastAPI, with the operation routes in front of its request machinery, which costs more than the model does."""

    def __init__(self, serving: Serving, protocol_routes: Sequence[ProtocolRoutes], **options: Any) -> None:
        super().__init__(**options)
        settings = serving.settings
        self._serving = serving
        self._protocol_routes = protocol_routes
        self._path_prefix = settings.root_path
        self._origins = frozenset(origin.encode() for origin in settings.allowed_origins)
        self._cors = CORSMiddleware(
            self._answer,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "DELETE"),
            allow_headers=("*",),
            expose_headers=("X-Model-Name", "X-Model-Version", "X-Request-ID", "X-Flagged-Rows", "Retry-After"),
        )
        names = frozenset(name.lower() for name in settings.allowed_hosts)
        self._any_host = not names and not settings.on_loopback
        self._serves = lru_cache(maxsize=256)(partial(_serves, names or None))

    def refusal(self, method: bytes, url: bytes, headers: Headers) -> Refusal | None:
        """The answer to an operation that is refused before its task is made, as the queue is full; None for all else.

        The usual way to the same answer takes half as long again, and an overloaded service has to refuse most of the
        time.
        """
        matched = match(url.partition(b"?")[0].decode("latin-1")) if method == b"POST" else None
        named = dict(headers)
        if matched is None or b"origin" in named or self._refused("POST", headers) is not None:
            return None
        try:
            self._serving.access.check(named, Role.CALLER)
            self._serving.batcher.check_room()
        except QueueFull as error:
            given = request_id(named)
            token = request_id_of_context.set(given)
            status, body, more = problem(error, given)
            life = Lifecycle(self._serving, matched[0].name, named)
            life.refused(error, status)
            life.end()
            request_id_of_context.reset(token)
            return status, answer_headers(body, PROBLEM_TYPE.encode(), given, more), body
        except AutoencoderError:
            pass  # another reason, for the usual way to tell
        return None

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
        matched = match(scope["path"])
        if matched is None:
            await self._answer_elsewhere(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._serving.reception)
        if scope["method"] != "POST":
            body = problem_body(405, "This route takes POST only.", exchange.request_id)
            await exchange.answer(405, body, PROBLEM_TYPE.encode(), [(b"allow", b"POST")])
            return

        def refusal(error: Exception) -> Reply:
            status, body, headers = problem(error, exchange.request_id)
            return Reply(body, status, PROBLEM_TYPE.encode(), headers)

        operation, target = matched
        await serve(
            exchange,
            Lifecycle(self._serving, operation.name, exchange.headers, exchange),
            partial(self._serving.manager.acquire, target),
            partial(self._operate, exchange, operation),
            refusal,
        )

    async def _operate(
        self, exchange: Exchange, operation: Operation, life: Lifecycle, loaded: LoadedModel
    ) -> Reply | None:
        """Answer one request. What can be refused is, before a byte of the body is read."""
        loaded.require(operation)
        headers, settings = exchange.headers, self._serving.settings
        request_type, answer_type = _media_types(
            headers.get(b"content-type", b""), headers.get(b"accept", b""), operation, loaded.schema.kind == "image"
        )
        if request_type == NDJSON:
            await NdjsonExchange(life, exchange, loaded, operation).answer()
            return None
        life.deadline = asyncio.get_running_loop().time() + exchange.timeout_s(settings.request_timeout_ms)
        is_json = request_type == JSON
        body = await self._serving.body(
            exchange,
            settings.max_json_bytes if is_json else settings.max_body_bytes,
            settings.max_json_bytes if is_json else settings.max_decoded_bytes,
            deadline=life.deadline,
            begins=codecs.ARRAY_BEGINS.get(request_type),
        )
        decode = partial(
            codecs.decode,
            request_type,
            body,
            schema=loaded.schema,
            operation=operation,
            query=exchange.query if exchange.scope["query_string"] else {},
            limits=self._serving.limits,
        )
        # A small image file may be millions of pixels.
        size = max(len(body), 4 * math.prod(loaded.schema.row_shape)) if request_type in (PNG, JPEG) else len(body)
        decoded = await life.stage("decode", decode, size)
        answer = await life.run(loaded, (operation.name,), decoded.rows, decoded.options, received=body)
        size = sum(map(nbytes, answer.results.values()))
        if answer.explain is not None:
            size += INLINE_BYTES  # reasons take longer than their bytes say

        def encode() -> Reply:
            content = codecs.encode(answer_type, answer, decoded.table)
            return Reply(content, media_type=answer_type.encode()).compressed(headers.get(b"accept-encoding"))

        return await life.stage("encode", encode, size)

    async def _answer_elsewhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is no operation: through another protocol, or through FastAPI."""
        content_type = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and scope["path"].endswith(_CHANGES) and content_type in _FORM_TYPES:
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


@lru_cache(maxsize=1024)
def _media_types(content_type: bytes, accept: bytes, operation: Operation, is_image: bool) -> tuple[str, str]:
    """The media types of a request and of its answer.

    Raises:
        UnsupportedMediaType, NotAcceptable: there is none.
    """
    request_type = codecs.request_media_type(content_type.decode("latin-1"))
    offered: tuple[str, ...] = (NDJSON,)
    if request_type != NDJSON:
        offered = tuple(kind for kind in codecs.answer_types(operation) if kind != PNG or is_image)
    return request_type, codecs.choose_media_type(accept.decode("latin-1"), offered)
