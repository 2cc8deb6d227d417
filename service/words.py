"""The names of operations, results and encodings, which client and server share. Imports nothing of ours."""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One of the four things that the service does with rows. There is one object of each."""

    name: str
    """Name of the SavedModel signature, of the client's method and of the operation in metrics."""
    path: str
    results: tuple[tuple[str, str], ...]
    """(name in an answer, name of the signature's output), the first one first."""


ENCODE: Final = Operation("encode", "encode", (("latents", "latent"),))
RECONSTRUCT: Final = Operation(
    "reconstruct", "reconstruct", (("reconstructions", "reconstruction"), ("errors", "error"))
)
DENOISE: Final = Operation("denoise", "denoise", (("denoised", "denoised"),))
ANOMALY_SCORE: Final = Operation(
    "anomaly_score",
    "anomaly-score",
    (("scores", "score"), ("p_values", "p_value"), ("is_anomaly", "is_anomaly")),
)
OPERATIONS: Final = (ENCODE, RECONSTRUCT, DENOISE, ANOMALY_SCORE)
OPERATION_NAMED: Final = {operation.name: operation for operation in OPERATIONS}
OperationName = Literal["encode", "reconstruct", "denoise", "anomaly_score"]

ROW_RESULTS: Final = dict((*RECONSTRUCT.results[:1], *DENOISE.results))
"""Results that are rows themselves: name in an answer -> name of the signature's output."""
CONTRIBUTIONS: Final = "contributions"
ERROR_MAPS: Final = "error_maps"
RESULT_COLUMNS: Final = {
    "scores": "anomaly_score",
    "p_values": "p_value",
    "is_anomaly": "is_anomaly",
    CONTRIBUTIONS: "contributions",
    ERROR_MAPS: "error_map",
    "latents": "latent",
    "reconstructions": "reconstruction",
    "errors": "reconstruction_error",
    "denoised": "denoised",
}
"""Name of a result in an answer -> its column in a scored table. Rows of named columns become ``reconstruction_amount``
etc."""

EXPLAIN: Final = "explain"
"""Signature beside the operations. ``contribution``: (rows, *row_shape), or (rows, columns) in the order of the inputs
and their columns; shares sum to 1. ``expected``, ``expected_categories``, ``expected_timestamps``: like the inputs."""
POINT_ERRORS: Final = "point_errors"
"""Signature beside the operations, of series models: ``error`` of each step of a window, (rows, window)."""

FLAG_OPTIONS: Final = ("threshold", "false_alarm_rate", "false_discovery_rate")
"""Options that choose which rows are flagged; at most one of them."""
SCORE_OPTIONS: Final = (*FLAG_OPTIONS, "explain")
"""Options that only ``ANOMALY_SCORE`` has."""
PRODUCTION: Final = "production"
"""The alias that answers when a request names no version."""

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
ARROW: Final = "application/vnd.apache.arrow.stream"
NDJSON: Final = "application/x-ndjson"
PNG: Final = "image/png"
JPEG: Final = "image/jpeg"
