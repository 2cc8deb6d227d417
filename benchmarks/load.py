"""How fast a running service answers, workload by workload, and how fast the bare signature is beside it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rows, wrk
from benchmarks.target import Target
from service.schemas import InputSchema
from service.words import ANOMALY_SCORE, ARROW, JSON, NPY, RECONSTRUCT

WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    operation: str
    media_type: str
    rows: int
    connections: int


WORKLOADS = (
    Workload("score, 1 row", ANOMALY_SCORE.path, JSON, 1, 1),
    Workload("score, 1 row", ANOMALY_SCORE.path, JSON, 1, 16),
    Workload("score, 1 row", ANOMALY_SCORE.path, JSON, 1, 64),
    Workload("reconstruct, 1 row", RECONSTRUCT.path, JSON, 1, 64),
    Workload("score, bulk JSON", ANOMALY_SCORE.path, JSON, 1024, 2),
    Workload("score, bulk npy", ANOMALY_SCORE.path, NPY, 4096, 2),
    Workload("score, bulk Arrow", ANOMALY_SCORE.path, ARROW, 4096, 2),
)
SIGNATURE_ROWS = (1, 32, 256, 4096)


@dataclass(frozen=True, slots=True)
class Measured:
    workload: Workload
    load: wrk.Load

    @property
    def rows_s(self) -> float:
        return self.load.requests_s * self.workload.rows


def body_of(workload: Workload, schema: InputSchema) -> bytes | None:
    """The request's body; None where the model has no such encoding."""
    if workload.media_type == JSON:
        return rows.json_body(rows.random_rows(schema, workload.rows))
    if workload.media_type == ARROW:
        return rows.arrow_body(schema, workload.rows)
    return None if schema.columns else rows.npy_body(rows.random_array(schema, workload.rows))


def measure(target: Target, *, seconds: float, begin: Callable[[str], None]) -> Iterator[Measured]:
    """Each workload after a warm-up. ``begin`` is told the name of what is measured next."""
    for workload in WORKLOADS:
        body = body_of(workload, target.schema)
        if body is None:
            continue
        begin(f"{workload.name} over {workload.connections} connections")
        url, headers = target.url(workload.operation), target.headers(workload.media_type)
        wrk.run(url, body, headers, connections=workload.connections, seconds=WARM_UP_S)
        yield Measured(workload, wrk.run(url, body, headers, connections=workload.connections, seconds=seconds))


def measure_signature(version_dir: Path, *, seconds: float = 2.0) -> dict[int, float]:
    """Rows a second of the bare ``anomaly_score`` signature in this process, by batch size: what no server can beat."""
    from service.codecs.json_rows import decode_json
    from service.runtime.loaded_model import load_version

    loaded = load_version(version_dir)
    found = {}
    for count in SIGNATURE_ROWS:
        body = rows.json_body(rows.random_rows(loaded.schema, count))
        batch = decode_json(body, loaded.schema, operation=ANOMALY_SCORE)[0]
        loaded.run(ANOMALY_SCORE.name, batch)
        calls, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds:
            loaded.run(ANOMALY_SCORE.name, batch)
            calls += 1
        found[count] = calls * count / taken
    return found
