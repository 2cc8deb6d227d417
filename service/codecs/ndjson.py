"""NDJSON: one row a line, decoded while it arrives.

The answer to a stream has begun long before its end, so a bad line does not end it: it becomes a ``BadLine`` in its
place, which the answer names in the same place, and the rows around it are answered as ever. A stream of bad lines
above all ends: an error takes longer than a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.codecs.json_rows import decode_instances, decode_numbers_fast, parse_json
from service.codecs.rows import Limits
from service.errors import InvalidRows, MalformedInput, RequestError, TooLarge
from service.schemas import INSTANCES, InputSchema, Rows

_DEFAULT_BLOCK_ROWS: Final = 256
_DEFAULT_LINE_BYTES: Final = 2**20
_MAX_BAD_LINES: Final = 1000
"""Bad lines that a stream may have, and as many more as it has rows."""
_BLANK: Final = b" \t\r"


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive good rows."""

    first_row: int
    """Number of the first row in the stream, counted from 0 without blank lines."""
    rows: Rows
    count: int

    def halves(self) -> tuple["RowBlock", "RowBlock"]:
        """Two blocks, of a block of at least two rows."""
        half = self.count // 2
        first, second = (
            {name: array[part] for name, array in self.rows.items()} for part in (np.s_[:half], np.s_[half:])
        )
        return RowBlock(self.first_row, first, half), RowBlock(self.first_row + half, second, self.count - half)


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no row of this model."""

    row: int
    error: RequestError
    """MalformedInput, TooLarge, or InvalidRows with problems of this row."""


class NdjsonDecoder:
    """Blocks of up to ``block_rows`` rows, and bad lines, in the order of the stream. Not thread-safe.

    Holds one unfinished line of at most ``max_line_bytes``; of a longer one the rest is skipped.
    """

    def __init__(
        self,
        schema: InputSchema,
        *,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        block_rows: int = _DEFAULT_BLOCK_ROWS,
        max_line_bytes: int = _DEFAULT_LINE_BYTES,
    ) -> None:
        self._schema = schema
        self._limits = limits
        self._block_rows = block_rows
        self._max_line_bytes = max_line_bytes
        self._unfinished: list[bytes] = []
        self._unfinished_bytes = 0
        self._skipping = False
        self._next_row = 0
        self._bad_lines = 0
        self._ended = False

    def feed(self, chunk: bytes) -> Iterator[RowBlock | BadLine]:
        """The contents of the lines that ``chunk`` completes. Exhaust the iterator before the next call.

        Raises:
            MalformedInput: most lines so far are bad, and these are many.
        """
        self._check_bad_lines()
        first, *others = chunk.split(b"\n")
        self._keep(first)
        if not others:
            return
        lines = [self._take(), *others[:-1]]
        self._keep(others[-1])
        yield from self._decode(lines)

    def finish(self) -> Iterator[RowBlock | BadLine]:
        """The content of a last line without a line end; the errors are those of ``feed``."""
        self._check_bad_lines()
        yield from self._decode([self._take()])

    def _keep(self, piece: bytes) -> None:
        self._unfinished_bytes += len(piece)
        if self._unfinished_bytes > self._max_line_bytes:
            self._skipping = True
            self._unfinished.clear()
        elif piece:
            self._unfinished.append(piece)

    def _take(self) -> bytes | None:
        """The line kept so far; None where it was too long."""
        line = None if self._skipping else b"".join(self._unfinished)
        self._unfinished, self._unfinished_bytes, self._skipping = [], 0, False
        return line

    def _decode(self, lines: Sequence[bytes | None]) -> Iterator[RowBlock | BadLine]:
        full = [line for line in lines if line is None or line.strip(_BLANK)]
        for start in range(0, len(full), self._block_rows):
            if self._bad_lines > _MAX_BAD_LINES + (self._next_row - self._bad_lines):
                self._ended = True  # the next call says so, behind what was decoded until now
                return
            yield from self._decode_block(full[start : start + self._block_rows])

    def _check_bad_lines(self) -> None:
        if self._ended:
            raise MalformedInput(f"{self._bad_lines} of the first {self._next_row} lines are no rows of this model.")

    def _decode_block(self, lines: Sequence[bytes | None]) -> Iterator[RowBlock | BadLine]:
        numbers = self._numbers_fast(lines)
        if numbers is not None:
            yield self._block({INSTANCES: numbers}, len(lines))
            return
        # Arrays and objects may both be rows of a model, but not in one block.
        for kind, group in groupby(map(self._parse, lines), key=type):
            if issubclass(kind, RequestError):
                yield from map(self._bad_line, group)
            else:
                yield from self._decode_rows(list(group))

    def _numbers_fast(self, lines: Sequence[bytes | None]) -> NDArray[np.float32] | None:
        """All lines as one JSON array, where no line can lean on its neighbours to look like rows."""
        if any(
            line is None or len(line) > self._max_line_bytes or line.count(b"[") != line.count(b"]") for line in lines
        ):
            return None
        joined = b",".join(line for line in lines if line is not None)
        if b'"' in joined or b"{" in joined or b"}" in joined:
            return None
        found = decode_numbers_fast(b'{"instances":[%b]}' % joined, self._schema, self._limits)
        return found[0] if found is not None and len(found[0]) == len(lines) else None

    def _parse(self, line: bytes | None) -> Any:
        """A line's JSON value, or what is wrong with it."""
        if line is None or len(line) > self._max_line_bytes:
            return TooLarge(f"A line may have at most {self._max_line_bytes} bytes.")
        try:
            value, only_json = parse_json(line)
            if not only_json:
                decode_instances([value], self._schema, self._limits)
                return MalformedInput("The line is not valid JSON.")
        except RequestError as error:
            return error
        return value

    def _decode_rows(self, values: list[Any]) -> Iterator[RowBlock | BadLine]:
        try:
            yield self._block(decode_instances(values, self._schema, self._limits), len(values))
        except RequestError:
            for is_bad, group in groupby(map(self._decode_row, values), key=lambda row: isinstance(row, RequestError)):
                if is_bad:
                    yield from map(self._bad_line, group)
                else:
                    rows = list(group)
                    joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
                    yield self._block(joined, len(rows))

    def _decode_row(self, value: Any) -> Any:
        """One row, or what is wrong with it."""
        try:
            return decode_instances([value], self._schema, self._limits)
        except RequestError as error:
            return error

    def _block(self, rows: Rows, count: int) -> RowBlock:
        block = RowBlock(self._next_row, rows, count)
        self._next_row += count
        return block

    def _bad_line(self, error: RequestError) -> BadLine:
        row = self._next_row
        self._next_row += 1
        self._bad_lines += 1
        if isinstance(error, InvalidRows):
            error = InvalidRows([replace(problem, row=row) for problem in error.problems], str(error))
        return BadLine(row, error)
