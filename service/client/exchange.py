"""The transport that retries: what is sent, what may be tried again, and when it is too late. Does no I/O itself.

A flow is a generator that yields the steps below and is sent their outcomes. ``Client`` and ``AsyncClient`` differ only
in how they take these steps.
"""

import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from service.client.errors import ServiceError, Unreachable, error_of, without_answer
from service.errors import DeadlineExceeded

MIN_TIMEOUT_S = 0.001


@dataclass(frozen=True, slots=True)
class Request:
    """A step: one attempt. Its outcome is ``Received`` or ``Broken``."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    timeout_s: float = math.inf
    """For this attempt."""
    repeatable: bool = True
    """Whether doing it twice is as good as doing it once."""


@dataclass(frozen=True, slots=True)
class Received:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Broken:
    """An attempt without a whole answer."""

    error: Exception
    timed_out: bool = False
    connected: bool = True
    """Whether the request may have reached the service."""
    answering: bool = False
    """Whether a part of the answer had come."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A step: nothing happens for a while."""

    seconds: float


class Task(Protocol):
    """A flow that is under way: ``concurrent.futures.Future`` or ``asyncio.Task``."""

    def done(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Start:
    """A step: another flow is begun beside this one. Its outcome is a ``Task``."""

    flow: "Flow[Any]"


@dataclass(frozen=True, slots=True)
class Join:
    """A step: wait for a task. Its outcome is what the task's flow returned."""

    task: Task


@dataclass(frozen=True, slots=True)
class Next:
    """A step: read from an iterator, which may be asynchronous. Its outcome is the next value, or ``END``."""

    values: Iterator[Any] | AsyncIterator[Any]


@dataclass(frozen=True, slots=True)
class Give:
    """A step: hand a result to the caller, of several."""

    result: Any


T = TypeVar("T")
END: Final = object()
Step: TypeAlias = Request | Pause | Start | Join | Next | Give
Flow: TypeAlias = Generator[Step, Any, T]


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


@dataclass(frozen=True)
class Transport:
    """How all requests of one client are sent."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    request_timeout_s: float = 30.0
    """For each attempt."""

    def timed(self, request: Request, deadline: Deadline = NO_DEADLINE) -> Request:
        """The request of one attempt, which the service is told the end of."""
        timeout_s = max(MIN_TIMEOUT_S, min(self.request_timeout_s, deadline.left_s))
        headers = {**request.headers, "X-Timeout-Ms": str(max(1, round(timeout_s * 1000)))}
        return replace(request, timeout_s=timeout_s, headers=headers)

    def exchange(self, request: Request, deadline: Deadline = NO_DEADLINE) -> Flow[Received]:
        """Send a request until it is answered, or ``deadline`` has passed.

        Raises:
            ServiceError: the last one, once there is no point or no time for another attempt.
        """
        if deadline.left_s <= 0:
            raise without_answer(DeadlineExceeded, "The deadline passed before everything was sent.")
        for attempt in itertools.count(1):
            outcome: Received | Broken = yield self.timed(request, deadline)
            if isinstance(outcome, Received) and outcome.status < 400:
                return outcome
            error, again = _judged(outcome, request)
            error.attempts = attempt
            wait_s = self.policy.wait_s(error, attempt) if again else None
            if wait_s is None or wait_s >= deadline.left_s:
                raise error from (outcome.error if isinstance(outcome, Broken) else None)
            yield Pause(wait_s)
        raise AssertionError  # pragma: no cover - the loop has no end


def _judged(outcome: Received | Broken, request: Request) -> tuple[ServiceError, bool]:
    """What a failed attempt means, and whether another may succeed."""
    if isinstance(outcome, Received):
        error = error_of(outcome.status, outcome.headers, outcome.body)
        return error, outcome.status in (429, 503)
    if outcome.answering:
        return without_answer(Unreachable, "The connection broke in the middle of the answer."), False
    if outcome.timed_out and outcome.connected:
        return without_answer(DeadlineExceeded, "The service did not answer in time."), False
    sentence = (
        "The connection broke before an answer came."
        if outcome.connected
        else f"The service cannot be reached: {outcome.error or type(outcome.error).__name__}."
    )
    return without_answer(Unreachable, sentence), request.repeatable or not outcome.connected
