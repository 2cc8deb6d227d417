"""What is exported: raw rows in, results in raw units out, with preprocessing, score and calibration inside.

Calibration scores, golden outputs and the SavedModel all come from here. Tables are computed in float64: a row of few
columns may be reconstructed so well that in float32 its error would be rounding, which is another one in each batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.schemas import ANOMALY_SCORE, DENOISE, ENCODE, EXPLAIN, INSTANCES, RECONSTRUCT, InputSchema, Results, Rows
from service.store import Calibration
from service.training.architecture import Autoencoder, in_float64
from service.training.explain import counterfactual_shares, error_shares
from service.training.quiet import tf
from service.training.scaling import Scaling
from service.training.score import ReconstructionScore, Score, mean_squared_error

MAX_COUNTERFACTUAL_FEATURES = 256
QUANTILES = (0.02, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 0.98)
FEW_QUANTILES = (0.1, 0.5, 0.9)
"""For tables of more than ``MANY_FEATURES`` columns, where every candidate costs as many passes."""
MANY_FEATURES = 64
ROWS_PER_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Passed:
    """One pass of a batch through the network, in scaled units."""

    scaled: Any
    observed: Any
    latent: Any
    reconstruction: Any


@dataclass(frozen=True)
class ServingGraph:
    """A trained autoencoder with its preprocessing and its score; every method builds graph when traced."""

    schema: InputSchema
    trained: Autoencoder
    """As it was fitted, in float32."""
    serving: Autoencoder
    """The same in the precision in which it is served."""
    scaling: Scaling
    score: Score
    quantiles: NDArray[np.float32]
    """(quantiles, *row_shape): typical scaled values of each feature, candidates for what was expected."""

    @property
    def latent_dim(self) -> int:
        return self.trained.latent_dim

    def run(self, instances: Any) -> Passed:
        return self._run_scaled(*self._scale(instances))

    def scores(self, instances: Any) -> Any:
        """Anomaly score of each row, (rows,) float32."""
        return tf.cast(self._score(self.run(instances)), tf.float32)

    def encode(self, instances: Any) -> dict[str, Any]:
        scaled, _ = self._scale(instances)
        return {"latent": tf.cast(self.serving.encoder(scaled, training=False), tf.float32)}

    def reconstruct(self, instances: Any) -> dict[str, Any]:
        passed = self.run(instances)
        error = mean_squared_error(passed.scaled, passed.observed, passed.reconstruction)
        return {"reconstruction": self.scaling.unscale(passed.reconstruction), "error": tf.cast(error, tf.float32)}

    def denoise(self, instances: Any) -> dict[str, Any]:
        denoised = self.scaling.unscale(self.run(instances).reconstruction)
        if self.schema.value_range is not None:
            denoised = tf.clip_by_value(denoised, *self.schema.value_range)
        return {"denoised": denoised}

    def anomaly_score(self, calibration: Calibration) -> Callable[[Any], dict[str, Any]]:
        """The signature's function; see ``service.scoring`` for what p-value and threshold mean."""
        ascending = np.array(calibration.scores, np.float32)
        threshold = np.float32(calibration.threshold)

        def anomaly_score(instances: Any) -> dict[str, Any]:
            score = self.scores(instances)
            at_least = len(ascending) - tf.searchsorted(tf.constant(ascending), score, side="left")
            # Divided in float64 and rounded once, as numpy does it.
            p_value = tf.cast(1 + at_least, tf.float64) / (len(ascending) + 1)
            return {"score": score, "p_value": tf.cast(p_value, tf.float32), "is_anomaly": score > threshold}

        return anomaly_score

    def explain(self, instances: Any) -> dict[str, Any]:
        """Share of each feature in the score, and what was expected instead, in raw units."""
        passed = self.run(instances)
        if self.schema.kind == "tabular" and self.schema.row_shape[0] <= MAX_COUNTERFACTUAL_FEATURES:
            contribution, expected = counterfactual_shares(
                passed.scaled, passed.observed, passed.reconstruction, self.quantiles, self._score_scaled
            )
        else:
            contribution = error_shares(passed.scaled, passed.observed, passed.reconstruction)
            expected = passed.reconstruction
        return {"contribution": tf.cast(contribution, tf.float32), "expected": self.scaling.unscale(expected)}

    def _scale(self, instances: Any) -> tuple[Any, Any]:
        return self.scaling.scale(instances, self.serving.network.output.dtype)

    def _run_scaled(self, scaled: Any, observed: Any) -> Passed:
        latent, reconstruction = self.serving.both(scaled, training=False)
        return Passed(scaled, observed, latent, reconstruction)

    def _score(self, passed: Passed) -> Any:
        return self.score(passed.scaled, passed.observed, passed.latent, passed.reconstruction)

    def _score_scaled(self, scaled: Any, observed: Any) -> Any:
        return self._score(self._run_scaled(scaled, observed))


def build_graph(
    schema: InputSchema, autoencoder: Autoencoder, scaling: Scaling, *, train: NDArray[np.float32]
) -> ServingGraph:
    """The graph around a trained network. ``train``: scaled training rows, NaN where a value is missing."""
    # Only the counterfactuals of tables need them, and for large images they would be large.
    is_small = len(schema.row_shape) == 1 and schema.row_shape[0] <= MAX_COUNTERFACTUAL_FEATURES
    shares = () if not is_small else QUANTILES if schema.row_shape[0] <= MANY_FEATURES else FEW_QUANTILES
    quantiles = np.empty((len(shares), *schema.row_shape), np.float32)
    for position in range(schema.row_shape[0] if is_small else 0):
        present = train[:, position][~np.isnan(train[:, position])]
        quantiles[:, position] = np.quantile(present, shares) if len(present) else 0.0
    serving = in_float64(autoencoder) if schema.kind == "tabular" else autoencoder
    return ServingGraph(schema, autoencoder, serving, scaling, ReconstructionScore(), quantiles)


def signatures(graph: ServingGraph, calibration: Calibration, *, denoises: bool) -> dict[str, Any]:
    """Concrete functions by name of signature, all from raw ``instances``."""
    functions: dict[str, Callable[[Any], dict[str, Any]]] = {
        ANOMALY_SCORE.name: graph.anomaly_score(calibration),
        ENCODE.name: graph.encode,
        RECONSTRUCT.name: graph.reconstruct,
        EXPLAIN: graph.explain,
    }
    if denoises:
        functions[DENOISE.name] = graph.denoise
    return {name: compile_for_rows(function, graph.schema) for name, function in functions.items()}


def compile_for_rows(function: Callable[[Any], Any], schema: InputSchema) -> Any:
    """Trace a function of raw rows for any number of them."""
    spec = tf.TensorSpec((None, *schema.row_shape), tf.float32, name=INSTANCES)
    return tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()


def run_signature(signature: Any, rows: Rows) -> Results:
    """Call a concrete function of ``signatures`` on all rows at once."""
    return {name: output.numpy() for name, output in signature(tf.constant(rows[INSTANCES])).items()}


def map_rows(function: Any, instances: NDArray[np.float32]) -> NDArray[Any]:
    """Call a compiled function of rows batch by batch: one array, the rows first."""
    starts = range(0, len(instances), ROWS_PER_BATCH)
    batches = [function(tf.constant(instances[start : start + ROWS_PER_BATCH])).numpy() for start in starts]
    return np.concatenate(batches)
