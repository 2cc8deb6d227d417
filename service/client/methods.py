"""The methods of both clients, each written once as a flow: no I/O."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import update_wrapper
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

import orjson

from service.client.calls import CallOptions, PartedCall, PartLimits, ScoreOptions, path_of, start_call
from service.client.compression import BodyCompression, Mode
from service.client.errors import without_answer
from service.client.exchange import Deadline, Flow, Pause, Received, Request, RetryPolicy, Transport
from service.client.progress import reporting
from service.client.results import AnomalyScores, Denoised, Latents, Reconstructions, Result
from service.client.rows import rows_of
from service.errors import DeadlineExceeded
from service.words import JSON, PRODUCTION

if TYPE_CHECKING:
    from service.client.asynchronous import AsyncClient
    from service.client.synchronous import Client

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Result)
READY_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Readiness:
    ready: bool
    reason: str | None = None
    """Why not, in one sentence."""

    def __bool__(self) -> bool:
        return self.ready


@dataclass(frozen=True)
class ModelVersion:
    version: int
    state: str
    """``available``, ``loading``, ``failed`` or ``retired``."""
    reason: str | None
    """Why it is not available, when it failed."""


@dataclass(frozen=True)
class Model:
    name: str
    versions: tuple[ModelVersion, ...]
    aliases: dict[str, int]
    default_version: int | None
    """The version that answers when a request names none."""


@dataclass(frozen=True)
class AliasMove:
    model: str
    alias: str
    version: int | None
    """What the alias names now; None once it is deleted."""
    previous: int | None
    """What it named before."""
    serving: int | None
    """The version that answers for it now."""


class method(Generic[P, T]):  # noqa: N801 - used as a decorator
    """A flow as a method: it gives its result in ``Client``, and is to be awaited in ``AsyncClient``."""

    def __init__(self, flow: Callable[Concatenate[Any, P], Flow[T]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, client: None, kind: type) -> Callable[Concatenate[Any, P], Flow[T]]: ...
    @overload
    def __get__(self, client: "Client", kind: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, kind: type) -> Any:
        if client is None:
            return self._flow
        flow = MethodType(self._flow, client)
        return update_wrapper(lambda *args, **options: client._drive(flow(*args, **options)), flow)


class ClientMethods:
    """What both clients can do."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        request_timeout_s: float = 30.0,
        concurrency: int = 4,
        retry: RetryPolicy | None = None,
        compression: Mode = "auto",
        limits: PartLimits | None = None,
        transport: Any = None,
    ) -> None:
        """
        Args:
            key: for services that ask for one.
            request_timeout_s: for each attempt of each request; a call's own ``timeout_s`` is for all of it.
            concurrency: how many parts of a large input are under way at once.
            transport: of httpx, instead of its own.
        """
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1.")
        self._concurrency, self._limits = concurrency, limits or PartLimits()
        self._compression = BodyCompression.to(url, compression)
        self._transport = Transport(retry or RetryPolicy(), request_timeout_s)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if self._compression.accepted is not None:
            headers["Accept-Encoding"] = self._compression.accepted
        self._open(base_url=url, headers=headers, transport=transport, timeout=request_timeout_s)

    def _open(self, **options: Any) -> None:
        """Make what sends requests. ``options``: of ``httpx.Client`` and ``httpx.AsyncClient``."""
        raise NotImplementedError

    # --- operations ---

    @method
    def encode(self, rows: Any, **options: Unpack[CallOptions]) -> Flow[Latents]:
        """Rows to latents."""
        return self._result(Latents, rows, options)

    @method
    def reconstruct(self, rows: Any, **options: Unpack[CallOptions]) -> Flow[Reconstructions]:
        """Rows to what the model takes them for, and their reconstruction errors."""
        return self._result(Reconstructions, rows, options)

    @method
    def denoise(self, rows: Any, **options: Unpack[CallOptions]) -> Flow[Denoised]:
        """Noisy rows to clean ones. Raises Conflict when the model was not trained for it."""
        return self._result(Denoised, rows, options)

    @method
    def anomaly_score(self, rows: Any, **options: Unpack[ScoreOptions]) -> Flow[AnomalyScores]:
        """Rows to scores, p-values and flags."""
        return self._result(AnomalyScores, rows, options)

    def _result(self, kind: type[R], given: Any, options: Any) -> Flow[R]:
        call, rows = self._call(kind, options), rows_of(given)
        with reporting(options.get("progress", False), len(rows)) as call.advance:
            return (yield from call.result(rows))

    def _call(self, kind: type[R], options: Any) -> PartedCall[R]:
        return start_call(
            kind,
            options,
            transport=self._transport,
            compression=self._compression,
            limits=self._limits,
            concurrency=self._concurrency,
        )

    # --- models and the service ---

    @method
    def ready(self) -> Flow[bool]:
        """Whether a warmed version of the default model answers."""
        return bool((yield from ClientMethods.readiness(self)))

    @method
    def readiness(self) -> Flow[Readiness]:
        """As ``ready``, with the reason why not. Never raises for a service that is not there."""
        outcome = yield self._transport.timed(Request("GET", "/readyz"))
        if not isinstance(outcome, Received):
            return Readiness(False, "The service does not answer.")
        if outcome.status == 200:
            return Readiness(True)
        try:
            found = orjson.loads(outcome.body)
        except orjson.JSONDecodeError:
            found = {}
        return Readiness(
            False, str(found.get("reason") or found.get("detail") or f"answered with status {outcome.status}")
        )

    @method
    def wait_until_ready(self, timeout_s: float = 60.0) -> Flow[None]:
        """Raises DeadlineExceeded, with the last reason, when the service does not become ready in time."""
        deadline = Deadline.after(timeout_s)
        while not (found := (yield from ClientMethods.readiness(self))):
            if deadline.left_s < READY_INTERVAL_S:
                raise without_answer(DeadlineExceeded, f"The service is not ready: {found.reason}")
            yield Pause(READY_INTERVAL_S)

    @method
    def models(self) -> Flow[list[Model]]:
        """All models, their versions and aliases."""
        return [_model(model) for model in (yield from self._fetch("GET", "/models"))["models"]]

    @method
    def model(self, model: str) -> Flow[dict[str, Any]]:
        """All that ``GET /models/{model}`` says: schema, calibration, metrics and card of the default version."""
        return self._fetch("GET", path_of(model))

    @method
    def versions(self, model: str) -> Flow[tuple[ModelVersion, ...]]:
        """The versions of a model and their states."""
        return _model((yield from self._fetch("GET", path_of(model)))).versions

    @method
    def version(self, model: str, version: int) -> Flow[dict[str, Any]]:
        """All that ``GET /models/{model}/versions/{version}`` says."""
        return self._fetch("GET", path_of(model, version))

    @method
    def aliases(self, model: str) -> Flow[dict[str, int]]:
        """The aliases of a model and the versions that they name."""
        return _model((yield from self._fetch("GET", path_of(model)))).aliases

    @method
    def promote(self, model: str, version: int, alias: str = PRODUCTION) -> Flow[AliasMove]:
        """Let an alias name a version; needs an admin key."""
        return AliasMove(**(yield from self._fetch("PUT", path_of(model, alias=alias), version=version)))

    @method
    def rollback(self, model: str, alias: str = PRODUCTION) -> Flow[AliasMove]:
        """Let an alias name the version that it named before; needs an admin key."""
        return AliasMove(**(yield from self._fetch("POST", f"{path_of(model, alias=alias)}/rollback")))

    @method
    def delete_alias(self, model: str, alias: str) -> Flow[AliasMove]:
        """Delete an alias; needs an admin key."""
        return AliasMove(**(yield from self._fetch("DELETE", path_of(model, alias=alias))))

    @method
    def drift(self, model: str, version: int | None = None) -> Flow[dict[str, Any]]:
        """Live rows against those of training, as ``GET /models/{model}/drift`` has it."""
        query = {} if version is None else {"version": str(version)}
        return self._fetch("GET", f"{path_of(model)}/drift", query)

    @method
    def metrics(self) -> Flow[str]:
        """All metrics in Prometheus' text format."""
        return (yield from self._transport.exchange(Request("GET", "/metrics"))).body.decode()

    def _fetch(self, verb: str, path: str, query: dict[str, str] | None = None, **body: Any) -> Flow[Any]:
        """The JSON answer to a request. What changes something is not done twice: the second time, the version before
        would be the new one."""
        headers, content = ({"Content-Type": JSON}, orjson.dumps(body)) if body else ({}, None)
        request = Request(verb, path, query or {}, headers, content, repeatable=verb == "GET")
        return orjson.loads((yield from self._transport.exchange(request)).body)


def _model(found: dict[str, Any]) -> Model:
    states = tuple(ModelVersion(entry["version"], entry["state"], entry.get("reason")) for entry in found["versions"])
    return Model(found["name"], states, dict(found["aliases"]), found["default_version"])
