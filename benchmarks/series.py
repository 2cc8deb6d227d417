"""Series models by the protocol of the Numenta Anomaly Benchmark's data: train on the start, score the rest.

Source of protocol and labels: Lavin and Ahmad, Evaluating real-time anomaly detection algorithms (ICMLA 2015). A point
is anomalous where it lies in a labelled window; AUROC and average precision are over points.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.commands import complaint_of
from service.codecs import Options
from service.errors import DataError
from service.runtime.loaded_model import LoadedModel, load_version
from service.schemas import INSTANCES
from service.store import Store
from service.words import POINT_ERRORS

LABELS = "labels.json"
PROBATION = 0.15
"""Share of a series at its start that is taken for normal."""
BATCH = 1024


@dataclass(frozen=True, slots=True)
class LabelledSeries:
    name: str
    times: NDArray[np.datetime64]
    values: NDArray[np.float32]
    is_anomalous: NDArray[np.bool_]

    @property
    def probation(self) -> int:
        return int(len(self.values) * PROBATION)


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """Results on one series; None where there is nothing to tell apart, or no model."""

    series: str
    points: int
    window: int | None = None
    auroc: float | None = None
    aupr: float | None = None
    false_alarms_per_day: float | None = None
    """Points outside the labelled windows that were called anomalies, by day of the scored part."""
    note: str = ""


def read_labelled(folder: Path) -> list[LabelledSeries]:
    """Every CSV file below ``folder`` with its windows from ``labels.json``, in the order of their names.

    Raises:
        DataError: there are no labels or no series.
    """
    try:
        labels = json.loads((folder / LABELS).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder.name} has no readable {LABELS}.") from error
    paths = sorted(folder.rglob("*.csv"))
    if not paths:
        raise DataError(f"{folder.name} holds no CSV files.")
    return [_read(path, labels.get(path.relative_to(folder).as_posix(), ())) for path in paths]


def measure_series(found: LabelledSeries, folder: Path, *, options: Sequence[str]) -> SeriesLine:
    """Train on the start of a series by the command, and score the rest through the version that it published."""
    source = folder / f"{found.name}.csv"
    model = "".join(letter if letter.isalnum() else "-" for letter in found.name.lower())[:60]
    with source.open("w", newline="") as stream:
        writer = csv.writer(stream)
        # Lines without their times: the rest is scored line by line as well.
        writer.writerow(["value"])
        writer.writerows([value] for value in found.values[: found.probation].tolist())
    target = ("--store", folder, "--model", model, "--promote", "never")
    complaint = complaint_of("train", source, "--kind", "timeseries", *target, *options)
    if complaint is not None:
        return SeriesLine(found.name, len(found.values), note=complaint)
    version = Store(folder).versions(model)[-1]
    return _measure(found, load_version(folder / model / str(version)))


def mean_line(lines: Sequence[SeriesLine]) -> SeriesLine:
    """Means over the series that have each figure."""

    def mean(values: Iterable[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if found else None

    return SeriesLine(
        "mean",
        sum(line.points for line in lines),
        auroc=mean(line.auroc for line in lines),
        aupr=mean(line.aupr for line in lines),
        false_alarms_per_day=mean(line.false_alarms_per_day for line in lines),
    )


def _measure(found: LabelledSeries, model: LoadedModel) -> SeriesLine:
    from sklearn.metrics import average_precision_score, roc_auc_score

    window = model.schema.row_shape[0]
    # The last points before the scored part complete its first windows, as they would in operation.
    first = found.probation - window + 1
    views = np.lib.stride_tricks.sliding_window_view(found.values[first:, None], window, axis=0).transpose(0, 2, 1)
    batches = (np.ascontiguousarray(views[at : at + BATCH]) for at in range(0, len(views), BATCH))
    errors = np.concatenate([model.run(POINT_ERRORS, {INSTANCES: batch})["error"] for batch in batches])
    judged, _ = model.judge_points({"error": errors}, Options())
    scores, flags = judged["score"][window - 1 :], judged["is_anomaly"][window - 1 :]
    truth = found.is_anomalous[found.probation :]
    days = (found.times[-1] - found.times[found.probation]) / np.timedelta64(1, "D")
    both = 0 < truth.sum() < len(truth)
    return SeriesLine(
        found.name,
        len(found.values),
        window,
        float(roc_auc_score(truth, scores)) if both else None,
        float(average_precision_score(truth, scores)) if both else None,
        float((flags & ~truth).sum() / days),
    )


def _read(path: Path, windows: Sequence[Sequence[str]]) -> LabelledSeries:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    try:
        times = np.array([datetime.fromisoformat(row["timestamp"]) for row in rows], "datetime64[s]")
        values = np.array([float(row["value"]) for row in rows], np.float32)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path.name} is not a series with the columns timestamp and value.") from error
    anomalous = np.zeros(len(rows), bool)
    for begin, end in windows:
        anomalous |= (times >= np.datetime64(begin)) & (times <= np.datetime64(end))
    return LabelledSeries(path.stem, times, values, anomalous)
