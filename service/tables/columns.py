"""Columns of tables, batch by batch: which type each is, its values as arrays, and what was found out about it.

Types are taken from the file, or inferred where it has text only; what the user says goes before both.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.codecs.rows import EARLIEST_MS, LATEST_MS, SECONDS_BELOW
from service.errors import DataError
from service.schemas import MISSING_TIMESTAMP, Array, Column, ColumnType
from service.tables.dialect import GROUP_MARKS, read_numbers, read_times, time_of

MAX_LABELS = 100_000
"""A column with more different texts is not one of labels."""
FREE_TEXT_SHARE = 0.5
"""Nor is one where this share of the rows have a text of their own, ..."""
FEW_LABELS = 20
"""... unless there are at most this many texts."""
LABELS_SHOWN = 100
LOOKED_AT = 100


@dataclass(frozen=True, slots=True)
class Found:
    """A finished column and its values; or, without them, why it was left out."""

    column: Column | None
    values: Array | None = None
    note: str = ""


def reader_of(name: str, type_: Any, wanted: ColumnType | None) -> "ColumnReader":
    """The reader of a column of an Arrow type, or of the type that the user asks for.

    Raises:
        DataError: columns of this type cannot be used, or not as what they are wanted for.
    """
    from pyarrow import types as kinds

    if kinds.is_dictionary(type_):
        type_ = type_.value_type
    is_text = any(
        test(type_) for test in (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
    )
    is_number = kinds.is_boolean(type_) or any(
        test(type_) for test in (kinds.is_integer, kinds.is_floating, kinds.is_decimal)
    )
    is_time = kinds.is_timestamp(type_) or kinds.is_date(type_)
    if kinds.is_null(type_):
        return NumberReader(name, is_boolean=False)
    if not (is_text or is_number or is_time):
        raise DataError(f'Column "{name}" holds neither numbers, booleans, text nor times; {_drop(name)}.')
    if wanted is ColumnType.CATEGORICAL:
        return LabelReader(name, wanted=wanted)
    if is_text:
        return TextReader(name, wanted=wanted)
    if is_number and wanted is ColumnType.TIMESTAMP:
        return EpochReader(name)
    if is_number:
        is_boolean = kinds.is_boolean(type_) if wanted is None else wanted is ColumnType.BOOLEAN
        return NumberReader(name, is_boolean=is_boolean)
    if wanted in (ColumnType.NUMERIC, ColumnType.BOOLEAN):
        raise DataError(f'Column "{name}" holds times; it cannot be {wanted}.')
    return TimeReader(name)


MIN_STEPS = 1_000
"""Numbers that span fewer steps of float32 have lost something worth a note."""


class NumberReader:
    def __init__(self, name: str, *, is_boolean: bool) -> None:
        self.name, self._is_boolean = name, is_boolean
        self._low, self._high = np.inf, -np.inf

    def read(self, chunk: Any) -> Array:
        """Float32, NaN where there is none, infinite where float32 is too small."""
        import pyarrow as pa
        from pyarrow import compute

        if pa.types.is_dictionary(chunk.type):
            chunk = chunk.dictionary_decode()
        if pa.types.is_decimal(chunk.type):
            chunk = chunk.cast(pa.float64(), safe=False)
        wide = chunk.cast(pa.float64(), safe=False)
        ends = compute.min_max(wide)
        if ends["min"].is_valid:
            self._low = min(self._low, ends["min"].as_py())
            self._high = max(self._high, ends["max"].as_py())
        numbers: Array = wide.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        return numbers

    def finish(self, values: Array, rows: NDArray[np.int64]) -> Found:
        missing = np.isnan(values)
        if missing.all():
            return _no_values(self.name)
        infinite = np.isinf(values)
        if infinite.any():
            where = f'Row {rows[infinite.argmax()]}, column "{self.name}"'
            raise DataError(f"{where}: the number is infinite or too large for float32.")
        if self._is_boolean and not np.isin(values[~missing], (0, 1)).all():
            raise DataError(f'Column "{self.name}" holds other numbers than 0 and 1; it cannot be boolean.')
        column = Column(
            name=self.name,
            type=ColumnType.BOOLEAN if self._is_boolean else ColumnType.NUMERIC,
            may_be_missing=bool(missing.any()),
            minimum=float(np.nanmin(values)),
            maximum=float(np.nanmax(values)),
        )
        # Numbers far from 0 and close to each other: float32 makes one of many.
        spread, step = self._high - self._low, float(np.spacing(np.float32(max(abs(self._low), abs(self._high)))))
        if not 0 < spread < MIN_STEPS * step:
            return Found(column, values)
        note = (
            f'Column "{self.name}" holds large numbers that lie close together: differences below {step:g} are lost '
            f"in float32. Subtract {self._low:.0f} from it, in requests too, or {_drop(self.name)}."
        )
        return Found(column, values, note)


class LabelReader:
    """Text as numbers of the labels that were seen, below 0 where it is missing."""

    def __init__(self, name: str, *, wanted: ColumnType | None) -> None:
        self.name, self._wanted = name, wanted
        self._codes: dict[str, int] = {}

    def read(self, chunk: Any) -> Array:
        import pyarrow as pa

        if pa.types.is_dictionary(chunk.type):
            chunk = chunk.dictionary_decode()
        try:
            encoded = chunk.cast(pa.string()).dictionary_encode()
        except pa.ArrowInvalid as error:
            raise DataError(f'Column "{self.name}" is not UTF-8 text; {_drop(self.name)}.') from error
        known = self._codes
        codes = [
            -1 if not label else known.setdefault(label, len(known)) if len(known) <= MAX_LABELS else 0
            for label in encoded.dictionary.to_pylist()
        ]
        places = np.asarray(encoded.indices.fill_null(len(codes)))
        numbers: Array = np.array([*codes, -1], np.int64)[places]
        return numbers

    def finish(self, values: Array, rows: NDArray[np.int64]) -> Found:
        present = values[values >= 0]
        if not len(present):
            return _no_values(self.name)
        used, counts = np.unique(present, return_counts=True)
        known = list(self._codes)
        labels = {int(code): known[code] for code in used.tolist()}
        if self._wanted is ColumnType.NUMERIC:
            return self._as_numbers(values, rows, labels)
        if self._wanted is None:
            self._refuse_mixture(values, rows, labels, counts)
        too_many = len(used) > max(FEW_LABELS, FREE_TEXT_SHARE * len(present))
        if len(self._codes) > MAX_LABELS or (self._wanted is None and too_many):
            many = f"more than {MAX_LABELS}" if len(known) > MAX_LABELS else str(len(known))
            note = f'Column "{self.name}" has {many} different texts, like an identifier or free text; it was left out.'
            advice = " To use it all the same, call it categorical in a schema file (--schema)."
            return Found(None, note=note + (advice if len(known) <= MAX_LABELS else ""))
        if broken := {code for code, label in labels.items() if "\0" in label}:
            raise DataError(f'Row {_first(values, broken, rows)}, column "{self.name}": the text holds a NUL byte.')
        by_code = np.full(int(used.max()) + 2, b"", object)  # the last one for what is missing
        by_code[used] = [label.encode() for label in labels.values()]
        frequent = [labels[int(code)] for code in used[np.argsort(-counts, kind="stable")[:LABELS_SHOWN]]]
        column = Column(
            name=self.name,
            type=ColumnType.CATEGORICAL,
            may_be_missing=len(present) < len(values),
            categories=tuple(frequent),
        )
        return Found(column, by_code[np.where(values < 0, -1, values)])

    def _as_numbers(self, values: Array, rows: NDArray[np.int64], labels: dict[int, str]) -> Found:
        import pyarrow as pa

        found, bad = read_numbers(pa.array(labels.values()))
        codes = np.fromiter(labels, np.int64)
        if bad.any():
            row = _first(values, set(codes[bad].tolist()), rows)
            raise DataError(f'Column "{self.name}" holds text, first in row {row}; {_drop(self.name)}.')
        numbers = np.full(max(labels) + 2, np.nan, np.float32)
        numbers[codes] = found.cast("float32", safe=False).to_numpy(zero_copy_only=False)
        return NumberReader(self.name, is_boolean=False).finish(numbers[np.where(values < 0, -1, values)], rows)

    def _refuse_mixture(
        self, values: Array, rows: NDArray[np.int64], labels: dict[int, str], counts: NDArray[np.intp]
    ) -> None:
        """Numbers with some text between them are more likely a mistake than labels."""
        import pyarrow as pa

        texts = pa.array(labels.values())
        read = [read_numbers(texts, decimal=mark) for mark in GROUP_MARKS]
        bad = np.logical_and.reduce([wrong for _, wrong in read])
        missing = np.logical_and.reduce([found.is_null().to_numpy(zero_copy_only=False) for found, _ in read])
        if bad.any() and counts[~missing].sum() > counts.sum() / 2:
            row = _first(values, set(np.fromiter(labels, np.int64)[bad].tolist()), rows)
            raise DataError(
                f'Column "{self.name}" holds text between its numbers, first in row {row}; '
                f"correct it, {_drop(self.name)}, or call it categorical in a schema file (--schema)."
            )


class TextReader:
    """Text that is times, if most of the first of it is, and labels otherwise."""

    def __init__(self, name: str, *, wanted: ColumnType | None) -> None:
        if wanted is ColumnType.BOOLEAN:
            raise DataError(f'Column "{name}" holds text; it cannot be boolean.')
        self.name = name
        self._labels, self._times = LabelReader(name, wanted=wanted), TimeReader(name)
        self._chosen: TimeReader | LabelReader | None = None
        if wanted is not None:
            self._chosen = self._times if wanted is ColumnType.TIMESTAMP else self._labels

    def read(self, chunk: Any) -> Array:
        cells = [] if self._chosen else [cell for cell in chunk.drop_null().slice(0, LOOKED_AT).to_pylist() if cell]
        if cells:
            times = sum(isinstance(cell, str) and time_of(cell) is not None for cell in cells)
            # Times with some other text between them are more likely a mistake than labels.
            self._chosen = self._times if times > len(cells) / 2 else self._labels
        # A time that is missing is a missing label too.
        return np.full(len(chunk), MISSING_TIMESTAMP) if self._chosen is None else self._chosen.read(chunk)

    def finish(self, values: Array, rows: NDArray[np.int64]) -> Found:
        return _no_values(self.name) if self._chosen is None else self._chosen.finish(values, rows)


class TimeReader:
    """Times, and text that says them, as milliseconds since 1970 in UTC."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, chunk: Any) -> Array:
        import pyarrow as pa

        if pa.types.is_timestamp(chunk.type) or pa.types.is_date(chunk.type):
            zone = getattr(chunk.type, "tz", None)
            times = chunk.cast(pa.timestamp("ms", tz=zone), safe=False).cast(pa.int64())
            return np.asarray(times.fill_null(MISSING))
        times, wrong = read_times(chunk)
        return np.where(wrong, _UNREADABLE, times)

    def finish(self, values: Array, rows: NDArray[np.int64]) -> Found:
        present = values[values != MISSING]
        if not len(present):
            return _no_values(self.name)
        wrong = (values != MISSING) & ((values < EARLIEST_MS) | (values > LATEST_MS))
        if wrong.any():
            raise DataError(
                f'Row {rows[wrong.argmax()]}, column "{self.name}": not an ISO 8601 time of the years 1 to 9999.'
            )
        missing = len(present) < len(values)
        ends = {"minimum": float(present.min()), "maximum": float(present.max())}
        return Found(Column(name=self.name, type=ColumnType.TIMESTAMP, may_be_missing=missing, **ends), values)


class EpochReader(TimeReader):
    """Whole milliseconds since 1970, as the service takes them."""

    def read(self, chunk: Any) -> Array:
        import pyarrow as pa

        return np.asarray(chunk.cast(pa.int64(), safe=False).fill_null(MISSING))

    def finish(self, values: Array, rows: NDArray[np.int64]) -> Found:
        present = values[values != MISSING]
        if len(present) and 0 < np.abs(present).max() < SECONDS_BELOW:
            raise DataError(
                f'The numbers of column "{self.name}" would be times before 1973; they are probably seconds. '
                "Make milliseconds since 1970 or ISO 8601 text of them."
            )
        return super().finish(values, rows)


MISSING = MISSING_TIMESTAMP
_UNREADABLE = MISSING_TIMESTAMP + 1


def _no_values(name: str) -> Found:
    return Found(None, note=f'Column "{name}" has no values; it was left out.')


def _drop(name: str) -> str:
    return f"leave it out with --drop {name if name.isidentifier() else repr(name)}"


def _first(values: Array, codes: set[int], rows: NDArray[np.int64]) -> int:
    """Number of the first row with one of some codes."""
    return int(rows[np.isin(values, list(codes)).argmax()])


ColumnReader: TypeAlias = NumberReader | LabelReader | TextReader | TimeReader
"""``read`` makes values (rows,) of each Arrow array, compact to keep; ``finish`` the column of all that were kept,
whose row numbers it is given. It raises DataError where they do not make one; the sentence names the row."""
