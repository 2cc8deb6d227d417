"""``autoencoder score`` against bare calls of the model: how many rows a second, and how much memory above the model's.

Every measurement is a process of its own, so that peaks of memory do not add up. ``python -m benchmarks.pipelines
STORE MODEL FILE CORES`` is the one with the bare calls.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.schemas import INSTANCES, Array
from service.words import ANOMALY_SCORE

MODEL: Final = "bench"
TRAINING_ROWS: Final = 5_000
CAUSES: Final = 5
GROUP_ROWS: Final = 250_000
FEW_ROWS: Final = 1000
BARE_ROWS: Final = 131_072
BARE_SECONDS: Final = 2.0
CALL_ROWS: Final = (1024, 2048, 4096, 16_384, 65_536)
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Measured:
    what: str
    rows_per_s: float
    """Without the start: what a run of a few rows takes."""
    start_s: float
    peak_mib: float | None = None
    """Largest resident memory of the process; None where there are several."""


def measure(
    folder: Path,
    *,
    rows: int,
    columns: int,
    store: Path | None,
    engines: Sequence[str],
    begin: Callable[[str], None],
) -> Iterator[Measured]:
    """Make the rows and, without ``store``, a model; then the bare calls, then ``score`` with each engine.

    ``begin`` is told what comes next.
    """
    begin(f"Making {rows:,} rows of {columns} columns, and a model")
    source = make_rows(folder / f"rows-{rows}x{columns}.parquet", rows=rows, columns=columns)
    few = make_rows(folder / f"few-{columns}.parquet", rows=FEW_ROWS, columns=columns)
    store = store or _trained(folder, columns)
    arguments = [str(store), _model_of(store), str(source)]
    begin("Calling the bare signature")
    yield _best_bare(arguments)
    for engine in engines:
        begin(f"Scoring the file, {engine}")
        start = _score(few, folder / "few-out.parquet", store, engine)
        whole = _score(source, folder / "out.parquet", store, engine)
        rate = rows / (whole.seconds - start.seconds)
        yield Measured(f"score, {engine}", rate, start.seconds, whole.peak_mib if engine == "local" else None)


def _best_bare(arguments: Sequence[str]) -> Measured:
    """Bare calls that may use all cores, and on one core each: whichever is quicker."""
    command = [sys.executable, "-m", "benchmarks.pipelines", *arguments]
    found = [json.loads(_run([*command, cores]).output) for cores in ("", "1")]
    best = max(found, key=lambda each: float(each["rows_per_s"]))
    return Measured(f"bare signature, {best['how']}", best["rows_per_s"], best["start_s"], best["peak_mib"])


def make_rows(path: Path, *, rows: int, columns: int) -> Path:
    """Rows of correlated columns in row groups, float64 as most tables are; a file that is there is left."""
    import pyarrow as pa
    from pyarrow import parquet

    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    mix = np.random.default_rng(1).normal(size=(CAUSES, columns))
    names = [f"c{at:02}" for at in range(columns)]
    temporary = path.with_suffix(".tmp")
    with parquet.ParquetWriter(temporary, pa.schema([(name, pa.float64()) for name in names])) as writer:
        for first in range(0, rows, GROUP_ROWS):
            count = min(GROUP_ROWS, rows - first)
            values = random.normal(size=(count, CAUSES)) @ mix + 0.1 * random.normal(size=(count, columns))
            writer.write_table(pa.table(dict(zip(names, values.T.copy(), strict=True))))
    temporary.replace(path)
    return path


def _trained(folder: Path, columns: int) -> Path:
    store = folder / f"store-{columns}"
    if not store.exists():
        source = make_rows(folder / f"train-{columns}.parquet", rows=TRAINING_ROWS, columns=columns)
        command = ["train", source, "--model", MODEL, "--store", store, "--epochs", "10"]
        _run([sys.executable, "-m", "service.cli", *map(str, command)])
    return store


def _model_of(store: Path) -> str:
    from service.store import Store

    models = Store(store).models()
    if len(models) != 1:
        raise ConfigurationError("The store to measure must have one model.")
    return models[0]


@dataclass(frozen=True, slots=True)
class _Run:
    output: str
    seconds: float
    peak_mib: float


def _score(source: Path, target: Path, store: Path, engine: str) -> _Run:
    target.unlink(missing_ok=True)
    command = ["score", source, target, "--store", store, "--engine", engine, "--quiet"]
    return _run([sys.executable, "-m", "service.cli", *map(str, command)])


def _run(command: Sequence[str]) -> _Run:
    """Run a command; raises ConfigurationError with its last words when it fails."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = "", ""
        with ThreadPoolExecutor(1) as other:
            assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 - they are pipes
            complaining = other.submit(process.stderr.read)
            output, complaint = process.stdout.read(), complaining.result()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ConfigurationError(f"{command[3]} failed: {complaint.strip().splitlines()[-1:]}")
    return _Run(output, time.monotonic() - began, usage.ru_maxrss * 1024 / MIB)


def bare_calls(store: str, model: str, source: str, cores: str) -> dict[str, Any]:
    """The best rate of several sizes of calls, by one thread and by one a core; memory before the rows are read."""
    from service.pipelines.scorer import limit_threads
    from service.runtime.loaded_model import load_version
    from service.store import Store

    if cores:
        limit_threads(int(cores))
    began = time.monotonic()
    opened = Store(store)
    loaded = load_version(opened.path(model, opened.resolve(model)))
    start_s, peak_mib = time.monotonic() - began, _peak_mib()
    rows = _some_rows(source)

    def call(part: Array) -> object:
        return loaded.run(ANOMALY_SCORE.name, {INSTANCES: part})

    rates = {}
    for size in CALL_ROWS:
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        for threads in sorted({1, os.cpu_count() or 1}):
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(call, parts[:threads]))
                done, first = 0, time.monotonic()
                while time.monotonic() - first < BARE_SECONDS:
                    list(pool.map(call, parts))
                    done += len(rows)
                rates[f"{size} rows a call, {threads} at a time"] = done / (time.monotonic() - first)
    how = max(rates, key=lambda name: rates[name])
    return {"how": how, "rows_per_s": rates[how], "start_s": start_s, "peak_mib": peak_mib}


def _peak_mib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def _some_rows(source: str) -> NDArray[np.float32]:
    from pyarrow import parquet

    table = next(parquet.ParquetFile(source).iter_batches(BARE_ROWS))
    return np.stack([column.to_numpy() for column in table.columns], axis=1).astype(np.float32)


if __name__ == "__main__":
    print(json.dumps(bare_calls(*sys.argv[1:])))
