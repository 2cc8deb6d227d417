"""Rows of a table for training, from files of any size: what is kept is a uniform sample that fits into memory."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.errors import DataError
from service.schemas import CATEGORIES, INSTANCES, TIMESTAMPS, Array, ColumnType, Frozen, InputSchema
from service.tables.columns import Found, NumberReader, reader_of
from service.tables.dialect import check_names, dialect_of, read_booleans, read_numbers
from service.tables.files import CSV, NDJSON, PARQUET, Part, kind_of, open_arrow, read_batches
from service.tables.frames import plain

CONDITION = re.compile(r"(?P<column>.+?)\s*(?P<unequal>!?)=\s*(?P<value>.*)", re.DOTALL)


class ColumnChoice(Frozen):
    """The user's choice for one column; None keeps what the file says."""

    type: ColumnType | None = None
    may_be_missing: bool | None = None


class _SchemaFile(Frozen):
    columns: dict[str, ColumnChoice]


@dataclass(frozen=True, slots=True)
class Condition:
    """Rows where a column has a value, or has another one; a missing value is neither."""

    column: str
    value: str
    equal: bool = True


@dataclass(frozen=True, slots=True)
class Selection:
    columns: Sequence[str] = ()
    """Names to use, in this order; all when empty."""
    drop: Sequence[str] = ()
    where: Sequence[Condition] = ()
    """All must hold."""
    choices: Mapping[str, ColumnChoice] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.columns or self.drop or self.where or self.choices)

    def type_of(self, name: str) -> ColumnType | None:
        return self.choices[name].type if name in self.choices else None

    def names_of(self, names: Sequence[str]) -> list[str]:
        """The names to use of those that a file has.

        Raises:
            DataError: a name is not there, or none is left.
        """
        for name in (*self.columns, *self.drop, *self.choices, *(condition.column for condition in self.where)):
            if name not in names:
                known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
                raise DataError(f'There is no column "{name}"; the columns are {known}.')
        selected = [name for name in (self.columns or names) if name not in set(self.drop)]
        if len(set(selected)) < len(selected):
            raise DataError("A column is asked for twice.")
        if not selected:
            raise DataError("No column is left to train on.")
        return selected


def make_selection(
    *, columns: Sequence[str] = (), drop: Sequence[str] = (), where: Sequence[str] = (), schema: Path | None = None
) -> Selection:
    """From what is given on the command line.

    Args:
        where: conditions such as ``label=normal`` and ``port!=0``.
        schema: a JSON or TOML file, see ``docs/tables.md``.

    Raises:
        DataError: a condition or the file is not understood.
    """
    conditions = []
    for text in where:
        found = CONDITION.fullmatch(text.strip())
        if found is None:
            raise DataError("A condition on rows is COLUMN=VALUE or COLUMN!=VALUE.")
        conditions.append(Condition(found["column"], found["value"].strip(), equal=not found["unequal"]))
    choices = {} if schema is None else _read_choices(schema)
    return Selection(tuple(columns), tuple(drop), tuple(conditions), choices)


def _read_choices(path: Path) -> dict[str, ColumnChoice]:
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return _SchemaFile.model_validate(content).columns
    except OSError as error:
        raise DataError(f"The schema file {path.name} cannot be read.") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise DataError(f"The schema file {path.name} is not valid at {place}: {first['msg']}.") from error
    except ValueError as error:
        raise DataError(f"The schema file {path.name} is neither JSON nor TOML (.toml).") from error


# --- which columns and rows -------------------------------------------------------------------------------------------


SLACK = 2
"""The sample is cut back when it is this many times too large: cutting costs a copy."""


class Sample:
    """Keeps the ``size`` rows with the smallest of random numbers that are drawn for each row.

    After Efraimidis and Spirakis (Information Processing Letters 97, 2006) with equal weights; batch by batch.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self._size = size
        self._random = np.random.default_rng([seed, 5])
        self._limit = np.inf
        self._keys: list[NDArray[np.float64]] = []
        self._parts: dict[str, list[Array]] = {}
        self.offered = 0
        """Rows so far, kept or not."""

    def choose(self, count: int) -> NDArray[np.intp]:
        """Which of the next ``count`` rows may be kept; ``add`` these."""
        self.offered += count
        keys = self._random.random(count)
        chosen = np.flatnonzero(keys < self._limit)
        self._keys.append(keys[chosen])
        return chosen

    def add(self, **parts: Array) -> None:
        """The chosen rows, as arrays by name, rows first."""
        for name, part in parts.items():
            self._parts.setdefault(name, []).append(part)
        if sum(map(len, self._keys)) > SLACK * self._size:
            self._cut()

    def take(self) -> dict[str, Array]:
        """All arrays of the sample, in the order of the rows. Leaves it empty."""
        if sum(map(len, self._keys)) > self._size:
            self._cut()
        arrays = {}
        for name in list(self._parts):
            arrays[name] = np.concatenate(self._parts.pop(name))
        self._keys = []
        return arrays

    def _cut(self) -> None:
        keys = np.concatenate(self._keys)
        kept = np.sort(np.argpartition(keys, self._size - 1)[: self._size])
        self._keys = [keys[kept]]
        self._limit = float(self._keys[0].max())
        for parts in self._parts.values():
            whole = np.concatenate(parts)
            parts.clear()
            parts.append(whole[kept])


# --- sample -----------------------------------------------------------------------------------------------------------


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


# --- columns with types -----------------------------------------------------------------------------------------------


MAX_SAMPLE_BYTES = 512 * 2**20
"""Size of the rows that are kept."""
MIN_SAMPLE_ROWS = 1_000
AS_TEXT = (ColumnType.CATEGORICAL, ColumnType.TIMESTAMP)
"""Columns that are called these may look like numbers in a text file."""
INPUTS = {
    INSTANCES: (ColumnType.NUMERIC, ColumnType.BOOLEAN),
    CATEGORIES: (ColumnType.CATEGORICAL,),
    TIMESTAMPS: (ColumnType.TIMESTAMP,),
}

Progress = Callable[[int, int | None], None]
"""Called with the rows read so far, and all rows where their number is known."""


@dataclass(frozen=True, slots=True)
class Table:
    rows: dict[str, Array]
    schema: InputSchema
    total: int
    """Rows in the files that fulfil the conditions, kept or not."""
    notes: tuple[str, ...] = ()
    """What was left out and why; sentences."""
    decimal_comma: bool = False
    """Whether the numbers of a CSV file have decimal commas."""


def read_table(
    file: TableFiles,
    selection: Selection,
    *,
    max_rows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Table:
    """Read the files once, and again from the start where a column turns out to be of another type.

    Raises:
        DataError: no rows, columns of a kind that cannot be used, mixed types, infinite numbers; the sentence names the
            column, and the row where there is one.
    """
    import pyarrow as pa

    names = selection.names_of(file.names)
    needed = list(dict.fromkeys([*names, *(condition.column for condition in selection.where)]))
    file.read_as_text([name for name in names if selection.type_of(name) in AS_TEXT])
    while True:
        types = dict(zip(needed, file.types(needed), strict=True))
        readers = [reader_of(name, types[name], selection.type_of(name)) for name in names]
        row_bytes = sum(4 if isinstance(reader, NumberReader) else 8 for reader in readers)
        fitting = max(MIN_SAMPLE_ROWS, MAX_SAMPLE_BYTES // row_bytes)
        sample, read = Sample(min(fitting, max_rows or fitting), seed=seed), 0
        try:
            for batch in file.batches(needed):
                rows = rows_where(batch, selection.where)
                rows = rows[sample.choose(len(rows))]
                chosen = batch if len(rows) == len(batch) else batch.take(pa.array(rows))
                values = {str(at): reader.read(chosen[reader.name]) for at, reader in enumerate(readers)}
                sample.add(row=rows + read + 1, **values)
                read += len(batch)
                if progress is not None:
                    progress(read, file.rows)
        except Retype:
            continue
        break
    pa.default_memory_pool().release_unused()  # Arrow keeps what the batches took, which may be as much as the rows
    if not sample.offered:
        raise DataError("The file has no rows." if not read else "No row fulfils the conditions of --where.")
    arrays = sample.take()
    found = [reader.finish(arrays.pop(str(at)), arrays["row"]) for at, reader in enumerate(readers)]
    rows_of, schema = _assembled(found, selection)
    notes = (*file.notes, *(each.note for each in found if each.note))
    return Table(rows_of, schema, sample.offered, notes, file.decimal_comma)


def _assembled(found: Sequence[Found], selection: Selection) -> tuple[dict[str, Array], InputSchema]:
    """Finished columns as inputs of a model and their schema; gaps are allowed or forbidden as the user says."""
    columns, parts = [], dict[str, list[Array]]()
    for each in found:
        if each.column is None or each.values is None:
            continue
        column, choice = each.column, selection.choices.get(each.column.name)
        if choice is not None and choice.may_be_missing is not None:
            if column.may_be_missing and not choice.may_be_missing:
                raise DataError(f'Column "{column.name}" has missing values, but the schema file says that it may not.')
            column = column.model_copy(update={"may_be_missing": choice.may_be_missing})
        columns.append(column)
        parts.setdefault(next(name for name, types in INPUTS.items() if column.type in types), []).append(each.values)
    if not columns:
        raise DataError(f"No column is left to train on. {next(each.note for each in found)}")
    rows = {name: np.stack(parts.pop(name), axis=1) for name in INPUTS if name in parts}
    width = rows[INSTANCES].shape[1] if INSTANCES in rows else 0
    return rows, InputSchema(kind="tabular", row_shape=(width,), columns=tuple(columns))


def read_columns(file: TableFiles, selection: Selection, *, keep: str | None = None) -> Any:
    """All rows that fulfil the conditions as a ``pyarrow.Table``: the columns of the selection, and ``keep``.

    Raises:
        DataError: as in ``read_table``.
    """
    import pyarrow as pa

    names = selection.names_of(file.names)
    names += [keep] if keep is not None and keep not in names else []
    needed = list(dict.fromkeys([*names, *(condition.column for condition in selection.where)]))
    while True:
        try:
            batches = [batch.take(pa.array(rows_where(batch, selection.where))) for batch in file.batches(needed)]
            return pa.Table.from_batches(batches).select(names)
        except Retype:
            continue


def rows_where(batch: Any, where: Sequence[Condition]) -> Array:
    """Indices of the rows of a batch that fulfil all conditions."""
    fits = np.ones(len(batch), np.bool_)
    for condition in where:
        fits &= _fulfils(batch[condition.column], condition)
    return np.flatnonzero(fits)


def _fulfils(column: Any, condition: Condition) -> Array:
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import types as kinds

    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kinds.is_integer(column.type) or kinds.is_floating(column.type) or kinds.is_decimal(column.type):
        try:
            same = compute.equal(column.cast(pa.float64(), safe=False), float(condition.value))
        except ValueError:
            raise DataError(f'Column "{condition.column}" holds numbers; its condition needs one.') from None
    else:
        value = condition.value.lower() if kinds.is_boolean(column.type) else condition.value
        same = compute.equal(column.cast(pa.string()), value)
    result = same if condition.equal else compute.invert(same)
    fits: Array = result.fill_null(False).to_numpy(zero_copy_only=False)
    return fits
