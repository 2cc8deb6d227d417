"""Requests about models and the service itself, and what their answers become. No I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import orjson

from service.client.exchange import Reply, Request

T = TypeVar("T")


@dataclass(frozen=True)
class Route(Generic[T]):
    request: Request
    read: Callable[[Any], T]
    """From the parsed JSON answer."""

    def result(self, reply: Reply) -> T:
        return self.read(orjson.loads(reply.body))


@dataclass(frozen=True)
class Readiness:
    ready: bool
    reason: str | None = None
    """Why not, in one sentence."""

    def __bool__(self) -> bool:
        return self.ready


@dataclass(frozen=True)
class VersionState:
    version: int
    state: str
    """``available``, ``loading``, ``failed`` or ``retired``."""
    reason: str | None
    """Why it is not available, when it failed."""


@dataclass(frozen=True)
class Model:
    name: str
    versions: tuple[VersionState, ...]
    aliases: dict[str, int]
    default_version: int | None
    """The version that answers when a request names none."""


@dataclass(frozen=True)
class AliasChange:
    model: str
    alias: str
    version: int | None
    """What the alias names now; None once it is deleted."""
    previous: int | None
    """What it named before."""
    serving: int | None
    """The version that answers for it now."""


def models() -> Route[list[Model]]:
    return _get("/models", lambda found: [_model(model) for model in found["models"]])


def model(name: str) -> Route[dict[str, Any]]:
    return _get(_path(name), dict)


def versions(name: str) -> Route[tuple[VersionState, ...]]:
    return _get(_path(name), lambda found: _model(found).versions)


def version(name: str, number: int) -> Route[dict[str, Any]]:
    return _get(f"{_path(name)}/versions/{number}", dict)


def aliases(name: str) -> Route[dict[str, int]]:
    return _get(_path(name), lambda found: _model(found).aliases)


def promote(name: str, number: int, alias: str) -> Route[AliasChange]:
    body = orjson.dumps({"version": number})
    headers = {"Content-Type": "application/json"}
    # Not repeatable: the second time, the version before would be the new one.
    request = Request("PUT", _alias_path(name, alias), headers=headers, body=body, repeatable=False)
    return Route(request, lambda found: AliasChange(**found))


def rollback(name: str, alias: str) -> Route[AliasChange]:
    request = Request("POST", f"{_alias_path(name, alias)}/rollback", repeatable=False)
    return Route(request, lambda found: AliasChange(**found))


def delete_alias(name: str, alias: str) -> Route[AliasChange]:
    return Route(Request("DELETE", _alias_path(name, alias), repeatable=False), lambda found: AliasChange(**found))


def drift(name: str, number: int | None) -> Route[dict[str, Any]]:
    query = {} if number is None else {"version": str(number)}
    return Route(Request("GET", f"{_path(name)}/drift", query), dict)


def metrics() -> Request:
    return Request("GET", "/metrics")


def readiness() -> Request:
    return Request("GET", "/readyz")


def read_readiness(reply: Reply) -> Readiness:
    try:
        found = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        found = {}
    reason = found.get("reason") or found.get("detail") or f"answered with status {reply.status}"
    return Readiness(True) if reply.status == 200 else Readiness(False, str(reason))


def _get(path: str, read: Callable[[Any], T]) -> Route[T]:
    return Route(Request("GET", path), read)


def _path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def _alias_path(name: str, alias: str) -> str:
    return f"{_path(name)}/aliases/{quote(alias, safe='')}"


def _model(found: dict[str, Any]) -> Model:
    states = tuple(VersionState(entry["version"], entry["state"], entry.get("reason")) for entry in found["versions"])
    return Model(found["name"], states, dict(found["aliases"]), found["default_version"])
