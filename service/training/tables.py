"""Tables with named columns, from CSV and Parquet files. Rows are counted from 1, without the header."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import Column, ColumnType

MAX_HEADER_BYTES = 16 * 2**20
MAX_NAME_LENGTH = 256
DELIMITERS = ",;\t|"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[Column, ...]
    values: NDArray[np.float32]
    """(rows, columns); a missing value is NaN."""


def read_csv(path: Path, *, columns: Sequence[str] = (), drop: Sequence[str] = ()) -> Table:
    """Read a CSV file with a header line, plain or compressed, delimited by comma, semicolon, tab or bar.

    Args:
        columns: names to use, in this order; all when empty.
        drop: names to leave out.

    Raises:
        DataError: it is not such a table of numbers and booleans; the sentence names the row and column.
    """
    from pyarrow import ArrowException
    from pyarrow import csv as arrow_csv

    header, delimiter, encoding = _sniff(path)
    raw = {name.strip(): name for name in header}
    _check_names([name.strip() for name in header])
    names = select_columns(list(raw), columns=columns, drop=drop)
    bad_rows: list[Any] = []

    def read(*, use_threads: bool) -> Any:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=use_threads, encoding=encoding, block_size=2**24),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=_collect(bad_rows)),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=[raw[name] for name in names], strings_can_be_null=True
            ),
        )

    try:
        table = read(use_threads=True)
    except (ArrowException, UnicodeError) as error:
        if not bad_rows:
            raise DataError("The file cannot be read as CSV: it is damaged, or not UTF-8 text.") from error
        raise DataError(_ragged(bad_rows, read)) from error
    return _table(names, table.schema.types, table.to_batches(), table.num_rows)


def read_parquet(path: Path, *, columns: Sequence[str] = (), drop: Sequence[str] = ()) -> Table:
    """Read a Parquet file, by batches of rows. Arguments and errors as of ``read_csv``."""
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path)
        _check_names(file.schema_arrow.names)
        names = select_columns(file.schema_arrow.names, columns=columns, drop=drop)
        types = [file.schema_arrow.field(name).type for name in names]
        return _table(names, types, file.iter_batches(columns=names), file.metadata.num_rows)
    except (ArrowException, OSError) as error:
        raise DataError("The file cannot be read as Parquet: it is damaged.") from error


def select_columns(names: Sequence[str], *, columns: Sequence[str] = (), drop: Sequence[str] = ()) -> list[str]:
    """The names to use.

    Raises:
        DataError: a name is not there, or none is left.
    """
    for name in (*columns, *drop):
        if name not in names:
            raise DataError(f'There is no column "{name}"; the columns are {_some(names)}.')
    selected = [name for name in (columns or names) if name not in set(drop)]
    if len(set(selected)) < len(selected):
        raise DataError("A column is asked for twice.")
    if not selected:
        raise DataError("No column is left to train on.")
    return selected


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def _sniff(path: Path) -> tuple[list[str], str, str]:
    """Header cells, delimiter and encoding."""
    import pyarrow as pa

    try:
        with pa.input_stream(path, compression="detect") as stream:
            start = stream.read(MAX_HEADER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise DataError("The file cannot be read as CSV: it is damaged.") from error
    encoding = "utf-16" if start.startswith(UTF16_MARKS) else "utf-8-sig"
    # A cut through a character at the end of the excerpt is not the file's fault.
    text = start.decode(encoding, errors="replace")
    line = re.split(r"\r\n|\n|\r", text, maxsplit=1)[0]
    if "\ufffd" in line or "\0" in line:
        raise DataError("The first line is not UTF-8 text; save the file as UTF-8.")
    if not line.strip():
        raise DataError("The file is empty or its first line is; a header with the columns' names is needed.")
    delimiter = max(DELIMITERS, key=line.count)
    header = next(csv.reader([line], delimiter=delimiter))
    if all(NUMBER.fullmatch(cell.strip()) for cell in header):
        raise DataError("The first line holds numbers; a header with the columns' names is needed.")
    return header, delimiter, "utf-16" if encoding == "utf-16" else "utf-8"


def _check_names(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for position, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"Column {position} has no name; give it one in the header.")
        if len(name) > MAX_NAME_LENGTH:
            raise DataError(f"The name of column {position} is longer than {MAX_NAME_LENGTH} characters.")
        if name in seen:
            raise DataError(f'Two columns are named "{name}"; rename one of them.')
        seen.add(name)


def _collect(bad_rows: list[Any]) -> Callable[[Any], str]:
    def on_bad_row(row: Any) -> str:
        bad_rows.append(row)
        return "error"

    return on_bad_row


def _ragged(bad_rows: list[Any], read: Callable[..., Any]) -> str:
    """Which row has a wrong number of values. Only reading by one thread tells the row's number."""
    bad_rows.clear()
    try:
        read(use_threads=False)
    except Exception:  # noqa: BLE001 - the first reading has failed already; this one is for the row's number
        first = bad_rows[0]
        # The parser counts lines from 1 and the header is the first.
        return f"Row {first.number - 1} has {first.actual_columns} values, but the header has {first.expected_columns}."
    return "A row has another number of values than the header."


def _table(names: Sequence[str], types: Sequence[Any], batches: Iterable[Any], rows: int) -> Table:
    from pyarrow import types as kinds

    if not rows:
        raise DataError("The file has no rows.")
    batches = list(batches) if any(_is_text(type_) for type_ in types) else batches
    for position, (name, type_) in enumerate(zip(names, types, strict=True)):
        _check_type(name, type_, (batch.column(position) for batch in batches if _is_text(type_)))
    values = np.empty((rows, len(names)), np.float32)
    start = 0
    for batch in batches:
        for position in range(len(names)):
            values[start : start + batch.num_rows, position] = _numbers(batch.column(position))
        start += batch.num_rows
    columns = [_column(*each) for each in zip(names, map(kinds.is_boolean, types), values.T, strict=True)]
    return Table(tuple(columns), values)


def _is_text(type_: Any) -> bool:
    from pyarrow import types as kinds

    tests = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary, kinds.is_dictionary)
    return any(test(type_) for test in tests)


def _check_type(name: str, type_: Any, chunks: Iterable[Any]) -> None:
    from pyarrow import types as kinds

    advice = f"leave it out with --drop {name if name.isidentifier() else repr(name)}"
    if _is_text(type_):
        raise DataError(f'Column "{name}" holds text{_first_text(chunks)}; {advice}.')
    if kinds.is_null(type_):
        raise DataError(f'Column "{name}" has no values; {advice}.')
    if kinds.is_temporal(type_):
        raise DataError(f'Column "{name}" holds dates or times; {advice}.')
    tests = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal)
    if not any(test(type_) for test in tests):
        raise DataError(f'Column "{name}" holds neither numbers nor booleans; {advice}.')


def _first_text(chunks: Iterable[Any]) -> str:
    row = 0
    for chunk in chunks:
        for cell in chunk.to_pylist():
            row += 1
            if cell is not None and not (isinstance(cell, str) and NUMBER.fullmatch(cell.strip())):
                return f", first in row {row}"
    return ""


def _numbers(chunk: Any) -> NDArray[np.float32]:
    """Float32 values of an Arrow array, NaN where there is none, infinite where float32 is too small."""
    import pyarrow as pa

    if pa.types.is_decimal(chunk.type):
        chunk = chunk.cast(pa.float64(), safe=False)
    numbers: NDArray[np.float32] = chunk.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _column(name: str, is_boolean: bool, values: NDArray[np.float32]) -> Column:
    missing = np.isnan(values)
    if missing.all():
        raise DataError(f'Column "{name}" has no values; leave it out with --drop {name}.')
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise DataError(f'Row {infinite[0] + 1}, column "{name}": the number is infinite or too large for float32.')
    return Column(
        name=name,
        type=ColumnType.BOOLEAN if is_boolean else ColumnType.NUMERIC,
        may_be_missing=bool(missing.any()),
        minimum=float(np.nanmin(values)),
        maximum=float(np.nanmax(values)),
    )
