"""What a running service does to its callers while versions are swapped, and under far more load than it can take."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import numpy as np

from benchmarks import rows, wrk
from benchmarks.target import Target
from service.client import ServiceError
from service.errors import ConfigurationError
from service.words import ANOMALY_SCORE, JSON, PRODUCTION

SWAP_INTERVAL_S = 1.0
LOAD_CONNECTIONS = 16
BULK_ROWS = 1024
PROBE_INTERVAL_S = 0.05
SCORE_RTOL = 1e-5
RECOVERED_PROBES = 10
"""Good answers in a row after which a service has recovered."""
MAX_RECOVERY_S = 30.0
MEMORY = "process_resident_memory_bytes"
OK = 200
TOO_MANY = 429


@dataclass(frozen=True, slots=True)
class SwapReport:
    calm: wrk.Load
    swapping: wrk.Load
    swaps: int
    checked: int
    """Answers that were compared with those of the version that they name."""
    wrong: int
    """Of these, not 200, or not what that version answers."""

    @property
    def p99_ratio(self) -> float:
        return self.swapping.p99_ms / self.calm.p99_ms


@dataclass(frozen=True, slots=True)
class OverloadReport:
    capacity: wrk.Load
    overload: wrk.Load
    factor: int
    refusals_ms: tuple[float, ...]
    """How long the refusals took that a caller on a connection of its own saw."""
    recovery_s: float | None
    """From the end of the overload to steady good answers; None: not within 30 s."""
    memory_before: float | None
    memory_most: float | None
    """Bytes resident, as the service's own metrics say."""

    @property
    def goodput_share(self) -> float:
        """Good answers a second in the overload, against those at capacity."""
        return self.overload.good_s / self.capacity.good_s


def measure_swaps(target: Target, versions: tuple[int, int], *, seconds: float, admin_key: str | None) -> SwapReport:
    """Load the service, then load it while ``production`` moves between two versions each second.

    Every answer of a checking caller is compared with what the version that it names gives for that row.

    Raises:
        ServiceError: the alias may not be moved, or the service does not answer.
        ConfigurationError: wrk is not installed.
    """
    row = rows.random_rows(target.schema, 1)
    with target.client() as client:
        scores = {each: client.anomaly_score(row, model=target.model, version=each).scores for each in versions}
    expected = {version: float(found[0]) for version, found in scores.items()}
    body, headers = rows.json_body(row), target.headers(JSON)
    url = target.url(ANOMALY_SCORE.path)
    calm = wrk.run(url, body, headers, connections=LOAD_CONNECTIONS, seconds=seconds)
    with swapping(target, versions, admin_key) as swaps, _checking(target, row, expected) as checks:
        swapped = wrk.run(url, body, headers, connections=LOAD_CONNECTIONS, seconds=seconds)
    return SwapReport(calm, swapped, swaps.count, checks.count, checks.wrong)


def measure_overload(target: Target, *, factor: int, seconds: float) -> OverloadReport:
    """Bulk requests over as many connections as keep the service busy, then over ``factor`` times as many.

    Raises:
        ConfigurationError: wrk is not installed, or the service does not answer such requests.
    """
    body = rows.json_body(rows.random_rows(target.schema, BULK_ROWS))
    url, headers = target.url(ANOMALY_SCORE.path), target.headers(JSON)
    capacity = wrk.run(url, body, headers, connections=LOAD_CONNECTIONS, seconds=seconds)
    if capacity.good_s <= 0:
        size = len(body) / 2**20
        raise ConfigurationError(f"The service refuses every request of {BULK_ROWS:,} rows ({size:.1f} MiB of JSON).")
    (before,) = metrics(target, MEMORY)
    with _probing(target) as probes:
        overload = wrk.run(url, body, headers, connections=factor * LOAD_CONNECTIONS, seconds=seconds)
    ended = time.monotonic()
    recovery_s = _recovery(target, ended)
    refusals = tuple(probe.ms for probe in probes.answers if probe.status == TOO_MANY)
    most = max(probes.memory, default=None)
    return OverloadReport(capacity, overload, factor, refusals, recovery_s, before, most)


@dataclass(slots=True)
class _Swaps:
    count: int = 0


@dataclass(slots=True)
class _Checks:
    count: int = 0
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class _Probe:
    status: int
    ms: float


@dataclass(slots=True)
class _Probes:
    answers: list[_Probe] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


@contextmanager
def swapping(target: Target, versions: tuple[int, int], admin_key: str | None) -> Iterator[_Swaps]:
    """Moves ``production`` between the versions, and back to where it was in the end."""
    swaps = _Swaps()
    with target.client(admin_key) as client:

        def swap(stop: threading.Event) -> None:
            while not stop.wait(SWAP_INTERVAL_S):
                swaps.count += 1
                client.promote(target.model, versions[swaps.count % 2])

        was = client.aliases(target.model).get(PRODUCTION)
        client.promote(target.model, versions[0])
        try:
            with beside(swap):
                yield swaps
        finally:
            if was is None:
                client.delete_alias(target.model, PRODUCTION)
            else:
                client.promote(target.model, was)


@contextmanager
def _checking(target: Target, row: list[Any], expected: dict[int, float]) -> Iterator[_Checks]:
    checks = _Checks()
    body, headers = rows.json_body(row), target.headers(JSON)

    def check(stop: threading.Event) -> None:
        with httpx.Client(trust_env=False, timeout=10) as http:
            while not stop.is_set():
                answer = http.post(target.url(ANOMALY_SCORE.path), content=body, headers=headers)
                checks.count += 1
                if answer.status_code != OK or not _is_right(answer.json(), expected):
                    checks.wrong += 1

    with beside(check):
        yield checks


def _is_right(answer: dict[str, Any], expected: dict[int, float]) -> bool:
    score = expected.get(answer["model"]["version"])
    return score is not None and bool(np.isclose(answer["scores"][0], score, rtol=SCORE_RTOL))


@contextmanager
def _probing(target: Target) -> Iterator[_Probes]:
    probes = _Probes()

    def probe(stop: threading.Event) -> None:
        while not stop.wait(PROBE_INTERVAL_S):
            probes.answers.append(_probe(target))
            if len(probes.answers) % 10 == 0 and (resident := metrics(target, MEMORY)[0]) is not None:
                probes.memory.append(resident)

    with beside(probe):
        yield probes


def _probe(target: Target) -> _Probe:
    """One row on a connection of its own; status 0 where the connection failed."""
    body, headers = rows.json_body(rows.random_rows(target.schema, 1)), target.headers(JSON)
    started = time.perf_counter()
    try:
        status = httpx.post(
            target.url(ANOMALY_SCORE.path), content=body, headers=headers, timeout=30, trust_env=False
        ).status_code
    except httpx.TransportError:
        status = 0
    return _Probe(status, (time.perf_counter() - started) * 1e3)


def _recovery(target: Target, since: float) -> float | None:
    good, first = 0, since
    while time.monotonic() - since < MAX_RECOVERY_S:
        probe = _probe(target)
        good = good + 1 if probe.status == OK else 0
        if good == 1:
            first = time.monotonic()
        if good == RECOVERED_PROBES:
            return first - since
    return None


def metrics(target: Target, *names: str) -> list[float | None]:
    """What the service's metrics say under each name without labels, in one scrape."""
    with target.client() as client:
        try:
            lines = client.metrics().splitlines()
        except ServiceError:
            return [None] * len(names)
    found = {line.split()[0]: line.split()[1] for line in lines if line.startswith(names)}
    return [float(found[name]) if name in found else None for name in names]


@contextmanager
def beside(work: Any) -> Iterator[None]:
    """Run ``work(stop)`` on a thread while the block runs; what it raises is raised at the end."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        running: Future[None] = executor.submit(work, stop)
        try:
            yield
        finally:
            stop.set()
        running.result()
