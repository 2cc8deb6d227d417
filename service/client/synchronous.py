"""The blocking client. Everything but the waiting is in the modules beside it, which ``AsyncClient`` shares."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from service.client.calls import KINDS
from service.client.exchange import END, Broken, Flow, Give, Join, Next, Pause, Received, Request, Start
from service.client.http import broken, httpx, received, request_arguments
from service.client.methods import ClientMethods
from service.client.progress import reporting
from service.words import OperationName

T = TypeVar("T")


class Client(ClientMethods):
    """One service, one connection pool; any number of threads. Use it as a context manager or ``close`` it."""

    def _open(self, **options: Any) -> None:
        self._http = httpx.Client(**options)
        self._threads = ThreadPoolExecutor(
            self._concurrency, thread_name_prefix="autoencoder-client"
        )  # none until used

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    def stream(self, operation: OperationName, batches: Iterable[Any], **options: Any) -> Iterator[Any]:
        """The result of each batch, in order, while ``batches`` is read: at most ``concurrency`` parts are in memory.

        ``operation`` is the name of one of the four methods, ``options`` are its own. All batches are answered by the
        version that answered the first. Rows in errors are counted within their batch.
        """
        call = self._call(KINDS[operation], options)
        with reporting(options.get("progress", False), None) as call.advance:
            for result in self._outcomes(call.results(iter(batches))):
                if result is not None:
                    yield result

    def _drive(self, flow: Flow[T]) -> T:
        *_, last = self._outcomes(flow)
        return last

    def _outcomes(self, flow: Flow[T]) -> Iterator[T]:
        """What a flow gives, and at its end what it returns."""
        under_way: set[Future[Any]] = set()
        outcome: Any = None
        try:
            while True:
                try:
                    step = flow.send(outcome)
                except StopIteration as end:
                    yield end.value
                    return
                match step:
                    case Request():
                        outcome = self._send(step)
                    case Pause():
                        time.sleep(step.seconds)
                        outcome = None
                    case Start():
                        outcome = self._threads.submit(self._drive, step.flow)
                        under_way.add(outcome)
                    case Join(task=Future() as task):
                        under_way.discard(task)
                        outcome = task.result()
                    case Next(values=Iterator() as values):
                        outcome = next(values, END)
                    case Give():
                        yield step.result
                        outcome = None
        finally:
            for task in under_way:
                task.cancel()
            flow.close()

    def _send(self, step: Request) -> Received | Broken:
        answering = False
        try:
            response = self._http.send(self._http.build_request(**request_arguments(step)), stream=True)
            answering = True
            try:
                return received(response, response.read())
            finally:
                response.close()
        except httpx.TransportError as error:
            return broken(error, answering=answering)
