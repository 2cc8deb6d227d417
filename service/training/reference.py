"""How each feature is distributed over the training rows, for telling later how far live rows have drifted."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.schemas import InputSchema
from service.store import MAX_REFERENCE_FEATURES, FeatureReference

LEVELS = np.arange(0.1, 1, 0.1)


def feature_reference(instances: NDArray[np.float32], schema: InputSchema) -> tuple[FeatureReference, ...]:
    """Bins of about a tenth of the rows each, of rows (rows, *row_shape) in raw units; fewer where values repeat."""
    flat = instances.reshape(len(instances), -1)[:, :MAX_REFERENCE_FEATURES]
    return tuple(_references(flat, schema))


def _references(flat: NDArray[np.float32], schema: InputSchema) -> Iterator[FeatureReference]:
    for at in range(flat.shape[1]):
        present = flat[:, at][~np.isnan(flat[:, at])]
        # The greatest value is no edge: what lies above it later belongs to the last bin all the same.
        quantiles = np.quantile(present, LEVELS, method="inverted_cdf") if len(present) else np.empty(0)
        edges = np.unique(quantiles[quantiles < present.max(initial=-np.inf)])
        counts = np.bincount(np.searchsorted(edges, present), minlength=len(edges) + 1)
        yield FeatureReference(
            name=schema.columns[at].name if schema.columns else at,
            edges=tuple(edges.tolist()),
            shares=tuple((counts / max(1, len(present))).tolist()),
            missing=1 - len(present) / len(flat),
        )
