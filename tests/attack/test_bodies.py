"""Bodies that cost far more to decode than to send: refused before they are decoded, and nobody else waits."""

import asyncio
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from service.api.lifecycle import SMALL_BYTES, CodecThreads
from service.codecs import compress
from service.errors import DeadlineExceeded
from service.store import Store
from tests.api.raw import connect, head
from tests.attack.conftest import Target, attacked, grpc_address
from tests.fakes import MODEL, publish_fake

MIB = 2**20
MAX_PROCESSOR_S = 10.0
"""Of the service, two callers together. What these bodies did before took 14 to 75 seconds; now it is about one."""
SIZE = (28, 28)
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


@dataclass(frozen=True)
class Bodies:
    target: Target
    grpc_address: str

    def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{self.target.url}{path}", content=body, headers=named, timeout=60, trust_env=False)

    def call(self, method: str, message: bytes) -> str:
        with grpc.insecure_channel(self.grpc_address) as channel:
            try:
                channel.unary_unary(method)(message, timeout=60)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bodies]:
    """A service with the default limits that has a model of images beside the one that the second caller asks."""
    store = tmp_path_factory.mktemp("store")
    publish_fake(Store(store))
    publish_fake(Store(store), model="pictures", image=SIZE)
    with attacked(store, default_model=MODEL, grpc_port=0) as (target, process):
        yield Bodies(target, grpc_address(process))


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def picture(kind: str, folder: Path) -> bytes:
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / f"picture.{kind}")
    return (folder / f"picture.{kind}").read_bytes()


def together(work: Callable[[], str | int]) -> set[str | int]:
    """What two callers at the same time get."""
    with ThreadPoolExecutor(2) as threads:
        return set(threads.map(lambda _: work(), range(2)))


@pytest.mark.parametrize("kind", ["segments", "profiles", "unknown chunks"])
def test_images_of_millions_of_parts(bodies: Bodies, tmp_path: Path, kind: str) -> None:
    """60 MiB of nothing between the head of an image and its pixels, in a few kilobytes of zstd."""
    if kind == "segments":
        image, media_type, at, part = picture("jpeg", tmp_path), "image/jpeg", 2, b"\xff\xe1\0\2"
    else:
        image, media_type, at = picture("png", tmp_path), "image/png", 33
        part = chunk(b"iCCP" if kind == "profiles" else b"juNk")
    plain = image[:at] + part * (60 * MIB // len(part)) + image[at:]
    body = compress(plain, "zstd")
    assert len(body) < 64 * 2**10

    def send() -> int:
        path = "/models/pictures/reconstruct"
        return bodies.post(path, body, Content_Type=media_type, Content_Encoding="zstd").status_code

    with bodies.target.withstands() as watch:
        answers = together(send)
    assert answers == {413}
    assert watch.processor_s < MAX_PROCESSOR_S


def varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


MESSAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "unknown fields": (INFER, lambda: b"\x50\x00" * (32 * MIB)),
    "raw inputs": (INFER, lambda: b"\x3a\x00" * (32 * MIB)),
    "inputs": (INFER, lambda: b"\x2a\x00" * (32 * MIB)),
    "texts": (INFER, lambda: field(5, field(5, b"\x42\x00" * (30 * MIB)))),
    "packed": (INFER, lambda: field(5, field(5, field(3, b"\x01" * (60 * MIB))))),
    "deep": (INFER, lambda: field(5, field(5, field(5, b"\x42\x00" * (30 * MIB))))),
    "predict, unknown fields": (PREDICT, lambda: b"\x50\x00" * (32 * MIB)),
    "predict, texts": (
        PREDICT,
        lambda: field(2, field(1, b"x") + field(2, b"\x42\x00" * (30 * MIB))),
    ),
    "status": (STATUS, lambda: b"\x50\x00" * (32 * MIB)),
    "too long": (INFER, lambda: bytes(80 * MIB)),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_of_millions_of_fields(bodies: Bodies, name: str) -> None:
    """64 MiB of empty fields in 64 KiB, for a model that is not there."""
    method, message = MESSAGES[name]
    content = compress(message(), "gzip")
    with bodies.target.withstands() as watch:
        answers = together(lambda: bodies.call(method, content))
    assert answers == {"RESOURCE_EXHAUSTED"}
    assert watch.processor_s < MAX_PROCESSOR_S


def test_a_stream_of_lines_that_are_no_rows(bodies: Bodies) -> None:
    """The first thousand are told one by one, then the stream ends."""
    with bodies.target.withstands() as watch:
        answer = bodies.post("/anomaly-score", b"x\n" * 131_072, Content_Type="application/x-ndjson")
    *_, last = answer.text.splitlines()
    assert answer.status_code == 200
    assert '"row"' not in last
    assert "lines are no rows of this model" in last
    assert len(answer.content) < MIB
    assert watch.processor_s < MAX_PROCESSOR_S


def test_json_has_a_limit_of_its_own(bodies: Bodies) -> None:
    """Parsing takes longer than copying, so that less of it may come out of a compressed body."""
    plain = b'{"instances": [[1, 2]]}'.ljust(9 * MIB)
    for path in ("/encode", "/v1/models/pumps:predict", "/v2/models/pumps/infer"):
        answer = bodies.post(path, compress(plain, "gzip"), Content_Type="application/json", Content_Encoding="gzip")
        assert answer.status_code == 413


def test_a_body_has_to_come_by_the_deadline(bodies: Bodies) -> None:
    """The caller's own, which is sooner than the time that bodies may take."""
    with connect(bodies.target.url) as connection:
        connection.send(head("/encode", Content_Type="application/json", Content_Length="100", X_Timeout_Ms="300"))
        assert connection.answer().status_code == 504


async def test_work_that_goes_on_holds_back_nobody() -> None:
    """Both threads for large work are taken: small work runs, and who waits for a thread leaves at the deadline."""
    threads, opened, ran = CodecThreads(), threading.Event(), []
    loop = asyncio.get_running_loop()
    try:
        soon = loop.time() + 0.1
        stuck = [threads.run(opened.wait, size=SMALL_BYTES + 1, deadline=soon) for _ in range(2)]
        late = threads.run(lambda: ran.append("late"), size=SMALL_BYTES + 1, deadline=soon)
        answers = await asyncio.gather(*stuck, late, return_exceptions=True)
        assert [type(answer) for answer in answers] == [DeadlineExceeded] * 3
        assert await threads.run(lambda: "small", size=SMALL_BYTES, deadline=loop.time() + 30) == "small"
        opened.set()
        assert await threads.run(lambda: "large", size=SMALL_BYTES + 1, deadline=loop.time() + 30) == "large"
        assert ran == []
    finally:
        opened.set()
        threads.close()
