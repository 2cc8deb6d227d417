"""How each feature is distributed over the training rows, for telling later how far live rows have drifted."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count, islice

import numpy as np

from service.schemas import (
    CATEGORIES,
    INSTANCES,
    Array,
    InputSchema,
    Rows,
)
from service.store import MAX_REFERENCE_FEATURES, FeatureReference

MAX_LABELS = 20
LEVELS = np.arange(0.1, 1, 0.1)


def feature_reference(rows: Rows, schema: InputSchema) -> tuple[FeatureReference, ...]:
    """Bins of each numeric and categorical feature of raw rows, in the order of the inputs and their columns.

    Numbers: bins of about a tenth of the rows each, fewer where values repeat. Labels: a bin for each of the most
    frequent ones, and one for all others. Times are left out: they always move on.
    """
    return tuple(islice(_references(rows, schema), MAX_REFERENCE_FEATURES))


def _references(rows: Rows, schema: InputSchema) -> Iterator[FeatureReference]:
    columns = [column.name for column in schema.ordered_columns]
    names: Iterator[str | int] = iter(columns) if columns else count()
    for values in _columns(rows.get(INSTANCES)):
        yield _of_numbers(next(names), values)
    for labels in _columns(rows.get(CATEGORIES)):
        yield _of_labels(next(names), labels)


def _columns(array: Array | None) -> Iterable[Array]:
    return () if array is None else array.reshape(len(array), -1).T


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
