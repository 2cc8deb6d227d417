"""Wire <-> array: the only place that knows JSON, npy, Arrow, NDJSON, images and content codings.

Everything here works on bytes and arrays, knows neither HTTP framework nor TensorFlow, blocks, and may run in any
thread. Decoders raise ``service.errors.RequestError`` and nothing else, whatever the bytes.
"""

from service.codecs.answers import Answer, encode_json, encode_ndjson
from service.codecs.arrow import answer_columns, decode_arrow, encode_arrow, nested_array, rows_table, table_rows
from service.codecs.bodies import ARRAY_BEGINS, Decoded, answer_types, decode, encode
from service.codecs.compression import (
    ANSWER_ENCODINGS,
    REQUEST_ENCODINGS,
    Compressor,
    Decompression,
    Decompressor,
    choose_encoding,
    compress,
    compression_of,
)
from service.codecs.images import decode_image, encode_png
from service.codecs.json_rows import decode_json
from service.codecs.media_types import REQUEST_TYPES, choose_media_type, request_media_type
from service.codecs.ndjson import BadLine, NdjsonDecoder, RowBlock
from service.codecs.npy import decode_npy, encode_npy
from service.codecs.options import Options, options_from_json, options_from_query
from service.codecs.rows import Limits, aligned_memory

__all__ = [
    "ANSWER_ENCODINGS",
    "ARRAY_BEGINS",
    "REQUEST_ENCODINGS",
    "REQUEST_TYPES",
    "Answer",
    "BadLine",
    "Compressor",
    "Decoded",
    "Decompression",
    "Decompressor",
    "Limits",
    "NdjsonDecoder",
    "Options",
    "RowBlock",
    "aligned_memory",
    "answer_columns",
    "answer_types",
    "choose_encoding",
    "choose_media_type",
    "compress",
    "compression_of",
    "decode",
    "decode_arrow",
    "decode_image",
    "decode_json",
    "decode_npy",
    "encode",
    "encode_arrow",
    "encode_json",
    "encode_ndjson",
    "encode_npy",
    "encode_png",
    "nested_array",
    "options_from_json",
    "options_from_query",
    "request_media_type",
    "rows_table",
    "table_rows",
]
