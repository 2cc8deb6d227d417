"""How requests are sent: compressed where it pays, tried again where that helps, never beyond the call's deadline.

Everything is written once, as coroutines over a ``Backend``. ``AsyncClient`` runs them on an event loop. ``Client`` has
a backend that blocks: its coroutines never suspend, and ``blocking`` runs them as plain functions.
"""

import asyncio
import ipaddress
import itertools
import math
import random
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from service.client.errors import ServiceError, Unreachable, error_of, without_answer
from service.errors import DeadlineExceeded

try:
    import httpx2 as httpx
except ImportError:  # pragma: no cover - the maintained fork is preferred, its ancestor will do
    import httpx  # type: ignore[import-not-found, no-redef, unused-ignore]

zstd: ModuleType | None
try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError:
    zstd = None

MIN_TIMEOUT_S = 0.001
GRACE_S = 0.25
"""The service knows the deadline too and says so best: its own refusal may come this much later."""
MIN_COMPRESSED_BYTES = 16 * 2**10
SAMPLE_BYTES = 64 * 2**10
WORTH_IT = 0.75
"""Share of its size that a sample must shrink to. Numbers of full precision do not; categories and round numbers do."""

T = TypeVar("T")
END: Final = object()
Compression = Literal["auto", "none", "gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    timeout_s: float = math.inf
    """For one attempt."""
    repeatable: bool = True
    """Whether doing it twice is as good as doing it once."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When something is tried again: no connection, a connection that broke before any answer, 429 and 503.

    The wait doubles from ``backoff_s`` to ``max_backoff_s`` and is random below that; a Retry-After comes on top.
    """

    attempts: int = 5
    backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    max_retry_after_s: float = 60.0
    """A service that asks for more patience than this is not waited for."""
    random: Callable[[], float] = field(default=random.random, repr=False)
    """Uniform on [0, 1)."""

    def wait_s(self, error: ServiceError, attempt: int) -> float | None:
        """How long to wait after the ``attempt``-th failure (from 1); None to give up."""
        asked = error.retry_after_s
        if attempt >= self.attempts or asked > self.max_retry_after_s:
            return None
        return asked + self.random() * min(self.max_backoff_s, self.backoff_s * 2.0 ** (attempt - 1))


@dataclass(frozen=True, slots=True)
class Deadline:
    """An instant of the monotonic clock; math.inf for none."""

    at: float

    @classmethod
    def after(cls, timeout_s: float | None) -> "Deadline":
        return cls(math.inf if timeout_s is None else time.monotonic() + timeout_s)

    @property
    def left_s(self) -> float:
        return self.at - time.monotonic()


NO_DEADLINE = Deadline(math.inf)


# --- waiting ----------------------------------------------------------------------------------------------------------


class BrokenAnswer(Exception):
    """The connection broke in the middle of an answer; ``__cause__`` says why."""


def blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over a ``BlockingBackend``, which never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("A blocking client waited for an event loop.")


class BlockingBackend:
    """Waits by blocking the calling thread. This and ``LoopBackend`` are all in which the two clients differ."""

    def __init__(self, concurrency: int, **options: Any) -> None:
        self.http = httpx.Client(**options)
        self.threads = ThreadPoolExecutor(concurrency, thread_name_prefix="autoencoder-client")  # none until used

    async def send(self, request: Request) -> "httpx.Response":
        """The whole answer. Raises httpx.TransportError, or BrokenAnswer once the answer had begun."""
        response = self.http.send(_built(self.http, request), stream=True)
        try:
            response.read()
        except httpx.TransportError as error:
            raise BrokenAnswer from error
        finally:
            response.close()
        return response

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - this is the blocking one

    async def compute(self, work: Callable[[], T]) -> T:
        """The result of a function that may take a while."""
        return work()

    async def next(self, values: Any) -> Any:
        """The next value of an iterator, or ``END``."""
        return next(values, END)

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> "Future[T]":
        """Run a coroutine beside this one."""
        return self.threads.submit(lambda: blocking(work()))

    async def join(self, task: Any) -> Any:
        """Wait for a task and return its result."""
        return task.result()

    async def abandon(self, tasks: Sequence[Any]) -> None:
        """Cancel tasks that nobody waits for any more."""
        for task in tasks:
            task.cancel()


class LoopBackend:
    def __init__(self, **options: Any) -> None:
        self.http = httpx.AsyncClient(**options)

    async def send(self, request: Request) -> "httpx.Response":
        response = await self.http.send(_built(self.http, request), stream=True)
        try:
            await response.aread()
        except httpx.TransportError as error:
            raise BrokenAnswer from error
        finally:
            await response.aclose()
        return response

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def compute(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def next(self, values: Any) -> Any:
        return await anext(values, END) if isinstance(values, AsyncIterator) else next(values, END)

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> "asyncio.Task[T]":
        return asyncio.create_task(work())

    async def join(self, task: Any) -> Any:
        return await task

    async def abandon(self, tasks: Sequence[Any]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Backend: TypeAlias = BlockingBackend | LoopBackend


def _built(http: Any, request: Request) -> Any:
    return http.build_request(
        request.method,
        request.path,
        params=dict(request.query),
        headers=dict(request.headers),
        content=request.body,
        timeout=httpx.Timeout(request.timeout_s + GRACE_S),
    )


# --- trying again -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transport:
    """How all requests of one client are sent."""

    backend: Backend
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    request_timeout_s: float = 30.0
    """For each attempt."""

    async def attempt(self, request: Request, deadline: Deadline) -> "httpx.Response":
        """Send a request once; the service is told the time that it has. Raises as ``Backend.send``."""
        timeout_s = max(MIN_TIMEOUT_S, min(self.request_timeout_s, deadline.left_s))
        headers = {**request.headers, "X-Timeout-Ms": str(max(1, round(timeout_s * 1000)))}
        return await self.backend.send(replace(request, timeout_s=timeout_s, headers=headers))

    async def first_answer(self, request: Request) -> "httpx.Response | None":
        """The answer to one attempt, whatever its status; None where none came."""
        try:
            return await self.attempt(request, NO_DEADLINE)
        except (httpx.TransportError, BrokenAnswer):
            return None

    async def exchange(self, request: Request, deadline: Deadline = NO_DEADLINE) -> "httpx.Response":
        """Send a request until it is answered, or ``deadline`` has passed.

        Raises:
            ServiceError: the last one, once there is no point or no time for another attempt.
        """
        if deadline.left_s <= 0:
            raise without_answer(DeadlineExceeded, "The deadline passed before everything was sent.")
        for attempt in itertools.count(1):
            cause = None
            try:
                response = await self.attempt(request, deadline)
                if response.status_code < 400:
                    return response
                error = error_of(response.status_code, response.headers, response.content)
                is_passing = response.status_code in (429, 503)
            except BrokenAnswer as broken:
                cause, is_passing = broken.__cause__, False
                error = without_answer(Unreachable, "The connection broke in the middle of the answer.")
            except httpx.TransportError as broken:
                cause = broken
                error, is_passing = _unanswered(broken, request)
            error.attempts = attempt
            wait_s = self.policy.wait_s(error, attempt) if is_passing else None
            if wait_s is None or wait_s >= deadline.left_s:
                raise error from cause
            await self.backend.pause(wait_s)
        raise AssertionError  # pragma: no cover - the loop has no end


def _unanswered(error: Exception, request: Request) -> tuple[ServiceError, bool]:
    """The error of an attempt that no answer came to, and whether another attempt may succeed."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):  # the service never saw it
        sentence = f"The service cannot be reached: {error or type(error).__name__}."
        return without_answer(Unreachable, sentence), True
    if isinstance(error, httpx.TimeoutException):
        return without_answer(DeadlineExceeded, "The service did not answer in time."), False
    return without_answer(Unreachable, "The connection broke before an answer came."), request.repeatable


# --- compression ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BodyCompression:
    """Compresses request bodies where that saves time: not to this machine, and not those that hardly get smaller."""

    mode: Compression
    local: bool
    """Whether the service is on this machine, where bytes cost less than compressing them."""

    @classmethod
    def to(cls, url: str, mode: Compression) -> "BodyCompression":
        if mode not in ("auto", "none", "gzip", "zstd"):
            raise ValueError("compression must be auto, none, gzip or zstd.")
        if mode == "zstd" and zstd is None:
            raise ValueError("compression='zstd' needs backports-zstd: pip install backports-zstd.")
        host = urlsplit(url).hostname or ""
        with suppress(ValueError):  # a name
            return cls(mode, ipaddress.ip_address(host).is_loopback)
        return cls(mode, host == "localhost")

    @property
    def accepted(self) -> str | None:
        """Accept-Encoding of requests; None leaves it to the HTTP library, which knows what it can read."""
        if self.mode == "none" or (self.mode == "auto" and self.local):
            return "identity"
        return None if self.mode == "auto" else self.mode

    def compress(self, content: bytes) -> tuple[bytes, str | None]:
        """The body to send and its Content-Encoding."""
        if self.mode == "none" or (self.mode == "auto" and (self.local or len(content) < MIN_COMPRESSED_BYTES)):
            return content, None
        encoding = self.mode if self.mode != "auto" else "gzip" if zstd is None else "zstd"
        if self.mode == "auto":
            sample = content[:SAMPLE_BYTES]
            if len(_compressed(sample, encoding)) > WORTH_IT * len(sample):
                return content, None
        return _compressed(content, encoding), encoding


def _compressed(content: bytes, encoding: str) -> bytes:
    if encoding == "zstd" and zstd is not None:
        return bytes(zstd.compress(content, level=1))
    return zlib.compress(content, level=1, wbits=31)
