"""uvicorn as this service runs it: deadlines for receiving, a bound on headers, and a stop that loses nothing.

uvicorn itself waits for ever for the rest of a request, and closes idle connections at once when it stops, although a
request may be on its way on one of them.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.app import create_app
from service.api.errors import PROBLEM_TYPE, problem, problem_body
from service.api.exchange import Headers, request_id
from service.api.front import AutoencoderApp
from service.api.memory import keep_freed_memory
from service.api.routes import Refusal
from service.api.workers import run_workers
from service.errors import ConfigurationError, StoreUnavailable, Unavailable
from service.settings import Settings
from service.store import Store
from service.telemetry import configure_logging

log = logging.getLogger(__name__)

REAP_INTERVAL_S = 0.5
CORK_BYTES = 64 * 2**10
"""Bodies of this size are not copied behind their heads."""
SWITCH_INTERVAL_S = 0.0003
LAME_DUCK_S = 0.5
"""How long connections stay open after the stop has begun, for requests that are on their way."""
STOP_SILENCE_S = 2.0
"""A body of which nothing more arrives for so long is given up once the stop has begun."""


def _refusal(status: int, detail: str) -> bytes:
    """The whole answer to what is no request yet."""
    given = request_id({})
    body = problem_body(status, detail, given)
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\ncontent-type: {PROBLEM_TYPE}\r\n"
        f"content-length: {len(body)}\r\nx-request-id: {given}\r\n\r\n"
    ).encode() + body


async def _refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in place of the application when there are too many connections."""
    given = request_id(dict(scope["headers"]))
    status, body, headers = problem(Unavailable("The service has as many connections as it may."), given)
    headers += [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", given.encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class CorkedTransport:
    """Holds the head of an answer back for its body, which follows at once: one system call and packet, not two."""

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, part: bytes) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head + part if len(part) < CORK_BYTES else head)
            if len(part) >= CORK_BYTES:
                self._transport.write(part)
        elif part.startswith(b"HTTP/1.1 "):
            self._head = part
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(part)

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class GuardedProtocol(HttpToolsProtocol):
    """Remembers since when it waits for the peer; ``GuardedServer`` closes it when that is too long."""

    max_header_bytes = 16 * 2**10
    max_connections = 2048
    draining = False

    @staticmethod
    def refusal(_method: bytes, _path: str, _headers: Headers) -> Refusal | None:
        """``AutoencoderApp.refusal`` of the application that is served."""
        return None

    waiting_since: float | None
    in_headers: bool
    _header_bytes: int
    _is_refused: bool
    """The request that is being received has its answer already."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.waiting_since = time.monotonic()
        self.in_headers = True
        self._header_bytes = 0
        self._is_refused = False
        super().connection_made(cast("asyncio.Transport", CorkedTransport(transport)))

    def data_received(self, data: bytes) -> None:
        if self.waiting_since is None:
            self.waiting_since = time.monotonic()
        elif not self.in_headers:
            self.waiting_since = time.monotonic()  # a body is measured from its last bytes
        if self.in_headers:
            self._header_bytes += len(data)  # 0 again once the message is complete
        super().data_received(data)
        if self.in_headers and self._header_bytes > self.max_header_bytes:
            self._refuse(431, "The headers are too large.")

    def on_headers_complete(self) -> None:
        self.in_headers = False
        if self._header_bytes > self.max_header_bytes and self._size_of_headers() > self.max_header_bytes:
            self._refuse(431, "The headers are too large.")
            return
        if len(self.connections) > self.max_connections:
            self.app = _refuse_connection
        if self._refuse_at_once():
            return
        super().on_headers_complete()
        if self.draining and self.cycle is not None:
            self.cycle.keep_alive = False

    def _refuse_at_once(self) -> bool:
        """Answer what the application refuses for load before anything is made for it; its body is passed over."""
        is_next = self.cycle is None or self.cycle.response_complete
        if not is_next or self.expect_100_continue or self.draining or not self.parser.should_keep_alive():
            return False
        path = self.url.partition(b"?")[0].decode("latin-1")
        refusal = self.refusal(self.parser.get_method(), path, self.headers)
        if refusal is None:
            return False
        status, headers, body = refusal
        fields = b"".join([b"%b: %b\r\n" % header for header in headers])
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], fields, body))
        self._is_refused = True
        return True

    def on_body(self, body: bytes) -> None:
        if self._is_refused:
            return
        if self.cycle is not None and not self.cycle.body:
            # To nothing of type bytes, a piece is added without a copy, and handed on as it is; not so to a bytearray.
            self.cycle.body = cast("bytearray", b"")
        super().on_body(body)

    def _size_of_headers(self) -> int:
        return sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url)

    def on_message_complete(self) -> None:
        self.waiting_since = None
        self.in_headers = True
        self._header_bytes = 0
        if self._is_refused:
            self._is_refused = False
            self.on_response_complete()
        else:
            super().on_message_complete()

    def reap(self, now: float, header_timeout_s: float, body_timeout_s: float) -> None:
        """Close the connection when its peer has not sent what it owes in time."""
        if self.waiting_since is None or self.transport.is_closing():
            return
        if self.in_headers:
            if now - self.waiting_since > header_timeout_s:
                self._refuse(408, "The headers did not arrive in time.")
        elif self.flow.read_paused:
            self.waiting_since = now  # we are the slow one
        elif now - self.waiting_since > body_timeout_s:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "This is not a valid HTTP request.")

    def _refuse(self, status: int, detail: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(_refusal(status, detail))
            self.transport.close()


class GuardedServer(uvicorn.Server):
    """uvicorn's server with receipt deadlines and a lame-duck phase before it stops."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings
        self._reaper: asyncio.Task[None] | None = None
        self._stopping = False

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # uvicorn would raise them again: a stop that was asked for ends with 0

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # A model thread that comes back from TensorFlow waits for the event loop's thread to give way: 5 ms, three
        # times a batch, if it were left as it is.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        keep_freed_memory()
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():  # of others uvicorn tells
            log.info("serving on http://%s:%d", *sock.getsockname()[:2])
        self._reaper = asyncio.create_task(self._reap())

    async def _reap(self) -> None:
        header_timeout_s = self._settings.header_timeout_s
        body_timeout_s = self._settings.body_timeout_s + REAP_INTERVAL_S
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            if self._stopping:
                body_timeout_s = min(body_timeout_s, STOP_SILENCE_S)
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.reap(now, header_timeout_s, body_timeout_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, answer what comes on the open ones for a moment, then stop."""
        self._stopping = True
        if isinstance(self.config.app, FastAPI):
            self.config.app.state.service.draining = True
        for server in self.servers:
            server.close()
        for connection in self.server_state.connections:
            if isinstance(connection, GuardedProtocol):
                connection.draining = True
                if connection.cycle is not None and not connection.cycle.response_complete:
                    connection.cycle.keep_alive = False
        if self.server_state.connections and not self.force_exit:
            await asyncio.sleep(min(LAME_DUCK_S, self._settings.drain_timeout_s))
        self._close_half_sent()
        await super().shutdown(sockets)
        if self._reaper is not None:
            self._reaper.cancel()

    def _close_half_sent(self) -> None:
        """Headers that are not complete by now hold the stop up for nobody."""
        for connection in list(self.server_state.connections):
            if (
                isinstance(connection, GuardedProtocol)
                and connection.waiting_since is not None
                and connection.in_headers
            ):
                connection.transport.close()


def server_config(app: FastAPI | str, settings: Settings, **more: Any) -> uvicorn.Config:
    own: dict[str, Any] = {"max_header_bytes": settings.max_header_bytes, "max_connections": settings.max_connections}
    if isinstance(app, AutoencoderApp):
        own["refusal"] = staticmethod(app.refusal)
    protocol = type("Protocol", (GuardedProtocol,), own)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        loop="uvloop" if os.name == "posix" else "asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        **more,
    )


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Blocks.

    Raises:
        ConfigurationError: the address or the store cannot be used; known before a model is loaded.
    """
    settings.check_access()
    check_store(settings)
    configure_logging(settings.log_level, settings.log_format)
    with bound(settings) as sock:
        if settings.workers > 1:
            run_workers(settings.workers, sock, partial(_work, settings))
        else:
            GuardedServer(server_config(create_app(settings), settings), settings).run([sock])


def check_store(settings: Settings) -> None:
    """
    Raises:
        ConfigurationError: there is no store.
    """
    try:
        Store(settings.store).models()
    except StoreUnavailable as error:
        raise ConfigurationError(f"'{settings.store}' cannot be served: {error}") from error


def bound(settings: Settings) -> socket.socket:
    """A socket on the address to listen on.

    Raises:
        ConfigurationError: it cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise ConfigurationError(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.") from error
    return sock


def _work(settings: Settings, sock: socket.socket) -> None:
    configure_logging(settings.log_level, settings.log_format)
    GuardedServer(server_config(create_app(settings), settings), settings).run([sock])
