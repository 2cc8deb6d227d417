"""Reading files of rows: which there are, in which parts they are worked on, and their rows in bounded memory.

A part is the unit of resuming and of sending to another machine: some row groups of a Parquet file, some batches of an
Arrow file, a range of bytes of a CSV or NDJSON file that begins and ends between rows. What cannot be cut (compressed
text, a stream) is one part.
"""

import glob
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import unquote

import orjson

from service.codecs.csv_head import CsvHead, csv_head, read_csv_head
from service.codecs.rows import RowPlan, cell_problem
from service.errors import ConfigurationError, DataError, RowProblem
from service.pipelines.tables import arrow_column, slices
from service.schemas import INSTANCES, Column, ColumnType

CSV: Final = "csv"
PARQUET: Final = "parquet"
ARROW: Final = "arrow"
NDJSON: Final = "ndjson"
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
COMPRESSED: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
STDIO: Final = "-"
PART_ROWS: Final = 1_000_000
PART_BYTES: Final = 128 * 2**20
BLOCK_BYTES: Final = 2 * 2**20
ARROW_FILE_MAGIC: Final = b"ARROW1"


@dataclass(frozen=True, slots=True)
class Part:
    """``start`` and ``stop`` count row groups, batches or bytes, as the format has it; ``stop`` -1 is the end."""

    number: int
    file: str
    format: str
    start: int = 0
    stop: int = -1
    rows: int | None = None
    """How many there are, where the file says so."""
    first_row: int = 0
    """Rows of the file before this part; of a text file, not known: 0."""
    size: int = 0
    """Bytes."""
    partition: tuple[tuple[str, Any], ...] = ()
    """Columns that stand in the folders' names: ``year=2026``."""


@dataclass(slots=True)
class Chunk:
    """Some rows on their way. ``problems`` counts them from the first of the chunk."""

    part: Part
    first_row: int
    """Rows of the part before these."""
    kept: Any
    """What is passed through to the output, a ``pyarrow.Table``."""
    columns: Any
    """The table that the model's columns are in."""
    problems: dict[int, RowProblem] = field(default_factory=dict)
    lines: list[bytes] | None = None
    """The rows as they stood in an NDJSON file."""

    @property
    def rows(self) -> int:
        return int(self.columns.num_rows)


# --- which files and parts --------------------------------------------------------------------------------------------


def format_of(name: str, given: str | None = None) -> str:
    """Raises ConfigurationError when neither the name nor the caller says it."""
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
        found = [str(file) for file in path.rglob("*") if _is_meant(file.relative_to(path)) and _is_known(file, given)]
    else:
        found = [name for name in glob.glob(source, recursive=True) if Path(name).is_file()]  # noqa: PTH207
    if not found:
        raise DataError(f"There is no file '{source}'." if not path.is_dir() else f"'{source}' has no files of rows.")
    return sorted(found)


def _is_meant(relative: Path) -> bool:
    return not any(part.startswith(("_", ".")) for part in relative.parts)


def _is_known(file: Path, given: str | None) -> bool:
    if not file.is_file():
        return False
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return given is not None or any(suffix in SUFFIXES for suffix in suffixes[-2:])


def plan_parts(
    files: Sequence[str],
    *,
    given: str | None = None,
    root: str = "",
    part_rows: int = PART_ROWS,
    part_bytes: int = PART_BYTES,
) -> list[Part]:
    """The parts of all files, in order: of about so many rows, or of text so many bytes.

    Raises:
        DataError: a file cannot be read.
        ConfigurationError: the format of one is not known.
    """
    parts: list[Part] = []
    for file in files:
        kind = format_of(file, given)
        whole = Part(0, file, kind, partition=_partition(file, root))
        try:
            parts += [
                replace(part, number=len(parts) + at) for at, part in enumerate(_cut(whole, part_rows, part_bytes))
            ]
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or 'damaged'}.") from error
    return parts


def _partition(file: str, root: str) -> tuple[tuple[str, Any], ...]:
    """The hive style: folders called ``name=value`` below the root are columns."""
    if not root or not Path(root).is_dir():
        return ()
    folders = Path(file).relative_to(root).parts[:-1]
    pairs = [folder.split("=", 1) for folder in folders if "=" in folder]
    return tuple((unquote(name), _partition_value(unquote(value))) for name, value in pairs)


def _partition_value(text: str) -> Any:
    if text == "__HIVE_DEFAULT_PARTITION__":
        return None
    return int(text) if text.lstrip("-").isdigit() and len(text) < 19 else text


def _cut(whole: Part, part_rows: int, part_bytes: int) -> Iterator[Part]:
    if whole.file == STDIO:
        yield whole
    elif whole.format == PARQUET:
        yield from _cut_by_rows(whole, _row_groups(whole.file), part_rows)
    elif whole.format == ARROW:
        yield from _cut_by_rows(whole, _batches(whole.file), part_rows)
    elif compression_of(whole.file) or (whole.format == CSV and _head(whole.file).encoding != "utf-8"):
        yield replace(whole, size=Path(whole.file).stat().st_size)
    else:
        begin = _head(whole.file).size if whole.format == CSV else 0
        yield from _cut_text(whole, begin, part_bytes, quotes=whole.format == CSV)


def _row_groups(file: str) -> list[int]:
    """Rows of each row group."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        found = parquet.read_metadata(file)
    except pa.ArrowException as error:
        raise DataError(f"{file} cannot be read as Parquet: it is damaged.") from error
    return [found.row_group(at).num_rows for at in range(found.num_row_groups)]


def _batches(file: str) -> list[int] | None:
    """Rows of each batch of an Arrow file; a stream cannot tell."""
    import pyarrow as pa

    if not _is_arrow_file(file):
        return None
    try:
        with pa.memory_map(file) as source, pa.ipc.open_file(source) as reader:
            return [reader.get_batch(at).num_rows for at in range(reader.num_record_batches)]
    except pa.ArrowException as error:
        raise DataError(f"{file} cannot be read as Arrow: it is damaged.") from error


def _is_arrow_file(file: str) -> bool:
    with Path(file).open("rb") as stream:
        return stream.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC


def _cut_by_rows(whole: Part, counts: Sequence[int] | None, part_rows: int) -> Iterator[Part]:
    size = Path(whole.file).stat().st_size
    if not counts:
        yield replace(whole, size=size, rows=None if counts is None else 0, stop=-1 if counts is None else 0)
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


def read_part(
    part: Part, plan: RowPlan, *, batch_rows: int, columns: Sequence[str] = (), as_text: bool = False
) -> Iterator[Chunk]:
    """The rows of a part, at least one chunk of them even where there are none.

    Args:
        columns: the file's columns that are the model's, in its order; those of the same names when empty.
        as_text: pass the cells of a CSV file through as they stand, not as numbers.

    Raises:
        DataError: the file is damaged; the sentence names it.
    """
    import pyarrow as pa

    read = {PARQUET: _read_parquet, ARROW: _read_arrow, CSV: _read_csv, NDJSON: _read_ndjson}[part.format]
    wanted = columns or tuple(column.name for column in plan.columns)
    targets = dict(zip(wanted, plan.columns, strict=True)) if len(wanted) == len(plan.columns) else {}
    if not plan.columns:
        targets = dict.fromkeys(columns, Column(name="value", may_be_missing=plan.any_may_be_missing))
    first_row = 0
    try:
        for chunk in read(part, targets, batch_rows=batch_rows, as_text=as_text):
            chunk.first_row = first_row
            first_row += chunk.rows
            yield _with_partition(chunk)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{shown(part.file)} cannot be read as {part.format}: {_first_line(error)}") from error


def shown(file: str) -> str:
    return "standard input" if file == STDIO else file


def _first_line(error: BaseException) -> str:
    """The reader's own words, as long as they hold no cell of the file."""
    text = str(error).partition("\n")[0]
    return text.partition(": ")[0][:120] + "." if "Expected" not in text else "a row has another number of values."


def _with_partition(chunk: Chunk) -> Chunk:
    import pyarrow as pa

    for name, value in chunk.part.partition:
        if name not in chunk.kept.column_names:
            column = pa.array([value] * chunk.rows, type=pa.int64() if isinstance(value, int) else pa.string())
            same = chunk.columns is chunk.kept
            chunk.kept = chunk.kept.append_column(name, column)
            chunk.columns = chunk.kept if same else chunk.columns.append_column(name, column)
    return chunk


def _read_parquet(part: Part, targets: Mapping[str, Column], *, batch_rows: int, as_text: bool) -> Iterator[Chunk]:
    import pyarrow as pa
    from pyarrow import parquet

    if part.file == STDIO:
        raise ConfigurationError("Parquet cannot be read from a pipe: name the file, or pipe Arrow, CSV or NDJSON.")
    with parquet.ParquetFile(part.file, buffer_size=2**20) as file:
        schema = file.schema_arrow
        groups = list(range(part.start, part.stop))
        empty = True
        for batch in file.iter_batches(batch_rows, row_groups=groups) if groups else ():
            empty = False
            table = pa.Table.from_batches([batch])
            yield Chunk(part, 0, table, table)
        if empty:
            table = schema.empty_table()
            yield Chunk(part, 0, table, table)


def _read_arrow(part: Part, targets: Mapping[str, Column], *, batch_rows: int, as_text: bool) -> Iterator[Chunk]:
    import pyarrow as pa

    schema, batches = _open_arrow(part)
    empty = True
    for batch in batches:
        for table in slices(pa.Table.from_batches([batch]), batch_rows):
            empty = False
            yield Chunk(part, 0, table, table)
    if empty:
        table = schema.empty_table()
        yield Chunk(part, 0, table, table)


def _open_arrow(part: Part) -> tuple[Any, Iterator[Any]]:
    import pyarrow as pa

    if part.file != STDIO and part.stop >= 0:
        reader = pa.ipc.open_file(pa.OSFile(part.file))
        return reader.schema, (reader.get_batch(at) for at in range(part.start, part.stop))
    stream = pa.ipc.open_stream(_stdin() if part.file == STDIO else pa.OSFile(part.file))
    return stream.schema, iter(stream)


def _stdin() -> BinaryIO:
    return sys.stdin.buffer


def _head(file: str) -> CsvHead:
    try:
        return read_csv_head(file)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


class _Ahead:
    """Bytes that were read already, then the rest of the stream."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start, self._stream = start, stream
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        if not self._start:
            return self._stream.read(size)
        taken, self._start = (self._start[:size], self._start[size:]) if size >= 0 else (self._start, b"")
        return taken

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _text_stream(part: Part) -> tuple[Any, bytes]:
    """A binary stream of the part; of a stream that cannot be read twice, its first bytes too."""
    import pyarrow as pa

    if part.file == STDIO:
        start = _first_bytes(_stdin())
        return pa.PythonFile(_Ahead(start, _stdin()), mode="r"), start
    if part.stop >= 0:
        file = pa.OSFile(part.file)
        return file.get_stream(part.start, part.stop - part.start), b""
    return pa.input_stream(part.file, compression="detect"), b""


def _first_bytes(stream: BinaryIO) -> bytes:
    """The first line at least."""
    read = b""
    while b"\n" not in read and (block := os.read(stream.fileno(), BLOCK_BYTES)):
        read += block
    return read


def _read_csv(part: Part, targets: Mapping[str, Column], *, batch_rows: int, as_text: bool) -> Iterator[Chunk]:
    import pyarrow as pa
    from pyarrow import csv

    stream, start = _text_stream(part)
    head = csv_head(start) if part.file == STDIO else _head(part.file)
    names = [name.strip() for name in head.names]
    if len(set(names)) < len(names):
        raise DataError(f"{shown(part.file)}: two columns have the same name.")
    kept = pa.schema([(name, pa.string()) for name in names])
    reader = (
        csv.open_csv(
            stream,
            read_options=csv.ReadOptions(
                column_names=names, skip_rows=0 if part.stop >= 0 else 1, block_size=BLOCK_BYTES, encoding=head.encoding
            ),
            parse_options=csv.ParseOptions(delimiter=head.delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=kept, strings_can_be_null=False),
        )
        if part.stop < 0 or part.stop > part.start
        else iter(())
    )
    empty = True
    for batch in reader:
        for table in slices(pa.Table.from_batches([batch]), batch_rows):
            empty = False
            yield _typed(Chunk(part, 0, table, table), targets, as_text=as_text)
    if empty:
        yield _typed(Chunk(part, 0, kept.empty_table(), kept.empty_table()), targets, as_text=as_text)


def _typed(chunk: Chunk, targets: Mapping[str, Column], *, as_text: bool) -> Chunk:
    """Text cells as what the model's columns are."""
    columns = chunk.columns
    for name, column in targets.items():
        if name in columns.column_names:
            values = _parsed(columns[name].combine_chunks(), column, chunk.problems)
            columns = columns.set_column(columns.column_names.index(name), name, values)
    chunk.columns = columns
    if not as_text:
        chunk.kept = columns
    return chunk


def _parsed(texts: Any, column: Column, problems: dict[int, RowProblem]) -> Any:
    import pyarrow as pa
    from pyarrow import compute, csv

    spellings = pa.array(csv.ConvertOptions().null_values)
    texts = compute.if_else(compute.is_in(texts, spellings), pa.scalar(None, pa.string()), texts)
    if column.type in (ColumnType.CATEGORICAL, ColumnType.TIMESTAMP):
        return texts
    wanted = pa.bool_() if column.type is ColumnType.BOOLEAN else pa.float64()
    try:
        return texts.cast(wanted)
    except pa.ArrowInvalid:
        return _parsed_one_by_one(compute.utf8_trim_whitespace(texts), wanted, column, problems)


def _parsed_one_by_one(texts: Any, wanted: Any, column: Column, problems: dict[int, RowProblem]) -> Any:
    import pyarrow as pa

    parsed = []
    for row, text in enumerate(texts):
        try:
            parsed.append(text.cast(wanted).as_py())
        except pa.ArrowInvalid:
            parsed.append(None)
            problem = cell_problem(text.as_py(), column.type, may_be_missing=False)
            problems.setdefault(row, RowProblem(row, column.name, problem or "does not fit"))
    return pa.array(parsed, type=wanted)


def _read_ndjson(part: Part, targets: Mapping[str, Column], *, batch_rows: int, as_text: bool) -> Iterator[Chunk]:
    stream, _ = _text_stream(part)
    row, empty = 0, True
    for lines in _lines(stream, batch_rows):
        empty = False
        yield _ndjson_chunk(part, row, lines, targets)
        row += len(lines)
    if empty:
        yield _ndjson_chunk(part, 0, [], targets)


def _lines(stream: Any, batch_rows: int) -> Iterator[list[bytes]]:
    """Lines that are not blank, so many at a time; the last may be without its end."""
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


def _ndjson_chunk(part: Part, first_row: int, lines: list[bytes], targets: Mapping[str, Column]) -> Chunk:
    import pyarrow as pa

    rows = _parsed_lines(part, first_row, lines)
    problems: dict[int, RowProblem] = {}
    names = list(dict.fromkeys(name for row in rows for name in row)) if rows else list(targets)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        target = targets.get(name)
        columns[name] = _plain_column(values) if target is None else arrow_column(values, target, problems)
    table = pa.table(columns) if columns else pa.table({INSTANCES: pa.nulls(0)})
    return Chunk(part, 0, table, table, problems, [line.strip() for line in lines])


def _plain_column(values: list[Any]) -> Any:
    """Any JSON values as Arrow; what has no one type is kept as JSON text."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else orjson.dumps(value).decode() for value in values])


def _parsed_lines(part: Part, first_row: int, lines: list[bytes]) -> list[dict[str, Any]]:
    try:
        rows = orjson.loads(b"[" + b",".join(lines) + b"]")
    except orjson.JSONDecodeError:
        rows = []
    if len(rows) != len(lines) or any(type(row) is not dict and type(row) is not list for row in rows):
        rows = [_parsed_line(part, first_row + at, line) for at, line in enumerate(lines)]
    return [row if type(row) is dict else {INSTANCES: row} for row in rows]


def _parsed_line(part: Part, row: int, line: bytes) -> Any:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = None
    if type(value) is not dict and type(value) is not list:
        raise DataError(f"{shown(part.file)}: row {row_number(part, row)} is not a JSON object or array.")
    return value


def row_number(part: Part, row: int) -> int:
    """Row of the file, counted from 1 without a header, of a row of the part. May read a text file up to there."""
    if part.format not in (CSV, NDJSON) or part.stop < 0:
        return part.first_row + row + 1
    return _rows_before(part) + row + 1


def _rows_before(part: Part) -> int:
    from pyarrow import csv

    if part.format == NDJSON:
        with Path(part.file).open("rb") as stream:
            return sum(len(lines) for lines in _lines(_Bounded(stream, part.start), 65_536))
    head = _head(part.file)
    if part.start <= head.size:
        return 0
    before = replace(part, start=head.size, stop=part.start)
    reader = csv.open_csv(
        _text_stream(before)[0],
        read_options=csv.ReadOptions(column_names=[str(at) for at in range(len(head.names))]),
        parse_options=csv.ParseOptions(delimiter=head.delimiter, newlines_in_values=True),
    )
    return sum(batch.num_rows for batch in reader)


class _Bounded:
    """The first bytes of a stream."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int) -> bytes:
        block = self._stream.read(min(size, self._left))
        self._left -= len(block)
        return block
