"""NDJSON: a stream of rows of any length, answered while it is read, in bounded memory.

Blocks are decoded while those before them run, and answered as soon as they have run: a caller may wait for the answer
to one line before it sends the next. A line that is no row is answered in its place and the stream goes
on; what ends the stream early is its last line.
"""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import groupby
from typing import TypeVar, cast

import orjson

from service import codecs
from service.api.errors import problem
from service.api.exchange import Exchange, Headers
from service.api.lifecycle import INLINE_BYTES, Lifecycle, model_headers
from service.errors import AutoencoderError, InvalidOption, ModelFailed, QueueFull, RequestError, TooLarge
from service.runtime.loaded_model import LoadedModel
from service.words import NDJSON, Operation

QUEUE_RETRY_S = 0.02
BLOCKS_AHEAD = 2
"""Blocks of one stream that run or wait to be sent."""

PIECE_BYTES = 256 * 2**10
"""Bytes of lines that are decoded in one go."""
FEW_LINES = 8
"""Bad lines that are answered on the event loop: a thread costs more than the work."""
MAX_RATIO = 100
"""A compressed stream of any length is fine; one whose rows compress better than this is there to keep us busy."""

T = TypeVar("T")
Block = codecs.RowBlock | list[codecs.BadLine]


class NdjsonExchange:
    """Answers one NDJSON request."""

    def __init__(self, life: Lifecycle, exchange: Exchange, loaded: LoadedModel, operation: Operation) -> None:
        serving, settings = life.serving, life.serving.settings
        self._life = life
        self._serving = serving
        self._exchange = exchange
        self._loaded = loaded
        self._operation = operation
        self._timeout_s = exchange.timeout_s(settings.request_timeout_ms)
        encoding = codecs.choose_encoding(exchange.headers.get(b"accept-encoding", b"").decode("latin-1"))
        self._encoding = encoding
        self._compressor = None if encoding is None else codecs.Compressor(encoding)
        self._options = codecs.options_from_query(exchange.query, schema=loaded.schema, operation=operation)
        if self._options.false_discovery_rate is not None:
            raise InvalidOption(
                "'false_discovery_rate' is decided over all rows of a request, and a stream is answered line by line: "
                "send the rows in another encoding, or give 'false_alarm_rate'."
            )
        self._decoder = codecs.NdjsonDecoder(
            loaded.schema, limits=serving.limits, block_rows=settings.slice_rows, max_line_bytes=settings.max_line_bytes
        )
        self._decompressor = codecs.Decompressor(exchange.content_encoding, sys.maxsize)
        self._started = False

    async def answer(self) -> None:
        """Answer line by line. Errors before the first line pass through; later ones become the last line."""
        try:
            await self._answer_blocks()
        except AutoencoderError as error:
            if not self._started:
                raise
            await self._send(_error_line(error, self._exchange.request_id))
        if not self._started:
            await self._send(b"")
        end = b"" if self._compressor is None else self._compressor.finish()
        await self._exchange.send_part(end, more=False)

    async def _answer_blocks(self) -> None:
        ahead: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(BLOCKS_AHEAD)
        reading = asyncio.create_task(self._read(ahead, room))
        reading.add_done_callback(lambda _: ahead.put_nowait(None))
        try:
            while (lines := await ahead.get()) is not None:
                await self._send(await lines)
                room.release()
            await reading  # raises what ended the stream early
        finally:
            reading.cancel()
            while not ahead.empty():
                if (unanswered := ahead.get_nowait()) is not None:
                    unanswered.cancel()
            del reading  # an error in it refers to this frame, which would keep both and all that was received

    async def _read(self, ahead: asyncio.Queue[asyncio.Task[bytes] | None], room: asyncio.Semaphore) -> None:
        async for block in self._blocks():
            await room.acquire()
            ahead.put_nowait(asyncio.create_task(self._lines(block)))

    async def _blocks(self) -> AsyncIterator[Block]:
        line_bytes, settings = 0, self._serving.settings
        left = settings.max_decoded_bytes
        async for chunk in self._exchange.chunks():
            left += MAX_RATIO * len(chunk)
            pieces, more = self._decompressor.pieces(chunk), True
            ends_no_line = self._exchange.content_encoding == "identity" and b"\n" not in chunk
            while more:
                decode = partial(self._decode_some, pieces)
                size, blocks, more = decode() if ends_no_line else await self._in_thread(decode, PIECE_BYTES)
                left -= size
                if left < 0:
                    raise TooLarge("The stream decompresses to far more than its size.")
                line_bytes += size
                self._exchange.hold_only(min(line_bytes, settings.max_line_bytes))
                for block in blocks:
                    line_bytes = 0
                    yield block
        self._decompressor.finish()
        for block in await self._in_thread(partial(_grouped, self._decoder.finish()), 0):
            yield block

    def _decode_some(self, pieces: Iterator[bytes | memoryview]) -> tuple[int, list[Block], bool]:
        """The size and the blocks of about ``PIECE_BYTES``, and whether there may be more of this chunk."""
        taken, size = list[bytes | memoryview](), 0
        while size < PIECE_BYTES and (piece := next(pieces, None)) is not None:
            taken.append(piece)
            size += len(piece)
        return size, _grouped(self._decoder.feed(b"".join(taken))), size >= PIECE_BYTES

    async def _in_thread(self, work: Callable[[], T], size: int) -> T:
        """One step of the stream, within the timeout of a request."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        return await self._serving.threads.run(work, size=size, deadline=deadline)

    async def _lines(self, block: Block) -> bytes:
        """The answer's lines for a block, as many as it has rows."""
        request_id = self._exchange.request_id
        if isinstance(block, list):

            def lines() -> bytes:
                return b"".join(_error_line(bad.error, request_id, bad.row) for bad in block)

            return lines() if len(block) <= FEW_LINES else await self._in_thread(lines, 0)
        try:
            answer = await self._run(block)
        except RequestError as error:
            return b"".join(_error_line(error, request_id, block.first_row + at) for at in range(block.count))
        except ModelFailed as error:
            if block.count == 1:
                return _error_line(error, request_id, block.first_row)
            # By halves, until the rows that the model fails on stand alone.
            return b"".join([await self._lines(half) for half in block.halves()])
        size = sum(array.nbytes for array in answer.results.values())
        if size <= INLINE_BYTES and answer.explain is None:
            return codecs.encode_ndjson(answer)
        return await self._in_thread(partial(codecs.encode_ndjson, answer), size)

    async def _run(self, block: codecs.RowBlock) -> codecs.Answer:
        """A full queue makes a stream wait: its caller is already being answered."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        names, first = (self._operation.name,), block.first_row
        run = partial(self._life.run, self._loaded, names, block.rows, self._options, first_row=first)
        while True:
            try:
                return await run(block_deadline=deadline)
            except QueueFull:
                if loop.time() + QUEUE_RETRY_S >= deadline:
                    raise
                await asyncio.sleep(QUEUE_RETRY_S)

    async def _send(self, lines: bytes) -> None:
        if not self._started:
            self._started = True
            headers: Headers = [*model_headers(self._loaded.name, self._loaded.version)]
            if self._encoding is not None:
                headers += (b"content-encoding", self._encoding.encode()), (b"vary", b"accept-encoding")
            await self._exchange.start_stream(NDJSON.encode(), headers)
        if self._compressor is not None and lines:
            compress = partial(self._compressor.feed, lines)
            if len(lines) <= INLINE_BYTES:
                lines = compress()
            else:
                # Without a deadline: one compressor for the stream, which cannot be left in the middle of its work.
                lines = await self._serving.threads.run(compress, size=len(lines), deadline=math.inf)
        await self._exchange.send_part(lines)


def _grouped(decoded: Iterator[codecs.RowBlock | codecs.BadLine]) -> list[Block]:
    """Blocks of rows, and the bad lines between two of them together."""
    blocks = list[Block]()
    for kind, group in groupby(decoded, key=type):
        if kind is codecs.BadLine:
            blocks.append(cast("list[codecs.BadLine]", list(group)))
        else:
            blocks.extend(cast("Iterator[codecs.RowBlock]", group))
    return blocks


def _error_line(error: AutoencoderError, request_id: str, row: int | None = None) -> bytes:
    """A problem in place of a row's answer."""
    _, body, _ = problem(error, request_id)
    named = {} if row is None else {"row": row}
    return orjson.dumps({**named, "error": orjson.Fragment(body)}) + b"\n"
