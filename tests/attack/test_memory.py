"""Callers who make the service hold what it need not hold."""

from collections.abc import Iterable

import pytest

from tests.api.raw import RawConnection, chunk, connect, head
from tests.attack.conftest import ROW, Target

pytestmark = pytest.mark.slow

CHUNKED = {"Content_Type": "application/json", "Transfer_Encoding": "chunked"}
SENT_BYTES = 320 * 10**6
PIECE = 10**6


def flood(connection: RawConnection, pieces: Iterable[bytes]) -> bool:
    """Send until the service closes the connection; whether it does."""
    try:
        for piece in pieces:
            connection.send(piece)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


@pytest.mark.parametrize("field", [b"x: " + b"y" * 95 + b"\r\n", b"y" * 100], ids=["fields", "one value"])
@pytest.mark.parametrize("path", ["/encode", "/nowhere", "/models/none/encode"])
def test_trailers_without_end(target: Target, path: str, field: bytes) -> None:
    """Behind a body that is used, and behind one that was refused before it came."""
    with target.withstands(), connect(target.url) as connection:
        connection.send(head(path, **CHUNKED) + chunk(ROW) + b"0\r\nx: ")
        assert flood(connection, (field * (PIECE // len(field)) for _ in range(SENT_BYTES // PIECE)))


def test_trailers_are_dropped(target: Target) -> None:
    """They change nothing of the request that they end, and nothing of the next one."""
    trailers = b"X-Request-Id: trailer\r\nX-Timeout-Ms: 0\r\nExpect: 100-continue\r\n\r\n"
    with connect(target.url) as connection:
        for _ in range(3):
            connection.send(head("/encode", X_Request_Id="head", **CHUNKED) + chunk(ROW))
            connection.send(b"0\r\n" + trailers)
            answer = connection.answer()
            assert (answer.status_code, answer.headers["x-request-id"]) == (200, "head")


def test_a_chunk_whose_extension_does_not_end(target: Target) -> None:
    """It is no body, however long it is."""
    with target.withstands(), connect(target.url) as connection:
        connection.send(head("/encode", **CHUNKED) + chunk(ROW[:5]) + b"5;")
        assert flood(connection, (b"x" * PIECE for _ in range(SENT_BYTES // PIECE)))
