"""Writing a version's files: the SavedModel, the Keras model, and the sample request with its golden outputs."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from service.codecs.answers import instances_of, label_text
from service.runtime.quiet import tf
from service.schemas import PointScale, Rows, take_rows
from service.store import GOLDEN_OUTPUTS, KERAS_MODEL, SAMPLE_REQUEST, Calibration, SignatureSpec, TensorSpec
from service.store.directory import writing
from service.training.graph import (
    ServingGraph,
    compile_for_rows,
    compile_for_series,
    run_rows,
    signatures,
)
from service.words import ANOMALY_SCORE, RECONSTRUCT

SAMPLE_ROWS = 8
CLOSE = 1e-4
SERVING_DEFAULT = "serving_default"
SCORE_SERIES = "score_series"
"""For other runtimes, of series models: a whole series (points, channels) to scores, p-values and flags of its points.
Not in the manifest: the service batches windows of many callers, which a series cannot be."""


def export(
    folder: Path,
    graph: ServingGraph,
    calibration: Calibration | None,
    *,
    sample: Rows,
    points: tuple[Calibration, PointScale] | None = None,
) -> dict[str, SignatureSpec]:
    """Write everything that a service loads into ``folder``; what the signatures take and give.

    The golden outputs are those of the graph around the trained network, computed before anything is written.

    Raises:
        StoreError: it cannot be written.
    """
    functions = signatures(graph, calibration)
    golden = {name: run_rows(function, sample) for name, function in functions.items()}
    texts = np.vectorize(label_text, otypes=[object])
    answers = {
        signature: {
            name: (texts(output) if output.dtype.kind == "O" else output).tolist() for name, output in outputs.items()
        }
        for signature, outputs in golden.items()
    }
    module = tf.Module()
    module.tracked = graph.tracked
    exported = {SERVING_DEFAULT: functions[(ANOMALY_SCORE if calibration else RECONSTRUCT).name], **functions}
    if points is not None:
        exported[SCORE_SERIES] = compile_for_series(graph.score_series(*points), graph.schema)
    with writing(), warnings.catch_warnings():
        try:
            tf.saved_model.save(module, str(folder), exported)
        except tf.errors.OpError as error:  # a full disk, say
            reason = error.message.rpartition("; ")[2].partition(" [Op:")[0]
            raise OSError(None, reason) from error
        (folder / KERAS_MODEL).parent.mkdir(exist_ok=True)
        # Keras copies TensorFlow variables in a way that NumPy 2 deprecates.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        graph.save_network(folder / KERAS_MODEL)
        _write_json(folder / SAMPLE_REQUEST, {"instances": instances_of(sample, graph.schema)})
        _write_json(folder / GOLDEN_OUTPUTS, answers)
    return {
        name: SignatureSpec(
            inputs=_tensors(function.structured_input_signature[1]), outputs=_tensors(function.structured_outputs)
        )
        for name, function in functions.items()
    }


def choose_sample(graph: ServingGraph, calibration: Calibration, rows: Rows) -> Rows:
    """A few of the raw ``rows``, for the sample request.

    Rows whose score nearly ties with a calibration score come last: on another processor rounding may put them on the
    other side of it, and their golden p-value would be wrong there.
    """
    rows = take_rows(rows, slice(8 * SAMPLE_ROWS))
    scores = run_rows(compile_for_rows(graph.scores, graph.schema), rows)
    gaps = np.abs(scores[:, None] - np.array(calibration.scores, np.float32)).min(axis=1)
    ties = gaps <= CLOSE * np.abs(scores)
    return take_rows(rows, np.argsort(ties, kind="stable")[:SAMPLE_ROWS])


def _tensors(specs: dict[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(dtype=spec.dtype.name, shape=tuple(spec.shape)) for name, spec in specs.items()}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
