"""The client for asyncio: ``Client`` with ``await``. Both drive the same flows."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from service.client import routes
from service.client.calls import KINDS, Call, CallOptions, Limits, Part, ScoreOptions, start_call
from service.client.compression import Mode
from service.client.errors import without_answer
from service.client.exchange import Broken, Deadline, Flow, Outcome, Pause, Reply, Request, RetryPolicy, Step
from service.client.progress import reporting
from service.client.results import AnomalyScores, Answer, Denoised, Latents, Reconstructions, Result
from service.client.routes import AliasChange, Model, Readiness, Route, VersionState
from service.client.rows import rows_of
from service.client.transport import broken, connection_of, http_options, httpx, reply_of, request_arguments
from service.errors import DeadlineExceeded
from service.words import PRODUCTION, OperationName

T = TypeVar("T")
R = TypeVar("R", bound=Result)
READY_INTERVAL_S = 0.1


class AsyncClient:
    """``Client`` for one event loop. Use it with ``async with`` or ``await close()``."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        request_timeout_s: float = 30.0,
        concurrency: int = 4,
        retry: RetryPolicy | None = None,
        compression: Mode = "auto",
        limits: Limits | None = None,
        transport: Any = None,
    ) -> None:
        self._connection = connection_of(
            url, request_timeout_s=request_timeout_s, retry=retry, compression=compression, limits=limits
        )
        self._concurrency = concurrency
        self._http = httpx.AsyncClient(
            **http_options(url, self._connection, key=key, concurrency=concurrency, transport=transport)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # --- operations ---

    async def encode(self, rows: Any, **options: Unpack[CallOptions]) -> Latents:
        """Rows to latents."""
        return await self._run(Latents, rows, options)

    async def reconstruct(self, rows: Any, **options: Unpack[CallOptions]) -> Reconstructions:
        """Rows to what the model takes them for, and their reconstruction errors."""
        return await self._run(Reconstructions, rows, options)

    async def denoise(self, rows: Any, **options: Unpack[CallOptions]) -> Denoised:
        """Noisy rows to clean ones. Raises Conflict when the model was not trained for it."""
        return await self._run(Denoised, rows, options)

    async def anomaly_score(self, rows: Any, **options: Unpack[ScoreOptions]) -> AnomalyScores:
        """Rows to scores, p-values and flags."""
        return await self._run(AnomalyScores, rows, options)

    async def stream(
        self, operation: OperationName, batches: Iterable[Any] | AsyncIterable[Any], **options: Any
    ) -> AsyncIterator[Any]:
        """As ``Client.stream``; ``batches`` may be asynchronous."""
        call = start_call(KINDS[operation], self._connection, options)
        with reporting(options.get("progress", False), None) as advance:
            async with aclosing(self._answers(call, batches)) as answers:
                async for part, answer in answers:
                    advance(len(part.rows))
                    result = call.collect(part, answer)
                    if result is not None:
                        yield result

    async def _run(self, kind: type[R], given: Any, options: Any) -> R:
        call = start_call(kind, self._connection, options)
        rows = rows_of(given)
        with reporting(options.get("progress", False), len(rows)) as advance:
            async with aclosing(self._answers(call, [rows])) as answers:
                async for part, answer in answers:
                    advance(len(part.rows))
                    result = call.collect(part, answer)
        assert result is not None, "the last part ends the batch"  # noqa: S101
        return result

    async def _answers(
        self, call: Call[Any], batches: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncGenerator[tuple[Part, Answer], None]:
        """Parts and their answers in order; the first one alone, then as many at once as may be."""
        under_way: deque[tuple[Part, asyncio.Task[Answer]]] = deque()
        try:
            async with aclosing(_parts(call, batches)) as parts:
                async for part in parts:
                    if call.pinned is None:
                        yield part, await self._drive(call.answer(part))
                        continue
                    under_way.append((part, asyncio.create_task(self._drive(call.answer(part)))))
                    while under_way and (len(under_way) >= self._concurrency or under_way[0][1].done()):
                        oldest, task = under_way.popleft()
                        yield oldest, await task
            while under_way:
                oldest, task = under_way.popleft()
                yield oldest, await task
        finally:
            call.cancelled = True
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)

    # --- models and the service ---

    async def ready(self) -> bool:
        """Whether a warmed version of the default model answers."""
        return bool(await self.readiness())

    async def readiness(self) -> Readiness:
        """As ``ready``, with the reason why not. Never raises for a service that is not there."""
        outcome = await self._send(self._connection.timed(routes.readiness()))
        if isinstance(outcome, Reply):
            return routes.read_readiness(outcome)
        return Readiness(False, "The service does not answer.")

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Raises DeadlineExceeded, with the last reason, when the service does not become ready in time."""
        deadline = Deadline.after(timeout_s)
        while not (found := await self.readiness()):
            if deadline.left_s < READY_INTERVAL_S:
                raise without_answer(DeadlineExceeded, f"The service is not ready: {found.reason}")
            await asyncio.sleep(READY_INTERVAL_S)

    async def models(self) -> list[Model]:
        return await self._fetch(routes.models())

    async def model(self, model: str) -> dict[str, Any]:
        """All that ``GET /models/{model}`` says: schema, calibration, metrics and card of the default version."""
        return await self._fetch(routes.model(model))

    async def versions(self, model: str) -> tuple[VersionState, ...]:
        return await self._fetch(routes.versions(model))

    async def version(self, model: str, version: int) -> dict[str, Any]:
        """All that ``GET /models/{model}/versions/{version}`` says."""
        return await self._fetch(routes.version(model, version))

    async def aliases(self, model: str) -> dict[str, int]:
        return await self._fetch(routes.aliases(model))

    async def promote(self, model: str, version: int, alias: str = PRODUCTION) -> AliasChange:
        """Let an alias name a version; needs an admin key."""
        return await self._fetch(routes.promote(model, version, alias))

    async def rollback(self, model: str, alias: str = PRODUCTION) -> AliasChange:
        """Let an alias name the version that it named before; needs an admin key."""
        return await self._fetch(routes.rollback(model, alias))

    async def delete_alias(self, model: str, alias: str) -> AliasChange:
        return await self._fetch(routes.delete_alias(model, alias))

    async def drift(self, model: str, version: int | None = None) -> dict[str, Any]:
        """Live rows against those of training, as ``GET /models/{model}/drift`` has it."""
        return await self._fetch(routes.drift(model, version))

    async def metrics(self) -> str:
        """All metrics in Prometheus' text format."""
        reply = await self._drive(self._connection.exchange(routes.metrics()))
        return reply.body.decode()

    async def _fetch(self, route: Route[T]) -> T:
        return route.result(await self._drive(self._connection.exchange(route.request)))

    # --- doing it ---

    async def _drive(self, flow: Flow[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                # Large parts take a while to encode and to read: not on the event loop.
                step = await asyncio.to_thread(_advance, flow, outcome)
            except _Ended as end:
                result: T = end.result
                return result
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                outcome = None
            else:
                outcome = await self._send(step)

    async def _send(self, step: Request) -> Reply | Broken:
        answering = False
        request = self._http.build_request(**request_arguments(step))
        try:
            response = await self._http.send(request, stream=True)
            answering = True
            try:
                return reply_of(response, await response.aread())
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            return broken(error, answering=answering)


class _Ended(Exception):
    """A flow's end. StopIteration cannot pass through a future."""

    def __init__(self, result: Any) -> None:
        self.result = result


def _advance(flow: Flow[Any], outcome: Outcome) -> Step:
    try:
        return flow.send(outcome)
    except StopIteration as end:
        raise _Ended(end.value) from None


async def _parts(call: Call[Any], batches: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Part, None]:
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            for part in call.parts_of(batch):
                yield part
    else:
        for part in call.parts(batches):
            yield part
