"""Call a running service from Python, without TensorFlow and without anything of the server.

with Client("http://127.0.0.1:8000") as service:
    answer = service.anomaly_score(rows)     # numpy, pandas, polars, Arrow, lists or dicts
    answer.scores, answer.is_anomaly, answer.to_pandas()

``AsyncClient`` is the same with ``await``. ``RemoteDetector`` (needs scikit-learn) is an estimator over a service.
"""

from typing import TYPE_CHECKING, Any

from service.client.clients import AliasMove, AsyncClient, Client, Model, ModelVersion, Readiness
from service.client.errors import ServiceError, Unreachable
from service.client.results import AnomalyScores, Contribution, Denoised, Latents, Reconstructions, Result
from service.client.transport import RetryPolicy
from service.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidRows,
    MalformedInput,
    ModelFailed,
    NotAcceptable,
    NotFound,
    QueueFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)

if TYPE_CHECKING:
    from service.client.detector import RemoteDetector

__all__ = [
    "AliasMove",
    "AnomalyScores",
    "AsyncClient",
    "Client",
    "Conflict",
    "Contribution",
    "DeadlineExceeded",
    "Denoised",
    "Forbidden",
    "InvalidRows",
    "Latents",
    "MalformedInput",
    "Model",
    "ModelFailed",
    "ModelVersion",
    "NotAcceptable",
    "NotFound",
    "QueueFull",
    "Readiness",
    "Reconstructions",
    "RemoteDetector",
    "Result",
    "RetryPolicy",
    "ServiceError",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "UnsupportedMediaType",
]


def __getattr__(name: str) -> Any:
    if name == "RemoteDetector":  # only who wants it needs scikit-learn
        from service.client.detector import RemoteDetector

        return RemoteDetector
    raise AttributeError(name)
