"""Signatures by name, as the TensorFlow Serving and Open Inference protocols ask for them.

Knows no protocol and no transport.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.codecs import Options, options_from_json, options_from_query
from service.errors import InvalidOption
from service.runtime.loaded_model import LoadedModel
from service.words import ANOMALY_SCORE, FLAG_OPTIONS

SERVING_DEFAULT: Final = "serving_default"


def score_options(parameters: Mapping[str, Any], loaded: LoadedModel, signatures: Sequence[str]) -> Options:
    """The caller's own threshold or rate among the parameters of a request; others are not looked at.

    Raises:
        InvalidOption: a wrong value, or no flags are asked for.
    """
    values = {name: parameters[name] for name in FLAG_OPTIONS if name in parameters}
    if values and ANOMALY_SCORE.name not in signatures:
        raise InvalidOption(f"the parameter '{next(iter(values))}' needs an output of anomaly_score")
    if values and all(type(value) is str for value in values.values()):  # KServe's gRPC client can send no floats
        return options_from_query(values, schema=loaded.schema, operation=ANOMALY_SCORE)
    return options_from_json(values, schema=loaded.schema, operation=ANOMALY_SCORE)


@dataclass(slots=True)
class VersionStatistics:
    """Counts and times of one version for callers of the Open Inference Protocol."""

    rows: int = 0
    runs: int = 0
    """Signatures run."""
    successes: int = 0
    success_ns: int = 0
    """From the queue to the results."""
    failures: int = 0
    failure_ns: int = 0
    last_ms: int = 0
    """When the last request was answered, in milliseconds since 1970."""


class Statistics:
    """Counts by model and version, which come from the store only. Belongs to the event loop."""

    def __init__(self) -> None:
        self._by_version: dict[tuple[str, int], VersionStatistics] = {}

    def answered(self, loaded: LoadedModel, *, rows: int, runs: int, seconds: float) -> None:
        counted = self._of(loaded)
        counted.successes += 1
        counted.success_ns += int(seconds * 1e9)
        counted.rows += rows
        counted.runs += runs
        counted.last_ms = int(time.time() * 1000)

    def failed(self, loaded: LoadedModel, *, seconds: float) -> None:
        counted = self._of(loaded)
        counted.failures += 1
        counted.failure_ns += int(seconds * 1e9)

    def of(self, loaded: LoadedModel) -> VersionStatistics:
        return self._by_version.get((loaded.name, loaded.version)) or VersionStatistics()

    def _of(self, loaded: LoadedModel) -> VersionStatistics:
        return self._by_version.setdefault((loaded.name, loaded.version), VersionStatistics())
