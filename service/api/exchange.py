"""One request and its answer at the ASGI level: headers, a bounded and timed body, callers who leave.

The operations are served below FastAPI's request machinery, whose cost is several times that of the model's share in
a request. FastAPI still documents their routes.
"""

import asyncio
import itertools
import math
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from functools import lru_cache
from typing import Any, Final, NoReturn, Protocol, TypeVar
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from service.codecs import aligned_memory
from service.errors import DeadlineExceeded, InvalidOption, MalformedInput, QueueFull, TooLarge
from service.telemetry import request_id_of_context

T = TypeVar("T")

Header = tuple[bytes, bytes]
Headers = list[Header]

DIRECT: Final = "autoencoder.direct"
"""The ASGI extension whose value is a ``Direct``."""
LEAVING_CHECK_S = 0.05
"""Requests that take longer than this are given up when their caller leaves; shorter ones are not worth a watch."""
ATTEND_INTERVAL_S = 0.05
SMALL_BYTES = 32 * 2**10
"""A request that holds no more than this always finds room; the bound on connections bounds all of them together."""
ALIGNED_BYTES = 2**20
"""Of bodies from this size on, TensorFlow's copy of an array that is not aligned would be felt."""

_PROCESS_ID = secrets.token_hex(10)
_NUMBERS = itertools.count(secrets.randbelow(2**32))
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


class CallerLeft(Exception):
    """The connection closed before the body was complete; there is nobody to answer."""


class Direct(Protocol):
    """An extension of a server beside ``receive`` and ``send``, whose messages cost a copy, or half of an answer."""

    async def receive_into(self, memory: memoryview, hold: Callable[[int], None]) -> int:
        """Receive the rest of a body into ``memory``, which is of just its size; less came when the caller left.

        ``hold`` is told of the bytes as they come; what it raises is raised.
        """

    def whole_body(self) -> bytes | None:
        """The body of a small request, where all of it is there; None where ``receive`` has to give it."""

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        """Answer at once and whole, with ``header_lines``; False where ``send`` has to do it."""


class Reception:
    """Limits shared by all requests: the bytes that they may hold at once, and one timer that looks after all of them.

    Held are bodies as they are received, the arrays of large ones, unfinished lines of streams, and answers that are
    not sent yet. A timer for each request would cost more than most of what a request does.

    Attributes:
        was_large: something larger than ``SMALL_BYTES`` was held since this was last set to False.
        when_crowded: called whenever the bytes of a large request change while ``is_crowded``.
    """

    def __init__(self, max_bytes: int, *, body_timeout_s: float) -> None:
        self.body_timeout_s = body_timeout_s
        self._max_bytes = max_bytes
        self._held = 0
        self.was_large = False
        self.when_crowded: Callable[[], None] = lambda: None
        self._attended: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """Bytes that all requests hold."""
        return self._held

    def hold(self, size: int, *, already: int = 0) -> None:
        """Count ``size`` bytes more for a request that holds ``already``.

        Raises:
            QueueFull: it is no small one, and other requests hold too much.
        """
        if already + size > SMALL_BYTES:
            if self._held + size > self._max_bytes and self._held > already:
                raise QueueFull("The service holds as much as it may.")
            self._large()
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size

    def leave(self, exchange: "Exchange", held: int) -> None:
        """Look after an exchange no more, and give back what it held."""
        self._attended.discard(exchange)
        self._held -= held

    @property
    def is_crowded(self) -> bool:
        """Whether requests hold more than half of what they may."""
        return self._held > self._max_bytes // 2

    def recount(self, before: int, now: int) -> int:
        """Count ``now`` bytes where ``before`` were counted, whether there is room or not; gives ``now``."""
        self._held += now - before
        if before > SMALL_BYTES or now > SMALL_BYTES:
            self._large()
        return now

    def _large(self) -> None:
        self.was_large = True
        if self.is_crowded:
            self.when_crowded()

    def attend(self, exchange: "Exchange") -> None:
        """Look after an exchange until it leaves."""
        self._attended.add(exchange)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ATTEND_INTERVAL_S, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for exchange in self._attended:
            exchange.look_after(now)
        self._timer = loop.call_later(ATTEND_INTERVAL_S, self._look) if self._attended else None


class Exchange:
    """One request being answered."""

    __slots__ = (
        "_cancelled_for",
        "_direct",
        "_held",
        "_receive",
        "_receive_by",
        "_reception",
        "_send",
        "_task",
        "_watch",
        "_watch_from",
        "headers",
        "request_id",
        "scope",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, reception: Reception) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id(self.headers)
        request_id_of_context.set(self.request_id)
        self._receive = receive
        self._send = send
        self._direct: Direct | None = scope.get("extensions", {}).get(DIRECT)
        self._reception = reception
        self._held = 0
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._receive_by = self._watch_from = math.inf
        self._cancelled_for: Exception | None = None

    @property
    def query(self) -> dict[str, str]:
        """Query parameters.

        Raises:
            InvalidOption: one is given twice, or they are not UTF-8.
        """
        raw = self.scope["query_string"]
        if not raw:
            return {}
        try:
            pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict")
        except ValueError as error:
            raise InvalidOption("The query string cannot be read.") from error
        query = dict(pairs)
        if len(query) < len(pairs):
            raise InvalidOption("A query parameter is given twice.")
        return query

    def timeout_s(self, default_ms: int) -> float:
        """Time that this request may take: ``X-Timeout-Ms`` where it is shorter than the service's own."""
        wanted = self.headers.get(b"x-timeout-ms")
        if wanted is None:
            return default_ms / 1000
        if not wanted.isdigit() or len(wanted) > 9 or int(wanted) < 1:
            raise InvalidOption("X-Timeout-Ms must be a whole number of milliseconds, at least 1.")
        return min(int(wanted), default_ms) / 1000

    @property
    def content_encoding(self) -> str:
        return self.headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()

    async def body(
        self, limit: int, deadline: float = math.inf, begins: Callable[[bytes], int] | None = None
    ) -> bytes | memoryview:
        """The whole body as it was received, by ``deadline`` on the event loop's clock and within the body timeout.

        A large one is received into memory of its own, by the server itself where it can. ``begins`` says, from the
        first bytes of the body, where an array begins in it, which TensorFlow can then take as it is.

        Raises:
            TooLarge: it is larger than ``limit``, known at once where its length is announced, or than that length.
            QueueFull: the service holds as many received bytes as it may.
            MalformedInput: its announced length is no number.
            DeadlineExceeded: it did not arrive in time.
            CallerLeft: the connection closed.
        """
        whole = None if self._direct is None else self._direct.whole_body()
        announced = self.headers.get(b"content-length", b"0")
        if whole is None and not announced.isdigit():
            raise MalformedInput("Content-Length is not a number.")
        length = int(announced) if whole is None else len(whole)
        if length > limit:
            raise TooLarge(f"The body is larger than {limit} bytes.")
        if whole is not None:
            self.hold(length)
            return whole
        self._attend()
        self._receive_by = min(deadline, asyncio.get_running_loop().time() + self._reception.body_timeout_s)
        chunks, place, size, more = list[bytes](), memoryview(b""), 0, True
        is_large = length >= ALIGNED_BYTES
        try:
            while more:
                chunk, more = await self._next_chunk()
                if size + len(chunk) > (length if is_large else limit):
                    raise TooLarge("The body is larger than it may be, or than its Content-Length.")
                self.hold(len(chunk))
                if is_large and size == 0:
                    place = aligned_memory(length, 0 if begins is None else begins(chunk)).data
                if is_large:
                    place[size : size + len(chunk)] = chunk
                else:
                    chunks.append(chunk)
                size += len(chunk)
                if more and is_large and self._direct is not None:
                    more = False
                    rest = place[size:]
                    if await self._direct.receive_into(rest, self.hold) < len(rest):
                        raise CallerLeft
                    size += len(rest)
        except asyncio.CancelledError:
            self.raise_reason()
        finally:
            self._receive_by = math.inf
        return place[:size] if is_large else chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _next_chunk(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft
        return message.get("body", b""), message.get("more_body", False)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the chunks of a body of any length, each chunk within the body timeout.

        Raises:
            DeadlineExceeded: nothing arrived in time.
            CallerLeft: the connection closed.
        """
        more = True
        while more:
            try:
                async with asyncio.timeout(self._reception.body_timeout_s):
                    chunk, more = await self._next_chunk()
            except TimeoutError as error:
                raise DeadlineExceeded("The body did not arrive in time.") from error
            yield chunk

    def hold(self, size: int) -> None:
        """Count ``size`` more bytes as held by this request."""
        self._reception.hold(size, already=self._held)
        self._held += size

    def hold_only(self, size: int) -> None:
        """Count ``size`` bytes as held by this request, in place of those that were; few are as good as the few before.

        Raises:
            QueueFull: they are more, and the service holds too much already.
        """
        if size > self._held:
            if size > SMALL_BYTES:
                self.hold(size - self._held)
        else:
            self._held = self._reception.recount(self._held, size)

    def release(self) -> None:
        """Give back what this request held; call once, when it is over."""
        self._reception.leave(self, self._held)
        self._held = 0

    def watch(self) -> None:
        """Give up what this task waits for when the caller closes the connection. Only after the body was read."""
        self._attend()
        self._watch_from = asyncio.get_running_loop().time() + LEAVING_CHECK_S

    def watched(self) -> None:
        """End ``watch``."""
        self._watch_from = math.inf
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _attend(self) -> None:
        if self._task is None:
            self._task = asyncio.current_task()
            self._reception.attend(self)

    def raise_reason(self) -> NoReturn:
        """Raise, within an except clause, what this exchange was given up for.

        Raises:
            CallerLeft: the connection closed.
            DeadlineExceeded: the body did not arrive in time.
            CancelledError: the cancellation came from elsewhere.
        """
        if self._cancelled_for is None or self._task is None:
            raise  # noqa: PLE0704 - within the except clause of the caller
        self._task.uncancel()
        raise self._cancelled_for from None

    def look_after(self, now: float) -> None:
        """Give up a body that is late; from some time on, notice when the caller leaves."""
        if now >= self._receive_by:
            self._give_up(DeadlineExceeded("The body did not arrive in time."))
        elif now >= self._watch_from and self._watch is None:
            self._watch = asyncio.create_task(self._wait_until_left())

    async def _wait_until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._give_up(CallerLeft())

    def _give_up(self, reason: Exception) -> None:
        if self._cancelled_for is None and self._task is not None:
            self._cancelled_for = reason
            self._task.cancel()

    async def answer(
        self,
        status: int,
        body: bytes,
        media_type: bytes,
        headers: Iterable[Header] = (),
        fixed: tuple[Header, ...] = (),
    ) -> None:
        """Send a whole answer. ``fixed`` are those of its headers that many answers have."""
        if self._direct is not None:
            lines = b"%bcontent-length: %d\r\nx-request-id: %b\r\n%b" % (
                _fixed_lines((b"content-type", media_type), *fixed),
                len(body),
                self.request_id.encode(),
                header_lines(headers) if headers else b"",
            )
            if self._direct.answer(status, lines, body):
                return
        all_headers = answer_headers(body, media_type, self.request_id, [*fixed, *headers])
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self, media_type: bytes, headers: Iterable[Any] = ()) -> None:
        all_headers = [(b"content-type", media_type), (b"x-request-id", self.request_id.encode()), *headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": all_headers})

    async def send_part(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def header_lines(headers: Iterable[Header]) -> bytes:
    """Headers as they are sent, each on a line.

    Raises:
        RuntimeError: one holds a line break.
    """
    fields = [b"%b: %b" % header for header in headers]
    if any(b"\n" in field or b"\r" in field for field in fields):
        raise RuntimeError("A header holds a line break.")
    return b"".join([field + b"\r\n" for field in fields])


@lru_cache(maxsize=256)
def _fixed_lines(*headers: Header) -> bytes:
    return header_lines(headers)


def answer_headers(body: bytes, media_type: bytes, given: str, more: Iterable[Any] = ()) -> Headers:
    """Headers of an answer whose length is known; ``given`` is its request id."""
    length = b"%d" % len(body)
    return [(b"content-type", media_type), (b"content-length", length), (b"x-request-id", given.encode()), *more]


def request_id(headers: dict[bytes, bytes]) -> str:
    """The caller's request id where it is harmless in logs and headers, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return f"{_PROCESS_ID}{next(_NUMBERS):012x}"
