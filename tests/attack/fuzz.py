"""Mutated requests in every encoding and protocol: ``python -m tests.attack.fuzz --minutes 60``.

A seed and a request's number give that request again. What is wrong: a status that blames the service (500 and above,
but for 503 and 504), no answer, one later than its deadline and a second, and memory that grows.
"""

import argparse
import base64
import collections
import gzip
import http.client
import io
import json
import random
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import pyarrow as pa
from PIL import Image

from service.api.grpc.messages import message_class
from service.codecs import compress
from service.store import Store
from service.words import ARROW, JPEG, JSON, NDJSON, NPY, PNG
from tests.attack.conftest import attacked, grpc_address
from tests.codecs.samples import npy
from tests.codecs.test_arrow import lists, stream
from tests.compat.test_limits import GRPC_INFER, GRPC_PREDICT, infer_message, predict_message
from tests.fakes import MODEL, publish_fake
from tests.mutation import mutated

CALLERS = 4
OWN_DEADLINE_S = 10.0
GRACE_S = 1.0
MAX_GROWTH_BYTES = 50 * 10**6
WARM_UP = 0.2
"""Share of the time until memory is taken for the first time."""
MAX_FAULTS = 20
CONTROL_CHANCE = 0.1
"""Share of requests that go as they are, which must be answered well."""
IMAGE = (6, 5)
HEADERS: Mapping[str, tuple[str, ...]] = {
    "content-type": (JSON, NPY, ARROW, NDJSON, PNG, JPEG, "image/jpg", "text/plain", "", "application/json; charset=x"),
    "content-encoding": ("gzip", "deflate", "zstd", "identity", "br", "gzip, gzip"),
    "accept": (JSON, NPY, ARROW, NDJSON, PNG, "*/*", "image/*;q=0.1", ";;q=,", "text/html"),
    "accept-encoding": ("gzip", "zstd", "deflate", "*;q=0", "gzip;q=2"),
    "x-timeout-ms": ("1", "50", "1000", "0", "-1", "x", "9" * 30),
    "inference-header-content-length": ("0", "7", "100", "-1", "x", "9" * 30),
    "x-request-id": ("a", "\xe9", "x" * 200),
}
QUERIES = (
    "threshold=1",
    "threshold=x",
    "explain=1",
    "explain=map",
    "false_alarm_rate=2",
    "a=%ff",
    "passthrough=true",
    "=",
)
GOOD_CODES = (
    *(200, 400, 401, 403, 404, 405, 406, 408, 409, 411, 413, 414, 415, 422, 429, 431, 503, 504),
    *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"),
)
"""HTTP statuses and gRPC codes that a request may be answered with."""


@dataclass(frozen=True)
class Request:
    """``path`` is a gRPC method's where ``is_grpc``."""

    name: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    is_grpc: bool = False

    @property
    def deadline_s(self) -> float:
        """Time until the whole answer; that to a stream too, which is short here."""
        given = self.headers.get("x-timeout-ms", "")
        return min(OWN_DEADLINE_S, int(given) / 1000) if given.isdigit() and int(given) else OWN_DEADLINE_S


Ask = Callable[[Request], int | str]
"""Sends a request; its status or code. Raises OSError or ``http.client.HTTPException`` where none comes."""
OpenAsk = Callable[[], AbstractContextManager[Ask]]


@dataclass
class Report:
    requests: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    slowest: str = ""
    first_bytes: int = 0
    """Memory when it was taken for the first time."""
    grown_bytes: int = 0
    answers: collections.Counter[int | str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{code}: {count}" for code, count in self.answers.most_common())
        return (
            f"{self.requests} requests in {self.seconds:.0f} s, the slowest {self.slowest_s:.2f} s ({self.slowest}), "
            f"memory {self.first_bytes / 1e6:.0f} {self.grown_bytes / 1e6:+.0f} MB, {len(self.faults)} faults\n{counts}"
        )


def seeds() -> list[Request]:
    """Good requests of every encoding and protocol."""
    rows = np.array([[1, 2], [3, 4]], np.float32)
    json_rows = b'{"instances": [[1, 2], [3.5, -4e-3]], "threshold": 1.5, "explain": 1}'
    named = b'{"instances": [{"age": 1, "size": 2}, {"age": 3, "size": 4}]}'
    lines = b"[1, 2]\n[3, 4]\n\n[5, 6]\n"
    picture = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(IMAGE))
    exif = Image.Exif()
    exif[0x0112] = 3
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG")
    picture.save(jpeg, "JPEG", exif=exif, progressive=True)
    table = pa.table({"age": [1.0, 2.0], "size": pa.array([3, 4], pa.int64())})
    rest = {"inputs": [{"name": "instances", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    binary = {"name": "instances", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    start = json.dumps({"inputs": [binary], "outputs": [{"name": "score"}]}).encode()
    mixed = start + rows.tobytes()
    typed = message_class("inference.ModelInferRequest")(model_name=MODEL, id="x")
    tensor = typed.inputs.add(name="instances", datatype="FP64", shape=[2, 2])
    tensor.contents.fp64_contents.extend([1, 2, 3, 4])
    typed.outputs.add(name="score")
    score, predict, infer = "/anomaly-score", f"/v1/models/{MODEL}:predict", f"/v2/models/{MODEL}/infer"
    length = {"inference-header-content-length": str(len(start))}
    gzipped, zstd, deflated = ({"content-encoding": name} for name in ("gzip", "zstd", "deflate"))
    spec = message_class("tensorflow.serving.GetModelStatusRequest")()
    spec.model_spec.name = MODEL

    def post(name: str, path: str, body: bytes, content_type: str = JSON, **more: Mapping[str, str]) -> Request:
        headers = {"content-type": content_type} | {
            key: value for given in more.values() for key, value in given.items()
        }
        return Request(name, path, body, headers)

    return [
        post("json", score, json_rows),
        post("json columns", "/models/people/encode", b'{"inputs": {"age": [1, 2], "size": [3, 4]}}'),
        post("json named", "/models/people/anomaly-score", named),
        post("json image", "/models/pictures/denoise", json.dumps({"instances": [np.ones(IMAGE).tolist()]}).encode()),
        post("json gzip", score, gzip.compress(json_rows, mtime=0), coding=gzipped),
        post("json zstd", "/reconstruct", compress(b'{"instances": [[1, 2]]}', "zstd"), coding=zstd),
        post("json deflate", "/encode", zlib.compress(b'{"instances": [[1, 2]]}'), coding=deflated),
        post("npy", "/denoise", npy(rows), NPY, accept={"accept": NPY}),
        post("npy zstd", score, compress(npy(rows), "zstd"), NPY, coding=zstd),
        post("arrow", score, stream(lists(rows)), ARROW, accept={"accept": ARROW}),
        post("arrow named", "/models/people/encode?passthrough=true", stream(table), ARROW),
        post("arrow lz4", "/models/people/anomaly-score", stream(table, compression="lz4"), ARROW),
        post("arrow zstd", "/models/people/encode", stream(table, compression="zstd"), ARROW),
        post("ndjson", score, lines, NDJSON),
        post("ndjson named", "/models/people/encode", b'{"age": 1, "size": 2}\n{"size": 1, "age": 3}\n', NDJSON),
        post(
            "ndjson gzip",
            score,
            gzip.compress(lines, mtime=0),
            NDJSON,
            coding=gzipped,
            accept={"accept-encoding": "gzip"},
        ),
        post("png", "/models/pictures/reconstruct", png.getvalue(), PNG, accept={"accept": PNG}),
        post("png zstd", "/models/pictures/anomaly-score", compress(png.getvalue(), "zstd"), PNG, coding=zstd),
        post("jpeg", "/models/pictures/anomaly-score", jpeg.getvalue(), JPEG),
        post("v1 rows", predict, b'{"instances": [[1, 2], [3, 4]], "signature_name": "encode"}'),
        post("v1 columns", predict, b'{"inputs": {"instances": [[1, 2]]}}'),
        post("v1 gzip", predict, gzip.compress(b'{"instances": [[1, 2]]}', mtime=0), coding=gzipped),
        post("v2 json", infer, json.dumps(rest | {"id": "7", "parameters": {"threshold": 1.5}}).encode()),
        post("v2 binary", infer, mixed, "application/octet-stream", length=length),
        post(
            "v2 binary gzip",
            infer,
            gzip.compress(mixed, mtime=0),
            "application/octet-stream",
            length=length,
            coding=gzipped,
        ),
        post(
            "v2 raw", infer, rows.tobytes(), "application/octet-stream", length={"inference-header-content-length": "0"}
        ),
        post("v2 index", "/v2/repository/index", b'{"ready": true}'),
        Request("grpc infer", GRPC_INFER, infer_message(), is_grpc=True),
        Request("grpc infer typed", GRPC_INFER, typed.SerializeToString(), is_grpc=True),
        Request("grpc infer gzip", GRPC_INFER, gzip.compress(infer_message(), mtime=0), is_grpc=True),
        Request("grpc predict", GRPC_PREDICT, predict_message(), is_grpc=True),
        Request("grpc predict deflate", GRPC_PREDICT, zlib.compress(predict_message()), is_grpc=True),
        Request(
            "grpc status", "/tensorflow.serving.ModelService/GetModelStatus", spec.SerializeToString(), is_grpc=True
        ),
        Request("grpc health", "/grpc.health.v1.Health/Check", b"", is_grpc=True),
    ]


def unpacked(request: Request) -> bytes | None:
    """What a compressed body of gzip or zlib holds: mutated inside, it comes through decompression."""
    try:
        return zlib.decompress(request.body, 47)
    except zlib.error:
        return None


def make_request(good: list[Request], seed: int, number: int) -> tuple[Request, bool]:
    """Request ``number`` of a run, and whether it is as good as it was."""
    chance = random.Random(f"{seed}-{number}")
    request = chance.choice(good)
    if chance.random() < CONTROL_CHANCE:
        return request, True
    inside = unpacked(request)
    if inside is not None and chance.random() < 0.5:
        packed = mutated(inside, chance)
        wbits = 31 if request.body.startswith(b"\x1f\x8b") else 15
        packer = zlib.compressobj(1, wbits=wbits)
        request = replace(request, body=packer.compress(packed) + packer.flush())
    elif chance.random() < 0.9:
        request = replace(request, body=mutated(request.body, chance))
    if request.is_grpc:
        return request, False
    headers = dict(request.headers)
    while chance.random() < 0.25:
        name = chance.choice(list(HEADERS))
        headers[name] = chance.choice(HEADERS[name])
    path = request.path
    if chance.random() < 0.05:
        path += ("&" if "?" in path else "?") + chance.choice(QUERIES)
    return replace(request, headers=headers, path=path), False


def fuzz(open_ask: OpenAsk, memory: Callable[[], int], *, seed: int, seconds: float, callers: int = CALLERS) -> Report:
    """Send requests for some time, from several callers, and say what was wrong with the answers.

    Args:
        open_ask: what one caller asks with, on its own connections.
        memory: bytes of the process that answers.
    """
    good, report, lock = seeds(), Report(), threading.Lock()
    numbers, began = iter(range(10**12)), time.monotonic()
    warm: list[int] = []

    def note(fault: str, number: int, request: Request) -> None:
        body = base64.b64encode(request.body[:2000]).decode()
        report.faults.append(
            f"{fault}: request {number} of seed {seed}, {request.name} {request.path} {dict(request.headers)} {body}"
        )

    def call() -> None:
        with open_ask() as ask:
            ask_on(ask)

    def ask_on(ask: Ask) -> None:
        while (passed := time.monotonic() - began) < seconds and len(report.faults) < MAX_FAULTS:
            with lock:
                number = next(numbers)
                if passed > WARM_UP * seconds and not warm:
                    warm.append(memory())
            request, is_good = make_request(good, seed, number)
            started, answer = time.monotonic(), "no answer"
            fault = ""
            try:
                code: int | str = ask(request)
            except (OSError, http.client.HTTPException) as error:
                code, fault = answer, f"no answer ({error!r})"
            took = time.monotonic() - started
            if not fault and (code not in GOOD_CODES or (is_good and code not in (200, "OK", 429, 503, 504))):
                fault = f"answered {code}"
            if not fault and took > request.deadline_s + GRACE_S:
                fault = f"answered {code} after {took:.1f} s"
            with lock:
                report.requests += 1
                report.answers[code] += 1
                if took > report.slowest_s:
                    report.slowest_s, report.slowest = took, f"{request.name}, number {number}: {code}"
                if fault:
                    note(fault, number, request)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.seconds = time.monotonic() - began
    report.first_bytes = warm[0] if warm else 0
    report.grown_bytes = memory() - warm[0] if warm else 0
    if report.grown_bytes > MAX_GROWTH_BYTES:
        report.faults.append(f"memory grew by {report.grown_bytes / 1e6:.0f} MB")
    return report


@contextmanager
def asking(url: str, grpc_at: str) -> Iterator[Ask]:
    """Ask a live service over one HTTP connection and one gRPC channel."""
    address = urlsplit(url)

    def over_grpc(request: Request) -> str:
        try:
            channel.unary_unary(request.path)(request.body, timeout=OWN_DEADLINE_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def over_http(request: Request) -> int:
        try:
            connection.request(request.method, request.path, request.body, dict(request.headers))
            answer = connection.getresponse()
            answer.read()
        except Exception:
            connection.close()
            raise
        return answer.status

    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=2 * OWN_DEADLINE_S)
    with (
        closing(connection),
        grpc.insecure_channel(grpc_at, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        yield lambda request: over_grpc(request) if request.is_grpc else over_http(request)


@contextmanager
def fuzzed(folder: Path) -> Iterator[tuple[OpenAsk, Callable[[], int]]]:
    """A service over fakes of every kind, in a process of its own: what ``fuzz`` takes."""
    store = Store(folder)
    publish_fake(store)
    publish_fake(store, model="people", columns=("age", "size"))
    publish_fake(store, model="pictures", image=IMAGE)
    with attacked(folder, default_model=MODEL, grpc_port=0) as (target, process):
        at = grpc_address(process)
        yield lambda: asking(target.url, at), target.rss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, fuzzed(Path(folder)) as (open_ask, memory):
        report = fuzz(open_ask, memory, seed=given.seed, seconds=60 * given.minutes)
    print(f"seed {given.seed}: {report}", *report.faults, sep="\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
