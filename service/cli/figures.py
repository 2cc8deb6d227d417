"""Figures of the time between two scrapes of a service's metrics. No I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.api.activity import Interval, Reading, Window, read

PREFIX = "autoencoder_"
Labels = tuple[str, ...]
Values = Mapping[Labels, float]


@dataclass(frozen=True, slots=True)
class Scrape:
    """The metrics at one instant."""

    reading: Reading
    refusals: Values
    """By reason, since the start of the service."""
    scored: Values
    """Rows by model and version; ``anomalies`` likewise."""
    anomalies: Values
    score_drift: Values
    """PSI by model and version; ``feature_drift`` of the column that moved most."""
    feature_drift: Values
    queue: Mapping[str, float]
    """``requests``, ``rows`` and ``bytes`` that wait."""
    batches: float
    batch_rows: float
    memory_bytes: float | None
    """Resident, of the process; of several workers it is not known."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    scored_per_s: float
    alert_rate: float | None
    """Share of the rows scored meanwhile that were over the threshold; None where there were none."""
    score_drift: float | None
    feature_drift: float | None


NOTHING = ModelFigures(0.0, None, None, None)


@dataclass(frozen=True, slots=True)
class Figures:
    """Events between two scrapes, and the state at the second one."""

    interval: Interval
    seconds: float
    mean_batch_rows: float | None
    refusals_per_s: dict[str, float]
    by_version: dict[tuple[str, int], ModelFigures]
    queue: Mapping[str, float]
    memory_bytes: float | None


@dataclass
class _Sums:
    """Samples by the name of the metric and the labels asked for: summed, of drift the greatest."""

    found: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def add(self, families: Iterable[Metric], wanted: Mapping[str, Labels]) -> None:
        for family in families:
            for sample in family.samples:
                labels = wanted.get(sample.name)
                if labels is not None:
                    values = self.found.setdefault(sample.name, {})
                    key = tuple(sample.labels[label] for label in labels)
                    known = values.get(key, 0.0)
                    values[key] = max(known, sample.value) if sample.name in GREATEST else known + sample.value

    def of(self, name: str) -> dict[Labels, float]:
        return self.found.get(name, {})

    def single(self, name: str) -> float:
        return self.of(name).get((), 0.0)


VERSION = ("model", "version")
WANTED: dict[str, Labels] = {
    f"{PREFIX}refusals_total": ("reason",),
    f"{PREFIX}scored_rows_total": VERSION,
    f"{PREFIX}anomalies_total": VERSION,
    f"{PREFIX}score_drift_psi": VERSION,
    f"{PREFIX}feature_drift_psi": VERSION,
    f"{PREFIX}queue_requests": (),
    f"{PREFIX}queue_rows": (),
    f"{PREFIX}queue_bytes": (),
    f"{PREFIX}batch_rows_count": (),
    f"{PREFIX}batch_rows_sum": (),
    "process_resident_memory_bytes": (),
}


GREATEST = {f"{PREFIX}score_drift_psi", f"{PREFIX}feature_drift_psi"}
"""The sum over several replicas."""


def parse(exposition: str) -> Scrape:
    """The figures of interest in Prometheus' text format."""
    families = list(text_string_to_metric_families(exposition))
    sums = _Sums()
    sums.add(families, WANTED)
    return Scrape(
        reading=read(families),
        refusals=sums.of(f"{PREFIX}refusals_total"),
        scored=sums.of(f"{PREFIX}scored_rows_total"),
        anomalies=sums.of(f"{PREFIX}anomalies_total"),
        score_drift=sums.of(f"{PREFIX}score_drift_psi"),
        feature_drift=sums.of(f"{PREFIX}feature_drift_psi"),
        queue={name: sums.single(f"{PREFIX}queue_{name}") for name in ("requests", "rows", "bytes")},
        batches=sums.single(f"{PREFIX}batch_rows_count"),
        batch_rows=sums.single(f"{PREFIX}batch_rows_sum"),
        memory_bytes=sums.single("process_resident_memory_bytes") or None,
    )


def between(before: Scrape, after: Scrape, *, seconds: float) -> Figures:
    """The difference of two scrapes of one service, ``seconds`` apart."""
    window = Window(kept=1)
    window.add(before.reading, now=0.0, at=0.0)
    window.add(after.reading, now=seconds, at=seconds)
    batches = after.batches - before.batches
    refused = _growth(before.refusals, after.refusals)
    return Figures(
        interval=window.intervals[0],
        seconds=seconds,
        mean_batch_rows=(after.batch_rows - before.batch_rows) / batches if batches > 0 else None,
        refusals_per_s={reason: count / seconds for (reason,), count in refused.items() if count},
        by_version=_by_version(before, after, seconds),
        queue=after.queue,
        memory_bytes=after.memory_bytes,
    )


def _by_version(before: Scrape, after: Scrape, seconds: float) -> dict[tuple[str, int], ModelFigures]:
    scored, anomalies = _growth(before.scored, after.scored), _growth(before.anomalies, after.anomalies)
    found = {}
    for key in {*after.scored, *after.score_drift}:
        rows = scored.get(key, 0.0)
        found[key[0], int(key[1])] = ModelFigures(
            scored_per_s=rows / seconds,
            alert_rate=anomalies.get(key, 0.0) / rows if rows else None,
            score_drift=after.score_drift.get(key),
            feature_drift=after.feature_drift.get(key),
        )
    return found


def _growth(before: Values, after: Values) -> dict[Labels, float]:
    """A service that was started again counts from nothing."""
    return {key: max(0.0, value - before.get(key, 0.0)) for key, value in after.items()}
