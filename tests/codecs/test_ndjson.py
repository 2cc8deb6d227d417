"""NDJSON streams to blocks of rows."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs import BadLine, NdjsonDecoder, RowBlock
from service.errors import InvalidRows, MalformedInput, TooLarge
from service.schemas import InputSchema
from tests.codecs.samples import IMAGE, MIXED, NUMBERS, VECTOR

pytestmark = pytest.mark.timeout(60)  # a bomb must not make it hang


def blocks_of(chunks: list[bytes], schema: InputSchema, **options: Any) -> list[RowBlock | BadLine]:
    decoder = NdjsonDecoder(schema, **options)
    blocks = [block for chunk in chunks for block in decoder.feed(chunk)]
    return blocks + list(decoder.finish())


def story(blocks: list[RowBlock | BadLine]) -> list[Any]:
    """Each row's first number, or the name of its error, after checking that the rows are counted without gaps."""
    told: list[Any] = []
    for block in blocks:
        if isinstance(block, BadLine):
            assert block.row == len(told)
            told.append(type(block.error).__name__)
        else:
            assert block.first_row == len(told)
            assert len(block.rows["instances"]) == block.count
            told.extend(block.rows["instances"].reshape(block.count, -1)[:, 0].tolist())
    return told


BODY = b'[1, 2, 3, 4]\n[2, 2, 3, 4]\r\n\n  \n[3, "x", 3, 4]\nnonsense\n[5, 2, 3, 4]\n[6, 2, 3]\n[7, 2, 3, 4]'
STORY = [1, 2, "InvalidRows", "MalformedInput", 5, "InvalidRows", 7]


@given(st.integers(1, len(BODY)), st.integers(1, 4))
def test_any_chunks_give_the_same_rows(size: int, block_rows: int) -> None:
    """However the network cuts the stream, and whether or not its last line ends."""
    for body in (BODY, BODY + b"\n"):
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        assert story(blocks_of(chunks, VECTOR, block_rows=block_rows)) == STORY


def test_good_rows_come_in_blocks() -> None:
    """Of the wanted size; the rest is the last one."""
    blocks = blocks_of([b"[1, 2, 3, 4]\n" * 10], VECTOR, block_rows=4)
    assert [block.count for block in blocks if isinstance(block, RowBlock)] == [4, 4, 2]


def test_a_bad_row_says_what_is_wrong() -> None:
    """With its number in the whole stream, and without its neighbours being lost."""
    lines = [b'{"amount": %d, "active": true}' % number for number in range(10)]
    lines[7] = b'{"amount": NaN, "active": 5}'
    blocks = blocks_of([b"\n".join(lines)], NUMBERS, block_rows=5)
    assert story(blocks) == [0, 1, 2, 3, 4, 5, 6, "InvalidRows", 8, 9]
    error = next(block.error for block in blocks if isinstance(block, BadLine))
    assert isinstance(error, InvalidRows)
    assert [(problem.row, problem.column) for problem in error.problems] == [(7, "amount"), (7, "active")]


def test_objects_and_arrays_may_alternate() -> None:
    """Where both are rows of the model."""
    body = b'[1, null, 1]\n{"amount": 2, "active": 0}\n[3, 4, 0]\n'
    assert story(blocks_of([body], NUMBERS)) == [1, 2, 3]


def test_mixed_columns_are_decoded() -> None:
    """Categories and times too."""
    blocks = blocks_of([b'{"amount": 1, "kind": "a"}\n{"amount": 2, "kind": "b", "at": 5}\n'], MIXED)
    assert isinstance(blocks[0], RowBlock)
    assert blocks[0].rows["categories"].tolist() == [[b"", b"a"], [b"", b"b"]]


@pytest.mark.parametrize(
    "body",
    [
        b"[1, 2, 3, 4], [1, 2, 3, 4]\n[[1, 2, 3, 4]\n",
        b"[1, 2, 3, 4], [1, 2\n3, 4]\n",
        b"[1, 2, 3, 4],\n[1, 2, 3, 4]\n",
        b"[1, 2\n3, 4]\n",
        b"[1, 2, 3, 4]], [[1, 2, 3, 4]\n[1, 2, 3, 4]\n",
        b'[1, 2, 3, 4]], "threshold": [1, 2, 3, 4\n[1, 2, 3, 4]\n',
        b"[1, 2, 3, 4][1, 2, 3, 4]\n",
    ],
)
def test_lines_do_not_lean_on_each_other(body: bytes) -> None:
    """What is no row by itself is none beside others."""
    told = story(blocks_of([body], VECTOR))
    expected = []
    for line in body.splitlines():
        try:
            expected.append("InvalidRows" if len(orjson.loads(line)) != 4 else 1.0)
        except ValueError:
            expected.append("MalformedInput")
    assert told == expected


def test_nested_rows_do_not_lean_on_each_other() -> None:
    """Nor in more dimensions."""
    good, half = b"[[1, 2, 3], [4, 5, 6]]", b"[[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]"
    assert story(blocks_of([good + b"\n" + half + b"\n" + good], IMAGE)) == [1, "MalformedInput", 1]
    assert story(blocks_of([good + b"\n" + half[:-1] + b"\n]" + good], IMAGE)) == [
        1, "MalformedInput", "MalformedInput",
    ]  # fmt: skip


def test_a_long_line_is_skipped_without_being_kept() -> None:
    """The rows behind it are answered; no more than the limit is held."""
    decoder = NdjsonDecoder(VECTOR, max_line_bytes=100)
    found = [block for _ in range(1000) for block in decoder.feed(b"[" * 90)]
    assert decoder._unfinished == []
    found += decoder.feed(b"\n[1, 2, 3, 4]\n[" + b"1," * 100 + b"1]\n[2, 2, 3, 4]\n")
    assert story(found) == ["TooLarge", 1, "TooLarge", 2]


@pytest.mark.slow
def test_a_stream_of_bad_lines_is_not_slow() -> None:
    """Nor is one in which each second line is bad."""
    assert len(blocks_of([b"nonsense\n" * 1000], VECTOR)) == 1000
    assert len(blocks_of([b"[1, 2, 3, 4]\n[1]\n" * 10_000], VECTOR)) == 20_000


def test_a_stream_of_bad_lines_above_all_ends() -> None:
    """Its first errors are told one by one; then it is over, however many lines there are."""
    decoder = NdjsonDecoder(VECTOR)
    blocks = [*decoder.feed(b"[1, 2, 3, 4]\n" * 500), *decoder.feed(b"x\n" * 131_072)]
    assert 1500 < len([block for block in blocks if isinstance(block, BadLine)]) < 2000
    with pytest.raises(MalformedInput, match=r"1\d\d\d of the first 2\d\d\d lines are no rows of this model"):
        list(decoder.feed(b"[1, 2, 3, 4]\n"))
    with pytest.raises(MalformedInput):
        list(decoder.finish())


@pytest.mark.slow
def test_rows_make_up_for_bad_lines() -> None:
    """Of a stream of any length any share may be bad, as long as it is the smaller one."""
    blocks = blocks_of([b"x\n[1, 2, 3, 4]\n" * 5000 for _ in range(2)], VECTOR)
    assert len([block for block in blocks if isinstance(block, BadLine)]) == 10_000


@pytest.mark.parametrize("line", [b"[" * 100_000, b"[NaN]", b"\xff", b'["\\ud800", 1, 1, 1]', b"[1, 1, 1, 1e999]"])
def test_hostile_lines_are_bad_lines(line: bytes) -> None:
    """Nothing raises."""
    (block,) = blocks_of([line], VECTOR)
    assert isinstance(block, BadLine)
    assert isinstance(block.error, (MalformedInput, InvalidRows, TooLarge))


def test_float32_rows_survive() -> None:
    """The joined lines give the same numbers as each line."""
    values = np.random.default_rng(0).random((300, 2, 3)).astype(np.float32)
    body = b"".join(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n" for row in values)
    blocks = blocks_of([body], IMAGE)
    found = np.concatenate([block.rows["instances"] for block in blocks if isinstance(block, RowBlock)])
    assert np.array_equal(found, values)
