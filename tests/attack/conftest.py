"""Hostile requests against a live process: how much memory they take, and what another caller notices of them."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

import psutil
import pytest

from service.store import Store
from tests.api.processes import ServiceProcess, fakes, running
from tests.attack import caller
from tests.attack.caller import REQUESTS, TIMEOUT_S, ask
from tests.fakes import MODEL, publish_fake

MAX_GROWTH_BYTES = 300 * 10**6
MAX_LEFT_BYTES = 50 * 10**6
RETURN_TIMEOUT_S = 20.0
CALLER_TIMEOUT_S = TIMEOUT_S
USUAL_WAIT_S = 0.2
"""The median of at least ``ENOUGH_WAITS``."""
ENOUGH_WAITS = 5
BUSY_MACHINE = 20
"""Where a probe of the idle service takes long, others keep the machine busy: usual is up to so many times that."""
MAX_WAIT_S = 10.0
SAMPLE_INTERVAL_S = 0.02
WIDE, WIDE_VALUES = "wide", 1024
"""A second model, whose rows are large."""


@dataclass
class Watch:
    """What was seen during an attack."""

    peak_bytes: int = 0
    processor_s: float = 0.0
    """Processor time of the service."""
    waits_s: dict[str, list[float]] = field(default_factory=dict)
    """Of the second caller, for each of its answers: to a row, and to a probe."""
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A service in a process of its own that is attacked."""

    url: str
    process: psutil.Process

    def rss(self) -> int:
        return int(self.process.memory_info().rss)

    def processor_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def score(self) -> str:
        """Ask for one row; return what is wrong with the answer."""
        return ask(self.url, "score")

    def probe(self) -> str:
        return ask(self.url, "probe")

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        """Take the memory every few milliseconds, and let a second caller ask all the time."""
        watch, ended = Watch(self.rss(), -self.processor_s()), threading.Event()

        def sample() -> None:
            while not ended.wait(SAMPLE_INTERVAL_S):
                watch.peak_bytes = max(watch.peak_bytes, self.rss())

        command = [sys.executable, caller.__file__, self.url, str(CALLER_TIMEOUT_S)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answers = cast("IO[str]", process.stdout)

        def note(line: str) -> None:
            name, wait_s, failure = json.loads(line)
            watch.waits_s.setdefault(name, []).append(wait_s)
            if failure:
                watch.failures.append(failure)

        def note_all() -> None:
            for line in answers:
                note(line)

        for _ in REQUESTS:
            note(next(answers))
        threads = [threading.Thread(target=sample), threading.Thread(target=note_all)]
        for thread in threads:
            thread.start()
        try:
            yield watch
        finally:
            ended.set()
            cast("IO[str]", process.stdin).close()
            for thread in threads:
                thread.join()
            answers.close()
            assert process.wait() == 0
            watch.processor_s += self.processor_s()

    @contextmanager
    def withstands(self) -> Iterator[Watch]:
        """Around an attack: its memory is bounded and given back, and a second caller is served meanwhile."""
        most_s = max(USUAL_WAIT_S, BUSY_MACHINE * self.idle_wait_s())
        before = self.rss()
        with self.watched() as watch:
            yield watch
        assert not watch.failures, f"{len(watch.failures)} of the second caller: {watch.failures[:3]}"
        grown = watch.peak_bytes - before
        assert grown <= MAX_GROWTH_BYTES, f"memory grew by {grown / 1e6:.0f} MB"
        ends = time.monotonic() + RETURN_TIMEOUT_S
        while (left := self.rss() - before) > MAX_LEFT_BYTES:
            assert time.monotonic() < ends, f"{left / 1e6:.0f} MB of memory were kept"
            time.sleep(0.1)
        for name, waits_s in watch.waits_s.items():
            usual_s = median(waits_s) if len(waits_s) >= ENOUGH_WAITS else 0
            assert usual_s <= most_s, f"{name} of the second caller usually took {usual_s:.2f} s"
            assert max(waits_s) <= MAX_WAIT_S, f"{name} of the second caller took {max(waits_s):.2f} s"

    def idle_wait_s(self) -> float:
        """What a probe usually takes now."""
        waits_s = []
        for _ in range(ENOUGH_WAITS):
            began = time.monotonic()
            assert not self.probe()
            waits_s.append(time.monotonic() - began)
        return median(waits_s)


@contextmanager
def attacked(store: Path, *, delay_s: float = 0, **settings: Any) -> Iterator[tuple[Target, ServiceProcess]]:
    """A service over fakes in a process of its own, which has answered before."""
    if not any(store.iterdir()):
        publish_fake(Store(store))
        publish_fake(Store(store), model=WIDE, width=WIDE_VALUES)
    with running(fakes(store, delay_s=delay_s, **{"default_model": MODEL, **settings})) as process:
        target = Target(process.url, psutil.Process(process.process.pid))
        for _ in range(20):
            assert not target.score()
            assert not target.probe()
        yield target, process


def grpc_address(process: ServiceProcess) -> str:
    """Where a service listens for gRPC."""
    found = re.search(r"gRPC listens on ([0-9.]+:[0-9]+)", process.log)
    assert found is not None
    return found[1]


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One service with the default settings, for attacks that leave it as it was."""
    with attacked(tmp_path_factory.mktemp("attacked")) as (target, _):
        yield target


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Callable[..., Target]]:
    """Start services with settings of their own: ``attack(max_header_bytes=...)``."""
    store = tmp_path / "store"
    store.mkdir()
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(attacked(store, **settings))[0]
