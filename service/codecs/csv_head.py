"""The first line of a CSV file: the columns' names, and how the file is written."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.errors import DataError

MAX_HEADER_BYTES: Final = 16 * 2**20
DELIMITERS: Final = ",;\t|"
SAVE_AS_UTF8: Final = "save the file as UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8 old.csv > new.csv"
UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class CsvHead:
    names: tuple[str, ...]
    """The header's cells as they stand."""
    delimiter: str
    encoding: str
    """``utf-8`` or ``utf-16``."""
    quotes: bool
    """Whether there are quotation marks near the start; lines may end within them."""
    size: int
    """Bytes of the first line with its end; of a compressed file, after decompression."""


def read_csv_head(path: Path | str) -> CsvHead:
    """The header of a CSV file, plain or compressed.

    Raises:
        DataError: there is none, or the file is no text.
    """
    import pyarrow as pa

    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            return csv_head(stream.read(MAX_HEADER_BYTES))
    except (pa.ArrowException, OSError) as error:
        raise DataError("The file cannot be read as CSV: it is damaged.") from error


def csv_head(start: bytes) -> CsvHead:
    """The header in the first bytes of a CSV file. Raises DataError as ``read_csv_head`` does."""
    encoding = "utf-16" if start.startswith(UTF16_MARKS) else "utf-8-sig"
    # A cut through a character at the end of the excerpt is not the file's fault.
    text = start.decode(encoding, errors="replace")
    line = re.split(r"\r\n|\n|\r", text, maxsplit=1)[0]
    if "\0" in line:
        raise DataError(f"The first line holds NUL bytes: it is UTF-16 without a mark, or no text; {SAVE_AS_UTF8}.")
    if "\ufffd" in line:
        raise DataError(f"The first line is not UTF-8 text; {SAVE_AS_UTF8}.")
    if not line.strip():
        raise DataError("The file is empty or its first line is; a header with the columns' names is needed.")
    delimiter = max(DELIMITERS, key=line.count)
    header = next(csv.reader([line], delimiter=delimiter))
    if all(NUMBER.fullmatch(cell.strip()) for cell in header):
        raise DataError("The first line holds numbers; a header with the columns' names is needed.")
    size = len(re.split(rb"(?<=\n)|(?<=\r)(?!\n)", start, maxsplit=1)[0]) if encoding == "utf-8-sig" else 0
    return CsvHead(tuple(header), delimiter, "utf-16" if encoding == "utf-16" else "utf-8", '"' in text, size)
