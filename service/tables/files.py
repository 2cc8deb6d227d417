"""Files of rows: which there are, of which kind, in which parts they are scored, and their rows as Arrow.

A part is the unit of resuming and of sending to another machine: some row groups of a Parquet file, some batches of an
Arrow file, a range of bytes of a CSV or NDJSON file that begins and ends between rows. What cannot be cut (compressed
text, a stream) is one part.
"""

import codecs
import glob
import gzip
import itertools
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import orjson

from service.errors import ConfigurationError, DataError
from service.schemas import INSTANCES
from service.tables.dialect import SAVE_AS_UTF8, Dialect, dialect_of, sniff
from service.tables.frames import plain

CSV: Final = "csv"
PARQUET: Final = "parquet"
ARROW: Final = "arrow"
NDJSON: Final = "ndjson"
TABLES: Final = (CSV, PARQUET, ARROW, NDJSON)
NPY: Final = "npy"
NPZ: Final = "npz"
IDX: Final = "idx"
SUFFIXES: Final = {
    ".csv": CSV,
    ".tsv": CSV,
    ".txt": CSV,
    ".parquet": PARQUET,
    ".pq": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
    ".ipc": ARROW,
    ".arrows": ARROW,
    ".ndjson": NDJSON,
    ".jsonl": NDJSON,
}
MARKS: Final = {
    b"PAR1": PARQUET,
    b"ARROW1": ARROW,
    b"\xff\xff\xff\xff": ARROW,
    b"\x93NUMPY": NPY,
    b"PK\x03\x04": NPZ,
    b"PK\x05\x06": NPZ,
    b"\0\0": IDX,
}
"""First bytes of files."""
GZIP_MARK: Final = b"\x1f\x8b"
COMPRESSED: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
STDIO: Final = "-"
PART_ROWS: Final = 1_000_000
PART_BYTES: Final = 128 * 2**20
BLOCK_BYTES: Final = 2 * 2**20
MAX_ROW_BYTES: Final = 8 * 2**20
WHOLE: Final = -1


@dataclass(frozen=True, slots=True)
class Part:
    """``start`` and ``stop`` count row groups, batches or bytes, as the format has it; ``WHOLE``: to the end."""

    number: int
    file: str
    format: str
    start: int = 0
    stop: int = WHOLE
    rows: int | None = None
    """How many there are, where the file says so."""
    first_row: int = 0
    """Rows of the file before this part; of a text file, not known: 0."""
    size: int = 0
    """Bytes."""
    partition: tuple[tuple[str, Any], ...] = ()
    """Columns that stand in the folders' names: ``year=2026``."""


# --- which files and parts --------------------------------------------------------------------------------------------


def format_of(name: str, given: str | None = None) -> str:
    """The format that a name says, where the caller says none. Raises ConfigurationError when neither does."""
    if given is not None:
        return given
    suffixes = Path(name).suffixes
    if suffixes and suffixes[-1].lower() in COMPRESSED:
        suffixes.pop()
    known = SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
    if known is None:
        raise ConfigurationError(f"'{name}' does not say its format: add --format csv, parquet, arrow or ndjson.")
    return known


def compression_of(name: str) -> str | None:
    return COMPRESSED.get(Path(name).suffix.lower())


def kind_of(path: Path | str) -> str:
    """The format of a file by its first bytes, whatever the name; what is nothing else is taken for CSV.

    Raises:
        DataError: it is empty, not there, or cannot be read.
    """
    import pyarrow as pa

    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(GZIP_MARK):
            with gzip.open(path) as unzipped:
                start = unzipped.read(8)
        elif compression_of(path.name):
            with pa.input_stream(str(path), compression="detect") as unpacked:
                start = unpacked.read(8)
    except FileNotFoundError:
        raise DataError(f"There is no file {path.name}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be read.") from error
    if not start:
        raise DataError("The file is empty.")
    found = next((kind for mark, kind in MARKS.items() if start.startswith(mark)), None)
    return found or (NDJSON if start.lstrip()[:1] in (b"{", b"[") else CSV)


def find_files(source: str, given: str | None = None) -> list[str]:
    """The files of a path, folder or pattern in a lasting order; what begins with ``_`` or ``.`` is not meant.

    Raises:
        DataError: there is none.
    """
    if source == STDIO:
        return [STDIO]
    path = Path(source)
    if path.is_file():
        return [source]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        meant = [file for file in files if not any(part[0] in "_." for part in file.relative_to(path).parts)]
        found = [
            str(file)
            for file in meant
            if given is not None or any(suffix.lower() in SUFFIXES for suffix in file.suffixes[-2:])
        ]
        missing = f"'{source}' has no files of rows."
    else:
        found = [name for name in glob.glob(source, recursive=True) if Path(name).is_file()]  # noqa: PTH207
        is_pattern = any(mark in source for mark in "*?[")
        missing = f"No file matches {path.name}." if is_pattern else f"There is no file {path.name}."
    if not found:
        raise DataError(missing)
    return sorted(found)


def plan_parts(
    files: Sequence[str],
    *,
    given: str | None = None,
    root: str = "",
    part_rows: int = PART_ROWS,
    part_bytes: int = PART_BYTES,
) -> list[Part]:
    """The parts of all files, in order: of about ``part_rows`` rows, or of text ``part_bytes``.

    Raises:
        DataError: a file cannot be read.
        ConfigurationError: the format of one is not known.
    """
    parts: list[Part] = []
    for file in files:
        with _named(file):
            is_known = given is not None or file == STDIO or not Path(file).stat().st_size
            kind = format_of(file, given) if is_known else kind_of(file)
            if kind not in TABLES:
                raise DataError("this is an array without names of columns, and no table.")
            whole = Part(0, file, kind, partition=_partition(file, root))
            for part in _cut(whole, part_rows, part_bytes):
                parts.append(replace(part, number=len(parts)))
    return parts


@contextmanager
def _named(file: str) -> Iterator[None]:
    """Errors of a file as sentences that begin with its name."""
    import pyarrow as pa

    try:
        yield
    except DataError as error:
        raise DataError(f"{shown(file)}: {error}") from error
    except (pa.ArrowException, OSError, UnicodeError, EOFError) as error:
        raise DataError(f"{shown(file)} cannot be read: it is damaged.") from error


def shown(file: str) -> str:
    return "standard input" if file == STDIO else file


def _partition(file: str, root: str) -> tuple[tuple[str, Any], ...]:
    """The hive style: folders called ``name=value`` below the root are columns."""
    if not root or not Path(root).is_dir():
        return ()
    found: list[tuple[str, Any]] = []
    for folder in Path(file).relative_to(root).parts[:-1]:
        name, mark, value = (unquote(part) for part in folder.partition("="))
        if mark:
            is_number = value.lstrip("-").isdigit() and len(value) < 19
            found.append((name, None if value == HIVE_NULL else int(value) if is_number else value))
    return tuple(found)


def _cut(whole: Part, part_rows: int, part_bytes: int) -> Iterator[Part]:
    if whole.file == STDIO:
        yield whole
    elif whole.format == PARQUET:
        from pyarrow import parquet

        found = parquet.read_metadata(whole.file)
        yield from _cut_by_rows(whole, [found.row_group(at).num_rows for at in range(found.num_row_groups)], part_rows)
    elif whole.format == ARROW:
        reader = open_arrow(whole.file)
        counts = None  # a stream cannot tell
        if hasattr(reader, "num_record_batches"):
            counts = [reader.get_batch(at).num_rows for at in range(reader.num_record_batches)]
        yield from _cut_by_rows(whole, counts, part_rows)
    elif compression_of(whole.file) or (whole.format == CSV and dialect_of(whole.file).encoding != "utf-8"):
        yield replace(whole, size=Path(whole.file).stat().st_size)
    else:
        begin = dialect_of(whole.file).size if whole.format == CSV else 0
        yield from _cut_text(whole, begin, part_bytes, quotes=whole.format == CSV)


def open_arrow(file: str) -> Any:
    """A reader of an Arrow file (Feather) or stream; ``-`` is a stream on standard input."""
    import pyarrow as pa

    if file == STDIO:
        return pa.ipc.open_stream(sys.stdin.buffer)
    source = pa.memory_map(file)
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _cut_by_rows(whole: Part, counts: Sequence[int] | None, part_rows: int) -> Iterator[Part]:
    size = Path(whole.file).stat().st_size
    if not counts:
        yield replace(whole, size=size, rows=None if counts is None else 0, stop=WHOLE if counts is None else 0)
        return
    total, start, rows, before = sum(counts) or 1, 0, 0, 0
    for at, count in enumerate(counts, start=1):
        rows += count
        if rows >= part_rows or at == len(counts):
            yield replace(whole, start=start, stop=at, rows=rows, first_row=before, size=max(1, size * rows // total))
            start, before, rows = at, before + rows, 0


def _cut_text(whole: Part, begin: int, part_bytes: int, *, quotes: bool) -> Iterator[Part]:
    """Cut behind line ends. In CSV only behind those that an even number of quotation marks stands before."""
    end = Path(whole.file).stat().st_size
    start = position = begin
    odd = False
    with Path(whole.file).open("rb") as stream:
        stream.seek(begin)
        while block := stream.read(min(BLOCK_BYTES, part_bytes)):
            if position + len(block) - start >= part_bytes:
                cut = _last_row_end(block, odd=odd) if quotes else block.rfind(b"\n") + 1
                if cut:
                    yield replace(whole, start=start, stop=position + cut, size=position + cut - start)
                    start = position + cut
            if quotes and block.count(b'"') % 2:
                odd = not odd
            position += len(block)
    if start < end or start == begin:
        yield replace(whole, start=start, stop=end, size=end - start)


def _last_row_end(block: bytes, *, odd: bool) -> int:
    """Position behind the last line end that is not inside quotation marks; 0 where there is none.

    ``odd``: whether the block begins inside.
    """
    end = len(block)
    inside = odd != bool(block.count(b'"') % 2)
    while True:
        cut = block.rfind(b"\n", 0, end) + 1
        if not cut:
            return 0
        if block.count(b'"', cut, end) % 2:
            inside = not inside
        if not inside:
            return cut
        end = cut - 1


# --- rows of a part ---------------------------------------------------------------------------------------------------


def read_batches(part: Part, *, batch_rows: int, columns: Sequence[str] | None = None) -> Iterator[tuple[Any, Any]]:
    """Tables of at most ``batch_rows`` rows, one at least, each with its dialect (CSV), its lines (NDJSON) or None.

    Cells of a CSV file are text, with blanks that stand around unquoted ones taken away, and nothing is missing yet.

    Args:
        columns: those to read, in this order; all when None.

    Raises:
        DataError: the file is damaged, or its rows are not those of a table; the sentence names it.
    """
    read = {PARQUET: _read_parquet, ARROW: _read_arrow, CSV: _read_csv, NDJSON: _read_ndjson}[part.format]
    with _named(part.file):
        yield from read(part, batch_rows, columns)


def _read_parquet(part: Part, batch_rows: int, columns: Sequence[str] | None) -> Iterator[tuple[Any, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    if part.file == STDIO:
        raise ConfigurationError("Parquet cannot be read from a pipe: name the file, or pipe Arrow, CSV or NDJSON.")
    with parquet.ParquetFile(part.file, buffer_size=2**20) as file:
        names = list(columns) if columns is not None else file.schema_arrow.names
        groups = None if part.stop == WHOLE else list(range(part.start, part.stop))
        count = 0
        for batch in file.iter_batches(batch_rows, row_groups=groups, columns=names) if groups != [] else ():
            count += 1
            yield plain(pa.Table.from_batches([batch]).select(names)), None
        if not count:
            yield plain(file.schema_arrow.empty_table().select(names)), None


def _read_arrow(part: Part, batch_rows: int, columns: Sequence[str] | None) -> Iterator[tuple[Any, Any]]:
    import pyarrow as pa

    reader = open_arrow(part.file)
    names = list(columns) if columns is not None else reader.schema.names
    batches = iter(reader) if not hasattr(reader, "num_record_batches") else None
    if batches is None:
        stop = reader.num_record_batches if part.stop == WHOLE else part.stop
        batches = (reader.get_batch(at) for at in range(part.start, stop))
    count = 0
    for batch in batches:
        table = plain(pa.Table.from_batches([batch]).select(names))
        for start in range(0, table.num_rows, batch_rows):
            count += 1
            yield table.slice(start, batch_rows), None
    if not count:
        yield plain(reader.schema.empty_table().select(names)), None


def _read_csv(part: Part, batch_rows: int, columns: Sequence[str] | None) -> Iterator[tuple[Any, Any]]:
    import pyarrow as pa
    from pyarrow import compute

    stream, start = _text_stream(part)
    dialect = sniff(start) if part.file == STDIO else dialect_of(part.file)
    names = shown_names = list(columns) if columns is not None else dialect.names
    if columns is None and dialect.index is not None:  # no column of the table, but what is passed through has it
        names, shown_names = [dialect.header[0], *names], [dialect.index, *names]
    count = 0
    with _csv_errors(part, dialect):
        for batch in open_csv(stream, part, dialect, names) if part.stop != part.start else ():
            table = pa.Table.from_batches([batch]).rename_columns(shown_names)
            if dialect.blanks and not dialect.quotes:
                table = pa.table([compute.utf8_trim(column, " ") for column in table.columns], names=shown_names)
            for at in range(0, table.num_rows, batch_rows):
                count += 1
                yield table.slice(at, batch_rows), dialect
    if not count:
        yield pa.schema([(name, pa.string()) for name in shown_names]).empty_table(), dialect


def open_csv(stream: Any, part: Part, dialect: Dialect, names: Sequence[str], on_bad_row: Any = None) -> Any:
    """An iterable of record batches of text; none where there are no rows."""
    import pyarrow as pa
    from pyarrow import csv

    cleaned = dialect.blanks and dialect.quotes
    if cleaned:
        stream = pa.PythonFile(_Blocks(_without_blanks(stream, dialect)), mode="r")
    try:
        return csv.open_csv(
            stream,
            read_options=csv.ReadOptions(
                column_names=dialect.header,
                skip_rows=dialect.lines if part.stop == WHOLE else 0,
                block_size=MAX_ROW_BYTES,
                encoding="utf-8" if cleaned else dialect.encoding,
                use_threads=on_bad_row is None,
            ),
            parse_options=dialect.parse_options(on_bad_row),
            convert_options=csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error) or "Could not skip" in str(error):
            return ()
        raise


class _Blocks:
    """A stream of blocks of bytes, as Arrow reads it."""

    closed = False

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._ready = blocks, b""

    def read(self, size: int = -1) -> bytes:
        while (size < 0 or len(self._ready) < size) and (block := next(self._blocks, None)) is not None:
            self._ready += block
        size = len(self._ready) if size < 0 else size
        taken, self._ready = self._ready[:size], self._ready[size:]
        return taken

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _without_blanks(stream: Any, dialect: Dialect) -> Iterator[bytes]:
    """Whole rows of CSV text in UTF-8, without the blanks beside delimiters and quotation marks."""
    decoder = codecs.getincrementaldecoder(dialect.encoding)()
    mark = re.escape(dialect.delimiter.encode())
    blanks = re.compile(rb'(?: *([%b\r\n])|\A) *("(?:[^"]|"")*"(?= *(?:[%b\r\n]|\Z)))?| +\Z' % (mark, mark))
    rest, block = b"", b"\n"
    while block:
        block = stream.read(BLOCK_BYTES)
        rest += decoder.decode(block, final=not block).encode()
        cut = _last_row_end(rest, odd=False) if block else len(rest)
        if not cut and len(rest) > MAX_ROW_BYTES:
            raise DataError(_NEVER_CLOSED)
        yield blanks.sub(rb"\1\2", rest[:cut])
        rest = rest[cut:]


_NEVER_CLOSED: Final = f"A row is longer than {MAX_ROW_BYTES // 2**20} MiB; probably a quotation mark is never closed."


@contextmanager
def _csv_errors(part: Part, dialect: Dialect) -> Iterator[None]:
    """Arrow's errors as sentences."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, UnicodeError) as error:
        text = str(error)
        if isinstance(error, UnicodeError) or "invalid UTF8" in text:
            column = re.search(r"CSV column #(\d+)", text)
            where = f'Column "{dialect.header[int(column[1])]}"' if column else "The file"
            raise DataError(f"{where} is not UTF-8 text; {SAVE_AS_UTF8}.") from error
        if "Expected" in text and "columns, got" in text:
            raise DataError(_ragged(part, dialect)) from error
        if "straddling" in text:
            raise DataError(_NEVER_CLOSED) from error
        raise DataError("The file cannot be read as CSV: it is damaged.") from error


def _ragged(part: Part, dialect: Dialect) -> str:
    """Which row has a wrong number of values: one thread alone can tell, so the part is read again."""
    from pyarrow import ArrowException

    found: list[Any] = []

    def on_bad_row(row: Any) -> str:
        found.append(row)
        return "error"

    if part.file != STDIO:
        with suppress(ArrowException):
            list(open_csv(_text_stream(part)[0], part, dialect, dialect.names[:1], on_bad_row))
    if not found or found[0].number is None:
        return "A row has another number of values than the header."
    row = found[0]
    number = row.number - (dialect.lines if part.stop == WHOLE else 0) + _rows_before(part)
    return f"Row {number} has {row.actual_columns} values, but the header has {row.expected_columns}."


def _text_stream(part: Part) -> tuple[Any, bytes]:
    """A binary stream of the part; of standard input, which cannot be read twice, its first lines too."""
    import pyarrow as pa

    if part.file == STDIO:
        start = b""
        while b"\n" not in start[:-1] and (block := os.read(sys.stdin.buffer.fileno(), BLOCK_BYTES)):
            start += block
        blocks = itertools.chain([start], iter(lambda: sys.stdin.buffer.read(BLOCK_BYTES), b""))
        return pa.PythonFile(_Blocks(blocks), mode="r"), start
    if part.stop != WHOLE:
        file = pa.OSFile(part.file)
        return file.get_stream(part.start, part.stop - part.start), b""
    return pa.input_stream(part.file, compression="detect"), b""


def _read_ndjson(part: Part, batch_rows: int, columns: Sequence[str] | None) -> Iterator[tuple[Any, Any]]:
    stream, _ = _text_stream(part)
    first, count = 0, 0
    for lines in _lines(stream, batch_rows):
        count += 1
        try:
            rows = orjson.loads(b"[" + b",".join(lines) + b"]")
        except orjson.JSONDecodeError:
            rows = []
        if len(rows) != len(lines) or not {dict, list}.issuperset(map(type, rows)):
            rows = []
            for at, line in enumerate(lines):
                with suppress(orjson.JSONDecodeError):
                    rows.append(orjson.loads(line))
                if len(rows) == at or type(rows[-1]) not in (dict, list):
                    raise DataError(f"row {row_number(part, first + at)} is not a JSON object or array.")
        rows = [row if type(row) is dict else {INSTANCES: row} for row in rows]
        names = columns if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
        yield {name: [row.get(name) for row in rows] for name in names}, [line.strip() for line in lines]
        first += len(lines)
    if not count:
        yield {name: [] for name in columns or ()}, []


def _lines(stream: Any, batch_rows: int) -> Iterator[list[bytes]]:
    """Lines that are not blank, ``batch_rows`` at a time; the last may be without its end."""
    rest, lines = b"", []
    while block := stream.read(BLOCK_BYTES):
        *whole, rest = (rest + block).split(b"\n")
        lines += [line for line in whole if line.strip()]
        while len(lines) >= batch_rows:
            yield lines[:batch_rows]
            lines = lines[batch_rows:]
    lines += [rest] if rest.strip() else []
    if lines:
        yield lines


def row_number(part: Part, row: int) -> int:
    """Row of the file, counted from 1 without a header, of a row of the part. May read a text file up to there."""
    return (part.first_row if part.format not in (CSV, NDJSON) else _rows_before(part)) + row + 1


def _rows_before(part: Part) -> int:
    begin = dialect_of(part.file).size if part.format == CSV and part.file != STDIO else 0
    if part.stop == WHOLE or part.start <= begin:
        return 0
    before = replace(part, start=begin, stop=part.start)
    if part.format == NDJSON:
        return sum(len(lines) for lines in _lines(_text_stream(before)[0], 65_536))
    dialect = dialect_of(part.file)
    return sum(batch.num_rows for batch in open_csv(_text_stream(before)[0], before, dialect, dialect.names[:1]))
