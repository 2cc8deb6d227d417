"""Connections by hand: where the bodies and answers of requests that follow one another begin and end."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from service.api.connection import HEAD_BYTES, GuardedProtocol
from service.api.exchange import ALIGNED_BYTES, DIRECT, header_lines
from service.settings import Settings
from service.store import Store
from tests.api.processes import fakes, running
from tests.api.raw import RawConnection, chunk, connect, head
from tests.api.samples import assert_problem
from tests.fakes import load_fake, publish_fake
from tests.live import serve_live

MAX_BYTES = 8 * ALIGNED_BYTES
BODY_TIMEOUT_S = 1.0
SMALL = json.dumps({"instances": [[1.0, 2.0]]}).encode()


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service over fakes on each event loop: they hand data on in ways of their own."""
    store = tmp_path_factory.mktemp("fakes")
    publish_fake(Store(store))
    limits: dict[str, Any] = {"max_json_bytes": MAX_BYTES, "body_timeout_s": BODY_TIMEOUT_S}
    if request.param == "asyncio":
        with serve_live(Settings(store=store, port=0, **limits), load=load_fake) as service:
            yield service.url
    else:
        with running(fakes(store, **limits)) as process:
            yield process.url


def padded(rows: int, size: int) -> bytes:
    """The numbers 0, 1, ... as rows, in a body of ``size`` bytes."""
    body = json.dumps({"instances": [[float(row), 0.0] for row in range(rows)]}).encode()
    return body[:-1] + b" " * (size - len(body)) + b"}"


def request(body: bytes, path: str = "/encode", **headers: str) -> bytes:
    return head(path, Content_Type="application/json", Content_Length=str(len(body)), **headers) + body


def latents(connection: RawConnection) -> list[list[float]]:
    answer = connection.answer()
    assert answer.status_code == 200, answer.text
    found: list[list[float]] = answer.json()["latents"]
    return found


@pytest.mark.parametrize("size", [ALIGNED_BYTES - 1, ALIGNED_BYTES, 3 * ALIGNED_BYTES + 7, MAX_BYTES])
@pytest.mark.parametrize("piece", [2**24, 300_001, 65_536])
def test_a_large_body_and_the_request_behind_it(url: str, size: int, piece: int) -> None:
    """Sent in pieces of any size, with the next request in its last piece, and one more after the answers."""
    sent = request(padded(1000, size)) + request(SMALL)
    with connect(url) as connection:
        for at in range(0, len(sent), piece):
            connection.send(sent[at : at + piece])
        assert latents(connection) == [[float(row)] for row in range(1000)]
        assert latents(connection) == [[1.0]]
        connection.send(request(padded(3, 2 * ALIGNED_BYTES)))
        assert latents(connection) == [[0.0], [1.0], [2.0]]
        connection.send(head("/livez", method="GET"))
        assert connection.answer().status_code == 200


def test_the_head_alone_and_then_a_large_body(url: str) -> None:
    """With and without asking whether to go on."""
    sent = request(padded(2, ALIGNED_BYTES))
    begins = sent.index(b"\r\n\r\n") + 4
    with connect(url) as connection:
        connection.send(sent[:begins])
        time.sleep(0.05)
        connection.send(sent[begins : begins + 1])
        time.sleep(0.05)
        connection.send(sent[begins + 1 :])
        assert latents(connection) == [[0.0], [1.0]]
        connection.send(sent[: begins - 2] + b"Expect: 100-continue\r\n\r\n")
        assert connection.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(sent[begins:])
        assert latents(connection) == [[0.0], [1.0]]


def test_a_large_body_in_chunks(url: str) -> None:
    """Its length is not known, so it comes by the usual way."""
    body = padded(2, ALIGNED_BYTES)
    with connect(url) as connection:
        connection.send(head("/encode", Content_Type="application/json", Transfer_Encoding="chunked"))
        for at in range(0, len(body), 100_000):
            connection.send(chunk(body[at : at + 100_000]))
        connection.send(chunk(b"") + request(SMALL))
        assert latents(connection) == [[0.0], [1.0]]
        assert latents(connection) == [[1.0]]


def test_the_last_answer_of_a_connection_says_so(url: str) -> None:
    """After a large body as after a small one."""
    for body in (padded(2, ALIGNED_BYTES), SMALL):
        with connect(url) as connection:
            connection.send(request(body, Connection="close"))
            answer = connection.answer()
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert connection.is_closed()


def test_a_large_body_that_comes_too_late_is_passed_over(url: str) -> None:
    """It is refused by the deadline; the rest belongs to it, and the request behind it is answered."""
    sent = request(padded(2, 4 * ALIGNED_BYTES))
    with connect(url) as connection:
        connection.send(sent[: 2 * ALIGNED_BYTES])
        ends = time.monotonic() + BODY_TIMEOUT_S + 0.2
        at = 2 * ALIGNED_BYTES
        while time.monotonic() < ends:
            connection.send(sent[at : at + 1])
            at += 1
            time.sleep(0.02)
        assert_problem(connection.answer(), 504)
        connection.send(sent[at:] + request(SMALL))
        assert latents(connection) == [[1.0]]


def test_callers_who_leave_in_the_middle_of_a_large_body(url: str) -> None:
    """Others are answered as ever."""
    sent = request(padded(2, 4 * ALIGNED_BYTES))
    for cut in (1000, ALIGNED_BYTES, len(sent) - 1):
        with connect(url) as connection:
            connection.send(sent[:cut])
            time.sleep(0.05)
    with connect(url) as connection:
        connection.send(sent)
        assert latents(connection) == [[0.0], [1.0]]


def test_a_large_body_that_is_refused_leaves_the_connection_usable(url: str) -> None:
    """What is wrong with it is known only at its end."""
    body = padded(2, ALIGNED_BYTES)[:-1] + b"]"
    with connect(url) as connection:
        connection.send(request(body) + request(SMALL))
        assert_problem(connection.answer(), 400)
        assert latents(connection) == [[1.0]]


def sent_until_it_waits(connection: RawConnection, content: bytes, most: int) -> int:
    """How often ``content`` is taken before the service takes no more."""
    for count in range(most):
        try:
            connection.send(content)
        except TimeoutError:
            return count
    return most


def test_a_caller_who_does_not_read_is_not_answered_without_end(url: str) -> None:
    """The answers wait for room in the connection, and the requests for the answers."""
    body = json.dumps({"instances": [[0, 0]] * 500}).encode()
    with connect(url, timeout_s=1) as connection:
        connection.send(request(body, path="/reconstruct"))
        size = len(connection.answer().content)
        most = 100_000_000 // size
        assert 0 < sent_until_it_waits(connection, request(body, path="/reconstruct"), most) < most


@contextmanager
def served(app: Any, loop: Any) -> Iterator[str]:
    """An application on connections of this service; its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http=GuardedProtocol, loop=loop, lifespan="off", log_config=None)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_short_cuts_are_offered_and_taken(loop: Any) -> None:
    """The rest of a body comes into the memory that is given, in no message, and a whole answer goes out at once."""
    body, seen, held = bytes(range(256)) * 4096, list[Any](), list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        direct, first = scope["extensions"][DIRECT], (await receive())["body"]
        memory = bytearray(len(body) - len(first))
        seen.append((await direct.receive_into(memoryview(memory), held.append) == len(memory), first + memory == body))
        assert direct.answer(200, b"content-length: 2\r\n", b"ok")

    with served(app, loop) as url, connect(url) as connection:
        for _ in range(2):
            connection.send(request(body))
            assert connection.answer().content == b"ok"
    assert seen == [(True, True)] * 2
    assert sum(held) <= 2 * len(body)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_requests_that_are_sent_at_once_are_parsed_a_few_at_a_time(loop: Any) -> None:
    """The others wait in the kernel, and all are answered in their order."""
    one, count, waiting = head("/livez", method="GET"), 7000, list[int]()

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        direct = scope["extensions"][DIRECT]
        waiting.append(len(direct.pipeline))
        assert direct.answer(200, b"content-length: 4\r\n", b"%04d" % len(waiting))

    with served(app, loop) as url, connect(url) as connection:
        sending = threading.Thread(target=connection.send, args=(one * count,))
        sending.start()
        assert [int(connection.answer().content) for _ in range(count)] == list(range(1, count + 1))
        sending.join()
    assert 0 < max(waiting) <= HEAD_BYTES / len(one)


@pytest.mark.parametrize(("sent", "status"), [(b"GET / HTTP/1.1\r\nx: ", 431), (b"no request\r\n\r\n", 400)])
@pytest.mark.parametrize("before", [b"", head("/livez", method="GET")])
def test_a_refusal_arrives_although_much_was_sent_behind_it(url: str, before: bytes, sent: bytes, status: int) -> None:
    """Closing a connection over bytes that were not read would reset it."""
    for _ in range(20):
        with connect(url) as connection:
            connection.send(before + sent + b"y" * 100_000)
            time.sleep(0.02)
            if before:
                assert connection.answer().status_code == 200
            assert_problem(connection.answer(), status)
            assert connection.sock.recv(1) == b""


def test_no_header_holds_a_line_break() -> None:
    """Whatever made it: one header more would be somebody's to choose."""
    for field in (b"a\r\nset-cookie: b", b"a\nb", b"a\rb"):
        with pytest.raises(RuntimeError, match="line break"):
            header_lines([(b"x-b", b"c"), (b"x-a", field)])
