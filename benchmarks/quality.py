"""Detection on tables with labels, by one protocol: half of the normal rows to train on, the rest to score.

Each model is published into a store of its own and scored through the version's ``anomaly_score`` signature: what is
quoted is what is served. Data sets are measured in processes, side by side.
"""

import csv
import io
import math
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from joblib import Parallel, delayed, parallel_config
from numpy.typing import NDArray

from benchmarks.baselines import BASELINES, OPTIONAL, standardised
from service.errors import DataError

Mode = Literal["normal-only", "contaminated"]
MODES: tuple[str, ...] = get_args(Mode)
MAX_ROWS = 50_000
OURS = "autoencoder"
RATES = (0.01, 0.05)
SPLIT = {"train": 0.79, "validation": 0.1, "calibration": 0.1, "test": 0.01}
"""Of the training rows. The benchmark tests on rows of its own, and so leaves next to none for the job's test."""
BATCH = 4096


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """A data set as it is divided: labels are of the test rows, 1 = anomaly."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Task:
    path: Path
    seed: int
    mode: str
    methods: tuple[str, ...]

    @property
    def dataset(self) -> str:
        return self.path.stem


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the results. Areas are in per cent."""

    dataset: str
    seed: int
    mode: str
    method: str
    auroc: float
    aupr: float
    train_s: float
    score_s: float


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """Share of normal test rows with a p-value of at most 1 % and 5 %: both are chance around these rates."""

    dataset: str
    seed: int
    calibration_rows: int
    normal_rows: int
    at_1_percent: float
    at_5_percent: float

    def deviations(self) -> tuple[float, float]:
        """Distance of each rate from the nominal one, in standard errors of calibration and test together.

        Test rows share their calibration rows: the rate is beta-binomial, with the variance a (1 - a) (1/n + 1/m).
        """
        rows = 1 / self.calibration_rows + 1 / self.normal_rows
        found = zip((self.at_1_percent, self.at_5_percent), RATES, strict=True)
        first, second = ((rate - nominal) / math.sqrt(nominal * (1 - nominal) * rows) for rate, nominal in found)
        return first, second


@dataclass(frozen=True, slots=True)
class Measured:
    lines: tuple[Line, ...]
    false_alarms: FalseAlarms | None


def find_sets(folder: Path) -> list[Path]:
    """The NPZ files of a folder by size, checked for ``X`` and ``y``.

    Raises:
        DataError: there is none, or one of them is no data set.
    """
    paths = sorted(folder.glob("*.npz"), key=lambda path: (path.stat().st_size, path.name))
    if not paths:
        raise DataError(f"There is no NPZ file in {folder.name}.")
    for path in paths:
        read_set(path)
    return paths


def read_set(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows and labels, 1 = anomaly.

    Raises:
        DataError: it lacks ``X`` or ``y``, they do not belong together, or there is one kind of rows only.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            rows, labels = arrays["X"], arrays["y"]
    except KeyError:
        raise DataError(f"{path.name} lacks an array: X (rows, columns) and y (rows,) are needed.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise DataError(f"{path.name} cannot be read as NPZ without pickled objects.") from None
    labels = labels.ravel()
    if rows.ndim != 2 or len(rows) != len(labels) or rows.dtype.kind not in "fiub":
        raise DataError(f"{path.name}: X must be numbers (rows, columns) and y one label a row.")
    if labels.dtype.kind not in "fiub" or not np.isin(labels, (0, 1)).all():
        raise DataError(f"{path.name}: the labels in y must be 0 for normal and 1 for an anomaly.")
    labels = labels.astype(np.int64)
    if (labels == 0).sum() < 40 or not labels.any():
        raise DataError(f"{path.name}: at least 40 normal rows and one anomaly are needed.")
    return rows.astype(np.float32), labels


def divide(rows: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int, mode: str) -> LabelledRows:
    """At most 50,000 rows, drawn with the seed. Half of the normal rows, or of all, is for training.

    normal-only: the test rows are the other normal rows and all anomalies. contaminated: the other half of all rows.
    """
    rng = np.random.default_rng(seed)
    if len(rows) > MAX_ROWS:
        drawn = np.sort(rng.choice(len(rows), MAX_ROWS, replace=False))
        rows, labels = rows[drawn], labels[drawn]
    order = rng.permutation(np.flatnonzero(labels == 0) if mode == "normal-only" else len(rows))
    half = len(order) // 2
    train, test = order[:half], order[half:]
    if mode == "normal-only":
        test = np.concatenate([test, np.flatnonzero(labels == 1)])
    return LabelledRows(rows[train], rows[test], labels[test])


def measure(task: Task) -> Measured:
    """All methods of a task. Runs in a process of its own."""
    divided = divide(*read_set(task.path), seed=task.seed, mode=task.mode)
    if len(set(divided.labels.tolist())) < 2:
        raise DataError(f"{task.path.name}: the test half of seed {task.seed} has one kind of rows only.")
    lines, false_alarms = [], None
    for method in task.methods:
        if method == OURS:
            scores, times, false_alarms = _score_ours(task, divided)
        else:
            scores, times = _score_baseline(method, divided, task.seed)
        lines.append(Line(task.dataset, task.seed, task.mode, method, *_areas(divided.labels, scores), *times))
    return Measured(tuple(lines), false_alarms)


def run(tasks: Sequence[Task], *, jobs: int) -> Iterator[Measured]:
    """Measure tasks in ``jobs`` processes, as they end. The largest start first, so that no one waits for them.

    A process that has grown too far is replaced by a new one, as TensorFlow keeps some memory of each model.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(variable, str(threads))
    largest_first = sorted(tasks, key=lambda task: -task.path.stat().st_size)
    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped", UserWarning)  # it was replaced
        yield from Parallel(return_as="generator_unordered")(delayed(measure)(task) for task in largest_first)


def _score_ours(task: Task, divided: LabelledRows) -> tuple[NDArray[Any], tuple[float, float], FalseAlarms | None]:
    from service.runtime.loaded_model import load_version
    from service.schemas import INSTANCES
    from service.store import Store
    from service.training.config import SplitShares, load_config
    from service.training.train import train
    from service.words import ANOMALY_SCORE

    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder) / "train.npy", Path(folder) / "store"
        np.save(source, divided.train)
        store.mkdir()
        started = time.monotonic()
        config = load_config("auto", seed=task.seed, split=SplitShares.model_validate(SPLIT))
        # Not verified in a fresh process: loading does the same checks, and this is a fresh reader of the files.
        train(config, source=str(source), store=store, model="measured", verify=lambda _: None)
        trained = time.monotonic()
        loaded = load_version(Store(store).path("measured", 1))
        ready = time.monotonic()
        parts = [divided.test[start : start + BATCH] for start in range(0, len(divided.test), BATCH)]
        answers = [loaded.run(ANOMALY_SCORE.name, {INSTANCES: part}) for part in parts]
    seconds = (round(trained - started, 2), round(time.monotonic() - ready, 3))
    scores, p_values = (np.concatenate([answer[name] for answer in answers]) for name in ("score", "p_value"))
    if task.mode != "normal-only":
        return scores, seconds, None
    normal = p_values[divided.labels == 0]
    rates = [round(float((normal <= np.float32(rate)).mean()), 5) for rate in RATES]
    alarms = FalseAlarms(task.dataset, task.seed, loaded.manifest.calibrated.rows, len(normal), *rates)
    return scores, seconds, alarms


def _score_baseline(method: str, divided: LabelledRows, seed: int) -> tuple[NDArray[Any], tuple[float, float]]:
    started = time.monotonic()
    detect = {**BASELINES, **OPTIONAL}[method]
    scores = detect(*standardised(divided.train, divided.test), seed)
    return scores, (round(time.monotonic() - started, 2), 0.0)


def _areas(labels: NDArray[np.int64], scores: NDArray[Any]) -> tuple[float, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = (roc_auc_score(labels, scores), average_precision_score(labels, scores))
    return round(100 * float(found[0]), 3), round(100 * float(found[1]), 3)


# --- results in files -----------------------------------------------------------------------------------------------


def read_lines(path: Path, kind: type[Any]) -> list[Any]:
    """Lines of an earlier run, of the dataclass ``kind``; none where there is no file.

    Raises:
        DataError: the file is something else.
    """
    names = [field.name for field in fields(kind)]
    convert = {"int": int, "float": float, "str": str, int: int, float: float, str: str}
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if reader.fieldnames != names:
            raise DataError(f"{path.name} is there and holds something else; choose another name for the results.")
        try:
            return [
                kind(**{field.name: convert[field.type](row[field.name]) for field in fields(kind)}) for row in reader
            ]
        except (TypeError, ValueError):
            raise DataError(f"{path.name} holds a line that is not whole; remove it to go on.") from None


def append_lines(path: Path, lines: Sequence[Any]) -> None:
    """Append dataclasses of one kind to a CSV file, with the header first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(lines[0])]
    if not path.exists():
        writer.writerow(names)
    writer.writerows([getattr(line, name) for name in names] for line in lines)
    with path.open("a", newline="", encoding="utf-8") as stream:
        stream.write(text.getvalue())


# --- what they say --------------------------------------------------------------------------------------------------


def by_set(lines: Sequence[Line], measure: Literal["auroc", "aupr"]) -> dict[str, dict[str, float]]:
    """Mean over the seeds, by data set and method."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        found.setdefault(line.dataset, {}).setdefault(line.method, []).append(getattr(line, measure))
    return {name: {method: float(np.mean(values)) for method, values in row.items()} for name, row in found.items()}


def mean_over_sets(table: dict[str, dict[str, float]], method: str) -> float:
    values = [row[method] for row in table.values() if method in row]
    return float(np.mean(values)) if values else math.nan


def sets_won(table: dict[str, dict[str, float]], *, against: str) -> tuple[int, int]:
    """Sets where ours is better than ``against``, and how many both measured."""
    both = [row for row in table.values() if OURS in row and against in row]
    return sum(row[OURS] > row[against] for row in both), len(both)
