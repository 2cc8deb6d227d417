"""Requests whose end is in doubt: one right answer each, or a closed connection, and nothing of them runs as another.

What a request smuggles is a change of the alias ``sly``, so that whatever ran is seen.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2 as httpx
import pytest

from tests.api.raw import chunk, connect, head
from tests.attack.caller import ROW
from tests.attack.conftest import Target

pytestmark = pytest.mark.slow

ALIAS = "/models/pumps/aliases/sly"
JSON = {"Content_Type": "application/json"}
SMUGGLED = head(ALIAS, method="PUT", **JSON, Content_Length="13") + b'{"version":1}'


@dataclass(frozen=True)
class Doubt:
    """A request, and the statuses of its answer: more than one where refusing it is as right as answering."""

    sent: bytes
    statuses: tuple[int, ...] = (400,)


def lined(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join(
        [b"POST /encode HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *lines, b"", body]
    )


def chunked(body: bytes, *lines: bytes) -> bytes:
    return lined(b"Transfer-Encoding: chunked", *lines, body=body)


SIZE = b"%d" % len(ROW)
LENGTH = b"Content-Length: " + SIZE
LAST = b"0\r\n\r\n"
ROW_CHUNK = chunk(ROW)

DOUBTS = {
    "length and chunked": Doubt(lined(LENGTH, b"Transfer-Encoding: chunked", body=LAST)),
    "chunked and length": Doubt(chunked(LAST, LENGTH)),
    "chunked and a length of 0": Doubt(chunked(LAST, b"Content-Length: 0")),
    "two lengths": Doubt(lined(LENGTH, b"Content-Length: 0", body=ROW)),
    "two equal lengths": Doubt(lined(LENGTH, LENGTH, body=ROW)),
    "a list of lengths": Doubt(lined(b"Content-Length: 0, " + SIZE, body=ROW)),
    "a signed length": Doubt(lined(b"Content-Length: +" + SIZE, body=ROW)),
    "a negative length": Doubt(lined(b"Content-Length: -1", body=ROW)),
    "a hexadecimal length": Doubt(lined(b"Content-Length: 0x1a", body=ROW)),
    "a length with a blank in it": Doubt(lined(b"Content-Length: 2 6", body=ROW)),
    "a length beyond 64 bits": Doubt(lined(b"Content-Length: 18446744073709551617", body=ROW)),
    "no length": Doubt(lined(b"Content-Length: ", body=ROW)),
    "blank before the colon": Doubt(lined(b"Content-Length : 0", body=ROW)),
    "tab before the colon": Doubt(lined(b"Transfer-Encoding\t: chunked", body=LAST)),
    "folded header": Doubt(lined(b"X-One: 1\r\n folded: 2", LENGTH, body=ROW)),
    "folded encoding": Doubt(lined(b"Transfer-Encoding:\r\n chunked", body=LAST)),
    "first header folded": Doubt(lined(b" Content-Length: 0", LENGTH, body=ROW)),
    "carriage return in a header": Doubt(lined(b"X-One: 1\rTransfer-Encoding: chunked", LENGTH, body=ROW)),
    "zero byte in a header": Doubt(lined(b"X-One: 1\x00", LENGTH, body=ROW)),
    "zero byte in a name": Doubt(lined(b"X\x00-One: 1", LENGTH, body=ROW)),
    "lines end bare": Doubt(lined(LENGTH, body=ROW).replace(b"\r\n", b"\n")),
    "one line ends bare": Doubt(lined(b"X-One: 1\nX-Two: 2", LENGTH, body=ROW)),
    "head ends bare": Doubt(lined(LENGTH).removesuffix(b"\r\n") + b"\n" + ROW),
    "unknown encoding": Doubt(lined(b"Transfer-Encoding: cow", body=LAST)),
    "encoding with a letter more": Doubt(lined(b"Transfer-Encoding: xchunked", body=LAST)),
    "chunked is not last": Doubt(lined(b"Transfer-Encoding: chunked, identity", body=LAST)),
    "chunked twice": Doubt(lined(b"Transfer-Encoding: chunked, chunked", body=LAST)),
    "two encodings": Doubt(chunked(LAST, b"Transfer-Encoding: identity")),
    "quoted encoding": Doubt(lined(b'Transfer-Encoding: "chunked"', body=LAST)),
    "chunk size is no number": Doubt(chunked(b"zz\r\n" + ROW + b"\r\n" + LAST)),
    "chunk size is negative": Doubt(chunked(b"-1\r\n" + ROW + b"\r\n" + LAST)),
    "chunk size with 0x": Doubt(chunked(b"0x1a\r\n" + ROW + b"\r\n" + LAST)),
    "chunk size with a blank": Doubt(chunked(b"%x \r\n%b\r\n" % (len(ROW), ROW) + LAST)),
    "chunk size beyond 64 bits": Doubt(chunked(b"10000000000000001\r\n" + ROW + b"\r\n" + LAST)),
    "no chunk size": Doubt(chunked(b"\r\n" + ROW + b"\r\n" + LAST)),
    "chunk longer than its size": Doubt(chunked(b"5\r\n" + ROW + b"\r\n" + LAST)),
    "chunk shorter than its size": Doubt(chunked(b"%x\r\n%b\r\n" % (len(ROW) + 1, ROW) + LAST)),
    "chunk size ends bare": Doubt(chunked(b"%x\n%b\r\n" % (len(ROW), ROW) + LAST)),
    "chunk ends bare": Doubt(chunked(b"%x\r\n%b\n" % (len(ROW), ROW) + LAST)),
    "extension ends bare": Doubt(chunked(b"%x;a\n%b\r\n" % (len(ROW), ROW) + LAST)),
    "zero byte in an extension": Doubt(chunked(b"%x;\x00=1\r\n%b\r\n" % (len(ROW), ROW) + LAST)),
    "version 1.2": Doubt(lined(LENGTH, body=ROW).replace(b"HTTP/1.1", b"HTTP/1.2")),
    "version in small letters": Doubt(lined(LENGTH, body=ROW).replace(b"HTTP/1.1", b"http/1.1")),
    "no version": Doubt(b"POST /encode\r\n\r\n"),
    "blank in the path": Doubt(lined(LENGTH, body=ROW).replace(b"/encode", b"/encode /livez")),
    "no method that is known": Doubt(lined(LENGTH, body=ROW).replace(b"POST", b"POSTS")),
}
CLEAR = {
    "extension": Doubt(chunked(b'%x;a=1;b="c"\r\n%b\r\n' % (len(ROW), ROW) + LAST), (200,)),
    "sizes with leading zeros": Doubt(chunked(b"000%x\r\n%b\r\n" % (len(ROW), ROW) + b"000\r\n\r\n"), (200,)),
    "chunked in capitals": Doubt(lined(b"TRANSFER-ENCODING: Chunked", body=ROW_CHUNK + LAST), (200,)),
    "trailers": Doubt(chunked(ROW_CHUNK + b"0\r\nX-One: 1\r\n\r\n"), (200,)),
    "length with leading zeros": Doubt(lined(b"Content-Length: 00" + SIZE, body=ROW), (200,)),
    "offers another protocol": Doubt(lined(b"Connection: upgrade", b"Upgrade: h2c", LENGTH, body=ROW), (200,)),
    "a body that looks like a request": Doubt(lined(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED), (400,)),
    "a body for a route that takes none": Doubt(
        head("/livez", method="GET", Content_Length=str(len(SMUGGLED))) + SMUGGLED, (200,)
    ),
    "a body for nothing": Doubt(head("/nowhere", Content_Length=str(len(SMUGGLED))) + SMUGGLED, (404, 405)),
}


def alias(target: Target) -> str | None:
    aliases: dict[str, int] = httpx.get(f"{target.url}/models/pumps", trust_env=False).json()["aliases"]
    return json.dumps(aliases.get("sly")) if "sly" in aliases else None


@pytest.fixture
def untouched(target: Target) -> Iterator[None]:
    """Nothing that a request hid was run."""
    assert alias(target) is None
    yield
    assert alias(target) is None


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("piece", [2**20, 11])
@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=DOUBTS)
def test_a_request_in_doubt_is_refused_and_ends_its_connection(target: Target, doubt: Doubt, piece: int) -> None:
    """After the right answer to the request before it; nothing behind it is taken for a request."""
    sent = b"".join([lined(LENGTH, body=ROW), doubt.sent, SMUGGLED, SMUGGLED])
    with connect(target.url) as connection:
        try:
            for at in range(0, len(sent), piece):
                connection.send(sent[at : at + piece])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it had its answer already
        try:
            assert connection.answer().json()["latents"] == [[1.0]]
            assert connection.answer().status_code in doubt.statuses
        except ConnectionResetError:
            assert piece < 100
        assert connection.is_closed()


@pytest.mark.parametrize("piece", [2**20, 11])
@pytest.mark.parametrize("clear", CLEAR.values(), ids=CLEAR)
@pytest.mark.usefixtures("untouched")
def test_a_request_that_is_odd_but_clear_is_answered(target: Target, clear: Doubt, piece: int) -> None:
    """And so is the request behind it."""
    sent = clear.sent + lined(LENGTH, body=ROW)
    with connect(target.url) as connection:
        for at in range(0, len(sent), piece):
            connection.send(sent[at : at + piece])
        assert connection.answer().status_code in clear.statuses
        assert connection.answer().json()["latents"] == [[1.0]]


def test_what_is_hidden_would_be_seen(target: Target) -> None:
    """The same request, not hidden: it changes the alias."""
    with connect(target.url) as connection:
        connection.send(SMUGGLED)
        assert connection.answer().status_code == 200
        assert alias(target) is not None
        connection.send(head(ALIAS, method="DELETE"))
        assert connection.answer().status_code in (200, 204)
    assert alias(target) is None


def test_a_thousand_mixed_requests_in_one_go(target: Target) -> None:
    """Each has its own answer, in the order in which they were sent."""
    chance = random.Random(0)
    sent, expected = [], list[tuple[int, float | None]]()
    for at in range(1000):
        body = json.dumps({"instances": [[float(at), 0.0]]}).encode()
        kind = chance.randrange(6)
        if kind == 0:
            sent.append(head("/livez", method="GET"))
            expected.append((200, None))
        elif kind == 1:
            sent.append(head("/encode", **JSON, Transfer_Encoding="chunked") + chunk(body[:7]) + chunk(body[7:]) + LAST)
            expected.append((200, float(at)))
        elif kind == 2:
            sent.append(head("/encode", **JSON, Content_Length=str(len(SMUGGLED))) + SMUGGLED)
            expected.append((400, None))
        elif kind == 3:
            headers = {"Connection": "upgrade", "Upgrade": "h2c", "Content_Length": str(len(body))}
            sent.append(head("/encode", **JSON, **headers) + body)
            expected.append((200, float(at)))
        elif kind == 4:
            sent.append(head("/nowhere", **JSON, Content_Length=str(len(body))) + body)
            expected.append((404, None))
        else:
            sent.append(head("/encode", **JSON, Content_Length=str(len(body))) + body)
            expected.append((200, float(at)))
    with connect(target.url) as connection:
        connection.send(b"".join(sent))
        for status, value in expected:
            answer = connection.answer()
            assert answer.status_code == status
            assert value is None or answer.json()["latents"] == [[value]]


@pytest.mark.usefixtures("untouched")
def test_a_body_shorter_than_announced_is_no_request(target: Target) -> None:
    """What comes on the same connection belongs to it; when the caller leaves, nothing of it runs."""
    with connect(target.url) as connection:
        connection.send(lined(b"Content-Length: %d" % (len(ROW) + len(SMUGGLED) + 1), body=ROW) + SMUGGLED)
        connection.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)


def test_a_body_longer_than_announced_is_refused_as_the_next_request(target: Target) -> None:
    """The first answer is to what was announced."""
    with connect(target.url) as connection:
        connection.send(lined(LENGTH, body=ROW + b"more of it\r\n\r\n"))
        assert connection.answer().json()["latents"] == [[1.0]]
        assert connection.answer().status_code == 400
        assert connection.is_closed()


def test_a_refusal_waits_for_the_answers_before_it(target: Target) -> None:
    """A slow stream first, then a request, then what is none."""
    lines = b"[1, 2]\n" * 20_000
    stream = head("/encode", Content_Type="application/x-ndjson", Content_Length=str(len(lines))) + lines
    with connect(target.url) as connection:
        connection.send(stream + lined(LENGTH, body=ROW) + b"no request\r\n\r\n")
        assert connection.answer().content.count(b"\n") == 20_000
        assert connection.answer().json()["latents"] == [[1.0]]
        assert connection.answer().status_code == 400
        assert connection.is_closed()
