"""The client for asyncio: ``Client`` with ``await``. Both drive the same flows."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from service.client.calls import KINDS
from service.client.exchange import END, Broken, Flow, Give, Join, Next, Pause, Received, Request, Start
from service.client.http import broken, httpx, received, request_arguments
from service.client.methods import ClientMethods
from service.client.progress import reporting
from service.words import OperationName

T = TypeVar("T")


class AsyncClient(ClientMethods):
    """``Client`` for one event loop. Use it with ``async with`` or ``await close()``."""

    def _open(self, **options: Any) -> None:
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def stream(
        self, operation: OperationName, batches: Iterable[Any] | AsyncIterable[Any], **options: Any
    ) -> AsyncIterator[Any]:
        """As ``Client.stream``; ``batches`` may be asynchronous."""
        call = self._call(KINDS[operation], options)
        values = aiter(batches) if isinstance(batches, AsyncIterable) else iter(batches)
        with reporting(options.get("progress", False), None) as call.advance:
            async with aclosing(self._outcomes(call.results(values))) as results:
                async for result in results:
                    if result is not None:
                        yield result

    async def _drive(self, flow: Flow[T]) -> T:
        async with aclosing(self._outcomes(flow)) as outcomes:
            return [outcome async for outcome in outcomes][-1]

    async def _outcomes(self, flow: Flow[T]) -> AsyncGenerator[T]:
        """What a flow gives, and at its end what it returns."""
        under_way: set[asyncio.Task[Any]] = set()
        outcome: Any = None
        try:
            while True:
                # Large parts take a while to encode and to read: not on the event loop.
                step, ended = await asyncio.to_thread(_advance, flow, outcome)
                if ended:
                    yield step
                    return
                match step:
                    case Request():
                        outcome = await self._send(step)
                    case Pause():
                        await asyncio.sleep(step.seconds)
                        outcome = None
                    case Start():
                        outcome = asyncio.create_task(self._drive(step.flow))
                        under_way.add(outcome)
                    case Join(task=asyncio.Task() as task):
                        outcome = await task
                        under_way.discard(task)
                    case Next(values=AsyncIterator() as values):
                        outcome = await anext(values, END)
                    case Next(values=Iterator() as values):
                        outcome = next(values, END)
                    case Give():
                        yield step.result
                        outcome = None
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            with suppress(ValueError):  # cancelled while a thread advances it: it is closed with its last reference
                flow.close()

    async def _send(self, step: Request) -> Received | Broken:
        answering = False
        try:
            response = await self._http.send(self._http.build_request(**request_arguments(step)), stream=True)
            answering = True
            try:
                return received(response, await response.aread())
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            return broken(error, answering=answering)


def _advance(flow: Flow[Any], outcome: Any) -> tuple[Any, bool]:
    """A flow's next step, or its result, and whether it ended. StopIteration cannot pass through a future."""
    try:
        return flow.send(outcome), False
    except StopIteration as end:
        return end.value, True
