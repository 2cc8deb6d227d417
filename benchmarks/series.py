"""Series models by the protocol of the Numenta Anomaly Benchmark's data: train on the start, score the rest.

Source of protocol and labels: Lavin and Ahmad, Evaluating real-time anomaly detection algorithms (ICMLA 2015). A point
is anomalous where it lies in a labelled window; AUROC and average precision are over points. False alarms are stretches
of flagged points, as people see them.

Two simple methods are measured beside the models. The hourly baseline is the distance from the median of the hour of
the day over 1.4826 times the median distance in training, averaged over the last three hours. The matrix profile (Yeh
and others, ICDM 2016; library stumpy, where it is installed) is the distance of each window of half a day from the most
similar one in training, a mean over the windows that a point lies in.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

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
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class LabelledSeries:
    name: str
    times: NDArray[np.datetime64]
    values: NDArray[np.float32]
    is_anomalous: NDArray[np.bool_]

    @property
    def probation(self) -> int:
        return int(len(self.values) * PROBATION)

    @property
    def step_s(self) -> float:
        """Seconds from one line to the next: the median, as lines are taken to be evenly spaced."""
        return float(np.median(np.diff(self.times) / np.timedelta64(1, "s")))


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """Results on one series; None where there is nothing to tell apart, or no model."""

    series: str
    points: int
    window: int | None = None
    auroc: float | None = None
    aupr: float | None = None
    false_alarms_per_day: float | None = None
    """Stretches of points outside the labelled windows that were called anomalies, by day of the scored part."""
    hourly_auroc: float | None = None
    hourly_aupr: float | None = None
    smoothed_auroc: float | None = None
    """Of the hourly baseline averaged as the models' scores are, by twelve hours on either side."""
    smoothed_aupr: float | None = None
    profile_auroc: float | None = None
    profile_aupr: float | None = None
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
        writer.writerow(["timestamp", "value"])
        for at, value in enumerate(found.values[: found.probation].tolist()):
            # Even steps: the rest is scored line by line as well, whatever the clock says.
            time = found.times[0] + np.timedelta64(round(at * found.step_s), "s")
            writer.writerow([str(time).replace("T", " "), value])
    target = ("--store", folder, "--model", model, "--promote", "never")
    complaint = complaint_of("train", source, "--kind", "timeseries", *target, *options)
    if complaint is not None:
        return replace(_baselines(found), note=complaint)
    version = Store(folder).versions(model)[-1]
    return _measure(found, load_version(folder / model / str(version)))


def mean_line(lines: Sequence[SeriesLine]) -> SeriesLine:
    """Means over the series that have each figure."""

    def mean(values: Iterable[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if found else None

    measured = [field.name for field in fields(SeriesLine) if "au" in field.name or "alarms" in field.name]
    means: dict[str, Any] = {name: mean(getattr(line, name) for line in lines) for name in measured}
    return SeriesLine("mean", sum(line.points for line in lines), **means)


def hourly_baseline(found: LabelledSeries) -> NDArray[np.float64]:
    """Distance of each value from the median of its hour of the day, in units of the usual distance in training."""
    hours = found.times.astype("datetime64[h]").astype(int) % 24
    start, values = found.probation, found.values.astype(np.float64)
    typical = np.full(24, np.median(values[:start]))
    for hour in np.unique(hours[:start]):
        typical[hour] = np.median(values[:start][hours[:start] == hour])
    distances = np.abs(values - typical[hours])
    usual = 1.4826 * float(np.median(distances[:start]))
    scores: NDArray[np.float64] = distances / max(usual, 1e-3 * float(np.abs(values[:start]).max()), 1e-9)
    return scores


def matrix_profile(found: LabelledSeries) -> NDArray[np.float64] | None:
    """Distance of the windows of each scored point from the nearest in training; None without the library stumpy."""
    try:
        from stumpy import stump
    except ImportError:
        return None
    start, values = found.probation, found.values.astype(np.float64)
    window = max(4, min(round(12 * HOUR_S / found.step_s), start // 4))
    profile = stump(values[start - window + 1 :], window, values[:start], ignore_trivial=False)[:, 0].astype(np.float64)
    profile = np.nan_to_num(profile, posinf=float(np.sqrt(2 * window)))
    total, covering = np.zeros(len(profile) + window - 1), np.zeros(len(profile) + window - 1)
    for step in range(window):
        total[step : step + len(profile)] += profile
        covering[step : step + len(profile)] += 1
    return (total / covering)[window - 1 :]


def false_alarms_per_day(found: LabelledSeries, flags: NDArray[np.bool_]) -> float:
    """Stretches of flagged points outside the labelled windows, of flags of the points after the start."""
    alarms = flags & ~found.is_anomalous[found.probation :]
    days = (found.times[-1] - found.times[found.probation]) / np.timedelta64(1, "D")
    return float((alarms & ~np.append(False, alarms[:-1])).sum() / days)


def _detection(found: LabelledSeries, scores: NDArray[Any] | None) -> tuple[float | None, float | None]:
    """AUROC and AUPR of scores of the points after the start."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth = found.is_anomalous[found.probation :]
    if scores is None or not 0 < truth.sum() < len(truth):
        return None, None
    return float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores))


def _baselines(found: LabelledSeries) -> SeriesLine:
    distances, hour = hourly_baseline(found), HOUR_S / found.step_s
    last = np.convolve(distances, np.ones(max(1, round(3 * hour))))[: len(distances)]
    either_side = np.convolve(distances, np.bartlett(2 * max(1, round(12 * hour)) + 1), mode="same")
    results = [
        *_detection(found, last[found.probation :]),
        *_detection(found, either_side[found.probation : len(distances)]),
        *_detection(found, matrix_profile(found)),
    ]
    names = [field.name for field in fields(SeriesLine) if field.name.startswith(("hourly", "smoothed", "profile"))]
    measured: dict[str, Any] = dict(zip(names, results, strict=True))
    return SeriesLine(found.name, len(found.values), **measured)


def _measure(found: LabelledSeries, model: LoadedModel) -> SeriesLine:
    window = model.schema.row_shape[0]
    # The last points before the scored part complete its first windows, as they would in operation.
    first = found.probation - window + 1
    views = np.lib.stride_tricks.sliding_window_view(found.values[first:, None], window, axis=0).transpose(0, 2, 1)
    batches = (np.ascontiguousarray(views[at : at + BATCH]) for at in range(0, len(views), BATCH))
    errors = np.concatenate([model.run(POINT_ERRORS, {INSTANCES: batch})["error"] for batch in batches])
    judged, _ = model.judge_points({"error": errors}, {INSTANCES: views}, Options())
    scores, flags = judged["score"][window - 1 :], judged["is_anomaly"][window - 1 :]
    auroc, aupr = _detection(found, scores)
    alarms = false_alarms_per_day(found, flags)
    return replace(_baselines(found), window=window, auroc=auroc, aupr=aupr, false_alarms_per_day=alarms)


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
