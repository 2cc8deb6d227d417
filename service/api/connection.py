"""A connection as this service keeps it: bounds on headers and on waiting, and short cuts for bodies and answers.

uvicorn itself waits for ever for the rest of a request, hands a large body on in small pieces that are copied three
times, and writes an answer in parts.
"""

import asyncio
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sized
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

if sys.platform == "linux":
    import fcntl
    import termios

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.errors import PROBLEM_TYPE, problem, problem_body
from service.api.exchange import (
    DIRECT,
    SMALL_BYTES,
    Direct,
    Headers,
    Reception,
    answer_headers,
    header_lines,
    request_id,
)
from service.api.front import Refusal
from service.api.lifecycle import Serving
from service.errors import QueueFull, Unavailable

COPIED_BYTES = 64 * 2**10
"""Bodies below this size are copied behind their heads: one packet instead of two."""
HEAD_BYTES = 2**10
"""Received in one go where a request may begin: of many that are sent at once few are parsed at a time."""
CHUNK_BYTES = 4 * 2**10
"""Received in one go of a body whose end is not known."""
READ_BYTES = 64 * 2**10
"""Received in one go of a body whose length was announced."""
READS_AT_ONCE = 16
"""Reads of at least ``HEAD_BYTES`` in one go of the event loop."""
PASSED_OVER_READS = 4
"""Reads of ``READ_BYTES`` at most, before a connection is closed."""
WAITING_BYTES = 2 * 2**10
"""A request without a body takes about so much memory until its answer begins."""
_CLOSE = (b"connection", b"close")
_CLOSE_LINE = header_lines([_CLOSE])
_PROBES = (b"/livez", b"/readyz", b"/v2/health/live", b"/v2/health/ready")
"""Answered however many connections there are."""


def _held_by_kernel(sock: socket.socket) -> int:
    """Bytes that the peer's kernel has not acknowledged: they move when the process's own do not yet."""
    if sys.platform != "linux":
        return 0
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


async def _refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in place of the application when there are too many connections."""
    given = request_id(dict(scope["headers"]))
    status, body, more = problem(Unavailable("The service has as many connections as it may."), given)
    headers = answer_headers(body, PROBLEM_TYPE.encode(), given, [*more, _CLOSE])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Turns:
    """Bounds what all connections receive in one go of the event loop: those who send much wait for each other, and
    new connections and small requests for few of them.
    """

    def __init__(self) -> None:
        self._left = READS_AT_ONCE
        self._held_back: deque[_Flow] = deque()

    def received(self, flow: "_Flow") -> None:
        """Count a large read; one too many holds its connection back until it is its turn."""
        if self._left == READS_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._next)
        self._left -= 1
        if self._left <= 0 and not flow.is_held_back:
            flow.hold_back()
            self._held_back.append(flow)

    def _next(self) -> None:
        self._left = READS_AT_ONCE
        for _ in range(min(READS_AT_ONCE, len(self._held_back))):
            self._held_back.popleft().go_on()
        if self._held_back:
            self._left -= 1
            asyncio.get_running_loop().call_soon(self._next)


class _Flow(FlowControl):
    """Reads on only when no request waits for the answer before its own: of those there could be any number."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting
        self.is_held_back = False

    def resume_reading(self) -> None:
        if self.read_paused and not self._waiting:
            self.read_paused = False
            self._read_on()

    def hold_back(self) -> None:
        """Stop reading until ``go_on``."""
        self.is_held_back = True
        self._transport.pause_reading()

    def go_on(self) -> None:
        self.is_held_back = False
        self._read_on()

    def _read_on(self) -> None:
        if not (self.read_paused or self.is_held_back or self._transport.is_closing()):
            self._transport.resume_reading()


class GuardedProtocol(HttpToolsProtocol):
    """Remembers since when it waits for the peer; ``GuardedServer`` closes it when that is too long."""

    read_buffer = memoryview(bytearray(READ_BYTES))
    """Shared by the connections of an event loop: what one receives is parsed before another receives."""
    turns = Turns()
    max_header_bytes = 16 * 2**10
    max_connections = 2048
    reception = Reception(sys.maxsize, body_timeout_s=math.inf)
    """Where answers that are not sent yet are counted."""
    draining = False

    service: Serving | None = None
    """The service of the application, where that is ours: it may be full."""

    @staticmethod
    def refusal(_method: bytes, _url: bytes, _headers: Headers) -> Refusal | None:
        """``AutoencoderApp.refusal`` of the application that is served."""
        return None

    flow: _Flow
    waiting_since: float | None
    in_headers: bool
    _idle_since: float
    """When the last answer was complete."""
    _bytes_without_body: int
    """Received since the last byte of a body or the end of a message: a head, trailers, extensions of chunks."""
    _is_ending: bool
    """What comes from now on is not received any more."""
    _unsent: int
    """Bytes of answers, and of requests that wait for one before theirs, that this process held when last looked."""
    _whole_bytes: int
    """Size of the last answer that was written at once."""
    _untaken: int
    """Bytes that are not sent and those that the kernel holds; 0 while there are none of the former."""
    _taken_at: float
    """When the peer last took some of them."""
    _is_beyond: bool
    """There were as many connections as may be, none of them idle: probes alone are answered."""
    _is_refused: bool
    """The request that is being received has its answer already."""
    _answered: RequestResponseCycle
    """The request that is being answered: the one that is being received, or one before it."""
    _body_left: int
    """Bytes to come of the body that is being received; 0 where that is not known."""
    _direct_body: "_DirectBody | None"
    """The rest of the body that is being received, where it goes where it belongs and not to the parser."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_protocol(_Reader(self))
        self._direct_body = None
        self.waiting_since = time.monotonic()
        self.in_headers = True
        self._bytes_without_body = self._body_left = self._unsent = self._untaken = self._whole_bytes = 0
        self._is_refused = self._is_ending = False
        self._idle_since = self.waiting_since
        self._extensions: dict[str, Direct] = {DIRECT: self}
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._is_beyond = len(self.connections) > self.max_connections and not self._make_room()

    def _make_room(self) -> bool:
        """Close the connection that has been idle for the longest time; False where each has a request."""
        others = (other for other in self.connections if isinstance(other, GuardedProtocol) and other is not self)
        idle = min((other for other in others if other.is_idle), key=lambda other: other.idle_since, default=None)
        if idle is not None:
            idle.transport.close()
        return idle is not None

    @property
    def is_idle(self) -> bool:
        """No request is complete in its head and not in its answer."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return self.in_headers and is_answered and not self._unsent and not self.transport.is_closing()

    @property
    def idle_since(self) -> float:
        return self._idle_since if self.waiting_since is None else self.waiting_since

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unsent = self.reception.recount(self._unsent, 0)
        self._extensions.clear()  # else the scope of the last request and this connection would keep each other

    def pause_writing(self) -> None:
        super().pause_writing()
        self._count_unsent()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._count_unsent()

    def _count_unsent(self) -> None:
        """An answer of which a part is sent is there as a whole, and so is each request that waits for one."""
        size = self.transport.get_write_buffer_size()
        waiting = len(self.pipeline) * WAITING_BYTES
        self._unsent = self.reception.recount(self._unsent, (size and max(size, self._whole_bytes)) + waiting)

    def get_buffer(self, _sizehint: int) -> memoryview:
        body = self._direct_body
        if body is None:
            expected = HEAD_BYTES if self.in_headers else self._body_left or CHUNK_BYTES
            return self.read_buffer[:expected]
        if body.memory is None:
            return self.read_buffer[: body.left]
        return body.memory[len(body.memory) - body.left :]

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes >= HEAD_BYTES:
            self.turns.received(self.flow)
        if self._direct_body is not None:
            self._directly_received(self._direct_body, nbytes)
            return
        if self.waiting_since is None:
            self.waiting_since = time.monotonic()
        elif not (self.in_headers or self._is_refused or self.cycle.response_complete):
            # A body is measured from its last bytes; one that is read past, from the answer.
            self.waiting_since = time.monotonic()
        self._bytes_without_body += nbytes
        try:
            self._parse(self.read_buffer[:nbytes])
        except httptools.HttpParserError:
            self._refuse(400, "This is not a valid HTTP request.")
        if self._bytes_without_body > self.max_header_bytes:
            self._refuse(431, "The headers are too large.")

    def _directly_received(self, body: "_DirectBody", nbytes: int) -> None:
        body.left -= nbytes
        if body.memory is not None:
            self.waiting_since = time.monotonic()
            try:
                body.hold(nbytes)
            except QueueFull as error:
                body.no_room, body.memory = error, None
                self._answered.message_event.set()
        if not body.left:
            # What comes next is for a parser, which has seen none of this.
            self._direct_body = None
            self.on_message_complete()
            self.parser = self._new_parser()

    def _parse(self, rest: memoryview) -> None:
        """Give what came to the parser. It stops at a head that asks for another protocol: RFC 9110, 7.8 lets a server
        ignore that, so the parser gets the head once more without the question, and then what came behind it.
        """
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            if self.parser.get_method() == b"CONNECT":
                self._refuse(400, "This is not a proxy.")
                return
            line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            fields = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = self._new_parser()
            self.parser.feed_data(b"%b%b\r\n" % (line, b"".join(fields)))

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        return parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_headers:
            return  # a trailer
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"content-length":
            self._body_left = int(value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if self._bytes_without_body > self.max_header_bytes and self._size_of_headers() > self.max_header_bytes:
            self._refuse(431, "The headers are too large.")
            raise httptools.HttpParserError  # no request that comes behind it is begun
        self.in_headers = False
        self._bytes_without_body = 0
        if self._is_beyond and self.url not in _PROBES:
            self.app = _refuse_connection
        if self.service is not None and self.service.batcher.is_full and self._refuse_at_once():
            return
        scope: Any = self.scope
        scope["extensions"] = self._extensions
        super().on_headers_complete()
        if (self.draining or self._is_beyond) and self.cycle is not None:
            self.cycle.keep_alive = False

    def _refuse_at_once(self) -> bool:
        """Answer what the application refuses for load before anything is made for it; its body is passed over."""
        is_next = self.cycle is None or self.cycle.response_complete
        if not is_next or self.expect_100_continue or self.draining or self._is_beyond or self.flow.write_paused:
            return False
        if not self.parser.should_keep_alive():
            return False
        refusal = self.refusal(self.parser.get_method(), self.url, self.headers)
        if refusal is None:
            return False
        status, headers, body = refusal
        self.write_whole(status, header_lines(headers), body)
        self._is_refused = True
        return True

    def write_whole(self, status: int, lines: bytes, body: bytes) -> None:
        """Write a whole answer, whose headers are ``lines``."""
        head = b"%b%b\r\n" % (STATUS_LINE[status], lines)
        self._whole_bytes = len(body)
        if len(body) < COPIED_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    async def receive_into(self, memory: memoryview, hold: Callable[[int], None]) -> int:
        """As ``Direct`` says, for the request that is being answered."""
        cycle = self._answered
        arrived = len(cycle.body)
        memory[:arrived] = cycle.body
        cycle.body = bytearray()
        cycle.message_event.clear()
        if cycle.disconnected or not cycle.more_body:
            return arrived
        hold(arrived)
        body = self._direct_body = _DirectBody(memory[arrived:], hold, len(memory) - arrived)
        self.flow.resume_reading()
        try:
            await cycle.message_event.wait()
        finally:
            body.memory = None
        if body.no_room is not None:
            raise body.no_room
        cycle.message_event.clear()
        return len(memory) - body.left

    def whole_body(self) -> bytes | None:
        """As ``Direct`` says, for the request that is being answered."""
        cycle = self._answered
        if cycle.more_body or cycle.disconnected or len(cycle.body) > SMALL_BYTES:
            return None
        body, cycle.body = cycle.body, bytearray()
        cycle.message_event.clear()
        return bytes(body)

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        """As ``Direct`` says, for the request that is being answered."""
        cycle = self._answered
        if cycle.response_started or self.flow.write_paused or cycle.scope["method"] == "HEAD":
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if cycle.disconnected:
            return True
        self.write_whole(status, lines if cycle.keep_alive else lines + _CLOSE_LINE, body)
        if not cycle.keep_alive:
            self._pass_over()
            self.transport.close()
        cycle.on_response()
        return True

    def on_response_complete(self) -> None:
        """As uvicorn's, but ``reap`` closes what is idle for too long: a timer for each request costs more."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._idle_since = time.monotonic()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def on_body(self, body: bytes) -> None:
        self._bytes_without_body = 0
        if self._body_left:
            self._body_left -= len(body)
        if self._is_refused:
            return
        cycle: Any = self.cycle
        if cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body  # handed on as it is, if it is all; uvicorn would copy it
        elif type(cycle.body) is bytes:
            cycle.body = bytearray(cycle.body) + body
        else:
            cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _size_of_headers(self) -> int:
        return sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.waiting_since = None
        self.in_headers = True
        self._bytes_without_body = self._body_left = 0
        if self._is_refused:
            self._is_refused = False
            self.on_response_complete()
        else:
            super().on_message_complete()

    def reap(self, now: float, header_timeout_s: float, body_timeout_s: float, write_timeout_s: float) -> None:
        """Close the connection when its peer has not sent what it owes in time, or takes nothing of its answer."""
        self._count_unsent()
        size = self.transport.get_write_buffer_size()
        untaken = size and size + _held_by_kernel(self.transport.get_extra_info("socket"))
        if untaken != self._untaken:
            self._untaken, self._taken_at = untaken, now
        elif untaken and now - self._taken_at > write_timeout_s:
            self.transport.abort()
        if self.transport.is_closing():
            return
        if self.waiting_since is None:
            if self.is_idle and now - self._idle_since > self.timeout_keep_alive:
                self.transport.close()
        elif self.flow.read_paused or self.flow.is_held_back:
            self.waiting_since = now  # we are the slow one
        elif self.in_headers:
            if now - self.waiting_since > header_timeout_s:
                self._refuse(408, "The headers did not arrive in time.")
        elif now - self.waiting_since > body_timeout_s:
            self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer the request that is being received, after all that came before it, and close the connection."""
        if self._is_ending or self.transport.is_closing():
            return
        self._is_ending = True
        given = request_id({})
        body = problem_body(status, detail, given)
        headers = answer_headers(body, PROBLEM_TYPE.encode(), given, [_CLOSE])
        is_waiting = bool(self.pipeline)
        if self.in_headers:
            is_waiting = self.cycle is not None and not self.cycle.response_complete
        elif is_waiting:
            self.pipeline.popleft()
        if is_waiting:
            self._refuse_when_answered((status, headers, body))
            return
        has_answer = not self.in_headers and (self._is_refused or self.cycle.response_started)
        if not self.in_headers and not self._is_refused:
            self.cycle.disconnected = True  # its application has nobody to answer
            self.cycle.message_event.set()
        if not has_answer:
            self.write_whole(status, header_lines(headers), body)
        self._pass_over()
        self.transport.close()

    def _pass_over(self) -> None:
        """Take what came before the connection is closed: bytes that nobody took reset it, and lose the answer."""
        if sys.platform != "win32":
            with suppress(OSError):  # there is no more
                for _ in range(PASSED_OVER_READS):
                    os.read(self.transport.get_extra_info("socket").fileno(), READ_BYTES)

    def _refuse_when_answered(self, answer: Refusal) -> None:
        """Put a refusal behind the requests that wait, as if it were one of them: reading stops by that as well."""
        status, headers, body = answer

        async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            self._pass_over()
            await send({"type": "http.response.body", "body": body})

        cycle = RequestResponseCycle(
            scope=self._answered.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        self.flow.pause_reading()
        self.pipeline.appendleft((cycle, refuse))


@dataclass(slots=True)
class _DirectBody:
    """The rest of a body, of which ``left`` bytes are still to come. Without ``memory`` they are passed over."""

    memory: memoryview | None
    hold: Callable[[int], None]
    left: int
    no_room: QueueFull | None = None


class _Reader(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol, which says where bytes are received to: uvicorn's own only takes them."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        reading = ("get_buffer", "buffer_updated", "eof_received", "connection_lost")
        for name in (*reading, "pause_writing", "resume_writing"):
            setattr(self, name, getattr(protocol, name))
