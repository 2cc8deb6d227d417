"""The model of a running service that is measured."""

from dataclasses import dataclass
from typing import Self

from service.client import Client, RetryPolicy, ServiceError, Unreachable
from service.errors import ConfigurationError
from service.schemas import InputSchema

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    base: str
    model: str
    version: int
    """That answers by default."""
    schema: InputSchema
    key: str | None

    @classmethod
    def find(cls, base: str, *, model: str | None = None, key: str | None = None) -> Self:
        """Ask the service for its model, the only one where none is named.

        Raises:
            ConfigurationError: it does not answer, or has no such model.
        """
        base = base.rstrip("/")
        with client_of(base, key) as client:
            try:
                return cls._of(client, base, model, key)
            except Unreachable as error:
                raise ConfigurationError(f"{base} does not answer; start it with `autoencoder serve`.") from error
            except ServiceError as error:
                raise ConfigurationError(f"{base} answers {error.status}.") from error

    @classmethod
    def _of(cls, client: Client, base: str, model: str | None, key: str | None) -> Self:
        models = {found.name: found for found in client.models()}
        names = ", ".join(sorted(models))
        if model is None and len(models) != 1:
            raise ConfigurationError(f"Name one of the models with --model: {names or 'none yet'}.")
        name = model or next(iter(models))
        if name not in models:
            raise ConfigurationError(
                f"The service has no model '{name}'; it has {', '.join(sorted(models)) or 'none'}."
            )
        version = models[name].default_version
        if version is None:
            raise ConfigurationError(f"No version of '{name}' answers yet.")
        return cls(base, name, version, InputSchema.model_validate(client.version(name, version)["input"]), key)

    def url(self, operation: str) -> str:
        return f"{self.base}/models/{self.model}/{operation}"

    def headers(self, media_type: str) -> dict[str, str]:
        return {"Content-Type": media_type, **({} if self.key is None else {"X-API-Key": self.key})}

    def client(self, key: str | None = None) -> Client:
        """For what is not measured; ``key`` where another one is needed than for the operations."""
        return client_of(self.base, key or self.key)


def client_of(base: str, key: str | None) -> Client:
    """A client that tries once: what fails here is to be seen."""
    return Client(base, key=key, request_timeout_s=TIMEOUT_S, retry=RetryPolicy(attempts=1))
