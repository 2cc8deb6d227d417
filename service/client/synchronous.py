"""The blocking client. Everything but the waiting is in the modules beside it, which ``AsyncClient`` shares."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from service.client import routes
from service.client.calls import KINDS, Call, CallOptions, Limits, Part, ScoreOptions, start_call
from service.client.compression import Mode
from service.client.errors import without_answer
from service.client.exchange import Broken, Deadline, Flow, Outcome, Pause, Reply, Request, RetryPolicy
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


class Client:
    """One service, one connection pool; any number of threads. Use it as a context manager or ``close`` it.

    ``concurrency``: how many parts of a large input are under way at once.
    ``request_timeout_s``: for each attempt of each request; a call's own ``timeout_s`` is for all of it.
    """

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
        self._http = httpx.Client(
            **http_options(url, self._connection, key=key, concurrency=concurrency, transport=transport)
        )
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="autoencoder-client")  # none until used

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    # --- operations ---

    def encode(self, rows: Any, **options: Unpack[CallOptions]) -> Latents:
        """Rows to latents."""
        return self._run(Latents, rows, options)

    def reconstruct(self, rows: Any, **options: Unpack[CallOptions]) -> Reconstructions:
        """Rows to what the model takes them for, and their reconstruction errors."""
        return self._run(Reconstructions, rows, options)

    def denoise(self, rows: Any, **options: Unpack[CallOptions]) -> Denoised:
        """Noisy rows to clean ones. Raises Conflict when the model was not trained for it."""
        return self._run(Denoised, rows, options)

    def anomaly_score(self, rows: Any, **options: Unpack[ScoreOptions]) -> AnomalyScores:
        """Rows to scores, p-values and flags."""
        return self._run(AnomalyScores, rows, options)

    def stream(self, operation: OperationName, batches: Iterable[Any], **options: Any) -> Iterator[Any]:
        """The result of each batch, in order, while ``batches`` is read: at most ``concurrency`` parts are in memory.

        ``operation`` is the name of one of the four methods above, ``options`` are its own. All batches are answered by
        the version that answered the first. Rows in errors are counted within their batch.
        """
        call = start_call(KINDS[operation], self._connection, options)
        with reporting(options.get("progress", False), None) as advance:
            for part, answer in self._answers(call, batches):
                advance(len(part.rows))
                result = call.collect(part, answer)
                if result is not None:
                    yield result

    def _run(self, kind: type[R], given: Any, options: Any) -> R:
        call = start_call(kind, self._connection, options)
        rows = rows_of(given)
        with reporting(options.get("progress", False), len(rows)) as advance:
            for part, answer in self._answers(call, [rows]):
                advance(len(part.rows))
                result = call.collect(part, answer)
        assert result is not None, "the last part ends the batch"  # noqa: S101
        return result

    def _answers(self, call: Call[Any], batches: Iterable[Any]) -> Iterator[tuple[Part, Answer]]:
        """Parts and their answers in order; the first one alone, then as many at once as may be."""
        parts = call.parts(batches)
        under_way: deque[tuple[Part, Future[Answer]]] = deque()
        try:
            for part in parts:
                if call.pinned is None or self._concurrency == 1:
                    yield part, self._drive(call.answer(part))
                    continue
                under_way.append((part, self._threads.submit(self._drive, call.answer(part))))
                while under_way and (len(under_way) >= self._concurrency or under_way[0][1].done()):
                    oldest, future = under_way.popleft()
                    yield oldest, future.result()
            while under_way:
                oldest, future = under_way.popleft()
                yield oldest, future.result()
        finally:
            call.cancelled = True
            for _, future in under_way:
                future.cancel()

    # --- models and the service ---

    def ready(self) -> bool:
        """Whether a warmed version of the default model answers."""
        return bool(self.readiness())

    def readiness(self) -> Readiness:
        """As ``ready``, with the reason why not. Never raises for a service that is not there."""
        outcome = self._send(self._connection.timed(routes.readiness()))
        if isinstance(outcome, Reply):
            return routes.read_readiness(outcome)
        return Readiness(False, "The service does not answer.")

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Raises DeadlineExceeded, with the last reason, when the service does not become ready in time."""
        deadline = Deadline.after(timeout_s)
        while not (found := self.readiness()):
            if deadline.left_s < READY_INTERVAL_S:
                raise without_answer(DeadlineExceeded, f"The service is not ready: {found.reason}")
            time.sleep(READY_INTERVAL_S)

    def models(self) -> list[Model]:
        return self._fetch(routes.models())

    def model(self, model: str) -> dict[str, Any]:
        """All that ``GET /models/{model}`` says: schema, calibration, metrics and card of the default version."""
        return self._fetch(routes.model(model))

    def versions(self, model: str) -> tuple[VersionState, ...]:
        return self._fetch(routes.versions(model))

    def version(self, model: str, version: int) -> dict[str, Any]:
        """All that ``GET /models/{model}/versions/{version}`` says."""
        return self._fetch(routes.version(model, version))

    def aliases(self, model: str) -> dict[str, int]:
        return self._fetch(routes.aliases(model))

    def promote(self, model: str, version: int, alias: str = PRODUCTION) -> AliasChange:
        """Let an alias name a version; needs an admin key."""
        return self._fetch(routes.promote(model, version, alias))

    def rollback(self, model: str, alias: str = PRODUCTION) -> AliasChange:
        """Let an alias name the version that it named before; needs an admin key."""
        return self._fetch(routes.rollback(model, alias))

    def delete_alias(self, model: str, alias: str) -> AliasChange:
        return self._fetch(routes.delete_alias(model, alias))

    def drift(self, model: str, version: int | None = None) -> dict[str, Any]:
        """Live rows against those of training, as ``GET /models/{model}/drift`` has it."""
        return self._fetch(routes.drift(model, version))

    def metrics(self) -> str:
        """All metrics in Prometheus' text format."""
        reply = self._drive(self._connection.exchange(routes.metrics()))
        return reply.body.decode()

    def _fetch(self, route: Route[T]) -> T:
        return route.result(self._drive(self._connection.exchange(route.request)))

    # --- doing it ---

    def _drive(self, flow: Flow[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                outcome = None
            else:
                outcome = self._send(step)

    def _send(self, step: Request) -> Reply | Broken:
        answering = False
        request = self._http.build_request(**request_arguments(step))
        try:
            response = self._http.send(request, stream=True)
            answering = True
            try:
                return reply_of(response, response.read())
            finally:
                response.close()
        except httpx.TransportError as error:
            return broken(error, answering=answering)
