"""Arrow IPC streams to rows and answers to Arrow."""

import datetime
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from service.codecs import Answer, Limits, decode_arrow, encode_arrow
from service.errors import InvalidRows, MalformedInput, TooLarge
from service.schemas import MISSING_TIMESTAMP, Array, Column, ColumnType, InputSchema
from service.words import ANOMALY_SCORE, ENCODE, RECONSTRUCT
from tests.codecs.samples import GAPPY, IMAGE, MIXED, NUMBERS, SMALL, VECTOR

pytestmark = pytest.mark.timeout(60)  # a bomb must not make it hang

UTC = datetime.UTC


def stream(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def lists(array: Array) -> Any:
    """A table with the rows as fixed-size lists, nested as the array is."""
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return pa.table({"instances": column})


def numbers_of(table: Any, schema: InputSchema) -> Array:
    return decode_arrow(stream(table), schema)[0]["instances"]


VALUES = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


def test_nested_and_flat_lists_are_rows() -> None:
    """In the row's shape, or flat in its order."""
    assert np.array_equal(numbers_of(lists(VALUES), IMAGE), VALUES)
    assert np.array_equal(numbers_of(lists(VALUES.reshape(2, 6)), IMAGE), VALUES)
    assert np.array_equal(numbers_of(lists(VALUES.astype(np.uint8)), IMAGE), VALUES)
    assert np.array_equal(numbers_of(pa.table({"instances": VALUES.reshape(2, 6).tolist()}), IMAGE), VALUES)


def test_a_tensor_column_is_rows() -> None:
    """Arrow's own type for arrays of one shape."""
    table = pa.table({"instances": pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES)})
    assert np.array_equal(numbers_of(table, IMAGE), VALUES)
    turned = VALUES.transpose(0, 2, 1)
    for other in (turned, np.ascontiguousarray(turned)):
        with pytest.raises(InvalidRows):
            numbers_of(pa.table({"instances": pa.FixedShapeTensorArray.from_numpy_ndarray(other)}), IMAGE)


def test_float32_lists_are_not_copied() -> None:
    """One batch of them is a view of the body."""
    body = stream(lists(np.ones((3, 4), np.float32)))
    assert np.shares_memory(decode_arrow(body, VECTOR)[0]["instances"], np.frombuffer(body, np.uint8))


def test_batches_are_joined() -> None:
    """In their order."""
    table = pa.concat_tables([lists(VALUES), lists(VALUES + 1)])
    assert np.array_equal(numbers_of(table, IMAGE), np.concatenate([VALUES, VALUES + 1]))


def test_named_columns_are_rows() -> None:
    """Of every type that can stand for the column's, in any order."""
    at = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    table = pa.table(
        {
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "amount": pa.array([1, 2, 3], pa.int16()),
            "at": pa.array([at, None, at], pa.timestamp("ns", tz="Europe/Berlin")),
            "active": pa.array([True, None, False]),
            "country": pa.array(["DE", None, "\u00fc"], pa.large_string()),
        }
    )
    rows, _ = decode_arrow(stream(table), MIXED)
    np.testing.assert_array_equal(rows["instances"], np.array([[1, 1], [2, np.nan], [3, 0]], np.float32))
    assert rows["categories"].tolist() == [[b"DE", b"a"], [b"", b"b"], ["\u00fc".encode(), b"a"]]
    assert rows["timestamps"].tolist() == [[1704164645000], [MISSING_TIMESTAMP], [1704164645000]]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1704164645], pa.timestamp("s")),
        pa.array([1704164645000], pa.timestamp("ms")),
        pa.array([1704164645000], pa.int64()),
        pa.array(["2024-01-02T03:04:05Z"]),
        pa.array(["2024-01-02T03:04:05"], pa.string_view()),
    ],
)
def test_times_come_in_many_types(values: Any) -> None:
    """All become milliseconds."""
    table = pa.table({"amount": [1.0], "kind": ["a"], "at": values})
    assert decode_arrow(stream(table), MIXED)[0]["timestamps"].tolist() == [[1704164645000]]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**62], pa.timestamp("s")),
        pa.array([-(2**63)], pa.timestamp("s")),
        pa.array([2**62], pa.int64()),
        pa.array(["soon"]),
        pa.array([1.5]),
    ],
)
def test_bad_times_are_named(values: Any) -> None:
    """Out of range, no time, or another type."""
    with pytest.raises(InvalidRows) as caught:
        decode_arrow(stream(pa.table({"amount": [1.0], "kind": ["a"], "at": values})), MIXED)
    assert caught.value.problems[0].column == "at"


def test_columns_that_may_be_missing_may_be_left_out() -> None:
    """The others may not."""
    rows, _ = decode_arrow(stream(pa.table({"amount": [1.0], "kind": ["a"]})), MIXED)
    assert rows["categories"].tolist() == [[b"", b"a"]]
    with pytest.raises(InvalidRows) as caught:
        decode_arrow(stream(pa.table({"kind": ["a"], "colour": [1]})), MIXED)
    assert [(problem.column, problem.problem) for problem in caught.value.problems] == [
        ("colour", "is not a column of this model"),
        ("amount", "is missing"),
    ]


def test_bad_values_are_named() -> None:
    """Nulls, infinities and halves of booleans, with row and column."""
    table = pa.table({"amount": [1, None, 1.0], "age": [None, 1e39, 1], "active": [1, 0, 0.5]})
    with pytest.raises(InvalidRows) as caught:
        decode_arrow(stream(table), NUMBERS)
    assert [(problem.row, problem.column) for problem in caught.value.problems] == [
        (1, "amount"), (1, "age"), (2, "active"),
    ]  # fmt: skip
    with pytest.raises(InvalidRows) as caught:
        decode_arrow(stream(pa.table({"amount": [1, 1], "kind": ["a", None]})), MIXED)
    assert [(problem.row, problem.column) for problem in caught.value.problems] == [(1, "kind")]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("amount", pa.array(["1"])), ("amount", pa.array([True])), ("amount", pa.array([[1]])),
        ("amount", pa.array([b"1"])), ("kind", pa.array([1])), ("kind", pa.array([b"a"])),
        ("active", pa.array(["yes"])),
    ],
)  # fmt: skip
def test_wrong_types_are_named(name: str, values: Any) -> None:
    """As a problem of the column."""
    with pytest.raises(InvalidRows) as caught:
        decode_arrow(stream(pa.table({"amount": [1.0], "kind": ["a"]} | {name: values})), MIXED)
    assert caught.value.problems[0].column == name


def test_wrong_lists_are_refused() -> None:
    """Of another shape, with null rows, or of no numbers; null values follow the schema."""
    ragged = pa.table({"instances": [[1.0, 2, 3, 4], [1.0, 2]]})
    for table in (lists(VALUES), ragged, pa.table({"instances": [[1.0, 2, 3, 4], None]})):
        with pytest.raises(InvalidRows):
            decode_arrow(stream(table), VECTOR)
    for table in (pa.table({"instances": [["a"] * 4]}), pa.table({"rows": [[1.0] * 4]}), pa.table({"instances": [1]})):
        with pytest.raises(InvalidRows):
            decode_arrow(stream(table), VECTOR)
    with pytest.raises(InvalidRows):
        decode_arrow(stream(lists(VALUES[:0])), IMAGE)
    null_row = pa.table({"instances": pa.array([[1, 2, 3, 4], None], pa.list_(pa.float32(), 4))})
    with pytest.raises(InvalidRows) as caught:
        decode_arrow(stream(null_row), VECTOR)
    assert caught.value.problems[0].row == 1
    gaps = pa.table({"instances": pa.array([[[1, None], [2, 3]]], pa.list_(pa.list_(pa.float64(), 2), 2))})
    assert np.isnan(numbers_of(gaps, GAPPY)[0, 0, 1])


def test_a_long_label_in_a_dictionary_is_not_multiplied() -> None:
    """Many rows may name one label of a megabyte; it is held once."""
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int8()), pa.array(["x" * 2**20]))
    rows, _ = decode_arrow(stream(pa.table({"amount": [1.0] * 10_000, "kind": labels})), MIXED)
    assert rows["categories"][0, 1] is rows["categories"][9_999, 1]


def _views(count: int, length: int) -> bytes:
    """A stream in which all rows view the same long text."""
    text = pa.py_buffer(b"x" * length)
    view = struct.pack("<i4sii", length, b"xxxx", 0, 0)
    column = pa.Array.from_buffers(pa.string_view(), count, [None, pa.py_buffer(view * count), text])
    return stream(pa.table({"amount": [1.0] * count, "kind": column}))


@pytest.mark.slow
def test_views_of_one_long_text_are_bounded() -> None:
    """Each row would get its own copy."""
    assert len(decode_arrow(_views(3, 100), MIXED)[0]["categories"]) == 3
    with pytest.raises(TooLarge):
        decode_arrow(_views(10_000, 2**20), MIXED)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_buffers_are_bounded(compression: str) -> None:
    """What they claim counts before they are decompressed."""
    assert len(numbers_of(lists(np.zeros((3, 4), np.float32)), VECTOR)) == 3
    body = stream(lists(np.zeros((1000, 784), np.float32)), compression=compression)
    schema = InputSchema(kind="image", row_shape=(784,))
    assert len(decode_arrow(body, schema)[0]["instances"]) == 1000
    with pytest.raises(TooLarge):
        decode_arrow(body, schema, limits=Limits(max_decoded_bytes=1000 * 784 * 4 - 1))
    lying = body.replace(struct.pack("<q", 1000 * 784 * 4), struct.pack("<q", 10 * 2**30))
    assert lying != body
    with pytest.raises(TooLarge):
        decode_arrow(lying, schema)


def test_rows_and_messages_are_bounded() -> None:
    """Rows before they are decoded, and batches without rows."""
    with pytest.raises(TooLarge):
        decode_arrow(stream(lists(np.ones((51, 4), np.float32))), VECTOR, limits=SMALL)
    empty = lists(np.ones((0, 4), np.float32)).to_batches() or [
        pa.record_batch([pa.array([], pa.list_(pa.float32(), 4))], names=["instances"])
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, empty[0].schema) as writer:
        for _ in range(10_000):
            writer.write_batch(empty[0])
    with pytest.raises(TooLarge):
        decode_arrow(bytes(sink.getvalue().to_pybytes()), VECTOR)


def test_lying_offsets_are_malformed() -> None:
    """Text whose offsets leave its buffer is refused, not read."""
    body = stream(pa.table({"amount": [1.0, 2.0], "kind": ["aaaa", "bbbb"]}))
    lying = body.replace(struct.pack("<3i", 0, 4, 8), struct.pack("<3i", 0, 4, 2**30))
    assert lying != body
    with pytest.raises(MalformedInput):
        decode_arrow(lying, MIXED)
    broken = body.replace(b"aaaabbbb", b"aaaa\xff\xff\xff\xff")
    with pytest.raises(MalformedInput):
        decode_arrow(broken, MIXED)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 50, 300])
def test_what_is_not_arrow_is_malformed(cut: int) -> None:
    """Truncated or something else."""
    body = stream(lists(np.ones((3, 4), np.float32)))
    for wrong in (body[:cut], b"x" * cut, body[: -cut - 20]):
        with pytest.raises(MalformedInput):
            decode_arrow(wrong, VECTOR)


EXPLAINED = {"contribution", "expected", "expected_categories", "expected_timestamps"}


def answer(schema: InputSchema, operation: Any, results: dict[str, Any], **more: Any) -> Answer:
    more["explained"] = {name: more.pop(name) for name in EXPLAINED & more.keys()}
    return Answer(operation=operation, schema=schema, model="m", version=3, results=results, **more)


def read(body: bytes) -> Any:
    return pa.ipc.open_stream(body).read_all()


SCORES = {
    "score": np.array([0.5, 2], np.float32),
    "p_value": np.array([0.9, 0.1], np.float32),
    "is_anomaly": np.array([False, True]),
}


def test_scores_are_columns() -> None:
    """With the threshold in the metadata."""
    table = read(
        encode_arrow(
            answer(VECTOR, ANOMALY_SCORE, SCORES, once={"threshold": np.float32(1.1), "false_alarm_rate": 0.01})
        )
    )
    assert table.to_pydict() == {"scores": [0.5, 2], "p_values": pytest.approx([0.9, 0.1]), "is_anomaly": [False, True]}
    assert table.schema.metadata == {
        b"model": b"m", b"version": b"3", b"threshold": b"1.1", b"false_alarm_rate": b"0.01",
    }  # fmt: skip


def test_arrays_are_fixed_size_lists() -> None:
    """Nested as the rows are."""
    results = {"reconstruction": VALUES, "error": np.ones(2, np.float32)}
    table = read(encode_arrow(answer(IMAGE, RECONSTRUCT, results)))
    assert table.schema.field("reconstructions").type == pa.list_(pa.list_(pa.float32(), 3), 2)
    assert table.column("reconstructions").to_pylist() == VALUES.tolist()
    table = read(encode_arrow(answer(IMAGE, ENCODE, {"latent": np.ones((2, 5), np.float32)})))
    assert table.schema.field("latents").type == pa.list_(pa.float32(), 5)


def test_named_reconstructions_are_columns() -> None:
    """Of the columns' own types, in the schema's order."""
    results = {
        "reconstruction": np.array([[1.5, 0.8]], np.float32),
        "error": np.ones(1, np.float32),
        "reconstruction_categories": np.array([[b"", b"a"]], dtype=object),
        "reconstruction_timestamps": np.array([[1704164645000]]),
    }
    table = read(encode_arrow(answer(MIXED, RECONSTRUCT, results)))
    assert table.column_names == ["errors", "country", "amount", "at", "active", "kind"]
    at = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert table.drop_columns("errors").to_pylist() == [
        {"country": None, "amount": 1.5, "at": at, "active": True, "kind": "a"}
    ]


def test_columns_are_passed_through() -> None:
    """As they came, before what has the same name."""
    schema = InputSchema(kind="tabular", row_shape=(2,), columns=(Column(name="amount"), Column(name="scores")))
    body = stream(pa.table({"amount": pa.array([2**40 + 1, 1]), "scores": [1, 2]}))
    _, table = decode_arrow(body, schema)
    passed = read(encode_arrow(answer(schema, ANOMALY_SCORE, SCORES), table))
    assert passed.column_names == ["scores", "p_values", "is_anomaly", "amount", "input.scores"]
    assert passed.column("amount").to_pylist() == [2**40 + 1, 1]
    results = {"reconstruction": np.ones((2, 2), np.float32), "error": np.ones(2, np.float32)}
    passed = read(encode_arrow(answer(schema, RECONSTRUCT, results), table))
    assert passed.column_names == ["errors", "amount", "scores", "reconstruction.amount", "reconstruction.scores"]


def test_contributions_are_lists_of_structs() -> None:
    """Numbers in a model of numbers, text where columns are of several kinds."""
    shares = {"contribution": np.array([[0.2, 0.8, 0]], np.float32), "expected": np.array([[1, 2, 3]], np.float32)}
    one = {name: values[:1] for name, values in SCORES.items()}
    rows = {"instances": np.array([[7, np.nan, 1]], np.float32)}
    table = read(encode_arrow(answer(NUMBERS, ANOMALY_SCORE, one, explain=2, rows=rows, **shares)))
    assert table.column("contributions").to_pylist() == [
        [
            {"feature": "age", "observed": None, "expected": 2, "share": pytest.approx(0.8)},
            {"feature": "amount", "observed": 7, "expected": 1, "share": pytest.approx(0.2)},
        ]
    ]
    category = Column(name="kind", type=ColumnType.CATEGORICAL)
    schema = InputSchema(kind="tabular", row_shape=(2,), columns=(Column(name="x"), Column(name="y"), category))
    rows = {"instances": np.ones((1, 2), np.float32), "categories": np.array([[b"a"]], dtype=object)}
    shares = {"contribution": np.array([[0.2, 0, 0.8]], np.float32), "expected": np.ones((1, 2), np.float32)}
    table = read(encode_arrow(answer(schema, ANOMALY_SCORE, one, explain=1, rows=rows, **shares)))
    assert table.column("contributions").to_pylist()[0][0]["observed"] == "a"


def test_an_error_map_has_the_rows_shape() -> None:
    """As nested lists."""
    more: dict[str, Any] = {"explain": "map", "contribution": VALUES, "rows": {"instances": VALUES}}
    table = read(encode_arrow(answer(IMAGE, ANOMALY_SCORE, SCORES, **more)))
    assert table.column("error_maps").to_pylist() == VALUES.tolist()
