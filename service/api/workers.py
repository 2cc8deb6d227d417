"""Several server processes on one socket. Each loads the models for itself; their metrics add up."""

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Protocol

from prometheus_client.multiprocess import mark_process_dead

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.5
STEADY_S = 60.0
"""A worker that ran for so long and ends is started again at once."""
MAX_WAIT_S = 30.0
BACKLOG = 2048


class Process(Protocol):
    """What is used of ``multiprocessing``'s processes."""

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

    def attend(self) -> None:
        """Look after the process. Call this now and then."""
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
        self.attend()

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
                worker.attend()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
