"""How far live rows have moved from the rows that a version was trained on, feature by feature."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.schemas import (
    CATEGORIES,
    INSTANCES,
    Array,
    ColumnType,
    Frozen,
    InputSchema,
    Results,
    Rows,
    joined,
    row_count,
)
from service.store import MAX_REFERENCE_FEATURES, FeatureReference, Manifest

SAMPLED_ROWS_PER_S = 500
"""Rows a second that the distributions are taken from; counting every row would cost as much as scoring it."""
ROWS_AT_ONCE = 64
SMOOTHING = 1e-4
"""Least share of a bin, so that an empty one does not make the index infinite."""
MAX_LABELS = 20
LEVELS = np.arange(0.1, 1, 0.1)
MIN_ROWS = 100
"""Rows before a distance is given: over ten bins, fewer rows of the very same distribution look like a large shift."""


class DriftHistogram(Frozen):
    """Shares of the present values of one feature by bin: up to each edge, or of each label, and of all others."""

    edges: tuple[float, ...] = Field(description="Upper edges of all bins but the last; empty for labels.")
    labels: tuple[str, ...] = Field(description="The most frequent labels, each a bin; empty for numbers.")
    training: tuple[float, ...]
    live: tuple[float, ...]


class Drift(Frozen):
    """Distance of a live distribution from the reference, over the same bins.

    Source of the index: Yurdakul and Naranjo, Statistical properties of the population stability index (Journal of Risk
    Model Validation 14, 2020). The Kolmogorov-Smirnov distance is taken at the edges of the bins.
    """

    name: str | int
    psi: float | None = Field(
        description="Population stability index; over 0.1 a shift, over 0.25 a large one. Null before 100 rows."
    )
    ks: float | None = Field(description="Kolmogorov-Smirnov distance. Null before 100 rows.")
    missing: float = Field(description="Share of missing values, live.")
    reference_missing: float = Field(description="Share of missing values in training.")
    histogram: DriftHistogram | None = Field(None, description="Where `histograms` asks for it, from 100 rows on.")


class DriftReport(Frozen):
    """Live rows of one version against those it was trained on, since this process loaded it."""

    model: str
    version: int
    since: datetime
    scored_rows: int
    sampled_rows: int = Field(description="Rows that the distributions are taken from; older ones fade.")
    alert_rate: float = Field(description="Share of scored rows over the version's threshold.")
    false_alarm_rate: float = Field(description="The share that is to be expected on rows like the training rows.")
    score: Drift
    features: tuple[Drift, ...] = Field(description="In the order of the columns, or of the values; without times.")


class DriftMonitor:
    """Counts the scored rows of one version into the bins of its reference. Safe to call from several threads."""

    def __init__(self, manifest: Manifest, *, window_rows: int) -> None:
        self._manifest = manifest
        scores = np.asarray(manifest.calibrated.scores, np.float32)
        edges = np.unique(np.quantile(scores, LEVELS, method="inverted_cdf"))
        shares = np.bincount(np.searchsorted(edges, scores), minlength=len(edges) + 1) / len(scores)
        self._score = _Bins(
            [FeatureReference(name="score", edges=tuple(edges.tolist()), shares=tuple(shares.tolist()), missing=0.0)]
        )
        schema, references = manifest.input, manifest.reference
        first = len(schema.columns_of(ColumnType.NUMERIC, ColumnType.BOOLEAN))
        labelled = references[first : first + len(schema.columns_of(ColumnType.CATEGORICAL))]
        self._features = _Bins([*references[:first], *labelled] if schema.columns else references)
        self._label_numbers = [
            {b"": np.nan, **{label.encode(): float(at) for at, label in enumerate(reference.labels)}}
            for reference in labelled
        ]
        self._window_rows = window_rows
        self._lock = threading.Lock()
        self._since = datetime.now(UTC)
        self._scored = self._anomalies = 0
        self._allowance = float(SAMPLED_ROWS_PER_S)
        self._refilled = time.monotonic()
        self._waiting: list[tuple[Array, Rows]] = []
        """Scores and rows that are not in the bins yet: some at once cost little more than one."""
        self._waiting_rows = 0

    def observe(self, rows: Rows, results: Results) -> None:
        """Count one batch of scored rows."""
        scores, now = results["score"], time.monotonic()
        with self._lock:
            self._scored += len(scores)
            self._anomalies += int(np.count_nonzero(results["is_anomaly"]))
            earned = (now - self._refilled) * SAMPLED_ROWS_PER_S
            self._allowance = min(float(SAMPLED_ROWS_PER_S), self._allowance + earned)
            self._refilled = now
            sample = min(len(scores), ROWS_AT_ONCE, int(self._allowance))
            if sample:
                self._allowance -= sample
                # Copies: views would keep the whole batch in memory.
                self._waiting.append((scores[:sample].copy(), {name: rows[name][:sample].copy() for name in rows}))
                self._waiting_rows += sample
            if self._waiting_rows >= ROWS_AT_ONCE:
                self._count_waiting()

    def _count_waiting(self) -> None:
        if not self._waiting:
            return
        scores, rows = zip(*self._waiting, strict=True)
        self._waiting, self._waiting_rows = [], 0
        self._score.count(np.concatenate(scores)[:, None])
        self._features.count(self._numbers(joined(rows)))
        if self._features.rows > self._window_rows:
            self._score.fade()
            self._features.fade()

    def _numbers(self, rows: Rows) -> NDArray[np.float64]:
        """The features of rows as numbers (rows, features); a label becomes its index in the reference."""
        parts = list[Any]()
        if INSTANCES in rows:
            parts.append(rows[INSTANCES].reshape(row_count(rows), -1))
        if CATEGORIES in rows:
            columns = zip(self._label_numbers, rows[CATEGORIES].T, strict=False)
            parts += [[[numbers.get(label, len(numbers))] for label in column.tolist()] for numbers, column in columns]
        if not parts:  # a table of times alone
            return np.empty((row_count(rows), 0))
        return np.concatenate(parts, axis=1) if len(parts) > 1 else np.asarray(parts[0], np.float64)

    def report(self, *, histograms: bool = False) -> DriftReport:
        with self._lock:
            self._count_waiting()
            return DriftReport(
                model=self._manifest.model,
                version=self._manifest.version,
                since=self._since,
                scored_rows=self._scored,
                sampled_rows=round(self._features.rows),
                alert_rate=self._anomalies / self._scored if self._scored else 0.0,
                false_alarm_rate=self._manifest.calibrated.false_alarm_rate,
                score=self._score.drifts(histograms)[0],
                features=tuple(self._features.drifts(histograms)),
            )


class _Bins:
    """Counts of several features, each over its own bins: (features, bins + 1), the last bin for missing values."""

    def __init__(self, references: Sequence[FeatureReference]) -> None:
        self._references = references
        width = max((len(reference.edges) for reference in references), default=0)
        # Edges first: counted along the first axis, whole rows of features are compared at once.
        self._edges = np.full((width, 1, len(references)), np.inf)
        for at, reference in enumerate(references):
            self._edges[: len(reference.edges), 0, at] = reference.edges
        self._counts = np.zeros((len(references), width + 2), np.float64)
        self.rows = 0.0

    def count(self, values: NDArray[np.floating[Any]]) -> None:
        """Add values of shape (rows, features); more features than have a reference are left out."""
        values = values[:, : len(self._references)]
        bins = (values > self._edges).sum(axis=0)
        bins[np.isnan(values)] = self._counts.shape[1] - 1
        offsets = np.arange(values.shape[1]) * self._counts.shape[1]
        flat = np.bincount((bins + offsets).ravel(), minlength=self._counts.size)
        self._counts += flat.reshape(self._counts.shape)
        self.rows += len(values)

    def fade(self) -> None:
        self._counts /= 2
        self.rows /= 2

    def drifts(self, histograms: bool) -> list[Drift]:
        found = []
        for reference, counted in zip(self._references, self._counts, strict=True):
            counts, missing = counted[: len(reference.edges) + 1], float(counted[-1])
            present = counts.sum()
            total = present + missing
            psi: float | None = None
            distance: float | None = None
            histogram: DriftHistogram | None = None
            if total >= MIN_ROWS:
                psi = distance = 0.0
                if histograms:
                    live_shares = tuple((counts / max(1.0, present)).tolist())
                    edges = () if reference.labels else reference.edges
                    histogram = DriftHistogram(
                        edges=edges, labels=reference.labels, training=reference.shares, live=live_shares
                    )
                if present:
                    expected = np.maximum(np.asarray(reference.shares), SMOOTHING)
                    live = np.maximum(counts / present, SMOOTHING)
                    psi = float(np.sum((live - expected) * np.log(live / expected)))
                    distances = np.abs(np.cumsum(counts / present) - np.cumsum(reference.shares))
                    distance = float(distances[:-1].max(initial=0.0))
            found.append(
                Drift(
                    name=reference.name,
                    psi=psi,
                    ks=distance,
                    missing=missing / total if total else 0.0,
                    reference_missing=reference.missing,
                    histogram=histogram,
                )
            )
        return found


def feature_reference(rows: Rows, schema: InputSchema) -> tuple[FeatureReference, ...]:
    """Bins of each numeric and categorical feature of raw training rows, in the order of the inputs and their columns.

    Numbers: bins of about a tenth of the rows each, fewer where values repeat. Labels: a bin for each of the most
    frequent ones, and one for all others. Times are left out: they always move on.
    """
    named = [column.name for column in schema.ordered_columns]
    names: Iterator[str | int] = iter(named) if named else count()
    found = list[FeatureReference]()
    for inputs, describe in ((INSTANCES, _of_numbers), (CATEGORIES, _of_labels)):
        if inputs in rows:
            columns = rows[inputs].reshape(row_count(rows), -1).T[: MAX_REFERENCE_FEATURES - len(found)]
            found += [describe(next(names), column) for column in columns]
    return tuple(found)


def _of_numbers(name: str | int, values: Array) -> FeatureReference:
    present = values[~np.isnan(values)]
    # The greatest value is no edge: what lies above it later belongs to the last bin all the same.
    quantiles = np.quantile(present, LEVELS, method="inverted_cdf") if len(present) else np.empty(0)
    edges = np.unique(quantiles[quantiles < present.max(initial=-np.inf)])
    counts = np.bincount(np.searchsorted(edges, present), minlength=len(edges) + 1)
    return FeatureReference(
        name=name,
        edges=tuple(edges.tolist()),
        shares=tuple((counts / max(1, len(present))).tolist()),
        missing=1 - len(present) / len(values),
    )


def _of_labels(name: str | int, labels: Array) -> FeatureReference:
    counted = Counter(labels.tolist())
    missing = counted.pop(b"", 0)
    present = max(1, len(labels) - missing)
    frequent = sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_LABELS]
    shares = [number / present for _, number in frequent]
    return FeatureReference(
        name=name,
        labels=tuple(label.decode() for label, _ in frequent),
        edges=tuple(map(float, range(len(frequent)))),
        shares=(*shares, max(0.0, 1 - sum(shares)) if counted else 0.0),
        missing=missing / len(labels),
    )
