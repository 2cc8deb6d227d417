"""Several worker processes on one port, started as an operator does."""

import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
import pytest

from service.api.server import MAX_WAIT_S, STEADY_S, Worker

WORKERS = 2
REQUESTS = 60


class EndedProcess:
    """A process that ends as soon as it is started."""

    pid = None
    exitcode = 3

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None:
        pass

    def join(self) -> None:
        pass


def test_a_worker_that_never_stays_is_started_ever_more_seldom() -> None:
    """At once the first time, then after waits that double up to a limit; after a long run at once again."""
    now = 0.0
    starts: list[float] = []

    def start() -> EndedProcess:
        starts.append(now)
        return EndedProcess()

    worker = Worker(start, clock=lambda: now)
    while now < 200:
        now += 0.5
        worker.check()
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert waits[:4] == [0.5, 1.5, 2.5, 4.5]  # until it is seen that it ended, and then the wait
    assert max(waits) == MAX_WAIT_S + 0.5
    now += 2 * MAX_WAIT_S
    worker.check()  # starts it
    now += STEADY_S
    before = len(starts)
    worker.check()
    assert len(starts) == before + 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _served(store: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    port = _free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--store", str(store), "--port", str(port)]
    with subprocess.Popen([*command, "--workers", str(WORKERS), "--default-model", "digits"]) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill() if process.poll() is None else None
            process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _wait_until_ready(url: str) -> None:
    """Both workers listen on one socket: ready several times in a row means that either of them is."""
    deadline = time.monotonic() + 180
    streak = 0
    while streak < 3 * WORKERS:
        assert time.monotonic() < deadline, "the workers were not ready in time"
        streak = streak + 1 if _ready(url) else 0
        time.sleep(0.05)


def _counted(url: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text
    return sum(float(value) for value in re.findall(r"^autoencoder_requests_total\{.*\} (\S+)$", text, re.M))


def _wait_until_all_count(url: str, requests: int) -> None:
    """Workers write their counts a few times a second."""
    ends = time.monotonic() + 20
    while {_counted(url) for _ in range(8)} != {requests}:
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.tf
@pytest.mark.slow
def test_metrics_of_all_workers_add_up(trained_store: Path) -> None:
    """Whichever worker is asked counts all requests; a worker that dies is replaced; SIGTERM ends all with 0."""
    body = {"instances": np.zeros((1, 8, 8)).tolist()}
    with _served(trained_store) as (process, url):
        _wait_until_ready(url)
        for _ in range(REQUESTS):  # a connection for each, so that they spread over the workers
            assert httpx.post(f"{url}/anomaly-score", json=body, timeout=30, trust_env=False).status_code == 200
        _wait_until_all_count(url, REQUESTS)
        children = [child for child in psutil.Process(process.pid).children() if child.name().startswith("python")]
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == WORKERS
        workers[0].send_signal(signal.SIGKILL)
        _wait_until_ready(url)
        assert httpx.post(f"{url}/anomaly-score", json=body, timeout=30, trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
