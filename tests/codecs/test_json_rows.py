"""JSON requests to rows."""

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.codecs import Limits, decode_json
from service.codecs.json_rows import PIECE_BYTES, decode_json_exactly, decode_numbers_fast
from service.errors import MAX_ROW_PROBLEMS, InvalidOption, InvalidRows, MalformedInput, RequestError, TooLarge
from service.schemas import MISSING_TIMESTAMP, InputSchema, Rows
from service.words import ANOMALY_SCORE, ENCODE, Operation
from tests.codecs.samples import GAPPY, IMAGE, MIXED, NUMBERS, SCHEMAS, SMALL, VECTOR, same_rows

pytestmark = pytest.mark.timeout(60)  # a bomb must not make it hang


def rows_of(body: str | bytes, schema: InputSchema, limits: Limits = Limits()) -> Rows:  # noqa: B008
    encoded = body if isinstance(body, bytes) else body.encode()
    return decode_json(encoded, schema, operation=ANOMALY_SCORE, limits=limits)[0]


def problems_of(body: str, schema: InputSchema) -> list[tuple[Any, Any, str]]:
    with pytest.raises(InvalidRows) as caught:
        rows_of(body, schema)
    return [(problem.row, problem.column, problem.problem) for problem in caught.value.problems]


def test_nested_arrays_are_rows() -> None:
    """Rows of the model's shape become float32, integers and floats alike."""
    rows = rows_of('{"instances": [[[1, 2.5, 3], [4, 5, -6e2]], [[0, 0, 0], [1, 1, 1]]]}', IMAGE)
    assert rows["instances"].dtype == np.float32
    assert rows["instances"].tolist() == [[[1, 2.5, 3], [4, 5, -600]], [[0, 0, 0], [1, 1, 1]]]


def test_plain_numbers_take_the_fast_path() -> None:
    """What the benchmarks send is decoded in one piece, options included."""
    body = b'{"instances": [[1, 2, 3, 4]], "threshold": 1.5}'
    found = decode_numbers_fast(body, VECTOR, Limits())
    assert found is not None
    assert found[0].tolist() == [[1, 2, 3, 4]]
    assert found[1] == {"threshold": 1.5}


@pytest.mark.parametrize(
    "body",
    [
        '{"instances": [[1, 2, 3, null]]}',
        '{"instances": [[1, 2, 3, true]]}',
        '{"instances": [[1, 2, 3], [4, 5, 6, 7, 8]]}',
        '{"instances": [[1, [2, 3], 4]]}',
        '{"instances": [[[1, 2, 3, 4]]]}',
        '{"instances": [1, 2, 3, 4]}',
        '{"instances": [[1, 2, 3, 1e39]]}',
        '{"instances": [[1, 2, 3, 4]], "instances": [[1, 2, 3, 4]]}',
        '{"instances": [[1, 2, 3, 4]], "threshold": [1]}',
        '{"instances": [[1, 2, 3, 4]], "[": 1}',
        '{"instances": [[1, 2, 3, 4]], "threshold": 1, "threshold": 2}',
        '{"inputs": [[1, 2, 3, 4]]}',
        '{"instances": [[1, 2, 3, 4]]} x',
        '{"instances": []}',
        "[[1, 2, 3, 4]]",
        "5",
        "",
    ],
)
def test_the_fast_path_gives_up_on_anything_else(body: str) -> None:
    """Flattened numbers of another shape are never taken for rows."""
    assert decode_numbers_fast(body.encode(), VECTOR, Limits()) is None


def test_the_fast_path_knows_booleans() -> None:
    """A number that is neither 0 nor 1 is no boolean there either."""
    assert decode_numbers_fast(b'{"instances": [[1, 2, 1]]}', NUMBERS, Limits()) is not None
    assert decode_numbers_fast(b'{"instances": [[1, 2, 5]]}', NUMBERS, Limits()) is None
    assert problems_of('{"instances": [[1, 2, 5]]}', NUMBERS) == [(0, "active", "must be true or false")]


def exact_rows(body: bytes, schema: InputSchema) -> Rows:
    return decode_json_exactly(body, schema, operation=ANOMALY_SCORE, limits=Limits())[0]


def large_body(schema: InputSchema, *, spaces: str = "") -> bytes:
    """Many small numbers, in several pieces; every row has other ones."""
    width = int(np.prod(schema.row_shape))
    rows = np.arange(3 * PIECE_BYTES // (4 * width) * width).reshape(-1, *schema.row_shape) % 100
    text = json.dumps({"instances": rows.tolist(), "threshold": 1.5}, indent=1 if spaces else None)
    return text.replace("\n", spaces or "\n").encode()


@pytest.mark.parametrize("spaces", ["", " ", "\r\n\t"])
@pytest.mark.parametrize("schema", [VECTOR, IMAGE], ids=["vector", "image"])
def test_large_bodies_are_read_in_pieces(schema: InputSchema, spaces: str) -> None:
    """All rows in their order, however they are written, and the options behind them."""
    body = large_body(schema, spaces=spaces)
    assert len(body) > 2 * PIECE_BYTES
    found = decode_numbers_fast(body, schema, Limits())
    assert found is not None
    assert found[1] == {"threshold": 1.5}
    assert same_rows({"instances": found[0]}, exact_rows(body, schema))


def test_a_row_may_be_larger_than_a_piece() -> None:
    """A piece ends with a row, however wide that is."""
    schema = InputSchema(kind="image", row_shape=(PIECE_BYTES,))
    body = orjson.dumps({"instances": [[7] * PIECE_BYTES, [8] * PIECE_BYTES, [9] * PIECE_BYTES]})
    found = decode_numbers_fast(body, schema, Limits())
    assert found is not None
    assert found[0][:, [0, -1]].tolist() == [[7, 7], [8, 8], [9, 9]]


LARGE = {name: large_body(SCHEMAS[name]) for name in ("vector", "image")}
SPLINTERS = st.sampled_from(
    ["", "7", "[", "]", "],[", "],", "],]", ",", '"', " ", "null", "1e39", "-", "[]", "{", "}", "]}", "[1, 2, 3, 4], ",
     "\\",
     '"],["', '{"instances": [', '], "instances": [', '], "threshold": [', "\xff", "5], [5", "[[1, 2, 3], [4, 5, 6]], "]
)  # fmt: skip


@settings(max_examples=25)
@example(name="vector", near=0, offset=0, splinter="", cut=0)
@example(name="image", near=PIECE_BYTES, offset=0, splinter="7", cut=0)
@given(
    name=st.sampled_from(list(LARGE)),
    near=st.sampled_from([0, 15, PIECE_BYTES, 2 * PIECE_BYTES, -1]),
    offset=st.integers(-40, 40),
    splinter=SPLINTERS,
    cut=st.integers(0, 12),
)
def test_pieces_prove_as_much_as_the_whole(name: str, near: int, offset: int, splinter: str, cut: int) -> None:
    """The fast path takes a large body, tampered with anywhere, if and only if the exact one does, and gives its rows.

    Only options that are no scalars, and keys that come twice, are left to the exact path.
    """
    body = LARGE[name]
    at = min(max((near if near >= 0 else len(body)) + offset, 0), len(body))
    tampered = body[:at] + splinter.encode("latin-1") + body[at + cut :]
    found = decode_numbers_fast(tampered, SCHEMAS[name], Limits())
    try:
        rows = exact_rows(tampered, SCHEMAS[name])
    except RequestError:
        assert found is None
        return
    if b'"threshold": [' in tampered or tampered.count(b'"instances"') > 1:
        assert found is None
    else:
        assert found is not None
        assert same_rows({"instances": found[0]}, rows)


def test_objects_are_rows_of_named_columns() -> None:
    """Columns may come in any order, and those that may be missing may be null or left out."""
    body = """{"instances": [
        {"kind": "a", "amount": 1, "country": "DE", "at": "2024-01-02T03:04:05+01:00", "active": true},
        {"amount": 2.5, "kind": "b", "at": 1700000000000, "active": 0, "country": null},
        {"amount": 3, "kind": "\u00fc"}]}"""
    rows = rows_of(body, MIXED)
    np.testing.assert_array_equal(rows["instances"], np.array([[1, 1], [2.5, 0], [3, np.nan]], np.float32))
    assert rows["categories"].tolist() == [[b"DE", b"a"], [b"", b"b"], [b"", "\u00fc".encode()]]
    assert rows["timestamps"].tolist() == [[1704161045000], [1700000000000], [MISSING_TIMESTAMP]]


def test_inputs_are_columns() -> None:
    """``inputs`` gives the same rows as ``instances``."""
    by_column = rows_of('{"inputs": {"amount": [1, 2], "active": [true, false], "age": [null, 4]}}', NUMBERS)
    by_row = rows_of('{"instances": [{"amount": 1, "active": true}, {"amount": 2, "active": 0, "age": 4}]}', NUMBERS)
    assert same_rows(by_column, by_row)
    assert same_rows(
        rows_of('{"inputs": {"amount": [1, 2], "active": [1, 0]}}', NUMBERS),
        rows_of('{"instances": [[1, null, 1], [2, null, 0]]}', NUMBERS),
    )


def test_inputs_of_an_unnamed_model_are_a_tensor() -> None:
    """Without named columns ``inputs`` is the array with its batch dimension."""
    assert rows_of('{"inputs": [[1, 2, 3, 4]]}', VECTOR)["instances"].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("series", ["[[1, 2], [3, 4], [5, 6], [7, 8]]", '{"load": [1, 3, 5, 7], "warm": [2, 4, 6, 8]}'])
def test_a_whole_series_becomes_its_windows(series: str) -> None:
    """Each window of the model's length, channel by channel, whichever form the points have."""
    schema = InputSchema(kind="timeseries", row_shape=(3, 2), channels=("load", "warm"))
    windows = rows_of(f'{{"series": {series}}}', schema)["instances"]
    assert windows.tolist() == [[[1, 2], [3, 4], [5, 6]], [[3, 4], [5, 6], [7, 8]]]


def test_null_is_a_missing_value_where_it_may_be() -> None:
    """It becomes NaN in one model and is refused in another."""
    assert math.isnan(rows_of('{"instances": [[[1, 2], [null, 4]]]}', GAPPY)["instances"][0, 1, 0])
    assert problems_of('{"instances": [[1, 2, null, 4]]}', VECTOR) == [(0, 2, "may not be missing")]
    body = '{"instances": [{"amount": null, "age": null, "active": null}]}'
    assert problems_of(body, NUMBERS) == [(0, "amount", "may not be missing"), (0, "active", "may not be missing")]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("NaN", "must be a finite number that fits into float32"),
        ("-Infinity", "must be a finite number that fits into float32"),
        ("1e400", "must be a finite number that fits into float32"),
        ("1e39", "must be a finite number that fits into float32"),
        ("9" * 5000, "must be a finite number that fits into float32"),
        ("true", "must be a number"),
        ('"1.5"', "must be a number"),
        ("[1]", "must be a number"),
        ("{}", "must be a number"),
    ],
)
def test_bad_numbers_are_named(cell: str, problem: str) -> None:
    """The row and the place in it, never the value."""
    body = f'{{"instances": [[[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, {cell}, 6]]]}}'
    assert problems_of(body, IMAGE) == [(1, "[1][1]", problem)]
    assert problems_of(f'{{"instances": [{{"amount": {cell}, "active": 1}}]}}', NUMBERS) == [(0, "amount", problem)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"instances": [[1, 2, 3, 4], [1, 2, 3]]}', (1, None, "must be an array of 4 values")),
        ('{"instances": [[1, 2, 3, 4], 7]}', (1, None, "must be an array of 4 values")),
        ('{"instances": [{"a": 1}]}', (0, None, "must be an array of 4 values")),
    ],
)
def test_ragged_rows_are_named(body: str, expected: tuple[Any, ...]) -> None:
    """A row of another width is a problem of that row."""
    assert problems_of(body, VECTOR) == [expected]


def test_columns_are_checked() -> None:
    """Unknown and missing columns, and wrong types of every kind of column."""
    body = """{"instances": [
        {"amount": "1", "kind": 5, "country": true, "at": "yesterday", "active": 2},
        {"amount": 1, "kind": ""}, {"amount": 1, "kind": "a", "at": 1.5}, {"amount": 1, "kind": "a", "at": 1e17}]}"""
    time_words = "must be an ISO 8601 time or whole milliseconds since 1970, in the years 1 to 9999"
    assert problems_of(body, MIXED) == [
        (0, "country", "must be a string"),
        (0, "amount", "must be a number"),
        (0, "at", time_words),
        (0, "active", "must be true or false"),
        (0, "kind", "must be a string"),
        (1, "kind", "may not be missing"),
        (2, "at", time_words),
        (3, "at", time_words),
    ]
    body = '{"instances": [{"amount": 1, "active": 1, "colour": 2}, {"active": 1}, 5, {"bad name!": 1, "amount": 1}]}'
    assert problems_of(body, NUMBERS) == [
        (0, "colour", "is not a column of this model"),
        (1, "amount", "is missing"),
        (2, None, "must be an object with the model's columns"),
        (3, None, "is not a column of this model"),
        (3, "active", "is missing"),
    ]


def test_columns_of_inputs_are_checked() -> None:
    """Unknown, missing and ragged columns in ``inputs``."""
    assert problems_of('{"inputs": {"amount": [1], "colour": [1], "age": 3}}', NUMBERS) == [
        (None, "colour", "is not a column of this model"),
        (None, "age", "must be an array of values"),
        (None, "active", "is missing"),
    ]
    with pytest.raises(InvalidRows, match="same number"):
        rows_of('{"inputs": {"amount": [1, 2], "active": [1]}}', NUMBERS)


def test_a_mixed_table_takes_no_plain_arrays() -> None:
    """Column order alone does not say what is a category."""
    assert problems_of('{"instances": [["DE", 1, 2, 3, "a"]]}', MIXED)[0][0] == 0


def test_at_most_ten_problems_are_reported() -> None:
    """The first ones, in the order of the rows."""
    body = orjson.dumps({"instances": [[1, 2, 3, "x"]] * 1000}).decode()
    assert [row for row, _, _ in problems_of(body, VECTOR)] == list(range(MAX_ROW_PROBLEMS))


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "5",
        "{}",
        '{"instances": [[1,2,3,4]], "inputs": 1}',
        '{"instances": 5}',
        '{"instances": []}',
        '{"inputs": []}',
        '{"inputs": null}',
    ],
)
def test_what_is_json_but_no_rows_is_invalid(body: str) -> None:
    """It is not called malformed."""
    with pytest.raises(InvalidRows):
        rows_of(body, VECTOR)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nope", b'{"instances": [[1, 2, 3, 4]]} {}', b'{"instances": [[1, 2, 3, 4,]]}',
        b'{"instances": [[01, 2, 3, 4]]}', b'\xff\xfe{\x00}\x00', b'{"instances": [["\xff"]]}',
        b'{"instances": [["\\ud800"]]}', b'{"instances": [["\xed\xa0\x80"]]}', b"[" * 100_000, b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000, b'{"instances": [' + b"[" * 40 + b"]" * 40 + b"]}",
        b'{"instances": [[NaN, 1, 1, 1]], "instances": [[1, 2, 3, 4]]}', b'{"instances": [[nan, 1, 1, 1]]}',
    ],
)  # fmt: skip
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    """Broken text, broken Unicode and absurd nesting are refused at once."""
    with pytest.raises(MalformedInput):
        rows_of(body, VECTOR)


def test_a_byte_order_mark_is_no_fault() -> None:
    """Both paths skip it."""
    rows_of(b'\xef\xbb\xbf{"instances": [[1, 2, 3, 4]]}', VECTOR)
    rows_of(b'\xef\xbb\xbf{"inputs": [[1, 2, 3, 4]]}', VECTOR)


def test_too_many_rows_are_too_large() -> None:
    """By number or by decoded size, before they are converted."""
    body = orjson.dumps({"instances": [[1, 2, 3, "x"]] * 51})
    with pytest.raises(TooLarge, match="50 rows"):
        rows_of(body, VECTOR, SMALL)
    body = orjson.dumps({"instances": [[1, 2, 3, 4]] * 50})
    with pytest.raises(TooLarge, match="bytes"):
        rows_of(body, VECTOR, Limits(max_decoded_bytes=799))
    assert len(rows_of(body, VECTOR, Limits(max_decoded_bytes=800))["instances"]) == 50


def test_more_arrays_than_rows_need_are_too_large() -> None:
    """Before memory is spent on each; brackets in text are no arrays."""
    body = b'{"instances": [[1, 2, 3, [' + b"[]," * 100 + b"[]]]]}"
    with pytest.raises(TooLarge, match="arrays"):
        rows_of(body, VECTOR, SMALL)
    with pytest.raises(InvalidRows):
        rows_of(body, VECTOR)
    rows_of(orjson.dumps({"instances": [{"amount": 1, "kind": "[{" * 100 + '\\"'}]}), MIXED, SMALL)
    with pytest.raises(InvalidRows):
        rows_of(b'{"' + b'\\"[' * 1_000_000 + b'": 1}', VECTOR)


def test_very_many_keys_are_refused_soon() -> None:
    """Each is looked at once."""
    body = b"{" + b",".join(b'"key_%d":1' % number for number in range(400_000)) + b"}"
    with pytest.raises(InvalidRows):
        rows_of(body, VECTOR)


def test_options_stand_beside_the_rows() -> None:
    """On the fast path and on the exact one."""
    for rows in ("[[1, 2, 3, 4]]", "[[1, 2, 3, 4], [1, 2, 3, 4]]"):
        for key in ("instances", "inputs"):
            body = f'{{"{key}": {rows}, "false_alarm_rate": 0.5, "explain": 2, "threshold": null}}'
            options = decode_json(body.encode(), VECTOR, operation=ANOMALY_SCORE)[1]
            assert (options.threshold, options.false_alarm_rate, options.explain) == (None, 0.5, 2)


@pytest.mark.parametrize("option", ['"colour": 1', '"passthrough": true', '"threshold": "1"', '"explain": true'])
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_wrong_options_are_refused(option: str, key: str) -> None:
    """Unknown keys of the body are options that do not exist."""
    with pytest.raises(InvalidOption):
        rows_of(f'{{"{key}": [[1, 2, 3, 4]], {option}}}', VECTOR)
    with pytest.raises(InvalidOption):
        decode_json(b'{"instances": [[1, 2, 3, 4]], "threshold": 1}', VECTOR, operation=ENCODE)


NUMBER = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70))
CELL = st.one_of(NUMBER, st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.lists(NUMBER, max_size=2))
NESTED = st.recursive(CELL, lambda inner: st.lists(inner, max_size=4), max_leaves=20)
KEYS = st.sampled_from(["amount", "age", "active", "country", "at", "kind", "other"])
ROW = st.one_of(
    st.lists(NUMBER, min_size=3, max_size=4),
    st.lists(st.lists(NUMBER, min_size=3, max_size=3), min_size=2, max_size=2),
    st.dictionaries(KEYS, CELL),
    NESTED,
)
OPTIONS = st.dictionaries(st.sampled_from(["threshold", "false_alarm_rate", "explain", "odd"]), CELL, max_size=2)


def outcome(body: bytes, schema: InputSchema, operation: Operation, *, exactly: bool) -> Any:
    """What a path makes of a body, errors as comparable values."""
    try:
        if exactly:
            return decode_json_exactly(body, schema, operation=operation, limits=SMALL)
        return decode_json(body, schema, operation=operation, limits=SMALL)
    except RequestError as error:
        return type(error), str(error), getattr(error, "problems", None)


@settings(max_examples=150)
@given(
    rows=st.lists(ROW, max_size=4),
    options=OPTIONS,
    schema=st.sampled_from(list(SCHEMAS.values())),
    operation=st.sampled_from([ANOMALY_SCORE, ENCODE]),
)
def test_both_paths_agree(rows: list[Any], options: dict[str, Any], schema: InputSchema, operation: Operation) -> None:
    """The fast path changes no result and no error."""
    body = json.dumps({"instances": rows, **options}).encode()  # writes NaN and integers of any size
    fast = outcome(body, schema, operation, exactly=False)
    exact = outcome(body, schema, operation, exactly=True)
    if isinstance(fast[0], dict):
        assert same_rows(fast[0], exact[0])
        assert fast[1] == exact[1]
    else:
        assert fast == exact


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4), min_size=1)
)
def test_float32_survives(values: list[list[float]]) -> None:
    """Every float32 comes through JSON unchanged."""
    numbers = rows_of(orjson.dumps({"instances": values}), VECTOR)["instances"]
    assert np.array_equal(numbers, np.array(values, np.float32))


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_errors_do_not_echo(schema: InputSchema) -> None:
    """Whatever is wrong, no text of an error contains what was sent."""
    secret = "zq secret 7319"
    bodies: list[Any] = [
        {"instances": [{"amount": secret, "kind": 1}]}, {"instances": [[secret]]}, {"instances": secret},
        {"instances": [[1, 2, 3, secret]]}, {secret: 1}, {"instances": [{secret: 1}]}, {"inputs": {secret: [1]}},
        {"instances": [[1, 2, 3, 4]], "threshold": secret}, {"inputs": {"amount": [secret]}},
        {"instances": [{"amount": 1, "kind": "a", "at": secret}]}, {"instances": [[1, 2, 3, 4]], "explain": secret},
    ]  # fmt: skip
    for body in bodies:
        for text in (orjson.dumps(body), orjson.dumps(body)[:-1]):
            error = outcome(text, schema, ANOMALY_SCORE, exactly=False)
            assert secret not in repr(error)
            assert "7319" not in repr(error)
