"""The exported graph: raw rows in, results in raw units out, with preprocessing, score and calibration inside.

Calibration scores, golden outputs and the SavedModel all come from here. Tables are computed in float64 but for wide
ones with clear errors: a row of few columns may be reconstructed so well that in float32 its error would be rounding,
which is another one in each batch. So are small images whose score is one of distances.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import tf
from service.runtime.signature import ROWS_PER_BATCH, in_batches
from service.schemas import CATEGORIES, INSTANCES, TIMESTAMPS, ColumnType, InputSchema, PointScale, Rows, row_count
from service.scoring import MOST_ERROR
from service.store import Calibration
from service.training.architecture import Autoencoder, in_float64
from service.training.preprocessing import Layout, Preprocessing
from service.training.scaling import Gaps, Scaled
from service.training.score import (
    DenoisingScore,
    Passed,
    ReconstructionScore,
    Score,
    mean_squared_error,
    squared_errors,
)
from service.words import ANOMALY_SCORE, DENOISE, ENCODE, EXPLAIN, POINT_ERRORS, RECONSTRUCT

WIDE_FEATURES = 256
CLEAR_ERROR = 1e-2
"""Mean squared error in scaled units: of so many features it is the same to 1e-6 in float32, whatever the batch."""


@dataclass(frozen=True)
class ServingGraph:
    """A trained autoencoder with its preprocessing and its score; every method builds graph when traced."""

    schema: InputSchema
    trained: Autoencoder
    """As it was fitted, in float32."""
    serving: Autoencoder
    """The same in the precision in which it is served."""
    preprocessing: Preprocessing
    score: Score = field(default_factory=ReconstructionScore)
    autoencoder_denoises: bool = False
    """Whether it was trained to remove noise that the score's network would not remove as well."""

    @property
    def latent_dim(self) -> int:
        return self.trained.latent_dim

    @property
    def layout(self) -> Layout:
        return self.preprocessing.layout

    @property
    def tracked(self) -> list[Any]:
        """The parts that a SavedModel of the graph must keep: weights, and the table of labels."""
        lookup = self.preprocessing.lookup
        weights = [each.value for each in self.serving.variables]
        return [*weights, *self.score.variables, *([] if lookup is None else [lookup.table])]

    def save_network(self, path: Path) -> None:
        """Write the Keras file, for fine-tuning and for other tools."""
        self.trained.network.save(path)

    def run(self, rows: Rows) -> Passed:
        scaled = self._scale(rows)
        return self.run_scaled(scaled.values, scaled.observed, scaled.gaps)

    def run_scaled(self, values: Any, observed: Any, gaps: Gaps | None = None) -> Passed:
        latent, reconstruction, *hidden = self.serving.whole(values, training=False)
        return Passed(values, observed, latent, reconstruction, tuple(hidden), gaps)

    def scores(self, rows: Rows) -> Any:
        """Anomaly score of each row, (rows,) float32."""
        return tf.cast(self.score(self.run(rows)), tf.float32)

    def encode(self, rows: Rows) -> dict[str, Any]:
        return {"latent": tf.cast(self.serving.encoder(self._scale(rows).values, training=False), tf.float32)}

    def reconstruct(self, rows: Rows) -> dict[str, Any]:
        passed = self.run(rows)
        error = mean_squared_error(passed)
        return {**self._raw("reconstruction", passed.reconstruction), "error": tf.cast(error, tf.float32)}

    def denoise(self, rows: Rows) -> dict[str, Any]:
        outputs = self._raw("denoised", self.denoised(self.run(rows)))
        if self.schema.value_range is not None:
            outputs["denoised"] = tf.clip_by_value(outputs["denoised"], *self.schema.value_range)
        return outputs

    @property
    def denoises(self) -> bool:
        """Whether it removes noise: by the autoencoder, or by the network of the score, which knows levels of noise."""
        return self.autoencoder_denoises or isinstance(self.score, DenoisingScore)

    def denoised(self, rows: Passed) -> Any:
        """The rows without noise, in scaled units."""
        if isinstance(self.score, DenoisingScore) and not self.autoencoder_denoises:
            return self.score.denoised(rows)
        return self.serving.denoise(rows.scaled, rows.reconstruction)

    def anomaly_score(self, calibration: Calibration) -> Callable[[Rows], dict[str, Any]]:
        """The signature's function; see ``service.scoring`` for what p-value and threshold mean."""
        return lambda rows: judge(self.scores(rows), calibration)

    def explain(self, rows: Rows) -> dict[str, Any]:
        """Share of each feature in the score, and what was expected instead, in raw units.

        Of a score that is no sum over features, it is the share in the squared error, whatever the score.
        """
        passed = self.run(rows)
        if isinstance(self.score, DenoisingScore):
            parts, expected = self.score.parts(passed), self.score.expected(passed)
        else:
            parts, expected = self.layout.by_feature(squared_errors(passed)), passed.reconstruction
        return {"contribution": tf.cast(_shares(parts), tf.float32), **self._raw("expected", expected)}

    def point_errors(self, rows: Rows) -> dict[str, Any]:
        """Squared error of each step of a window in scaled units, the mean of its channels."""
        passed = self.run(rows)
        squares = squared_errors(passed)
        return {"error": tf.cast(tf.reduce_mean(squares, axis=-1), tf.float32)}

    def point_scores(self, series: Any, scale: PointScale) -> Any:
        """Score of each point of a series (points, channels), at least a window long: see ``service.scoring``."""
        window = self.schema.row_shape[0]
        windows = tf.signal.frame(series, window, 1, axis=0)
        errors = tf.cast(self.point_errors({INSTANCES: windows})["error"], tf.float64)
        total = tf.signal.overlap_and_add(errors, 1)
        network = total / tf.signal.overlap_and_add(tf.ones_like(errors), 1) / scale.error
        scores = tf.minimum(network, MOST_ERROR) + tf.minimum(_deviations(series, scale), MOST_ERROR)
        return tf.cast(_moving_mean(_moving_mean(scores, scale.span), scale.span), tf.float32)

    def score_series(self, calibration: Calibration, scale: PointScale) -> Callable[[Any], dict[str, Any]]:
        """The signature's function: points of a whole series instead of rows."""
        return lambda series: judge(self.point_scores(series, scale), calibration)

    def _scale(self, rows: Rows) -> Scaled:
        return self.preprocessing.scale(rows, self.serving.network.output.dtype)

    def _raw(self, output: str, scaled: Any) -> dict[str, Any]:
        """Scaled rows as outputs in raw units: numbers under the name itself, labels and times under longer ones."""
        raw = self.preprocessing.unscale(scaled)
        return {output if name == INSTANCES else f"{output}_{name}": values for name, values in raw.items()}


def _deviations(series: Any, scale: PointScale) -> Any:
    """``service.scoring`` in TensorFlow: squared distance of each point from what is typical of its time of day."""
    typical, spread = np.array(scale.typical), np.sqrt(scale.spread)
    points = tf.cast(series, tf.float64)
    slots = tf.cast(tf.cast(tf.range(tf.shape(points)[0]), tf.float64) / scale.slot_points, tf.int32)

    def distances(first: Any) -> Any:
        found = (points - tf.gather(typical, (slots + first) % len(typical))) / spread
        return tf.where(tf.math.is_nan(found), tf.zeros_like(found), found)

    sums = tf.stack([tf.reduce_sum(tf.abs(distances(first))) for first in range(len(typical))])
    return tf.reduce_mean(tf.square(distances(tf.argmin(sums, output_type=tf.int32))), axis=1)


def _moving_mean(values: Any, span: int) -> Any:
    """``service.scoring`` in TensorFlow."""
    count = tf.shape(values)[0]
    at, sums = tf.range(count), tf.concat([tf.zeros(1, values.dtype), tf.cumsum(values)], axis=0)
    first, end = tf.maximum(at - span // 2, 0), tf.minimum(at + span // 2 + 1, count)
    return (tf.gather(sums, end) - tf.gather(sums, first)) / tf.cast(end - first, values.dtype)


def judge(score: Any, calibration: Calibration) -> dict[str, Any]:
    """Scores (anything,) float32 with their p-values and flags."""
    ascending = np.array(calibration.scores, np.float32)
    # The p-value of each place among them: a step of the graph takes as long as it does in numpy for all.
    p_values = ((np.arange(len(ascending), -1, -1) + 1) / (len(ascending) + 1)).astype(np.float32)
    place = tf.raw_ops.LowerBound(sorted_inputs=ascending[None], values=score[None])[0]
    is_anomaly = score > np.float32(calibration.threshold)
    return {"score": score, "p_value": tf.gather(p_values, place), "is_anomaly": is_anomaly}


def needs_float64(
    autoencoder: Autoencoder, scaled: NDArray[np.float32], schema: InputSchema, *, distances: bool
) -> bool:
    """Whether rounding in float32 could be seen in errors and scores; float64 takes twice the time and memory.

    Args:
        scaled: rows that were not fitted, (rows, *layout.shape).
        distances: whether the score of an image is one of distances, which are small differences of large sums.
    """
    if schema.kind == "image":
        return distances and schema.features < WIDE_FEATURES
    if schema.features < WIDE_FEATURES:
        return True
    rows = scaled[:ROWS_PER_BATCH]
    squares = np.square(rows - autoencoder.network.predict(rows, verbose=0))
    return bool(np.median(squares.reshape(len(rows), -1).mean(axis=1)) < CLEAR_ERROR)


def build_graph(
    schema: InputSchema,
    autoencoder: Autoencoder,
    preprocessing: Preprocessing,
    *,
    precise: bool = True,
    autoencoder_denoises: bool = False,
) -> ServingGraph:
    """The graph around a trained network, in float64 where ``precise``."""
    serving = in_float64(autoencoder) if precise else autoencoder
    return ServingGraph(schema, autoencoder, serving, preprocessing, autoencoder_denoises=autoencoder_denoises)


def signatures(graph: ServingGraph, calibration: Calibration | None) -> dict[str, Any]:
    """Concrete functions by name of signature, all from raw rows. Without calibration there is no score."""
    functions: dict[str, Callable[[Rows], dict[str, Any]]] = {
        **({ANOMALY_SCORE.name: graph.anomaly_score(calibration)} if calibration else {}),
        ENCODE.name: graph.encode,
        RECONSTRUCT.name: graph.reconstruct,
        EXPLAIN: graph.explain,
    }
    if graph.schema.kind == "timeseries":
        functions[POINT_ERRORS] = graph.point_errors
    if graph.denoises:
        functions[DENOISE.name] = graph.denoise
    return {name: compile_for_rows(function, graph.schema) for name, function in functions.items()}


def compile_for_rows(function: Callable[[Rows], Any], schema: InputSchema) -> Any:
    """Trace a function of raw rows for any number of them; it is called with the inputs by name."""
    specs = {
        INSTANCES: tf.TensorSpec((None, *schema.row_shape), tf.float32, name=INSTANCES),
        CATEGORIES: _column_spec(schema, CATEGORIES, ColumnType.CATEGORICAL, tf.string),
        TIMESTAMPS: _column_spec(schema, TIMESTAMPS, ColumnType.TIMESTAMP, tf.int64),
    }
    needed = {name: spec for name, spec in specs.items() if spec.shape[1:].num_elements()}
    traced = tf.function(lambda **rows: function(rows), autograph=False)
    return traced.get_concrete_function(**needed)


def _column_spec(schema: InputSchema, name: str, kind: ColumnType, dtype: Any) -> Any:
    return tf.TensorSpec((None, len(schema.columns_of(kind))), dtype, name=name)


def compile_for_series(function: Callable[[Any], Any], schema: InputSchema) -> Any:
    """Trace a function of a series of any number of points."""
    spec = tf.TensorSpec((None, *schema.row_shape[1:]), tf.float32, name="series")
    return tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()


def run_rows(function: Any, rows: Rows) -> Any:
    """The results of a compiled function of raw rows for any number of them, batch by batch, as arrays."""
    return in_batches(
        lambda part: function(**{name: tf.constant(array[part]) for name, array in rows.items()}), row_count(rows)
    )


def _shares(parts: Any) -> Any:
    """Each row divided by its sum; equal shares where that is zero."""
    axes = list(range(1, parts.shape.rank))
    # Divided by the greatest first: the sum of very large parts must not overflow, nor that of small ones vanish.
    greatest = tf.reduce_max(parts, axis=axes, keepdims=True)
    relative = tf.where(greatest > 0, tf.math.divide_no_nan(parts, greatest), tf.ones_like(parts))
    return relative / tf.reduce_sum(relative, axis=axes, keepdims=True)
