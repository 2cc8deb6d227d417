"""Bodies as they arrive, piece by piece."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from starlette.types import Message

from service.api.exchange import ALIGNED_BYTES, DIRECT, CallerLeft, Exchange, Reception, header_lines
from service.errors import TooLarge


class FakeDirect:
    """A server that receives into the memory that it is given, and sends whole answers if it ``answers``."""

    def __init__(self, rest: bytes, *, answers: bool = False) -> None:
        self.rest = rest
        self.answers = answers
        self.answered: list[tuple[int, bytes, bytes]] = []

    async def receive_into(self, memory: memoryview, hold: Callable[[int], None]) -> int:
        hold(len(self.rest))
        memory[: len(self.rest)] = self.rest
        return len(self.rest)

    def whole_body(self) -> bytes | None:
        return None

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        if self.answers:
            self.answered.append((status, lines, body))
        return self.answers


def exchange_of(
    pieces: list[bytes], *, announced: int, direct: FakeDirect | None = None, sent: list[Message] | None = None
) -> tuple[Exchange, Reception]:
    """A request whose body comes in ``pieces``."""
    left: Iterator[bytes] = iter(pieces)

    async def receive() -> Message:
        piece = next(left, b"")
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def send(message: Message) -> None:
        assert sent is not None, "nothing is answered here"
        sent.append(message)

    reception = Reception(2**30, body_timeout_s=5)
    headers = [(b"content-length", b"%d" % announced)]
    extensions = {DIRECT: direct} if direct else {}
    scope = {"type": "http", "headers": headers, "extensions": extensions}
    return Exchange(scope, receive, send, reception), reception


def pieces_of(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


@pytest.mark.parametrize("size", [ALIGNED_BYTES, ALIGNED_BYTES + 12345])
async def test_a_large_array_is_received_where_tensorflow_takes_it_without_a_copy(size: int) -> None:
    """All bytes of it, and the array in it at an address that is a multiple of 64."""
    body = np.random.default_rng(0).bytes(size)
    exchange, _ = exchange_of(pieces_of(body, 70_001), announced=size)
    received = await exchange.body(2 * size, begins=lambda head: head.index(body[360:370]))
    assert received == body
    assert (np.frombuffer(received, np.uint8).ctypes.data + 360) % 64 == 0


async def test_small_bodies_and_those_of_unknown_length_are_handed_on_as_they_are() -> None:
    """In one piece without a copy."""
    small, large = b"x" * 1000, b"y" * ALIGNED_BYTES
    for piece, announced in ((small, len(small)), (large, 0)):
        exchange, _ = exchange_of([piece], announced=announced)
        assert await exchange.body(ALIGNED_BYTES) == piece


async def test_a_body_longer_than_announced_is_refused_and_one_that_is_shorter_ends_there() -> None:
    """Whatever the server in front lets through."""
    exchange, _ = exchange_of(pieces_of(bytes(ALIGNED_BYTES + 1), 2**16), announced=ALIGNED_BYTES)
    with pytest.raises(TooLarge, match="Content-Length"):
        await exchange.body(2 * ALIGNED_BYTES)
    exchange, _ = exchange_of([b"short"], announced=ALIGNED_BYTES)
    assert await exchange.body(2 * ALIGNED_BYTES) == b"short"


@pytest.mark.parametrize("first", [1, 400, 70_000, ALIGNED_BYTES])
async def test_a_server_that_can_receives_the_rest_where_it_belongs(first: int) -> None:
    """After the first piece, which says where the array begins. What the server leaves out never came."""
    body = np.random.default_rng(1).bytes(ALIGNED_BYTES)
    direct = FakeDirect(body[first:])
    exchange, reception = exchange_of([body[:first]], announced=len(body), direct=direct)
    received = await exchange.body(2 * ALIGNED_BYTES, begins=lambda _head: 100)
    assert received == body
    assert (np.frombuffer(received, np.uint8).ctypes.data + 100) % 64 == 0
    assert reception.held == len(body)
    exchange, _ = exchange_of([body[:1]], announced=len(body), direct=FakeDirect(body[1:-1]))
    with pytest.raises(CallerLeft):
        await exchange.body(2 * ALIGNED_BYTES)


@pytest.mark.parametrize("answers", [True, False])
async def test_answers_are_sent_whole_where_the_server_can(answers: bool) -> None:
    """Else as ASGI's two messages; the same headers either way."""
    direct, sent = FakeDirect(b"", answers=answers), list[Message]()
    exchange, _ = exchange_of([], announced=0, direct=direct, sent=sent)
    await exchange.answer(200, b"content", b"text/plain", [(b"x-more", b"1")])
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", b"7"),
        (b"x-request-id", exchange.request_id.encode()),
        (b"x-more", b"1"),
    ]
    assert direct.answered == ([(200, header_lines(headers), b"content")] if answers else [])
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    assert sent == ([] if answers else [start, {"type": "http.response.body", "body": b"content"}])


@pytest.mark.parametrize("size", [ALIGNED_BYTES - 1, ALIGNED_BYTES])
async def test_what_is_held_is_the_body_and_is_given_back(size: int) -> None:
    """Joined or aligned: no more than the limit of one body, and nothing once the exchange is released."""
    exchange, reception = exchange_of(pieces_of(bytes(size), 2**16), announced=size)
    await exchange.body(size)
    assert reception.held == size
    exchange.release()
    assert reception.held == 0
    exchange, _ = exchange_of([b""], announced=size + 1)
    with pytest.raises(TooLarge):
        await exchange.body(size)
