"""The forms that callers hold rows in. Arrays are sent as npy, tables as Arrow, a few plain rows as JSON.

Each class is one way to hold rows. It knows how many there are, cuts parts out of itself, encodes a part, and puts rows
that come back (reconstructions, denoised rows) into the same form.
"""

import io
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import orjson

from service.words import ARROW, JSON, NPY

BULK_ROWS: Final = 64
"""From this number of rows on, plain lists are worth turning into arrays or tables."""
_SAMPLE_ROWS: Final = 16
_JSON_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Body:
    """An encoded part. ``query``: the options, where the body has no place for them."""

    media_type: str
    content: bytes
    query: Mapping[str, str]


class Rows(ABC):
    """Rows in one form. ``answers_as`` is the media type in which a bulk answer is best given."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def row_bytes(self) -> float:
        """Roughly, of one row as it is sent."""

    @abstractmethod
    def cut(self, start: int, stop: int) -> "Rows": ...

    @abstractmethod
    def encode(self, options: Options) -> Body: ...

    @abstractmethod
    def in_form(self, found: Any) -> Any:
        """Rows of an answer (array, records or ``pyarrow.Table``) in the form of these rows."""

    def named_columns(self) -> dict[str, Any] | None:
        """Column by column, for results that have them beside; None where they have no names."""
        return None

    @property
    def index(self) -> Any:
        """The index of a pandas frame, else None."""
        return None


def rows_of(given: Any) -> Rows:  # noqa: PLR0911 - one line a form
    """
    Raises:
        TypeError: this is nothing that rows can be read from.
    """
    if isinstance(given, Rows):
        return given
    if _is_frame_of("pandas", given):
        named = all(isinstance(name, str) for name in given.columns)
        return TableRows.of_pandas(given) if named else rows_of(given.to_numpy())
    if _is_frame_of("polars", given):
        return TableRows(given, given.to_arrow())
    if hasattr(given, "__arrow_c_stream__") and (hasattr(given, "schema") or not hasattr(given, "__array__")):
        table = _arrow().table(given)
        return TableRows(table, table)
    if isinstance(given, Mapping):
        return ColumnRows(dict(given))
    if isinstance(given, list | tuple):
        return _of_list(list(given))
    if hasattr(given, "__array__"):
        array = np.asarray(given)
        if array.ndim > 0 and array.dtype.kind in "biuf":
            return ArrayRows(array)
        if array.ndim > 0 and array.dtype.kind in "OUS":
            return ListRows(array.tolist())
        raise TypeError(f"Rows cannot be an array of {array.dtype} with {array.ndim} dimensions.")
    raise TypeError(
        f"Rows cannot be a {type(given).__name__}: give an array, a data frame, an Arrow table, a list or a dict of "
        "columns; for an iterable of batches use stream()."
    )


def _is_frame_of(library: str, given: Any) -> bool:
    """Whether this is a data frame of a library that is loaded; one that another thread is still loading made none."""
    return isinstance(given, getattr(sys.modules.get(library), "DataFrame", ()))


def _of_list(values: list[Any]) -> Rows:
    """Plain numbers in bulk become an array; what is ragged, mixed or has nulls stays for the service to judge."""
    if len(values) >= BULK_ROWS and not any(isinstance(row, Mapping) for row in values):
        try:
            array = np.asarray(values)
        except ValueError:
            return ListRows(values)
        if array.dtype.kind in "iuf" and array.ndim > 1 and not _has_booleans(values):
            return ArrayRows(array)
    return ListRows(values)


def _has_booleans(values: Sequence[Any]) -> bool:
    """A boolean among numbers is one to numpy; to the service it is not a number."""
    return any(_has_booleans(row) if isinstance(row, list | tuple) else isinstance(row, bool) for row in values)


@dataclass(frozen=True, eq=False)
class ArrayRows(Rows):
    values: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def row_bytes(self) -> float:
        return float(4 * math.prod(self.values.shape[1:]))

    def cut(self, start: int, stop: int) -> Rows:
        return ArrayRows(self.values[start:stop])

    def encode(self, options: Options) -> Body:
        values = self.values
        if values.dtype.kind == "f":  # the service computes in float32; what does not fit becomes infinite there too
            with np.errstate(over="ignore", invalid="ignore"):
                values = values.astype(np.float32, copy=False)
        content = io.BytesIO()
        np.lib.format.write_array(content, np.ascontiguousarray(values), allow_pickle=False)
        return Body(NPY, content.getvalue(), _query(options))

    def in_form(self, found: Any) -> Any:
        return found if isinstance(found, np.ndarray) else _stacked(found)


@dataclass(frozen=True, eq=False)
class ListRows(Rows):
    """Arrays or objects as JSON has them."""

    values: list[Any]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def row_bytes(self) -> float:
        sample = self.values[:_SAMPLE_ROWS]
        return len(_json(sample)) / max(1, len(sample))

    def cut(self, start: int, stop: int) -> Rows:
        return ListRows(self.values[start:stop])

    def encode(self, options: Options) -> Body:
        return Body(JSON, _json({"instances": self.values, **options}), {})

    def in_form(self, found: Any) -> Any:
        if isinstance(found, np.ndarray):
            return found
        if not all(isinstance(row, Mapping) for row in self.values):
            return _stacked(found)
        return found if isinstance(found, list) else found.to_pylist()

    def named_columns(self) -> dict[str, Any] | None:
        if not all(isinstance(row, Mapping) for row in self.values):
            return None
        names = dict.fromkeys(name for row in self.values for name in row)
        return {name: [row.get(name) for row in self.values] for name in names}


@dataclass(frozen=True, eq=False)
class ColumnRows(Rows):
    """A dict of columns: Arrow in bulk where there is one kind of value in each, else JSON."""

    columns: dict[str, Any]

    def __post_init__(self) -> None:
        if len({len(values) for values in self.columns.values()}) > 1:
            raise ValueError("The columns do not have the same length.")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    @property
    def row_bytes(self) -> float:
        sample = min(_SAMPLE_ROWS, len(self))
        return len(_json({name: _listed(values[:sample]) for name, values in self.columns.items()})) / max(1, sample)

    def cut(self, start: int, stop: int) -> Rows:
        return ColumnRows({name: values[start:stop] for name, values in self.columns.items()})

    def encode(self, options: Options) -> Body:
        if len(self) >= BULK_ROWS and has_arrow():
            pa = _arrow()
            try:
                return _arrow_body(pa.table({name: pa.array(values) for name, values in self.columns.items()}), options)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                pass  # mixed values: the service names the row
        inputs = {name: _listed(values) for name, values in self.columns.items()}
        return Body(JSON, _json({"inputs": inputs, **options}), {})

    def in_form(self, found: Any) -> Any:
        return found if isinstance(found, np.ndarray) else _columns_of(found)

    def named_columns(self) -> dict[str, Any] | None:
        return self.columns


@dataclass(frozen=True, eq=False)
class TableRows(Rows):
    """A data frame, or an Arrow table. Parts are cut out of ``table``; ``given`` stays whole."""

    given: Any
    table: Any

    @classmethod
    def of_pandas(cls, frame: Any) -> "TableRows":
        """Column by column, so that an error can name the column; pyarrow's own shows values."""
        pa = _arrow()
        columns: dict[str, Any] = {}
        for name in frame.columns:
            try:
                columns[name] = pa.array(frame[name], from_pandas=True)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                raise TypeError(f"Column '{name}' mixes values of different types.") from None
        return cls(frame, pa.table(columns))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def row_bytes(self) -> float:
        return float(self.table.nbytes) / max(1, len(self))

    def cut(self, start: int, stop: int) -> Rows:
        return TableRows(self.given, self.table.slice(start, stop - start))

    def encode(self, options: Options) -> Body:
        return _arrow_body(self.table, options)

    def in_form(self, found: Any) -> Any:
        if isinstance(found, np.ndarray):
            return found
        table = _arrow().Table.from_pylist(found) if isinstance(found, list) else found
        if self.index is not None:
            return table.to_pandas().set_axis(self.index)
        if not _is_frame_of("polars", self.given):
            return table
        import polars as pl

        return pl.from_arrow(table)

    def named_columns(self) -> dict[str, Any] | None:
        return {name: self.given[name] for name in self.table.column_names}

    @property
    def index(self) -> Any:
        return self.given.index if _is_frame_of("pandas", self.given) else None


@cache
def has_arrow() -> bool:
    return find_spec("pyarrow") is not None


def _arrow() -> Any:
    if not has_arrow():
        raise TypeError("Data frames and tables need pyarrow: pip install pyarrow.")
    import pyarrow

    return pyarrow


def _arrow_body(table: Any, options: Options) -> Body:
    pa = _arrow()
    # What pandas and others keep in the metadata is of no use there and can be larger than the rows.
    table = table.replace_schema_metadata(None).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Body(ARROW, sink.getvalue().to_pybytes(), _query(options))


def _query(options: Options) -> dict[str, str]:
    return {name: str(value) for name, value in options.items()}


def _columns_of(found: Any) -> dict[str, Any]:
    """Records or a table, column by column: arrays where Arrow has plain numbers, else lists."""
    if isinstance(found, list):
        return {name: [row[name] for row in found] for name in (found[0] if found else ())}
    pa = _arrow()
    columns = {}
    for name, column in zip(found.column_names, found.columns, strict=True):
        plain = pa.types.is_floating(column.type)
        columns[name] = column.to_numpy() if plain else column.to_pylist()
    return columns


def _stacked(found: Any) -> np.ndarray[Any, Any]:
    return np.column_stack([np.asarray(values, np.float32) for values in _columns_of(found).values()])


def _listed(values: Any) -> list[Any]:
    if hasattr(values, "tolist"):
        return list(values.tolist())
    return list(values.to_list() if hasattr(values, "to_list") else values)


def _json(value: Any) -> bytes:
    content = orjson.dumps(value, option=_JSON_OPTIONS, default=_plain)
    if b"null" in content:
        # orjson writes infinity as null, a missing value. As the largest float64 it is refused, with its row named.
        content = orjson.dumps(_finite(value), option=_JSON_OPTIONS, default=_plain)
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float | np.floating) and math.isinf(value):
        return math.copysign(sys.float_info.max, value)
    return value


def _plain(value: Any) -> Any:
    """Numbers of other libraries and missing values of pandas, which orjson does not know, as plain values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if value is getattr(sys.modules.get("pandas"), "NA", value):
        return None
    if hasattr(value, "__float__"):
        return float(value)
    raise TypeError(f"JSON cannot carry a {type(value).__name__}.")
