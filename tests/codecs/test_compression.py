"""Content codings."""

import gzip
import operator
import random
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from service.codecs import Compressor, Decompression, Decompressor, choose_encoding, compress
from service.errors import MalformedInput, TooLarge, UnsupportedMediaType

pytestmark = pytest.mark.timeout(60)  # a bomb must not make it hang

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "identity": lambda body: body,
}
COMPRESSED = ["gzip", "deflate", "zstd"]


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """A whole body, in as many steps as it takes."""
    decompression = Decompression(body, encoding, max_bytes)
    while not decompression.is_complete:
        decompression.step()
    return bytes(decompression.content)


def feed(decompressor: Decompressor, chunk: bytes) -> bytes:
    return b"".join(decompressor.pieces(chunk))


@pytest.mark.parametrize("encoding", PACKED)
@given(body=st.binary(max_size=200), cut=st.integers(1, 50))
def test_any_pieces_give_the_body(encoding: str, body: bytes, cut: int) -> None:
    """However the network cuts it."""
    packed = PACKED[encoding](body)
    decompressor = Decompressor(encoding, 200)
    pieces = [feed(decompressor, packed[at : at + cut]) for at in range(0, len(packed), cut)]
    decompressor.finish()
    assert b"".join(pieces) == body


def test_members_follow_each_other() -> None:
    """gzip files and zstd frames may be joined."""
    for encoding in ("gzip", "zstd"):
        assert decompress(PACKED[encoding](b"one") + PACKED[encoding](b"two"), encoding, 6) == b"onetwo"


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_the_limit_is_exact(encoding: str) -> None:
    """That many bytes pass, one more does not."""
    packed = PACKED[encoding](b"a" * 1000)
    assert len(decompress(packed, encoding, 1000)) == 1000
    with pytest.raises(TooLarge):
        decompress(packed, encoding, 999)


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_bomb_takes_no_memory(encoding: str) -> None:
    """64 MiB of zeros in a few KiB are stopped at the limit."""
    bomb = PACKED[encoding](bytes(2**26))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        decompress(bomb, encoding, 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_very_many_members_are_refused(encoding: str) -> None:
    """Each costs time without giving a byte."""
    with pytest.raises(MalformedInput):
        decompress(PACKED[encoding](b"") * 100_000, encoding, 100)


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_damage_is_malformed(encoding: str) -> None:
    """Truncated, empty, followed by garbage, or garbage altogether."""
    packed = PACKED[encoding](b"some bytes to compress")
    for damaged in (packed[:-1], packed[:5], b"", packed + b"garbage", b"garbage garbage"):
        with pytest.raises(MalformedInput):
            decompress(damaged, encoding, 100)


def test_zstd_windows_are_bounded() -> None:
    """A frame may not make its receiver hold more than 8 MiB."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27}
    compressor = zstd.ZstdCompressor(options=options)
    packed = compressor.compress(b"a" * 100) + compressor.flush()
    with pytest.raises(MalformedInput):
        decompress(packed, "zstd", 1000)


@pytest.mark.parametrize("encoding", PACKED)
def test_a_step_is_bounded(encoding: str) -> None:
    """However little of the body it takes, and whatever lies in it: what repeats, and what does not."""
    body = bytes(3 * 2**20) + random.Random(0).randbytes(3 * 2**20)
    decompression = Decompression(PACKED[encoding](body), encoding, len(body))
    sizes = [0]
    while not decompression.is_complete:
        decompression.step()
        sizes.append(len(decompression.content))
    assert decompression.content == body
    assert max(map(operator.sub, sizes[1:], sizes)) <= 2**20


def test_identity_is_limited_too() -> None:
    """And ``None`` means identity."""
    assert decompress(b"abc", None, 3) == b"abc"
    with pytest.raises(TooLarge):
        decompress(b"abcd", "identity", 3)


@pytest.mark.parametrize("encoding", ["br", "gzip, zstd", "compress", "\u0661"])
def test_unknown_encodings_are_unsupported(encoding: str) -> None:
    """Without repeating them."""
    with pytest.raises(UnsupportedMediaType) as caught:
        Decompressor(encoding, 10)
    assert str(caught.value) == "Content-Encoding must be one of gzip, deflate, zstd, identity."


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_answers_are_compressed(encoding: str) -> None:
    """At once, or in pieces that can be read as they come."""
    assert decompress(compress(b"abc" * 100, encoding), encoding, 300) == b"abc" * 100
    compressor, decompressor = Compressor(encoding), Decompressor(encoding, 300)
    assert feed(decompressor, compressor.feed(b"line 1\n")) == b"line 1\n"
    assert feed(decompressor, compressor.feed(b"line 2\n")) == b"line 2\n"
    assert feed(decompressor, compressor.finish()) == b""
    decompressor.finish()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None), ("", None), ("gzip", "gzip"), ("gzip, deflate, br, zstd", "zstd"), ("zstd;q=0.5, gzip", "gzip"),
        ("*", "zstd"), ("*, zstd;q=0", "gzip"), ("identity", None), ("gzip;q=0", None), ("br", None),
        ("gzip;q=0.5, identity", None), ("identity;q=0, gzip;q=0.1", "gzip"), ("GZip", "gzip"), ("gzip;q=x", None),
    ],
)  # fmt: skip
def test_the_best_accepted_encoding_is_chosen(header: str | None, expected: str | None) -> None:
    """By quality, zstd before gzip."""
    assert choose_encoding(header) == expected
