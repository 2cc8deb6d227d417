"""Rows that fit a model's schema, for measuring: their values mean nothing."""

from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from service.schemas import ColumnType, InputSchema

_DECIMALS = 4
_YEAR_2024_MS = 1_704_067_200_000
_YEAR_MS = 365 * 24 * 3_600_000


def random_rows(schema: InputSchema, count: int, *, seed: int = 0) -> list[Any]:
    """So many rows as JSON has them: objects for named columns, nested arrays otherwise."""
    rng = np.random.default_rng(seed)
    if not schema.columns:
        rows: list[Any] = _array(schema, count, rng).tolist()
        return rows
    columns = {column.name: _values(column, count, rng) for column in schema.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def random_array(schema: InputSchema, count: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The same of a model without named columns, (rows, *row_shape) float32."""
    return _array(schema, count, np.random.default_rng(seed)).astype(np.float32)


def _array(schema: InputSchema, count: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    low, high = schema.value_range or (0.0, 1.0)
    return rng.uniform(low, high, (count, *schema.row_shape)).round(_DECIMALS)  # in float32 they would have 17 digits


def _values(column: Any, count: int, rng: np.random.Generator) -> list[Any]:
    if column.type is ColumnType.BOOLEAN:
        return [bool(value) for value in rng.integers(0, 2, count)]
    if column.type is ColumnType.CATEGORICAL:
        return [str(value) for value in rng.choice(column.categories or ("a",), count)]
    if column.type is ColumnType.TIMESTAMP:
        instants = _YEAR_2024_MS + rng.integers(0, _YEAR_MS, count)
        return [str(np.datetime64(int(instant), "ms")) + "Z" for instant in instants]
    low = 0.0 if column.minimum is None else column.minimum
    high = low + 1.0 if column.maximum is None else column.maximum
    return [float(value) for value in rng.uniform(low, high, count).round(_DECIMALS)]


def json_body(rows: list[Any]) -> bytes:
    return orjson.dumps({"instances": rows})


def ndjson_body(rows: list[Any]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def npy_body(array: np.ndarray[Any, Any]) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def arrow_body(schema: InputSchema, count: int) -> bytes:
    """An Arrow stream of named columns, or of one fixed-size-list column ``instances``."""
    if schema.columns:
        table = pa.Table.from_pylist(random_rows(schema, count))
    else:
        array = random_array(schema, count)
        flat = pa.array(array.reshape(-1))
        table = pa.table({"instances": pa.FixedSizeListArray.from_arrays(flat, int(np.prod(schema.row_shape)))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
