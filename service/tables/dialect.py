"""How a CSV file is written, found out from its first bytes: encoding, delimiter, header, blanks, marks in numbers."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from service.errors import DataError
from service.tables.values import GROUP_MARKS, GROUPED, NUMBER, NUMBER_WITH

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
    """The dialect by the first bytes of a CSV file; ``whole``: they are all. Errors as of ``dialect_of``."""
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
