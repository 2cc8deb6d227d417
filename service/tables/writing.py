"""Writing rows with their results: CSV, Parquet, Arrow and NDJSON, whole files at once or nothing."""

import fcntl
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import orjson

from service.codecs.answers import each_json, interleave
from service.errors import DataError
from service.tables.files import ARROW, CSV, NDJSON, STDIO, Part, compression_of, read_batches, shown
from service.tables.frames import check_no_clash

ROW_GROUP_ROWS: Final = 262_144
COPY_BYTES: Final = 2**20


class Sink:
    """One output file that chunks are appended to; whole when it is left without an error."""

    def __init__(self, file: Any, kind: str, *, delimiter: str = ",", header: bool = True) -> None:
        self._file = file
        self._kind = kind
        self._delimiter = delimiter
        self._header = header
        self._writer: Any = None
        self._schema: Any = None
        self._waiting: list[Any] = []

    def write(self, table: Any, results: Any, lines: Sequence[bytes] | None = None) -> None:
        """Append rows with their results; ``lines``: the rows as they stood in an NDJSON file."""
        check_no_clash(table.column_names, results.column_names)
        if self._kind == NDJSON:
            objects = list[bytes]()
            for line, result in zip(lines if lines is not None else _objects(table), _objects(results), strict=True):
                start = (line if line.startswith(b"{") else b'{"instances":' + line + b"}")[:-1].rstrip()
                objects.append(start + (b"," if start != b"{" else b"") + result[1:] + b"\n")
            self._file.write(b"".join(objects))
            return
        for name in results.column_names:
            table = table.append_column(name, results[name])
        self.write_table(table)

    def write_table(self, table: Any) -> None:
        import pyarrow as pa

        if self._kind == CSV:
            self._file.write(_csv_bytes(_flat(table), self._delimiter, header=self._header))
            self._header = False
            return
        if self._writer is None:
            self._schema = table.schema
            self._writer = _open(self._file, self._kind, table.schema)
        elif table.schema != self._schema:
            for name, column, field in zip(table.column_names, table.columns, self._schema, strict=True):
                try:
                    column.cast(field.type)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise DataError(
                        f'Column "{name}" has another type than in the rows before, and would lose values: write CSV '
                        "or NDJSON."
                    ) from error
            table = table.cast(self._schema)
        if self._kind == ARROW:
            self._writer.write_table(table)
            return
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= ROW_GROUP_ROWS:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Row groups of a useful size, however small the chunks are."""
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=2**30)
            self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        if kind is None:
            self._write_waiting()
        self._writer.close()


def _open(file: Any, kind: str, schema: Any) -> Any:
    import pyarrow as pa
    from pyarrow import parquet
    from pyarrow import types as kinds

    if kind == ARROW:
        return pa.ipc.new_stream(file, schema) if file is sys.stdout.buffer else pa.ipc.new_file(file, schema)
    repeats = (kinds.is_string, kinds.is_large_string, kinds.is_dictionary)
    text = [field.name for field in schema if any(test(field.type) for test in repeats)]
    # A dictionary of numbers that differ anyway costs six times the writing and saves nothing.
    return parquet.ParquetWriter(file, schema, use_dictionary=text or False)


def _csv_bytes(table: Any, delimiter: str, *, header: bool) -> bytes:
    import csv
    import io

    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    line, sink = io.StringIO(), pa.BufferOutputStream()
    if header:
        csv.writer(line, delimiter=delimiter, lineterminator="\n").writerow(table.column_names)
    options = {"include_header": False, "delimiter": delimiter}
    try:
        arrow_csv.write_csv(table, sink, arrow_csv.WriteOptions(quoting_style="none", **options))
    except pa.ArrowInvalid:  # a cell with a delimiter, quotation mark or line end
        sink = pa.BufferOutputStream()
        arrow_csv.write_csv(table, sink, arrow_csv.WriteOptions(quoting_style="needed", **options))
    return line.getvalue().encode() + bytes(sink.getvalue().to_pybytes())


def _flat(table: Any) -> Any:
    """Lists of a fixed size as columns ``latent_0``, ``latent_1`` …; what else is nested as JSON text."""
    import pyarrow as pa
    from pyarrow import compute

    columns: list[tuple[str, Any]] = []
    for name in table.column_names:
        column, kind = table[name], table[name].type
        if pa.types.is_fixed_size_list(kind) and not pa.types.is_nested(kind.value_type):
            columns += [(f"{name}_{at}", compute.list_element(column, at)) for at in range(kind.list_size)]
        elif pa.types.is_nested(kind):
            texts = [None if value is None else orjson.dumps(value).decode() for value in column.to_pylist()]
            columns.append((name, pa.array(texts, type=pa.string())))
        elif pa.types.is_dictionary(kind):
            columns.append((name, column.cast(kind.value_type)))
        else:
            columns.append((name, column))
    return pa.Table.from_arrays([column for _, column in columns], names=[name for name, _ in columns])


def _objects(table: Any) -> list[bytes]:
    keys = [orjson.dumps(name) + b":" for name in table.column_names]
    return interleave(keys, [_json_cells(table[name]) for name in table.column_names])


def _json_cells(column: Any) -> list[bytes]:
    import pyarrow as pa

    kind = column.type
    if (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and not column.null_count:
        return each_json(column.to_numpy())
    return [orjson.dumps(value, default=str) for value in column.to_pylist()]


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: str, *, as_it_is: bool = False) -> Iterator[Any]:
    """A file that appears under its name, complete and on the disk, or not at all. ``-`` is standard output.

    What is written is compressed as the name says, unless it is that already.

    Raises:
        DataError: it cannot be written.
    """
    if path == STDIO:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with _held_file(Path(path), "" if as_it_is else path) as stream:
            yield stream
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _held_file(target: Path, compressed_as: str) -> Iterator[Any]:
    import pyarrow as pa

    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        # Of a run that was killed; one that lives holds its own.
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with temporary.open("xb") as held:  # a compressed stream closes the file that it writes to, so there are two
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            with temporary.open("wb") as file:
                codec = compression_of(compressed_as)
                with file if codec is None else pa.CompressedOutputStream(pa.PythonFile(file), codec) as stream:
                    yield stream
            os.fsync(held.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def join_files(parts: Sequence[Path], path: str, kind: str) -> None:
    """One file of the parts in their order; a CSV's header stands in the first."""
    if kind in (CSV, NDJSON):
        with whole_file(path, as_it_is=True) as file:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, file, COPY_BYTES)
        return
    with whole_file(path) as file, Sink(file, kind) as sink:
        for part in parts:
            for table, _ in read_batches(Part(0, str(part), kind), batch_rows=65_536):
                sink.write_table(table)
