"""The operation routes: from the bytes of a request to the bytes of its answer.

They stand in front of FastAPI: what matches an operation is answered here, below its request machinery, all else goes
on to FastAPI, which also documents these routes (``openapi.py``).
"""

import asyncio
import math
import re
from functools import lru_cache, partial

import numpy as np
from starlette.types import Receive, Scope, Send

from service import codecs
from service.api.access import Role
from service.api.errors import PROBLEM_TYPE, problem, problem_body
from service.api.exchange import Exchange, Headers, answer_headers, request_id
from service.api.lifecycle import Call, Lifecycle, Reply, model_headers, run, serve
from service.api.serving import INLINE_BYTES, Serving
from service.api.streams import NdjsonExchange
from service.errors import AutoencoderError, QueueFull
from service.runtime import Target
from service.runtime.loaded_model import LoadedModel
from service.runtime.manager import DEFAULT
from service.schemas import nbytes
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


class OperationRoutes:
    """Answers the operation routes at the ASGI level."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def refusal(self, method: bytes, url: bytes, headers: Headers) -> Refusal | None:
        """The answer to a request that is refused before its task is made, as the queue is full; None for all others.

        The usual way to the same answer takes half as long again, and an overloaded service has to refuse most of the
        time.
        """
        if method != b"POST":
            return None
        matched = match(url.partition(b"?")[0].decode("latin-1"))
        if matched is None:
            return None
        named = dict(headers)
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

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer the request if its path is an operation's; False when it is somebody else's."""
        matched = match(scope["path"])
        if matched is None:
            return False
        exchange = Exchange(scope, receive, send, self._serving.reception)
        if scope["method"] != "POST":
            body = problem_body(405, "This route takes POST only.", exchange.request_id)
            await exchange.answer(405, body, PROBLEM_TYPE.encode(), [(b"allow", b"POST")])
            return True
        operation, target = matched
        await serve(
            exchange,
            Lifecycle(self._serving, operation.name, exchange.headers),
            partial(self._serving.manager.acquire, target),
            partial(self._answer, exchange, operation),
            partial(_refusal, exchange.request_id),
        )
        return True

    async def _answer(
        self, exchange: Exchange, operation: Operation, life: Lifecycle, loaded: LoadedModel
    ) -> Reply | None:
        """Answer one request. What can be refused is, before a byte of the body is read."""
        loaded.require(operation)
        headers, settings = exchange.headers, self._serving.settings
        request_type, answer_type = _media_types(
            headers.get(b"content-type", b""), headers.get(b"accept", b""), operation, loaded.schema.kind == "image"
        )
        if request_type == NDJSON:
            stream = NdjsonExchange(self._serving, exchange, loaded, operation)
            await stream.answer(model_headers(loaded.name, loaded.version))
            return None
        life.deadline = asyncio.get_running_loop().time() + exchange.timeout_s(settings.request_timeout_ms)
        is_json = request_type == JSON
        limit = settings.max_json_bytes if is_json else settings.max_body_bytes
        body = await exchange.aligned_body(limit, codecs.ARRAY_BEGINS.get(request_type, _nowhere), life.deadline)
        if b"content-encoding" in headers:
            most = settings.max_json_bytes if is_json else settings.max_decoded_bytes
            body = await self._serving.decompressed(
                body, exchange.content_encoding, most, deadline=life.deadline, hold=exchange.hold
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
        if size > INLINE_BYTES:
            received = np.frombuffer(body, np.uint8)
            arrays = decoded.rows.values()
            exchange.hold(sum(array.nbytes for array in arrays if not np.may_share_memory(array, received)))
        call = Call(loaded, (operation.name,), decoded.rows, decoded.options, life.deadline)
        answer = await run(life.serving, call, exchange=exchange, hold=life.hold)
        accepted = headers.get(b"accept-encoding")
        coding = None if accepted is None else codecs.choose_encoding(accepted.decode("latin-1"))
        size = sum(map(nbytes, answer.results.values()))
        if answer.explain is not None:
            size += INLINE_BYTES  # reasons take longer than their bytes say

        def encode() -> Reply:
            content = codecs.encode(answer_type, answer, decoded.table)
            reply = Reply(content, media_type=answer_type.encode())
            return reply if coding is None else reply.compressed(coding)

        return await life.stage("encode", encode, size)


def _refusal(given: str, error: Exception) -> Reply:
    status, body, headers = problem(error, given)
    return Reply(body, status, PROBLEM_TYPE.encode(), headers)


def _nowhere(_head: bytes) -> int:
    """Where an array begins in a body that holds none."""
    return 0


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
