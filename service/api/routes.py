"""The operation routes: from the bytes of a request to the bytes of its answer.

They stand in front of FastAPI: what matches an operation is answered here, below its request machinery, all else goes
on to FastAPI, which also documents these routes (``openapi.py``).
"""

import asyncio
import logging
import re
import time
from functools import lru_cache, partial

from starlette.types import Receive, Scope, Send

from service import codecs
from service.api.errors import PROBLEM_TYPE, problem, problem_body
from service.api.exchange import CallerLeft, Exchange, Headers, answer_headers, request_id
from service.api.ops import Call
from service.api.serving import INLINE_BYTES, INLINE_VALUES, LEFT, MIN_COMPRESSED_BYTES, Serving
from service.api.streams import NdjsonExchange
from service.codecs import Decoded
from service.errors import AutoencoderError, QueueFull, Unavailable
from service.runtime import Target
from service.runtime.loaded_model import LoadedModel
from service.telemetry import request_id_of_context
from service.words import JSON, NDJSON, OPERATIONS, PNG, Operation

log = logging.getLogger(__name__)

Refusal = tuple[int, Headers, bytes]
"""Status, headers and body."""

_BY_PATH = {f"/{operation.path}": operation for operation in OPERATIONS}
_OPERATION = "|".join(operation.path for operation in OPERATIONS)
_PATTERN = re.compile(
    r"/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+)|/aliases/(?P<alias>[^/]+))?"
    rf"/(?P<operation>{_OPERATION})"
)
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


def match(path: str) -> tuple[Operation, Target] | None:
    """The operation and its target that a path names, or None when it is no operation route."""
    operation = _BY_PATH.get(path)
    if operation is not None:
        return operation, Target()
    found = _PATTERN.fullmatch(path)
    if found is None:
        return None
    version = found["version"]
    if version is not None and not _VERSION.fullmatch(version):
        return None
    target = Target(found["model"], int(version) if version else None, found["alias"])
    return _BY_PATH[f"/{found['operation']}"], target


class OperationRoutes:
    """Answers the operation routes at the ASGI level."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    @property
    def is_full(self) -> bool:
        """Whether the queue takes nothing more now."""
        return self._serving.operations().is_full

    def refusal(self, method: bytes, url: bytes, headers: Headers) -> Refusal | None:
        """What a request is refused with before its task is made, when the queue is full; None for all others.

        The usual way to the same answer takes half as long again, and an overloaded service has to refuse most of the
        time.
        """
        if method != b"POST":
            return None
        matched = match(url.partition(b"?")[0].decode("latin-1"))
        if matched is None:
            return None
        started, named = time.perf_counter(), dict(headers)
        try:
            self._serving.admit(named)
        except QueueFull as error:
            given = request_id(named)
            status, body, more = problem(error, given)
            self._serving.telemetry.refused(type(error).__name__)
            token = request_id_of_context.set(given)
            self._finished(matched[0], None, status, started)
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
        if scope["method"] == "POST":
            await self._serve(exchange, *matched)
        else:
            body = problem_body(405, "This route takes POST only.", exchange.request_id)
            await exchange.answer(405, body, PROBLEM_TYPE.encode(), [(b"allow", b"POST")])
        return True

    async def _serve(self, exchange: Exchange, operation: Operation, target: Target) -> None:
        started = time.perf_counter()
        loaded: LoadedModel | None = None
        with self._serving.tracing.request(operation.name, exchange.headers):
            try:
                loaded = self._admit(exchange, target)
                status = await self._answer(exchange, operation, loaded)
            except CallerLeft:
                status = LEFT
            except Exception as error:  # noqa: BLE001 - every error becomes an answer
                status = await self._refuse(exchange, error, loaded)
            finally:
                exchange.release()
        self._finished(operation, loaded, status, started)

    def _finished(self, operation: Operation, loaded: LoadedModel | None, status: int, started: float) -> None:
        seconds = time.perf_counter() - started
        model = "" if loaded is None else loaded.name
        self._serving.telemetry.request_finished(operation.name, model, status, seconds)
        if self._serving.settings.access_log:
            version = None if loaded is None else loaded.version
            fields = {"operation": operation.name, "model": model, "version": version, "status": status}
            log.info("answered", extra={**fields, "ms": round(seconds * 1000, 3)})

    def _admit(self, exchange: Exchange, target: Target) -> LoadedModel:
        """The version that answers, where the caller may ask and there is room."""
        self._serving.admit(exchange.headers)
        return self._serving.manager.acquire(target)

    async def _answer(self, exchange: Exchange, operation: Operation, loaded: LoadedModel) -> int:
        """Answer one request; gives the status. What can be refused is, before a byte of the body is read."""
        loaded.require(operation)
        headers, settings = exchange.headers, self._serving.settings
        request_type = _request_type(headers.get(b"content-type", b""))
        offered = _offered(request_type, operation, is_image=loaded.schema.kind == "image")
        answer_type = _answer_type(headers.get(b"accept", b""), offered)
        headers_out = _model_headers(loaded)
        if request_type == NDJSON:
            stream = NdjsonExchange(self._serving, exchange, loaded, operation)
            await stream.answer(headers_out)
            return 200
        timeout_s = exchange.timeout_s(settings.request_timeout_ms)
        deadline = asyncio.get_running_loop().time() + timeout_s
        limit = self._serving.settings.max_json_bytes if request_type == JSON else self._serving.settings.max_body_bytes
        body = await exchange.aligned_body(limit, codecs.ARRAY_BEGINS.get(request_type, _at_once))
        with self._serving.tracing.stage("decode"):
            decoded = await self._decoded(exchange, request_type, body, loaded, operation)
        call = Call(loaded, operation, decoded.rows, decoded.options, deadline)
        with self._serving.tracing.stage("run"):
            answer = await exchange.while_connected(self._serving.operations().run(call))
        with self._serving.tracing.stage("encode"):
            content, encoding = await self._encoded(exchange, answer_type, answer, decoded)
        if encoding is not None:
            headers_out += [(b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding")]
        await exchange.answer(200, content, answer_type.encode(), headers_out)
        return 200

    async def _decoded(
        self, exchange: Exchange, request_type: str, body: bytes | memoryview, loaded: LoadedModel, operation: Operation
    ) -> Decoded:
        started = time.perf_counter()
        encoding = exchange.content_encoding
        decode = partial(
            codecs.decode,
            request_type,
            body,
            encoding,
            schema=loaded.schema,
            operation=operation,
            query=exchange.query,
            limits=self._serving.limits,
        )
        if encoding == "identity" and len(body) <= INLINE_BYTES:
            decoded = decode()
        else:
            decoded = await self._serving.in_thread(decode)
            exchange.hold(sum(array.nbytes for array in decoded.rows.values()))
        self._serving.telemetry.stage_took("decode", time.perf_counter() - started)
        return decoded

    async def _encoded(
        self, exchange: Exchange, answer_type: str, answer: codecs.Answer, decoded: Decoded
    ) -> tuple[bytes, str | None]:
        """The answer's bytes and their content encoding."""
        started = time.perf_counter()
        accepted = exchange.headers.get(b"accept-encoding")
        encoding = None if accepted is None else _answer_encoding(accepted)
        size = sum(array.size for array in answer.results.values())
        if size <= INLINE_VALUES and answer.explain is None:
            encoded = _encode(answer_type, answer, decoded, encoding)
        else:
            encoded = await self._serving.in_thread(partial(_encode, answer_type, answer, decoded, encoding))
        self._serving.telemetry.stage_took("encode", time.perf_counter() - started)
        return encoded

    async def _refuse(self, exchange: Exchange, error: Exception, loaded: LoadedModel | None) -> int:
        status, body, headers = problem(error, exchange.request_id)
        if status >= 500 and not isinstance(error, Unavailable):
            log.error("answered %d: %s", status, type(error).__name__, exc_info=error)
        if status in (429, 503, 504):
            self._serving.telemetry.refused(type(error).__name__)
        if loaded is not None:
            headers += _model_headers(loaded)
        await exchange.answer(status, body, PROBLEM_TYPE.encode(), headers)
        return status


def _at_once(_head: bytes) -> int:
    """Of a body that is not an array, or of one with an array that nobody takes as it is."""
    return 0


def _encode(
    answer_type: str, answer: codecs.Answer, decoded: Decoded, encoding: str | None
) -> tuple[bytes, str | None]:
    content = codecs.encode(answer_type, answer, decoded.table)
    if encoding is None or len(content) < MIN_COMPRESSED_BYTES:
        return content, None
    return codecs.compress(content, encoding), encoding


def _model_headers(loaded: LoadedModel) -> Headers:
    return [(b"x-model-name", loaded.name.encode()), (b"x-model-version", b"%d" % loaded.version)]


@lru_cache(maxsize=256)
def _request_type(content_type: bytes) -> str:
    return codecs.request_media_type(content_type.decode("latin-1"))


@lru_cache(maxsize=1024)
def _answer_type(accept: bytes, offered: tuple[str, ...]) -> str:
    return codecs.choose_media_type(accept.decode("latin-1"), offered)


@lru_cache(maxsize=256)
def _answer_encoding(accept_encoding: bytes) -> str | None:
    return codecs.choose_encoding(accept_encoding.decode("latin-1"))


@lru_cache(maxsize=64)
def _offered(request_type: str, operation: Operation, *, is_image: bool) -> tuple[str, ...]:
    """Encodings that the answer may have; the first one where the caller does not say."""
    if request_type == NDJSON:
        return (NDJSON,)
    return tuple(kind for kind in codecs.answer_types(operation) if kind != PNG or is_image)
