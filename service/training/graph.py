"""The exported graph: raw rows in, results in raw units out, with preprocessing, score and calibration inside.

Calibration scores, golden outputs and the SavedModel all come from here. Tables are computed in float64 but for wide
ones with clear errors: a row of few columns may be reconstructed so well that in float32 its error would be rounding,
which is another one in each batch. So are small images whose score is one of distances.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
from service.training.scaling import Scaled
from service.training.score import Passed, ReconstructionScore, Score, mean_squared_error, squared_errors
from service.words import ANOMALY_SCORE, DENOISE, ENCODE, EXPLAIN, POINT_ERRORS, RECONSTRUCT

MAX_COUNTERFACTUAL_FEATURES = 256
QUANTILES = (0.02, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 0.98)
FEW_QUANTILES = (0.1, 0.5, 0.9)
"""For tables of more than ``MANY_FEATURES`` columns, where every candidate costs as many passes."""
MANY_FEATURES = 64
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
    score: Score
    typical: NDArray[np.float32]
    """(candidates, scaled values): typical values of each feature, candidates for what was expected."""

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
        return [*(each.value for each in self.serving.variables), *([] if lookup is None else [lookup.table])]

    def save_network(self, path: Path) -> None:
        """Write the Keras file, for fine-tuning and for other tools."""
        self.trained.network.save(path)

    def run(self, rows: Rows) -> Passed:
        return self._run_scaled(self._scale(rows))

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
        passed = self.run(rows)
        outputs = self._raw("denoised", self.serving.denoise(passed.scaled, passed.reconstruction))
        if self.schema.value_range is not None:
            outputs["denoised"] = tf.clip_by_value(outputs["denoised"], *self.schema.value_range)
        return outputs

    def anomaly_score(self, calibration: Calibration) -> Callable[[Rows], dict[str, Any]]:
        """The signature's function; see ``service.scoring`` for what p-value and threshold mean."""
        return lambda rows: judge(self.scores(rows), calibration)

    def explain(self, rows: Rows) -> dict[str, Any]:
        """Share of each feature in the score, and what was expected instead, in raw units."""
        passed = self.run(rows)
        if len(self.typical):
            contribution, expected = counterfactual_shares(
                passed,
                typical=self.typical,
                layout=self.layout,
                score=self._score_scaled,
            )
        else:
            contribution = error_shares(passed, self.layout)
            expected = passed.reconstruction
        return {"contribution": tf.cast(contribution, tf.float32), **self._raw("expected", expected)}

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

    def _run_scaled(self, scaled: Scaled) -> Passed:
        latent, reconstruction, *hidden = self.serving.whole(scaled.values, training=False)
        return Passed(scaled.values, scaled.observed, latent, reconstruction, tuple(hidden), scaled.gaps)

    def _score_scaled(self, scaled: Scaled) -> Any:
        # A network from elsewhere is in float32, whatever the score computes in.
        return tf.cast(self.score(self._run_scaled(scaled)), scaled.values.dtype)


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
    """Whether rounding in float32 could be seen in scores; float64 takes twice the time and memory.

    Args:
        scaled: rows that were not fitted, (rows, *layout.shape).
        distances: whether the score is one of distances, which are small differences of large sums.
    """
    if schema.kind == "image":
        return distances and schema.features < WIDE_FEATURES
    if distances or schema.features < WIDE_FEATURES:
        return True
    rows = scaled[:ROWS_PER_BATCH]
    squares = np.square(rows - autoencoder.network.predict(rows, verbose=0))
    return bool(np.median(squares.reshape(len(rows), -1).mean(axis=1)) < CLEAR_ERROR)


def build_graph(
    schema: InputSchema,
    autoencoder: Autoencoder,
    preprocessing: Preprocessing,
    *,
    train: NDArray[np.float32],
    precise: bool = True,
) -> ServingGraph:
    """The graph around a trained network, in float64 where ``precise``.

    ``train``: scaled training rows, NaN where a value is missing.
    """
    serving = in_float64(autoencoder) if precise else autoencoder
    # Only the counterfactuals of tables need them, and for large images they would be large.
    explains = schema.kind == "tabular" and preprocessing.layout.features <= MAX_COUNTERFACTUAL_FEATURES
    typical = typical_values(train, preprocessing.layout) if explains else np.empty((0, 0), np.float32)
    return ServingGraph(schema, autoencoder, serving, preprocessing, ReconstructionScore(), typical)


def typical_values(train: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Scaled values of each feature that are typical of training, (candidates, values).

    Quantiles of numbers, frequent labels, and the times of rows at quantiles of the time.
    """
    levels = np.array(QUANTILES if layout.features <= MANY_FEATURES else FEW_QUANTILES)
    typical = np.zeros((len(levels), len(layout.owner)), np.float32)
    is_label = {block.start for block in layout.labels}
    starts = np.searchsorted(layout.owner, np.arange(layout.features))
    for start, size in zip(starts.tolist(), layout.sizes.tolist(), strict=True):
        block = train[:, start : start + size]
        present = block[~np.isnan(block[:, 0])]
        if not len(present):
            continue
        if size == 1:
            typical[:, start] = np.quantile(present[:, 0], levels)
        elif start in is_label:
            positions, counts = np.unique(present.argmax(axis=1), return_counts=True)
            frequent = positions[np.argsort(-counts, kind="stable")][: len(levels)]
            weights = present.max(axis=0)
            for row, position in enumerate(np.resize(frequent, len(levels))):
                typical[row, start + position] = weights[position]
        else:
            order = np.argsort(present[:, 0], kind="stable")
            typical[:, start : start + size] = present[order[(levels * len(order)).astype(int)]]
    return typical


def signatures(graph: ServingGraph, calibration: Calibration | None, *, denoises: bool) -> dict[str, Any]:
    """Concrete functions by name of signature, all from raw rows. Without calibration there is no score."""
    functions: dict[str, Callable[[Rows], dict[str, Any]]] = {
        **({ANOMALY_SCORE.name: graph.anomaly_score(calibration)} if calibration else {}),
        ENCODE.name: graph.encode,
        RECONSTRUCT.name: graph.reconstruct,
        EXPLAIN: graph.explain,
    }
    if graph.schema.kind == "timeseries":
        functions[POINT_ERRORS] = graph.point_errors
    if denoises:
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


def counterfactual_shares(
    passed: Passed,
    *,
    typical: NDArray[np.float32],
    layout: Layout,
    score: Callable[[Scaled], Any],
) -> tuple[Any, Any]:
    """Share of each feature in the score (rows, features) and what was expected (rows, values), for rows of columns.

    The contribution of a feature is how far the score falls at most when that feature alone, all of its scaled values
    at once, is replaced by a typical one: its reconstruction, or what it was in one of the rows ``typical``
    (candidates, values); the one with the lowest score is the expected one. A wrong value also spoils the
    reconstruction of the columns that correlate with it, so that squared errors smear the blame over them; repairing
    an innocent column leaves the score high, and so it gets none. A missing value contributes nothing.

    After the reconstruction-based contribution of Alcala and Qin (Automatica 45, 2009), with a search in place of
    its closed form for linear models.
    """

    def one_row(row: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        values, present, rebuilt = row
        candidates = tf.concat([rebuilt[None], tf.cast(typical, rebuilt.dtype)], axis=0)
        scores, base = _scores_of_variants(values, present, candidates, layout, score)
        is_there = tf.gather(present, first)
        fall = tf.where(is_there, tf.maximum(base - tf.reduce_min(scores, axis=1), 0.0), 0.0)
        best = tf.gather(tf.argmin(scores, axis=1), layout.owner)
        return fall, tf.where(present, tf.gather(tf.transpose(candidates), best, batch_dims=1), rebuilt)

    first = np.searchsorted(layout.owner, np.arange(layout.features))

    # Row by row, so that memory does not grow with the batch.
    falls, expected = tf.map_fn(
        one_row,
        (passed.scaled, passed.observed, passed.reconstruction),
        fn_output_signature=(passed.scaled.dtype, passed.scaled.dtype),
        parallel_iterations=1,
    )
    falls = tf.ensure_shape(falls, (None, layout.features))
    expected = tf.ensure_shape(expected, (None, len(layout.owner)))
    return _shares(falls, otherwise=error_shares(passed, layout)), expected


def error_shares(passed: Passed, layout: Layout) -> Any:
    """Share of each feature in the squared error of its row: (rows, *row_shape), or (rows, columns)."""
    squares = squared_errors(passed)
    if not layout.is_plain:
        by_value = tf.math.unsorted_segment_sum(tf.transpose(squares), layout.owner, layout.features)
        squares = tf.ensure_shape(tf.transpose(by_value), (None, layout.features))
    return _shares(squares, otherwise=tf.ones_like(squares) / float(np.prod(squares.shape[1:])))


def _scores_of_variants(
    values: Any, present: Any, candidates: Any, layout: Layout, score: Callable[[Scaled], Any]
) -> tuple[Any, Any]:
    """Scores (features, candidates) of one row with one feature replaced, and the score of the row as it is."""
    features, count, width = layout.features, candidates.shape[0], len(layout.owner)
    itself = (np.arange(features)[:, None] == layout.owner)[:, None, :]
    variants = tf.where(itself, candidates, values)
    batch = tf.concat([tf.reshape(variants, (features * count, width)), values[None]], axis=0)
    scores = score(Scaled(batch, tf.broadcast_to(present, tf.shape(batch))))
    return tf.reshape(scores[:-1], (features, count)), scores[-1]


def _shares(parts: Any, *, otherwise: Any) -> Any:
    """Each row divided by its sum; ``otherwise`` where that is zero."""
    axes = list(range(1, parts.shape.rank))
    # Divided by the greatest first: the sum of very large parts must not overflow, nor that of small ones vanish.
    greatest = tf.reduce_max(parts, axis=axes, keepdims=True)
    relative = tf.math.divide_no_nan(parts, greatest)
    total = tf.reduce_sum(relative, axis=axes, keepdims=True)
    return tf.where(greatest > 0, tf.math.divide_no_nan(relative, total), otherwise)
