"""A scorer whose model is in a running service. Needs no TensorFlow and no store."""

import atexit
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from service.client import AnomalyScores, Client, Denoised, Latents, Reconstructions, Result
from service.codecs import nested_array, rows_table
from service.errors import ConfigurationError, VersionNotFound
from service.pipelines.scorer import Contract, Scorer
from service.schemas import INSTANCES, InputSchema, Rows

KEPT_SERVICES = 8


@dataclass(frozen=True)
class RemoteScorer(Scorer):
    """A ``Scorer`` by requests to the service at ``store``, an address such as ``http://127.0.0.1:8000``.

    Rows are checked here, so that the ones that do not fit are named as ever, and sent as Arrow in bounded parts. All
    are answered by the version that was settled when the scorer was made.

    Raises:
        ServiceError: the service refuses, or does not answer.
    """

    key: str | None = field(default=None, kw_only=True, repr=False)

    def _resolved(self) -> int:
        if self.version is not None and self.alias is not None:
            raise ConfigurationError("Give a version or an alias, not both.")
        client = _client(self.store, self.key)
        if self.version is not None:
            return self.version
        if self.alias is not None:
            named = client.aliases(self.model)
            if self.alias not in named:
                raise VersionNotFound(f"Model {self.model} has no such alias.")
            return named[self.alias]
        for model in client.models():
            if model.name == self.model and model.default_version is not None:
                return model.default_version
        raise VersionNotFound(f"The service has no version of model {self.model} ready.")

    def _contract(self) -> Contract:
        return _contract(self.store, self.key, self.model, self._settled())

    def _answered(self, rows: Rows) -> dict[str, Any]:
        schema = self.schema
        given = rows_table(rows, schema) if schema.columns else rows[INSTANCES]
        call = getattr(_client(self.store, self.key), self._operation().name)
        options = {"threshold": self.threshold, "false_alarm_rate": self.false_alarm_rate, "explain": self.explain}
        chosen = {name: value for name, value in options.items() if value is not None}
        return _columns_of(call(given, model=self.model, version=self.version, **chosen))


def only_model(url: str, key: str | None = None) -> str:
    """Raises ConfigurationError when the service has several models or none."""
    models = _client(url, key).models()
    if len(models) != 1:
        raise ConfigurationError(f"The service has {len(models)} models: choose one by --model.")
    return models[0].name


def _columns_of(result: Result) -> dict[str, Any]:
    import pyarrow as pa

    if isinstance(result, AnomalyScores):
        columns = {"anomaly_score": result.scores, "p_value": result.p_values, "is_anomaly": result.is_anomaly}
        named = {name: pa.array(np.asarray(values)) for name, values in columns.items()}
        if result.contributions is not None:
            named["contributions"] = pa.array([[vars(entry) for entry in row] for row in result.contributions])
        if result.error_maps is not None:
            named["error_map"] = nested_array(result.error_maps)
        return named
    if isinstance(result, Latents):
        return {"latent": nested_array(result.latents)}
    if isinstance(result, Reconstructions):
        errors = pa.array(np.asarray(result.errors))
        return {"reconstruction_error": errors, **_rows("reconstruction", result.reconstructions)}
    assert isinstance(result, Denoised)  # noqa: S101 - there are four operations
    return _rows("denoised", result.denoised)


def _rows(name: str, rows: Any) -> dict[str, Any]:
    if isinstance(rows, np.ndarray):
        return {name: nested_array(rows)}
    return {f"{name}_{column}": rows[column].combine_chunks() for column in rows.column_names}


@lru_cache(maxsize=KEPT_SERVICES)
def _client(url: str, key: str | None) -> Client:
    client = Client(url, key=key)
    atexit.register(client.close)
    return client


@lru_cache(maxsize=KEPT_SERVICES)
def _contract(url: str, key: str | None, model: str, version: int) -> Contract:
    found = _client(url, key).version(model, version)
    schema = InputSchema.model_validate(found["input"])
    return Contract(schema, frozenset(found["signatures"]), found["source_sha256"] + found["created"])
