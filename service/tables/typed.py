"""The files of one table, for training: their columns by name, with a type that holds for all rows. Read in batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from service.errors import DataError
from service.tables.dialect import check_names, dialect_of
from service.tables.files import CSV, NDJSON, PARQUET, Part, kind_of, open_arrow, read_batches
from service.tables.frames import plain
from service.tables.values import read_booleans, read_numbers

BATCH_ROWS: Final = 2**16
MAX_BATCH_VALUES: Final = 2**21
LOOKED_AT: Final = 1_000


class Retype(Exception):
    """A column turned out to be of another type after some batches; reading has to start again."""


class TableFiles:
    """Files of one kind with the same columns, read one after the other.

    Types of text files are inferred, and may change while reading: ``batches`` raises ``Retype`` then.

    Raises:
        DataError: a file is damaged or has other columns, or names of columns are none.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._kind = kind_of(paths[0])
        self._parts = [Part(at, str(path), self._kind) for at, path in enumerate(paths)]
        self.rows: int | None = None
        """How many, where the files say."""
        self.notes: tuple[str, ...] = ()
        self.decimal_comma = False
        """Whether numbers of CSV files have decimal commas."""
        self._types: dict[str, Any] = {}
        self._as_text: set[str] = set()
        for path in paths:
            if kind_of(path) != self._kind:
                raise DataError("Several files can be read together when all are of one format.")
            names = self._names_in(path)
            if path is paths[0]:
                self.names = names
                check_names(names)
            elif names != self.names:
                raise DataError(f"{path.name} has other columns than {paths[0].name}.")

    def _names_in(self, path: Path) -> list[str]:
        """The columns of a file; keeps what it says of types, rows and columns left out."""
        import pyarrow as pa
        from pyarrow import parquet

        if self._kind == CSV:
            dialect = dialect_of(path)
            self.notes = tuple(dict.fromkeys([*self.notes, *dialect.notes]))
            self.decimal_comma |= bool(dialect.decimal_commas)
            return dialect.names
        if self._kind == NDJSON:
            return list(next(read_batches(Part(0, str(path), NDJSON), batch_rows=BATCH_ROWS))[0])
        try:
            if self._kind == PARQUET:
                file = parquet.ParquetFile(path)
                self.rows = (self.rows or 0) + file.metadata.num_rows
            schema = file.schema_arrow if self._kind == PARQUET else open_arrow(str(path)).schema
            schema = plain(schema.empty_table()).schema
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"The file cannot be read as {self._kind.capitalize()}: it is damaged.") from error
        index = [name for name in schema.names if name.startswith("__index_level_")]
        self.notes = (f"The index that pandas wrote ({', '.join(index)}) was left out.",) if index else self.notes
        self._types = dict(zip(schema.names, schema.types, strict=True)) | self._types
        return [name for name in schema.names if name not in index]

    def read_as_text(self, names: Sequence[str]) -> None:
        """Take the cells of these columns as they stand in a text file, though they may look like numbers."""
        self._as_text.update(names)

    def types(self, names: Sequence[str]) -> list[Any]:
        """Arrow types of columns."""
        if any(name not in self._types for name in names):
            table, form = next(read_batches(self._parts[0], batch_rows=self._batch_rows(names), columns=names))
            for name in names:
                self._types.setdefault(name, self._guess(name, table[name], form))
        return [self._types[name] for name in names]

    def _batch_rows(self, names: Sequence[str]) -> int:
        return max(64, min(BATCH_ROWS, MAX_BATCH_VALUES // len(names)))

    def batches(self, names: Sequence[str]) -> Iterator[Any]:
        """Record batches of these columns.

        Raises:
            DataError: the file is damaged, or its rows are not those of a table.
            Retype: a type has changed.
        """
        import pyarrow as pa

        self.types(names)
        for part in self._parts:
            for table, form in read_batches(part, batch_rows=self._batch_rows(names), columns=names):
                columns = [self._typed(name, table[name], form) for name in names]
                yield pa.RecordBatch.from_arrays(columns, names=list(names))

    def _guess(self, name: str, column: Any, form: Any) -> Any:
        """The narrowest type that some cells fit; null where they are all missing."""
        import pyarrow as pa

        if self._kind == NDJSON:
            return _from_json(column, as_text=name in self._as_text).type
        if name in self._as_text:
            return pa.string()
        for cells in (column.slice(0, LOOKED_AT), column):
            kind = _type_of(cells.combine_chunks(), form.decimal(name))
            if kind == pa.string():
                break
        return kind

    def _typed(self, name: str, column: Any, form: Any) -> Any:
        import pyarrow as pa
        from pyarrow import compute

        wanted = self._types[name]
        if self._kind not in (CSV, NDJSON):
            column = column.combine_chunks()
            return column if column.type == wanted else column.cast(wanted)
        if self._kind == NDJSON:
            values = _from_json(column, as_text=name in self._as_text or wanted == pa.string())
            if values.type not in (wanted, pa.null()):
                self._types[name] = values.type if wanted == pa.null() else pa.string()
                raise Retype
            return values.cast(wanted)
        cells = column.combine_chunks()
        if wanted == pa.string():
            return compute.if_else(compute.equal(cells, ""), pa.scalar(None, pa.string()), cells)
        decimal = form.decimal(name)
        values, bad = read_booleans(cells) if wanted == pa.bool_() else read_numbers(cells, decimal=decimal)
        if bad.any() or (wanted == pa.null() and values.null_count < len(values)):
            self._types[name] = _type_of(cells, decimal) if wanted == pa.null() else pa.string()
            raise Retype
        return pa.nulls(len(values)) if wanted == pa.null() else values


def _type_of(cells: Any, decimal: str) -> Any:
    import pyarrow as pa

    values, bad = read_numbers(cells, decimal=decimal)
    if not bad.any():
        return pa.null() if values.null_count == len(values) else pa.float64()
    return pa.string() if read_booleans(cells)[1].any() else pa.bool_()


def _from_json(values: list[Any], *, as_text: bool) -> Any:
    """JSON values as Arrow: floats, booleans or text; numbers and text together as text."""
    import pyarrow as pa

    try:
        column = pa.array(values, pa.string() if as_text else None)
    except (pa.ArrowException, OverflowError):
        plain_values = [value if value is None or type(value) is str else str(value) for value in values]
        return pa.array(plain_values, pa.string())
    return column.cast(pa.float64(), safe=False) if pa.types.is_integer(column.type) else column
