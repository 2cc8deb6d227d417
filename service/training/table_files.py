"""Files of tables as batches of rows: CSV, Parquet and Arrow, one file or several. Rows are counted from 1."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.codecs.csv_head import NUMBER, SAVE_AS_UTF8, read_csv_head
from service.errors import DataError

MAX_NAME_LENGTH = 256
BLOCK_BYTES = 8 * 2**20
BATCH_ROWS = 2**16
MAX_BATCH_VALUES = 2**21
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
AT_COLUMN = re.compile(r"In CSV column #(\d+): ")


class Retype(Exception):
    """A column of a CSV file turned out to be of a wider type after some batches; reading has to start again."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class TableFile(Protocol):
    @property
    def names(self) -> Sequence[str]: ...

    @property
    def rows(self) -> int | None:
        """How many, where the file says."""
        ...

    def types(self, names: Sequence[str]) -> list[Any]:
        """Arrow types of columns."""
        ...

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        """Record batches of these columns.

        Raises:
            DataError: the file is damaged, or its rows are not those of a table.
            Retype: a type has changed.
        """
        ...


class CsvFile:
    """A CSV file with a header, plain or compressed. Types are inferred; they widen while reading (``widen``)."""

    rows: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        head = read_csv_head(path)
        self._header = head.names
        self._format = _CsvFormat(head.delimiter, head.encoding, head.quotes)
        self.names = [name.strip() for name in head.names]
        check_names(self.names)
        self._types: dict[str, Any] = {}
        self._raw = dict(zip(self.names, self._header, strict=True))

    def read_as_text(self, names: Sequence[str]) -> None:
        import pyarrow as pa

        self._types.update(dict.fromkeys(names, pa.string()))

    def types(self, names: Sequence[str]) -> list[Any]:
        unknown = [name for name in names if name not in self._types]
        if unknown:
            with _csv_errors(self):
                reader = self._open(unknown)
                first = next(iter(reader), None)
            for name, kind in zip(unknown, reader.schema.types, strict=True):
                self._types[name] = _wide_enough(kind)
            if first is not None and self._has_decimal_commas(first):
                self._format = _CsvFormat(self._format.delimiter, self._format.encoding, self._format.quotes, ",")
                self._types = {name: kind for name, kind in self._types.items() if name not in unknown}
                return self.types(names)
        return [self._types[name] for name in names]

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        self.types(names)
        with _csv_errors(self):
            yield from self._open(names)

    def widen(self, name: str) -> None:
        """The next type that a column may be of."""
        import pyarrow as pa
        from pyarrow import types as kinds

        now = self._types[name]
        if kinds.is_null(now):
            self._types[name] = pa.float64()
        elif kinds.is_date(now) or (kinds.is_timestamp(now) and now.unit == "s"):
            self._types[name] = pa.timestamp("ns", tz=getattr(now, "tz", None))
        else:
            self._types[name] = pa.string()

    def raw_name(self, position: int) -> str:
        return self.names[position]

    def ragged(self) -> str:
        """Which row has a wrong number of values; only reading a whole file by one thread tells the row's number."""
        from pyarrow import ArrowException
        from pyarrow import csv as arrow_csv

        found: list[Any] = []

        def on_bad_row(row: Any) -> str:
            found.append(row)
            return "error"

        try:
            arrow_csv.read_csv(
                self._path,
                read_options=self._format.read_options(use_threads=False),
                parse_options=self._format.parse_options(on_bad_row),
                convert_options=arrow_csv.ConvertOptions(include_columns=list(self._header[:1])),
            )
        except ArrowException:
            if found and found[0].number is not None:
                row = found[0]
                # The parser counts lines from 1 and the header is the first.
                return (
                    f"Row {row.number - 1} has {row.actual_columns} values, but the header has {row.expected_columns}."
                )
        return "A row has another number of values than the header."

    def _open(self, names: Sequence[str]) -> Any:
        from pyarrow import csv as arrow_csv

        types = {self._raw[name]: self._types[name] for name in names if name in self._types}
        return arrow_csv.open_csv(
            self._path,
            read_options=self._format.read_options(use_threads=True),
            parse_options=self._format.parse_options(None),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=[self._raw[name] for name in names],
                column_types=types,
                strings_can_be_null=True,
                decimal_point=self._format.decimal_point,
            ),
        )

    def _has_decimal_commas(self, batch: Any) -> bool:
        """Whether a column holds nothing but numbers, some of them with a decimal comma."""
        from pyarrow import types as kinds

        if self._format.delimiter == "," or self._format.decimal_point == ",":
            return False
        texts = (column.drop_null().slice(0, 1000).to_pylist() for column in batch if kinds.is_string(column.type))
        return any(
            any(map(DECIMAL_COMMA.fullmatch, cells))
            and all(DECIMAL_COMMA.fullmatch(cell) or NUMBER.fullmatch(cell) for cell in cells)
            for cells in texts
        )


@dataclass(frozen=True, slots=True)
class _CsvFormat:
    delimiter: str
    encoding: str
    quotes: bool
    """Whether there are quotes, within which a line may end."""
    decimal_point: str = "."

    def read_options(self, *, use_threads: bool) -> Any:
        from pyarrow import csv as arrow_csv

        return arrow_csv.ReadOptions(use_threads=use_threads, encoding=self.encoding, block_size=BLOCK_BYTES)

    def parse_options(self, on_bad_row: Callable[[Any], str] | None) -> Any:
        from pyarrow import csv as arrow_csv

        return arrow_csv.ParseOptions(
            delimiter=self.delimiter, newlines_in_values=self.quotes, invalid_row_handler=on_bad_row
        )


class _csv_errors:  # noqa: N801 - a context manager, used like a function
    """Arrow's errors as ours."""

    def __init__(self, file: CsvFile) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from pyarrow import ArrowException

        if not isinstance(error, ArrowException | UnicodeError):
            return
        text = str(error)
        column = AT_COLUMN.match(text)
        if isinstance(error, UnicodeError) or "invalid UTF8" in text:
            where = f'Column "{self._file.raw_name(int(column[1]))}"' if column else "The file"
            raise DataError(f"{where} is not UTF-8 text; {SAVE_AS_UTF8}.") from error
        if column:
            raise Retype(self._file.raw_name(int(column[1]))) from error
        if "Expected" in text and "columns, got" in text:
            raise DataError(self._file.ragged()) from error
        if "straddling" in text:
            raise DataError(
                f"A row is longer than {BLOCK_BYTES // 2**20} MiB; probably a quotation mark is never closed."
            ) from error
        if "Empty CSV" in text:
            raise DataError("The file has no rows.") from error
        raise DataError("The file cannot be read as CSV: it is damaged.") from error


class ParquetFiles:
    """Parquet files with the same columns, read by row groups one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        from pyarrow import parquet

        with _parquet_errors():
            self._files = [parquet.ParquetFile(path) for path in paths]
        self._schema = self._files[0].schema_arrow
        for path, file in zip(paths, self._files, strict=True):
            if file.schema_arrow.names != self._schema.names:
                raise DataError(f"{path.name} has other columns than {paths[0].name}.")
        self.names = self._schema.names
        self.rows: int | None = sum(file.metadata.num_rows for file in self._files)
        check_names(self.names)

    def types(self, names: Sequence[str]) -> list[Any]:
        return [self._schema.field(name).type for name in names]

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        size = max(64, min(BATCH_ROWS, MAX_BATCH_VALUES // len(names)))
        with _parquet_errors():
            for file in self._files:
                for batch in file.iter_batches(batch_size=size, columns=list(names)):
                    yield batch.select(list(names)).cast(self._schema_of(names)) if len(self._files) > 1 else batch

    def _schema_of(self, names: Sequence[str]) -> Any:
        import pyarrow as pa

        return pa.schema([self._schema.field(name) for name in names])


class _parquet_errors:  # noqa: N801 - a context manager, used like a function
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from pyarrow import ArrowException

        if isinstance(error, ArrowException | OSError):
            raise DataError("The file cannot be read as Parquet: it is damaged.") from error


class ArrowFile:
    """An Arrow file (Feather) or stream."""

    rows: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schema = self._open().schema
        self.names = self._schema.names
        check_names(self.names)

    def types(self, names: Sequence[str]) -> list[Any]:
        return [self._schema.field(name).type for name in names]

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        from pyarrow import ArrowException

        reader = self._open()
        try:
            if hasattr(reader, "num_record_batches"):
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number).select(list(names))
            else:
                for batch in reader:
                    yield batch.select(list(names))
        except (ArrowException, OSError) as error:
            raise DataError("The file cannot be read as Arrow: it is damaged.") from error

    def _open(self) -> Any:
        import pyarrow as pa

        try:
            source = pa.memory_map(str(self._path))
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        except (pa.ArrowException, OSError) as error:
            raise DataError("The file cannot be read as Arrow: it is damaged.") from error


def check_names(names: Sequence[str]) -> None:
    """Raises DataError where a name is missing, too long or there twice."""
    seen: set[str] = set()
    for position, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"Column {position} has no name; give it one in the header.")
        if len(name) > MAX_NAME_LENGTH:
            raise DataError(f"The name of column {position} is longer than {MAX_NAME_LENGTH} characters.")
        if name in seen:
            raise DataError(f'Two columns are named "{name}"; rename one of them.')
        seen.add(name)


def _wide_enough(kind: Any) -> Any:
    """What the first block was read as, widened where later blocks often differ."""
    import pyarrow as pa
    from pyarrow import types as kinds

    if kinds.is_binary(kind):
        return pa.string()  # reading it says where it is not UTF-8
    return pa.float64() if kinds.is_integer(kind) else kind


def choose_files(pattern: str) -> list[Path]:
    """The files that a pattern such as ``days/*.parquet`` names, in the order of their names.

    Raises:
        DataError: there is none.
    """
    import glob

    paths = sorted(
        Path(found)
        for found in glob.glob(pattern, recursive=True)  # noqa: PTH207 - patterns may be absolute
        if Path(found).is_file()
    )
    if not paths:
        raise DataError(f"No file matches {Path(pattern).name}.")
    return paths
