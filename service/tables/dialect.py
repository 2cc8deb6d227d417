"""Text in tables: what a cell means as number, boolean or time, and how a CSV file is written.

Training and scoring give cells the same meaning. The dialect of a file (encoding, delimiter, header, blanks, marks in
numbers) is found out from its first bytes.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.codecs.rows import (
    EARLIEST_MS,
    LATEST_MS,
    NOT_A_BOOLEAN,
    NOT_A_NUMBER,
    NOT_A_TIME,
    Unfit,
    epoch_ms,
)
from service.errors import DataError, RowProblem
from service.schemas import MISSING_TIMESTAMP, Column, ColumnType

NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
GROUPED: Final = "^[-+]?[1-9][0-9]{{0,2}}([{marks}][0-9]{{3}})+({point}[0-9]*)?$"
GROUP_MARKS: Final = {".": ",'\u2019 \u00a0\u202f", ",": ".'\u2019 \u00a0\u202f"}
"""Thousands separators beside each decimal mark."""
NUMBER_WITH: Final = {
    ".": r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?(?i:inf|infinity)$",
    ",": "^[-+]?([0-9]+,?[0-9]*|,[0-9]+)([eE][-+]?[0-9]+)?$",
}
"""Numbers without marks between thousands, by decimal mark."""
ISO_TIME: Final = re.compile(r"\d{4}-?\d\d-?\d\d([T ]|$)")
DAY_FIRST: Final = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:,?[T ]\s*(.+))?")
YEAR_FIRST: Final = re.compile(r"(\d{4})/(\d{1,2})/(\d{1,2})(?:[T ]\s*(.+))?")
EPOCH: Final = re.compile(r"-?\d{12,15}")
WORDS: Final = {
    ColumnType.NUMERIC: NOT_A_NUMBER,
    ColumnType.BOOLEAN: NOT_A_BOOLEAN,
    ColumnType.TIMESTAMP: NOT_A_TIME,
}
_ANY_TIME: Final = Column(name="time", type=ColumnType.TIMESTAMP, may_be_missing=True)


def null_spellings() -> Any:
    """Cells of a column of numbers, booleans or times that are missing values, as an Arrow array."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    return pa.array(arrow_csv.ConvertOptions().null_values)


def present(texts: Any) -> Any:
    """The cells without blanks around them, null where they are missing."""
    import pyarrow as pa
    from pyarrow import compute

    texts = compute.utf8_trim_whitespace(texts)
    return compute.if_else(compute.is_in(texts, null_spellings()), pa.scalar(None, texts.type), texts)


def read_numbers(texts: Any, *, decimal: str = ".") -> tuple[Any, NDArray[np.bool_]]:
    """Float64 of an Arrow array of text, null where missing, and which cells are no numbers (null too).

    ``decimal``: the decimal mark; the other marks of ``GROUP_MARKS`` may stand between groups of three digits.
    """
    import pyarrow as pa
    from pyarrow import compute

    texts = present(texts)
    if decimal == ".":
        try:
            return texts.cast(pa.float64()), np.zeros(len(texts), np.bool_)
        except pa.ArrowInvalid:
            pass
    marks = GROUP_MARKS[decimal]
    grouped = compute.match_substring_regex(texts, GROUPED.format(marks=marks, point=f"[{decimal}]"))
    if compute.any(grouped).as_py():
        texts = compute.if_else(grouped, compute.replace_substring_regex(texts, f"[{marks}]", ""), texts)
    fits = compute.match_substring_regex(texts, NUMBER_WITH[decimal])
    return _cast(texts if decimal == "." else compute.replace_substring(texts, ",", "."), fits, pa.float64())


def read_booleans(texts: Any) -> tuple[Any, NDArray[np.bool_]]:
    """Booleans of an Arrow array of text (true, false, 1, 0), and which cells are none. Null as in ``read_numbers``."""
    import pyarrow as pa
    from pyarrow import compute

    texts = present(texts)
    return _cast(texts, compute.match_substring_regex(texts, "^(?i:true|false|0|1)$"), pa.bool_())


def _cast(texts: Any, fits: Any, wanted: Any) -> tuple[Any, NDArray[np.bool_]]:
    """The cells that fit as another type, null elsewhere, and which neither fit nor are missing."""
    import pyarrow as pa
    from pyarrow import compute

    values = compute.if_else(fits, texts, pa.scalar(None, texts.type)).cast(wanted)
    return values, ~np.asarray(fits.fill_null(True).to_numpy(zero_copy_only=False))


def read_times(texts: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Milliseconds since 1970 of an Arrow array of text, ``MISSING_TIMESTAMP`` for none, and which are no times."""
    encoded = texts if hasattr(texts, "dictionary") else texts.dictionary_encode()
    spelled = set(null_spellings().to_pylist())
    known = [None if not text or text.strip() in spelled else text for text in encoded.dictionary.to_pylist()]
    found = [MISSING_TIMESTAMP if text is None else time_of(text) for text in known]
    times = np.array([MISSING_TIMESTAMP if time is None else time for time in found] + [MISSING_TIMESTAMP], np.int64)
    wrong = np.array([time is None for time in found] + [False])
    places = np.asarray(encoded.indices.fill_null(len(known)))
    return times[places], wrong[places]


def time_of(text: str) -> int | None:
    """Milliseconds since 1970 in UTC of a time; None where the text is none.

    ISO 8601 with a whole date, 2026/01/31 12:00, 31.01.2026 12:00, and milliseconds since 1970 in digits. A bare year
    or a short number is no time, though ISO 8601 has such forms.
    """
    text = text.strip()
    if EPOCH.fullmatch(text):
        number = int(text)
        return number if EARLIEST_MS <= number <= LATEST_MS else None
    if found := DAY_FIRST.fullmatch(text):
        text = _iso(found[3], found[2], found[1], found[4])
    elif found := YEAR_FIRST.fullmatch(text):
        text = _iso(found[1], found[2], found[3], found[4])
    elif not ISO_TIME.match(text):
        return None
    try:
        return epoch_ms(text, _ANY_TIME)
    except Unfit:
        return None


def _iso(year: str, month: str, day: str, clock: str | None) -> str:
    rest = "" if clock is None else f"T{clock.zfill(5) if len(clock) == 4 else clock}"
    return f"{year}-{month.zfill(2)}-{day.zfill(2)}{rest}"


def typed_cells(texts: Any, column: Column, problems: dict[int, RowProblem], *, decimal: str = ".") -> Any:
    """Text cells as what a model's column is; a cell that does not fit is null, and a problem of its row."""
    import pyarrow as pa
    from pyarrow import compute

    if column.type is ColumnType.CATEGORICAL:
        return compute.if_else(compute.equal(texts, ""), pa.scalar(None, texts.type), texts)
    if column.type is ColumnType.TIMESTAMP:
        times, bad = read_times(texts)
        values = pa.array(times, pa.int64(), mask=times == MISSING_TIMESTAMP).cast(pa.timestamp("ms", "UTC"))
    elif column.type is ColumnType.BOOLEAN:
        values, bad = read_booleans(texts)
    else:
        values, bad = read_numbers(texts, decimal=decimal)
    for row in np.flatnonzero(bad).tolist():
        problems.setdefault(row, RowProblem(row, column.name, WORDS[column.type]))
    return values


# --- cells ------------------------------------------------------------------------------------------------------------


MAX_HEADER_BYTES: Final = 16 * 2**20
EXCERPT_BYTES: Final = 2**20
"""Read behind the header to see how cells are written."""
MAX_NAME_LENGTH: Final = 256
DELIMITERS: Final = ",;\t|"
SAVE_AS_UTF8: Final = "save the file as UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8 old.csv > new.csv"
UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
SEPARATOR_HINT: Final = re.compile(r"sep=(.)(\r\n|\n|\r)", re.IGNORECASE)
INDEX_NAMES: Final = re.compile(r"(Unnamed: 0)?")
"""Names of a first column of row numbers, as pandas writes and reads them."""
LEFT_OUT: Final = "\0"
"""Begins the name of a column that is left out; no column of a table has such a name."""


@dataclass(frozen=True, slots=True)
class Dialect:
    header: tuple[str, ...]
    """A name for each column of the file, in order; ``LEFT_OUT`` begins those that are no columns of the table."""
    delimiter: str
    encoding: str
    """``utf-8`` or ``utf-16``."""
    quotes: bool
    """Whether there are quotation marks near the start; lines may end within them."""
    blanks: bool
    """Whether blanks stand beside delimiters near the start."""
    lines: int
    """Lines before the first row."""
    size: int
    """Bytes of these lines; of a compressed file, after decompression."""
    index: str | None = None
    """The written name of the first column where that holds the numbers of the rows; it is left out."""
    decimal_commas: frozenset[str] = frozenset()
    """Columns of numbers whose decimal mark is a comma."""
    settled: bool = True
    """Whether some column shows which decimal mark there is."""
    notes: tuple[str, ...] = field(default=())
    """What was left out, and what could be read in two ways; sentences."""

    @property
    def names(self) -> list[str]:
        return [name for name in self.header if not name.startswith(LEFT_OUT)]

    def decimal(self, name: str, *, comma_in_training: bool = False) -> str:
        """The decimal mark of a column; that of training where no column of this file shows its own."""
        return "," if name in self.decimal_commas or (comma_in_training and not self.settled) else "."

    def parse_options(self, on_bad_row: Any = None) -> Any:
        from pyarrow import csv as arrow_csv

        return arrow_csv.ParseOptions(
            delimiter=self.delimiter, newlines_in_values=self.quotes, invalid_row_handler=on_bad_row
        )


def dialect_of(path: Path | str) -> Dialect:
    """The dialect of a CSV file, plain or compressed.

    Raises:
        DataError: there is no header, its names are no names of columns, or the file is no text.
    """
    try:
        state = Path(path).stat()
    except OSError as error:
        raise DataError("The file cannot be read.") from error
    return _read_dialect(str(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_dialect(path: str, size: int, changed: int) -> Dialect:
    import pyarrow as pa

    try:
        with pa.input_stream(path, compression="detect") as stream:
            start = stream.read(EXCERPT_BYTES)
            while not re.search(rb"[\r\n]", start) and len(start) < MAX_HEADER_BYTES and (more := stream.read(2**20)):
                start += more
            return sniff(start, whole=not stream.read(1))
    except (pa.ArrowException, OSError) as error:
        raise DataError("The file cannot be read as CSV: it is damaged.") from error


def sniff(start: bytes, *, whole: bool = False) -> Dialect:
    """The dialect by the first bytes of a CSV file; ``whole``: they are all. Raises as ``dialect_of``."""
    encoding = "utf-16" if start.startswith(UTF16_MARKS) else "utf-8-sig"
    # A cut through a character at the end of the excerpt is not the file's fault.
    text = start.decode(encoding, errors="replace")
    hint = SEPARATOR_HINT.match(text)
    first = re.compile(r"[^\r\n]*(\r\n|\n|\r|$)").match(text, hint.end() if hint else 0)
    line = first[0].rstrip("\r\n") if first else ""
    if "\0" in line:
        raise DataError(f"The first line holds NUL bytes: it is UTF-16 without a mark, or no text; {SAVE_AS_UTF8}.")
    if "\ufffd" in line:
        raise DataError(f"The first line is not UTF-8 text; {SAVE_AS_UTF8}.")
    if not line.strip():
        raise DataError("The file is empty or its first line is; a header with the columns' names is needed.")
    delimiter = hint[1] if hint else max(DELIMITERS, key=re.sub('"[^"]*"', "", line).count)
    header = _cells([line], delimiter)[0]
    if all(NUMBER.fullmatch(cell) for cell in header):
        raise DataError("The first line holds numbers; a header with the columns' names is needed.")
    rest = text[first.end() if first else 0 :].replace("\r\n", "\n").replace("\r", "\n")
    rows = _cells(io.StringIO(rest if whole else rest[: rest.rfind("\n") + 1]), delimiter)
    columns = [[row[at] for row in rows if at < len(row) and row[at]] for at in range(len(header))]
    names, notes = _names(header, columns)
    commas, settled, doubts = _decimal_commas(dict(zip(names, columns, strict=True)))
    mark = re.escape(delimiter)
    before = text[: first.end() if first else 0]
    return Dialect(
        header=tuple(names),
        delimiter=delimiter,
        encoding="utf-16" if encoding == "utf-16" else "utf-8",
        quotes='"' in text,
        blanks=re.search(rf" {mark}|{mark} |^ | $", re.sub('"[^"]*"', '""', text), re.MULTILINE) is not None,
        lines=2 if hint else 1,
        size=len(before.encode()) + (3 if start.startswith(b"\xef\xbb\xbf") else 0),
        index=header[0] if names[0].startswith(LEFT_OUT) and columns[0] else None,
        decimal_commas=frozenset(commas),
        settled=settled,
        notes=(*notes, *doubts),
    )


def _cells(lines: Iterable[str], delimiter: str) -> list[list[str]]:
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    except csv.Error:  # a cell of more than 128 KiB: probably a quotation mark that is never closed
        return []


def _names(header: Sequence[str], columns: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """The names to parse by, and notes of the columns that are left out."""
    names, notes = list[str](), list[str]()
    for at, (name, cells) in enumerate(zip(header, columns, strict=True)):
        is_index = at == 0 and INDEX_NAMES.fullmatch(name) and all(map(str.isdecimal, cells))
        if not name and not cells:
            names.append(f"{LEFT_OUT}{at}")
            notes.append(f"Column {at + 1} has neither a name nor values; it was left out.")
        elif is_index and len(set(cells)) == len(cells):
            names.append(f"{LEFT_OUT}{at}")
            notes.append("The first column holds the numbers of the rows; it was left out.")
        else:
            names.append(name)
    check_names(names)
    return names, notes


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


def _decimal_commas(columns: dict[str, list[str]]) -> tuple[list[str], bool, list[str]]:
    """Columns whose decimal mark is a comma, whether any column shows its mark, and notes of those that do not.

    A comma (a point) before three digits in all cells of a column may stand between thousands: then the other columns
    of the file decide, and if none does, a comma stands between thousands and a point is a decimal mark.
    """
    fits = {mark: re.compile(pattern) for mark, pattern in _PATTERNS.items()}
    surely: dict[str, list[str]] = {",": [], ".": []}
    unsure: list[str] = []
    for name, cells in columns.items():
        marked = [cell for cell in cells if "," in cell or "." in cell]
        if not marked:
            continue
        comma, point = (all(map(fits[mark].match, marked)) for mark in ",.")
        if comma and point:
            unsure.append(name)
        elif comma or point:
            surely["," if comma else "."].append(name)
    if surely[","] and not surely["."]:
        return list(columns), True, []
    notes = [
        f'Column "{name}": a comma before three digits was read as a mark between thousands.'
        for name in unsure
        if not surely["."] and "," in "".join(columns[name])
    ]
    return surely[","], bool(surely[","] or surely["."]), notes


_PATTERNS = {
    mark: f"{plain}|{GROUPED.format(marks=GROUP_MARKS[mark], point=f'[{mark}]')}" for mark, plain in NUMBER_WITH.items()
}
