"""Bodies of any media type: a request's to rows, an answer to its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.codecs.answers import Answer, encode_json, encode_ndjson
from service.codecs.arrow import decode_arrow, encode_arrow
from service.codecs.arrow_bounds import arrow_begins
from service.codecs.images import decode_image, encode_png
from service.codecs.json_rows import decode_json
from service.codecs.npy import decode_npy, encode_npy, npy_begins
from service.codecs.options import Options, options_from_query
from service.codecs.rows import Limits
from service.errors import InvalidOption, UnsupportedMediaType
from service.schemas import InputSchema, Rows
from service.words import ARROW, DENOISE, JPEG, JSON, NDJSON, NPY, PNG, RECONSTRUCT, Operation

ARRAY_BEGINS: Final[Mapping[str, Callable[[bytes], int]]] = {NPY: npy_begins, ARROW: arrow_begins}
"""The offset of the numbers in a body, from its first bytes, for encodings that hold them as memory does."""
_ANSWER_TYPES: Final = (JSON, NPY, ARROW, NDJSON)


@dataclass(slots=True, eq=False)
class Decoded:
    """A request's rows and options."""

    rows: Rows
    options: Options
    table: Any = None
    """The pyarrow table that they came in, for ``passthrough``."""


def answer_types(operation: Operation) -> tuple[str, ...]:
    """Media types that an operation can answer in, the default first; PNG for one row of an image model."""
    return (*_ANSWER_TYPES, PNG) if operation in (RECONSTRUCT, DENOISE) else _ANSWER_TYPES


def decode(
    media_type: str,
    body: bytes | memoryview,
    *,
    schema: InputSchema,
    operation: Operation,
    query: Mapping[str, str],
    limits: Limits,
) -> Decoded:
    """Rows and options of a whole body, decompressed; NDJSON has a decoder of its own.

    Raises:
        RequestError: what is wrong with the body, its rows or the options.
    """
    if media_type == JSON:
        if query:
            raise InvalidOption("The options of a JSON request stand in its body, not in the query.")
        return Decoded(*decode_json(bytes(body), schema, operation=operation, limits=limits))
    options = options_from_query(query, schema=schema, operation=operation, passthrough_allowed=media_type == ARROW)
    if media_type == NPY:
        return Decoded(decode_npy(body, schema, limits=limits), options)
    if media_type == ARROW:
        rows, table = decode_arrow(body, schema, limits=limits)
        return Decoded(rows, options, table if options.passthrough else None)
    if media_type in (PNG, JPEG):
        return Decoded(decode_image(body, schema, media_type=media_type, limits=limits), options)
    raise UnsupportedMediaType("This media type is not supported here.")


def encode(media_type: str, answer: Answer, table: Any = None) -> bytes:
    """An answer in one of ``answer_types``. ``table`` are the columns to pass through, in Arrow.

    Raises:
        NotAcceptable: this answer cannot be said in that encoding.
    """
    if media_type == JSON:
        return encode_json(answer)
    if media_type == NPY:
        return encode_npy(answer)
    if media_type == ARROW:
        return encode_arrow(answer, table)
    if media_type == NDJSON:
        return encode_ndjson(answer)
    return encode_png(answer)
