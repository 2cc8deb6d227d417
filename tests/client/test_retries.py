"""What is tried again, how long, and what a call ends with. The services are scripts."""

import email.utils
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from service.client import (
    Client,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidRows,
    MalformedInput,
    ModelFailed,
    NotAcceptable,
    NotFound,
    QueueFull,
    RetryPolicy,
    ServiceError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unreachable,
    UnsupportedMediaType,
)
from service.client.transport import BlockingBackend, Deadline, Request, Transport, blocking
from service.errors import AutoencoderError
from tests.client.conftest import Script, breaks, refused, scored

ROWS = np.ones((3, 2), np.float32)
REQUEST = Request("POST", "/encode")
STEADY = RetryPolicy(attempts=4, backoff_s=1.0, max_backoff_s=3.0, random=lambda: 0.5)


class Scripted(BlockingBackend):
    """Gives answers that a test wrote, and notes the pauses instead of making them."""

    def __init__(self, answers: list[httpx.Response]) -> None:
        self.answers, self.pauses = answers, list[float]()

    async def send(self, request: Request) -> httpx.Response:
        return self.answers.pop(0)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def pauses(answers: list[httpx.Response], policy: RetryPolicy, *, timeout_s: float | None = None) -> list[float]:
    """How long a call waits between these answers."""
    backend = Scripted(answers)
    with suppress(ServiceError):
        blocking(Transport(backend, policy, 10).exchange(REQUEST, Deadline.after(timeout_s)))
    return backend.pauses


def full(retry_after: str | None = None) -> httpx.Response:
    return httpx.Response(429, headers={} if retry_after is None else {"Retry-After": retry_after}, content=b"{}")


def test_waits_double_and_are_random_up_to_a_bound() -> None:
    """Half of 1, 2 and 3 seconds with a coin that always says a half; then it gives up."""
    assert pauses([full()] * 4, STEADY) == [0.5, 1.0, 1.5]
    assert pauses([full()] * 4, RetryPolicy(attempts=4, random=lambda: 0.0)) == [0.0, 0.0, 0.0]


def test_retry_after_is_honoured() -> None:
    """Seconds or a date; the random part comes on top, so that not all come back at once; nonsense is nothing."""
    assert pauses([full("2"), full("0.5"), httpx.Response(200)], STEADY) == [2.5, 1.5]
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert pauses([full(date), httpx.Response(200)], STEADY)[0] == pytest.approx(30, abs=1.5)
    assert pauses([full("soon"), httpx.Response(200)], STEADY) == [0.5]


def test_no_wait_beyond_the_deadline_or_patience() -> None:
    """The error comes at once where the wait would be in vain."""
    assert pauses([full("20")], STEADY, timeout_s=10) == []
    assert pauses([full("3600")], STEADY) == []


@pytest.mark.parametrize(
    "failure",
    [
        refused(429, Retry_After="0"),
        refused(503),
        breaks(httpx.ConnectError("refused")),
        breaks(httpx.ConnectTimeout("slow")),
        breaks(httpx.ReadError("reset")),
        breaks(httpx.RemoteProtocolError("closed")),
        breaks(httpx.WriteError("closed")),
    ],
)
def test_what_passes_is_tried_again(failure: Callable[[httpx.Request], httpx.Response]) -> None:
    """Refusals for the moment, and connections that break before an answer."""
    script = Script(failure, failure, scored)
    with script.client() as client:
        assert client.anomaly_score(ROWS).version == 1
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, MalformedInput),
        (401, Unauthenticated),
        (403, Forbidden),
        (404, NotFound),
        (406, NotAcceptable),
        (409, Conflict),
        (413, TooLarge),
        (415, UnsupportedMediaType),
        (422, InvalidRows),
        (500, ModelFailed),
        (504, DeadlineExceeded),
        (418, ServiceError),
    ],
)
def test_each_refusal_has_its_class_and_is_final(status: int, kind: type[AutoencoderError]) -> None:
    """One request, then the typed error with the problem."""
    script = Script(refused(status))
    with script.client() as client, pytest.raises(ServiceError) as caught:
        client.anomaly_score(ROWS[:1])
    assert isinstance(caught.value, kind)
    assert type(caught.value).__name__ == kind.__name__
    assert (caught.value.status, caught.value.request_id, caught.value.attempts) == (status, "r1", 1)
    assert "It is so." in str(caught.value)
    assert len(script.requests) == 1


def test_errors_can_be_sent_to_other_processes() -> None:
    """They keep their class, problem and rows; unknown statuses too."""
    script = Script(refused(429, Retry_After="0"), refused(418))
    with script.client(retry=RetryPolicy(attempts=1)) as client:
        for kind in (QueueFull, ServiceError):
            with pytest.raises(kind) as caught:
                client.anomaly_score(ROWS)
            sent = pickle.loads(pickle.dumps(caught.value))
            assert (type(sent), str(sent), vars(sent)) == (type(caught.value), str(caught.value), vars(caught.value))


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(refused(429), QueueFull), (refused(503), Unavailable), (breaks(httpx.ConnectError("no")), Unreachable)],
)
def test_the_last_error_is_raised(failure: Any, kind: type[AutoencoderError]) -> None:
    """After all attempts, saying how many."""
    script = Script(failure)
    with script.client(retry=RetryPolicy(attempts=3, backoff_s=0.001)) as client, pytest.raises(ServiceError) as caught:
        client.anomaly_score(ROWS)
    assert isinstance(caught.value, kind)
    assert caught.value.attempts == len(script.requests) == 3
    assert "tried 3 times" in str(caught.value)
    if kind is Unreachable:
        assert isinstance(caught.value.__cause__, httpx.ConnectError)


def test_what_changes_something_is_not_done_twice() -> None:
    """A promotion whose answer was lost may have happened; one that was never sent is tried again."""
    script = Script(breaks(httpx.ReadError("reset")))
    with script.client() as client, pytest.raises(Unreachable):
        client.promote("pumps", 2)
    assert len(script.requests) == 1
    changed = {"model": "pumps", "alias": "production", "version": 2, "previous": 1, "serving": 2}
    script = Script(breaks(httpx.ConnectError("no")), lambda _: httpx.Response(200, json=changed))
    with script.client() as client:
        assert client.promote("pumps", 2).previous == 1


def test_a_broken_answer_is_an_error() -> None:
    """Something had come: it is not asked again behind the caller's back."""

    class Half(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            yield b"half"
            raise httpx.ReadError("reset")

    script = Script(lambda _: httpx.Response(200, stream=Half()))
    with script.client() as client, pytest.raises(Unreachable, match="middle of the answer"):
        client.anomaly_score(ROWS)
    assert len(script.requests) == 1


def test_deadlines_are_passed_on_and_shrink() -> None:
    """X-Timeout-Ms is what is left of the call's time, or a request's own timeout where that is less."""
    script = Script(refused(429, Retry_After="0.2"), scored)
    with script.client(request_timeout_s=5) as client:
        client.anomaly_score(ROWS, timeout_s=2)
        client.anomaly_score(ROWS)
    first, second, third = (int(request.headers["X-Timeout-Ms"]) for request in script.requests)
    assert first == pytest.approx(2000, abs=100)
    assert second == pytest.approx(1800, abs=150)
    assert third == 5000


def test_a_call_ends_with_its_deadline() -> None:
    """However many attempts are left, with the last refusal."""
    script = Script(refused(503, Retry_After="0"))
    started = time.monotonic()
    with script.client(retry=RetryPolicy(attempts=10**6, backoff_s=0.02)) as client, pytest.raises(Unavailable):
        client.anomaly_score(ROWS, timeout_s=0.3)
    assert time.monotonic() - started < 1
    assert len(script.requests) > 2


def test_no_answer_in_time_is_a_deadline() -> None:
    """Not tried again: it was the whole time."""
    script = Script(breaks(httpx.ReadTimeout("slow")))
    with script.client() as client, pytest.raises(DeadlineExceeded, match="in time") as caught:
        client.anomaly_score(ROWS)
    assert isinstance(caught.value, ServiceError)
    assert caught.value.status is None
    assert len(script.requests) == 1


def test_all_parts_name_the_version_of_the_first() -> None:
    """A service that answers with another one all the same is an error, not a mixture."""
    script = Script(lambda request: scored(request, version=7))
    rows = np.ones((40_000, 2), np.float32)
    with script.client() as client:
        assert client.anomaly_score(rows, model="pumps").version == 7
    assert [request.url.path for request in script.requests[:2]] == [
        "/models/pumps/anomaly-score",
        "/models/pumps/versions/7/anomaly-score",
    ]
    script = Script(scored, lambda request: scored(request, version=2))
    with script.client() as client, pytest.raises(Conflict, match="Another version"):
        client.anomaly_score(rows)


def _bad_gateway(body: bytes, _request: httpx.Request) -> httpx.Response:
    return httpx.Response(502, content=body)


def test_what_a_proxy_answers_is_an_error_too() -> None:
    """HTML, JSON of another kind, nothing."""
    for body in (b"<html>secret</html>", b'"text"', b"[]", b""):
        script = Script(partial(_bad_gateway, body))
        with script.client() as client, pytest.raises(ServiceError, match="before it") as caught:
            client.anomaly_score(ROWS)
        assert caught.value.status == 502
        assert "secret" not in str(caught.value)


def test_other_parts_stop_after_an_error() -> None:
    """Of a hundred parts only those under way are still sent."""
    script = Script(scored, refused(500))
    with script.client() as client, pytest.raises(ModelFailed):
        client.anomaly_score(np.ones((100 * 16_384, 2), np.float32))
    assert len(script.requests) < 12


@pytest.mark.parametrize(("url", "compressed"), [("http://service", True), ("http://127.0.0.1:1", False)])
def test_bodies_are_compressed_where_it_pays(url: str, compressed: bool) -> None:
    """Not to this machine, and not numbers that hardly get smaller."""
    script = Script(refused(500))
    repeated = np.ones((20_000, 2), np.float32)
    noise = np.random.default_rng(0).normal(size=(20_000, 2)).astype(np.float32)
    with Client(url, transport=httpx.MockTransport(script)) as client:
        for rows in (repeated, noise):
            with pytest.raises(ModelFailed):
                client.anomaly_score(rows)
    encodings = [request.headers.get("Content-Encoding") for request in script.requests]
    assert encodings == (["zstd", None] if compressed else [None, None])
    assert ("zstd" in script.requests[0].headers["Accept-Encoding"]) == compressed
