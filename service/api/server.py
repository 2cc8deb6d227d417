"""uvicorn as this service runs it: guarded connections, and a stop that loses nothing.

uvicorn itself closes idle connections at once when it stops, although a request may be on its way on one of them.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any, NoReturn, Protocol

if sys.platform != "win32":
    import resource

import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead

from service.api.app import create_app
from service.api.connection import READ_BYTES, GuardedProtocol, Turns
from service.api.front import AutoencoderApp
from service.api.memory import FreedMemory, keep_freed_memory
from service.errors import ConfigurationError, StoreUnavailable
from service.settings import Settings
from service.store import Store
from service.telemetry import configure_logging

log = logging.getLogger(__name__)

REAP_INTERVAL_S = 0.5
SWITCH_INTERVAL_S = 0.0003
OTHER_FILES = 512
"""Files that are open beside connections: models, the store, sockets of other servers."""
LAME_DUCK_S = 0.5
"""How long connections stay open after the stop has begun, for requests that are on their way."""
STOP_SILENCE_S = 2.0
"""A body of which nothing more arrives for this time is given up once the stop has begun."""
CHECK_INTERVAL_S = 0.5
STEADY_S = 60.0
"""A worker that ran for this time and ends is started again at once."""
MAX_WAIT_S = 30.0
BACKLOG = 2048
ACCEPTED_AT_ONCE = 8
"""Connections that are taken in one go of the event loop, which takes one from each listening socket."""


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
        if sys.platform != "win32":  # each connection is a file that this process must be allowed to open
            wanted = self._settings.max_connections + OTHER_FILES
            most, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            if most < wanted:
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, limit), limit))
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        more = range(ACCEPTED_AT_ONCE - 1 if os.name == "posix" else 0)
        await super().startup(sockets and [*sockets, *(sock.dup() for sock in sockets for _ in more)])
        for sock in sockets or ():  # of others uvicorn tells
            log.info("serving on http://%s:%d (the console is at /ui)", *sock.getsockname()[:2])
        self._reaper = asyncio.create_task(self._reap())

    async def _reap(self) -> None:
        header_timeout_s = self._settings.header_timeout_s
        body_timeout_s = self._settings.body_timeout_s + REAP_INTERVAL_S
        write_timeout_s = self._settings.write_timeout_s
        app = self.config.app
        freed = FreedMemory(app.state.service.reception) if isinstance(app, FastAPI) else None
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            if self._stopping:
                body_timeout_s = min(body_timeout_s, STOP_SILENCE_S)
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.reap(now, header_timeout_s, body_timeout_s, write_timeout_s)
            if freed is not None:
                await freed.give_back(now)

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
        """Close connections whose headers are not complete by now."""
        for connection in list(self.server_state.connections):
            if (
                isinstance(connection, GuardedProtocol)
                and connection.waiting_since is not None
                and connection.in_headers
            ):
                connection.transport.close()


def server_config(app: FastAPI | str, settings: Settings, **more: Any) -> uvicorn.Config:
    own: dict[str, Any] = {"max_header_bytes": settings.max_header_bytes, "max_connections": settings.max_connections}
    own |= {"read_buffer": memoryview(bytearray(READ_BYTES)), "turns": Turns()}
    if isinstance(app, AutoencoderApp):
        service = app.state.service
        own["refusal"] = staticmethod(app.refusal)
        own["service"] = service
        own["reception"] = service.reception
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
            _run_to_the_end(create_app(settings, opens_at_once=True), settings, sock)


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
    _run_to_the_end(create_app(settings), settings, sock)


def _run_to_the_end(app: FastAPI, settings: Settings, sock: socket.socket) -> NoReturn:
    """Serve, and end the process with the server.

    A thread may still load a version. Were the interpreter to end as it usually does, destructors of TensorFlow would
    run while that thread calls it, and the process would crash now and then.
    """
    GuardedServer(server_config(app, settings), settings).run([sock])
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


# --- several processes on one socket ----------------------------------------------------------------------------------


class Process(Protocol):
    """A process of ``multiprocessing``, as far as it is used here."""

    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    def is_alive(self) -> bool: ...
    def terminate(self) -> None: ...
    def join(self) -> None: ...


class Worker:
    """One process that is started again whenever it ends: at once, but ever later when it ends soon again and again."""

    def __init__(self, start: Callable[[], Process], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._start = start
        self._clock = clock
        self._soon_ended = 0
        self._begin()

    def _begin(self) -> None:
        self._process = self._start()
        self._started_at = self._clock()
        self._start_again_at: float | None = None

    def check(self) -> None:
        """Start the process again where it has ended. Call this now and then."""
        if self._start_again_at is not None:
            if self._clock() >= self._start_again_at:
                self._begin()
        elif not self._process.is_alive():
            self._ended()

    def _ended(self) -> None:
        now = self._clock()
        self._soon_ended = 0 if now - self._started_at >= STEADY_S else self._soon_ended + 1
        wait_s = 0.0 if self._soon_ended <= 1 else min(MAX_WAIT_S, 2.0 ** (self._soon_ended - 2))
        pid, exit_code = self._process.pid, self._process.exitcode
        log.error("worker %s ended with %s; starting another in %g s", pid, exit_code, wait_s)
        if pid is not None:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
        self._start_again_at = now + wait_s
        self.check()

    def terminate(self) -> None:
        self._process.terminate()

    def join(self) -> None:
        self._process.join()


def run_workers(count: int, sock: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Run ``serve(sock)``, which must be picklable, in ``count`` processes until SIGTERM or SIGINT. Blocks."""
    sock.listen(BACKLOG)

    def start() -> Process:
        # A fresh interpreter: TensorFlow does not survive a fork.
        process = get_context("spawn").Process(target=serve, args=(sock,), name="worker")
        process.start()
        return process

    with tempfile.TemporaryDirectory(prefix="autoencoder-metrics-") as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        workers = [Worker(start) for _ in range(count)]
        while not stop.wait(CHECK_INTERVAL_S):
            for worker in workers:
                worker.check()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
