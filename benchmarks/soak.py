"""A running service under mixed traffic for long: does anything fail, and does anything grow?"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import httpx2 as httpx
import numpy as np

from benchmarks import rows
from benchmarks.resilience import MEMORY, beside, metrics, swapping
from benchmarks.target import Target
from service.words import ANOMALY_SCORE, ENCODE, JSON, NDJSON, NPY, RECONSTRUCT, Operation

CALLERS = 3
PAUSE_S = 0.05
ROWS = (1, 1, 1, 8, 64, 256)
"""How many of them a request may have, as often as written."""
WARM_UP = 1 / 3
"""Of the time: what grows then is caches that fill."""
OK, UNPROCESSABLE = 200, 422
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    memory: float
    """Bytes resident."""
    descriptors: float


@dataclass(frozen=True, slots=True)
class SoakReport:
    requests: int
    failed: tuple[str, ...]
    """What was asked and what came instead of the right status, for each failure."""
    swaps: int
    samples: tuple[Sample, ...]
    """After the warm-up; as the service's own metrics say, and none where it does not say so."""

    @property
    def growth_bytes_min(self) -> float | None:
        """Slope of a line through the resident memory; None of fewer than three samples."""
        if len(self.samples) < 3:
            return None
        minutes = np.array([sample.at_s for sample in self.samples]) / 60
        memory = np.array([sample.memory for sample in self.samples])
        return float(np.polyfit(minutes - minutes[0], memory, 1)[0])


Ask = Callable[[httpx.Client, int], tuple[int, int]]
"""Of so many rows: the status that came, and the one that was due."""


def measure_soak(
    target: Target, *, seconds: float, versions: tuple[int, int] | None = None, admin_key: str | None = None
) -> SoakReport:
    """Scores, latents and reconstructions as JSON, npy and NDJSON, and rows that must be refused, from three callers.

    ``versions``: meanwhile ``production`` moves between them each second.

    Raises:
        ServiceError: the alias may not be moved.
    """
    asks = _asks(target)
    until = time.monotonic() + seconds
    moves = swapping(target, versions, admin_key) if versions else nullcontext()
    with moves as swaps, _sampling(target, seconds) as samples, ThreadPoolExecutor(CALLERS) as callers:
        found = [callers.submit(_call, asks, until, seed) for seed in range(CALLERS)]
        counts = [each.result() for each in found]
    failed = tuple(failure for _, failures in counts for failure in failures)
    warm = tuple(sample for sample in samples if sample.at_s >= WARM_UP * seconds)
    return SoakReport(sum(count for count, _ in counts), failed, swaps.count if swaps else 0, warm)


def _call(asks: Sequence[tuple[str, Ask]], until: float, seed: int) -> tuple[int, list[str]]:
    """So many requests, and what failed of them."""
    rng, count, failed = np.random.default_rng(seed), 0, []
    with httpx.Client(trust_env=False, timeout=30) as http:
        while time.monotonic() < until:
            name, ask = asks[int(rng.integers(len(asks)))]
            size = int(rng.choice(ROWS))
            count += 1
            try:
                status, due = ask(http, size)
            except httpx.TransportError as error:
                failed.append(f"{name}, {size} rows: {type(error).__name__}")
            else:
                if status != due:
                    failed.append(f"{name}, {size} rows: {status}")
            time.sleep(PAUSE_S)
    return count, failed


def _asks(target: Target) -> list[tuple[str, Ask]]:
    many = rows.random_rows(target.schema, max(ROWS))

    def post(operation: Operation, media_type: str, body: Callable[[int], bytes], due: int = OK) -> Ask:
        def ask(http: httpx.Client, size: int) -> tuple[int, int]:
            answer = http.post(target.url(operation.path), content=body(size), headers=target.headers(media_type))
            return answer.status_code, due

        return ask

    def scrape(http: httpx.Client, size: int) -> tuple[int, int]:
        del size
        return http.get(f"{target.base}/metrics", headers=target.headers(JSON)).status_code, OK

    asks = [
        ("scores as JSON", post(ANOMALY_SCORE, JSON, lambda size: rows.json_body(many[:size]))),
        ("latents as JSON", post(ENCODE, JSON, lambda size: rows.json_body(many[:size]))),
        ("scores as NDJSON", post(ANOMALY_SCORE, NDJSON, lambda size: rows.ndjson_body(many[:size]))),
        ("bad rows", post(ANOMALY_SCORE, JSON, lambda size: rows.json_body(["no row"] * size), UNPROCESSABLE)),
        ("metrics", scrape),
    ]
    if not target.schema.columns:
        array = rows.random_array(target.schema, max(ROWS))
        asks.append(("reconstructions as npy", post(RECONSTRUCT, NPY, lambda size: rows.npy_body(array[:size]))))
    return asks


@contextmanager
def _sampling(target: Target, seconds: float) -> Iterator[list[Sample]]:
    started, found = time.monotonic(), list[Sample]()
    interval = min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, seconds / 60))

    def sample(stop: threading.Event) -> None:
        while not stop.wait(interval):
            memory, descriptors = metrics(target, MEMORY, "process_open_fds")
            if memory is not None and descriptors is not None:
                found.append(Sample(time.monotonic() - started, memory, descriptors))

    with beside(sample):
        yield found
