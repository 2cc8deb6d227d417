"""Both clients. Their methods are written once, as coroutines: ``Client`` runs them, ``AsyncClient`` awaits them."""

import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import update_wrapper
from types import MethodType, TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, overload

import orjson

from service.client.calls import KINDS, CallOptions, PartedCall, PartLimits, Progress, ScoreOptions, path_of, start_call
from service.client.errors import without_answer
from service.client.results import AnomalyScores, Denoised, Latents, Reconstructions, Result
from service.client.transport import (
    Backend,
    BlockingBackend,
    BodyCompression,
    Compression,
    Deadline,
    LoopBackend,
    Request,
    RetryPolicy,
    Transport,
    blocking,
)
from service.errors import DeadlineExceeded
from service.words import JSON, PRODUCTION, OperationName

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
    """A coroutine as a method: it gives its result in ``Client``, and is to be awaited in ``AsyncClient``."""

    def __init__(self, work: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self.__doc__ = work.__doc__

    @overload
    def __get__(self, client: None, kind: type) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: "Client", kind: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, kind: type) -> Any:
        if client is None:
            return self._work
        work = MethodType(self._work, client)
        return update_wrapper(lambda *args, **options: client._run(work(*args, **options)), work)


class ClientMethods:
    """The methods of both clients."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        request_timeout_s: float = 30.0,
        concurrency: int = 4,
        retry: RetryPolicy | None = None,
        compression: Compression = "auto",
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
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if self._compression.accepted is not None:
            headers["Accept-Encoding"] = self._compression.accepted
        backend = self._open(base_url=url, headers=headers, transport=transport, timeout=request_timeout_s)
        self._transport = Transport(backend, retry or RetryPolicy(), request_timeout_s)

    def _open(self, **options: Any) -> Backend:
        """Make the backend. ``options``: of ``httpx.Client`` and ``httpx.AsyncClient``."""
        raise NotImplementedError

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        raise NotImplementedError

    # --- operations ---

    @method
    async def encode(self, rows: Any, **options: Unpack[CallOptions]) -> Latents:
        """Rows to latents."""
        return await self._result(Latents, rows, options)

    @method
    async def reconstruct(self, rows: Any, **options: Unpack[CallOptions]) -> Reconstructions:
        """Rows to what the model takes them for, and their reconstruction errors."""
        return await self._result(Reconstructions, rows, options)

    @method
    async def denoise(self, rows: Any, **options: Unpack[CallOptions]) -> Denoised:
        """Noisy rows to clean ones. Raises Conflict when the model was not trained for it."""
        return await self._result(Denoised, rows, options)

    @method
    async def anomaly_score(self, rows: Any, **options: Unpack[ScoreOptions]) -> AnomalyScores:
        """Rows to scores, p-values and flags."""
        return await self._result(AnomalyScores, rows, options)

    async def _result(self, kind: type[R], given: Any, options: Any) -> R:
        call = self._call(kind, options)
        rows = await call.rows_of(given)
        with reporting(options.get("progress", False), len(rows)) as call.advance:
            async with aclosing(call.results(iter([rows]))) as results:
                return await anext(results)

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
    async def ready(self) -> bool:
        """Whether a warmed version of the default model answers."""
        return bool(await ClientMethods.readiness(self))

    @method
    async def readiness(self) -> Readiness:
        """As ``ready``, with the reason why not. Never raises for a service that is not there."""
        response = await self._transport.first_answer(Request("GET", "/readyz"))
        if response is None:
            return Readiness(False, "The service does not answer.")
        if response.status_code == 200:
            return Readiness(True)
        try:
            found = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            found = {}
        reason = found.get("reason") or found.get("detail") or f"answered with status {response.status_code}"
        return Readiness(False, str(reason))

    @method
    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Raises DeadlineExceeded, with the last reason, when the service does not become ready in time."""
        deadline = Deadline.after(timeout_s)
        while not (found := (await ClientMethods.readiness(self))):
            if deadline.left_s < READY_INTERVAL_S:
                raise without_answer(DeadlineExceeded, f"The service is not ready: {found.reason}")
            await self._transport.backend.pause(READY_INTERVAL_S)

    @method
    async def models(self) -> list[Model]:
        """All models, their versions and aliases."""
        return [_model(model) for model in (await self._fetch("GET", "/models"))["models"]]

    @method
    async def model(self, model: str) -> Any:
        """All that ``GET /models/{model}`` says: schema, calibration, metrics and card of the default version."""
        return await self._fetch("GET", path_of(model))

    @method
    async def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """The versions of a model and their states."""
        return _model(await self._fetch("GET", path_of(model))).versions

    @method
    async def version(self, model: str, version: int) -> Any:
        """All that ``GET /models/{model}/versions/{version}`` says."""
        return await self._fetch("GET", path_of(model, version))

    @method
    async def aliases(self, model: str) -> dict[str, int]:
        """The aliases of a model and the versions that they name."""
        return _model(await self._fetch("GET", path_of(model))).aliases

    @method
    async def promote(self, model: str, version: int, alias: str = PRODUCTION) -> AliasMove:
        """Let an alias name a version; needs an admin key."""
        return AliasMove(**(await self._fetch("PUT", path_of(model, alias=alias), version=version)))

    @method
    async def rollback(self, model: str, alias: str = PRODUCTION) -> AliasMove:
        """Let an alias name the version that it named before; needs an admin key."""
        return AliasMove(**(await self._fetch("POST", f"{path_of(model, alias=alias)}/rollback")))

    @method
    async def delete_alias(self, model: str, alias: str) -> AliasMove:
        """Delete an alias; needs an admin key."""
        return AliasMove(**(await self._fetch("DELETE", path_of(model, alias=alias))))

    @method
    async def drift(self, model: str, version: int | None = None) -> Any:
        """Live rows against those of training, as ``GET /models/{model}/drift`` has it."""
        query = {} if version is None else {"version": str(version)}
        return await self._fetch("GET", f"{path_of(model)}/drift", query)

    @method
    async def metrics(self) -> str:
        """All metrics in Prometheus' text format."""
        return (await self._transport.exchange(Request("GET", "/metrics"))).text

    async def _fetch(self, verb: str, path: str, query: dict[str, str] | None = None, **body: Any) -> Any:
        """The JSON answer to a request. What changes something is not done twice: the second time, the version before
        would be the new one."""
        headers, content = ({"Content-Type": JSON}, orjson.dumps(body)) if body else ({}, None)
        request = Request(verb, path, query or {}, headers, content, repeatable=verb == "GET")
        return orjson.loads((await self._transport.exchange(request)).content)


def _model(found: dict[str, Any]) -> Model:
    states = tuple(ModelVersion(entry["version"], entry["state"], entry.get("reason")) for entry in found["versions"])
    return Model(found["name"], states, dict(found["aliases"]), found["default_version"])


class Client(ClientMethods):
    """One service, one connection pool; any number of threads. Use it as a context manager or ``close`` it."""

    def _open(self, **options: Any) -> Backend:
        self._blocking = BlockingBackend(self._concurrency, **options)
        return self._blocking

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return blocking(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._blocking.threads.shutdown(wait=True, cancel_futures=True)
        self._blocking.http.close()

    def stream(self, operation: OperationName, batches: Iterable[Any], **options: Any) -> Iterator[Any]:
        """The result of each batch, in order, while ``batches`` is read: at most ``concurrency`` parts are in memory.

        ``operation`` is the name of one of the four methods, ``options`` are its own. All batches are answered by the
        version that answered the first. Rows in errors are counted within their batch.
        """
        call = self._call(KINDS[operation], options)
        results = call.results(iter(batches))
        with reporting(options.get("progress", False), None) as call.advance:
            try:
                while True:
                    yield blocking(anext(results))
            except StopAsyncIteration:
                return
            finally:
                blocking(results.aclose())


class AsyncClient(ClientMethods):
    """``Client`` for one event loop. Use it with ``async with`` or ``await close()``."""

    def _open(self, **options: Any) -> Backend:
        self._loop = LoopBackend(**options)
        return self._loop

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return work

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._loop.http.aclose()

    async def stream(
        self, operation: OperationName, batches: Iterable[Any] | AsyncIterable[Any], **options: Any
    ) -> AsyncIterator[Any]:
        """As ``Client.stream``; ``batches`` may be asynchronous."""
        call = self._call(KINDS[operation], options)
        values = aiter(batches) if isinstance(batches, AsyncIterable) else iter(batches)
        with reporting(options.get("progress", False), None) as call.advance:
            async with aclosing(call.results(values)) as results:
                async for result in results:
                    yield result


# --- progress ---------------------------------------------------------------------------------------------------------


@contextmanager
def reporting(progress: Progress, total: int | None) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the number of rows that have been answered since its last call."""
    done = 0
    with _bar() if progress is True else nullcontext(progress or None) as show:

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            if show is not None:
                show(done, total)

        yield advance


@contextmanager
def _bar() -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr where rich is installed, else a line that is written again."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield lambda done, total: print(f"\r{done} of {total or '?'} rows", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return
    with Bar(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
