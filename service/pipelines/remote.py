"""A scorer whose model is in a running service. Needs no TensorFlow and no store."""

import atexit
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from service.client import Client, Result
from service.codecs import nested_array, rows_table
from service.errors import ConfigurationError, VersionNotFound
from service.pipelines.scorer import Contract, Scorer
from service.schemas import INSTANCES, InputSchema, Rows
from service.words import CONTRIBUTIONS, RESULT_COLUMNS

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
        client = client_of(self.store, self.key)
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
        call = getattr(client_of(self.store, self.key), self._operation().name)
        options = {"threshold": self.threshold, "false_alarm_rate": self.false_alarm_rate, "explain": self.explain}
        chosen = {name: value for name, value in options.items() if value is not None}
        return _columns_of(call(given, model=self.model, version=self.version, **chosen))


def _columns_of(result: Result) -> dict[str, Any]:
    """The results by the names of their columns in a table, as Arrow arrays; those in the form of the rows last."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    named: dict[str, Any] = {}
    for name, column in RESULT_COLUMNS.items():
        values = getattr(result, name, None)
        if name == CONTRIBUTIONS and values is not None:
            columns[column] = pa.array([[vars(entry) for entry in row] for row in values])
        elif isinstance(values, np.ndarray):
            columns[column] = nested_array(values)
        elif values is not None:
            named = {f"{column}_{feature}": values[feature].combine_chunks() for feature in values.column_names}
    return columns | named


@lru_cache(maxsize=KEPT_SERVICES)
def client_of(url: str, key: str | None) -> Client:
    """The client of a service that this process keeps."""
    client = Client(url, key=key)
    atexit.register(client.close)
    return client


@lru_cache(maxsize=KEPT_SERVICES)
def _contract(url: str, key: str | None, model: str, version: int) -> Contract:
    found = client_of(url, key).version(model, version)
    schema = InputSchema.model_validate(found["input"])
    comma = bool(found["training"].get("decimal_comma"))
    fingerprint = found["source_sha256"] + found["created"]
    rows = found["calibration"]["rows"] if found["calibration"] else 0
    return Contract(schema, frozenset(found["signatures"]), fingerprint, comma, rows)
