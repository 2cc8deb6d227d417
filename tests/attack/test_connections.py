"""Callers who take connections and send little or nothing on them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.api.raw import RawConnection, connect, head
from tests.api.samples import assert_problem
from tests.attack.caller import ROW
from tests.attack.conftest import CALLER_TIMEOUT_S, Target, attacked
from tests.attack.test_memory import flood

MOST = 64
PROBES = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A service that may have few connections."""
    with attacked(tmp_path_factory.mktemp("small"), max_connections=MOST) as (target, _):
        yield target


def scored(connection: RawConnection) -> None:
    body = head("/encode", Content_Type="application/json", Content_Length=str(len(ROW))) + ROW
    connection.send(body)
    assert connection.answer().json()["latents"] == [[1.0]]


def nothing(_connection: RawConnection) -> None:
    pass


def half_a_head(connection: RawConnection) -> None:
    connection.send(b"POST /encode HTTP/1.1\r\nHost: test\r\n")


@pytest.mark.parametrize("begin", [scored, nothing, half_a_head])
def test_idle_connections_make_room(small: Target, begin: Callable[[RawConnection], None]) -> None:
    """The one that has been idle for the longest time, for each new one; the others stay."""
    with ExitStack() as stack:
        idle = []
        for _ in range(3 * MOST):
            idle.append(stack.enter_context(connect(small.url)))
            begin(idle[-1])
            assert not small.score()  # not beside this: a caller who has sent nothing yet is an idle one too
        assert idle[0].is_closed()
        rest = head("/livez", method="GET") if begin is not half_a_head else b"Content-Length: 0\r\n\r\n"
        idle[-1].send(rest)
        assert idle[-1].answer().status_code in (200, 400)


def test_probes_are_answered_while_no_connection_is_idle(small: Target) -> None:
    """Every one that may be there sends a body. Others are told so, and their connections end."""
    begun = head("/encode", Content_Type="application/json", Content_Length=str(len(ROW))) + ROW[:-1]
    with ExitStack() as stack:
        busy = [stack.enter_context(connect(small.url)) for _ in range(MOST)]
        for connection in busy:
            connection.send(begun)
        time.sleep(0.3)  # until they are no idle ones
        for _ in range(3):
            for path in PROBES:
                with connect(small.url) as probe:
                    probe.send(head(path, method="GET"))
                    answer = probe.answer()
                    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            with connect(small.url) as other:
                other.send(head("/encode", Content_Type="application/json", Content_Length=str(len(ROW))) + ROW)
                assert_problem(other.answer(), 503)
                assert other.is_closed()
        for connection in busy:
            connection.send(ROW[-1:])
            assert json.loads(connection.answer().content)["latents"] == [[1.0]]


def test_a_caller_who_ends_its_sending_side_has_left(target: Target) -> None:
    """Its connection is closed: nothing tells it from one who went away, for whom no work is to be done."""
    stream = head("/encode", Content_Type="application/x-ndjson", Transfer_Encoding="chunked") + b"7\r\n[1, 2]\n\r\n"
    with target.withstands():
        for sent in (b"", b"POST /encode HT", stream):
            with connect(target.url) as connection:
                connection.send(sent)
                connection.sock.shutdown(1)
                while connection.sock.recv(1000):
                    pass


def slowly(piece: bytes) -> Iterator[bytes]:
    """A piece again and again, for longer than any answer takes."""
    ends = time.monotonic() + CALLER_TIMEOUT_S
    while time.monotonic() < ends:
        yield piece
        time.sleep(0.1)


@pytest.mark.parametrize(("path", "size"), [("/models/none/encode", 1000), ("/encode", 1000), ("/encode", 2 * 2**20)])
def test_a_body_that_is_read_past_does_not_trickle_for_ever(
    attack: Callable[..., Target], path: str, size: int
) -> None:
    """Behind an answer that came before it, and behind one for a body that was late."""
    target = attack(body_timeout_s=1.0)
    with connect(target.url) as connection:
        begun = head(path, Content_Type="application/x-npy", Content_Length=str(size), X_Timeout_Ms="200")
        connection.send(begun + b"\x93NUMPY")
        assert connection.answer().status_code in (404, 504)
        assert flood(connection, slowly(b"x"))


def test_thousands_of_requests_in_one_packet(target: Target) -> None:
    """From several callers who take their answers late: others are served between them."""
    one, count = head("/livez", method="GET"), 7000
    with target.withstands(), ExitStack() as stack:
        callers = [stack.enter_context(connect(target.url)) for _ in range(5)]
        senders = [threading.Thread(target=caller.send, args=(one * count,)) for caller in callers]
        for sender in senders:
            sender.start()
        for caller in callers:
            assert {caller.answer().status_code for _ in range(count)} == {200}
        for sender in senders:
            sender.join()
