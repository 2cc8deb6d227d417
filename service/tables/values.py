"""Text cells as numbers, booleans and times: the one meaning that training and scoring give them."""

import re
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
from service.errors import RowProblem
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
    from pyarrow import csv

    return pa.array(csv.ConvertOptions().null_values)


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
