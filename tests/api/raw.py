"""HTTP by hand, for requests that no client library sends."""

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from urllib.parse import urlsplit

import httpx2 as httpx


class _Reader(io.BufferedReader):
    """What an answer is read from: stays open for the next one, of which it may have read something already."""

    def makefile(self, _mode: str) -> "_Reader":
        return self

    def close(self) -> None:
        pass


class RawConnection:
    """One connection to a live service."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = _Reader(socket.SocketIO(sock, "r"))

    def send(self, content: bytes) -> None:
        self.sock.sendall(content)

    def answer(self) -> httpx.Response:
        """The next whole answer."""
        with HTTPResponse(self._reader) as response:  # type: ignore[arg-type]
            response.begin()
            content = response.read()
            headers = [(name, value) for name, value in response.getheaders() if name.lower() != "transfer-encoding"]
            return httpx.Response(response.status, headers=headers, content=content)

    def is_closed(self) -> bool:
        """Whether the service closes the connection without sending more; waits for it."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


@contextmanager
def connect(url: str, *, timeout_s: float = 30) -> Iterator[RawConnection]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=timeout_s) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each piece is a packet, at once
        yield RawConnection(sock)


def head(path: str, *, method: str = "POST", **headers: str) -> bytes:
    """Request line and headers; underscores in names stand for dashes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)
