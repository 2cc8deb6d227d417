"""Callers who make the service hold what it need not hold."""

import gzip
import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx2 as httpx
import numpy as np
import pytest

from service.api.grpc.messages import message_class
from tests.api.raw import RawConnection, chunk, connect, head
from tests.attack.caller import ROW
from tests.attack.conftest import CALLER_TIMEOUT_S, WIDE, WIDE_VALUES, Target, attacked, grpc_address
from tests.compat.test_limits import GRPC_INFER

pytestmark = pytest.mark.slow

CHUNKED = {"Content_Type": "application/json", "Transfer_Encoding": "chunked"}
SENT_BYTES = 320 * 10**6
PIECE = 10**6
NPY = {"Content_Type": "application/x-npy"}
BODY_BYTES = 64 * 2**20
"""The largest body."""


def flood(connection: RawConnection, pieces: Iterable[bytes]) -> bool:
    """Send until the service closes the connection; whether it does."""
    try:
        for piece in pieces:
            connection.send(piece)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


@pytest.mark.parametrize("field", [b"x: " + b"y" * 95 + b"\r\n", b"y" * 100], ids=["fields", "one value"])
@pytest.mark.parametrize("path", ["/encode", "/nowhere", "/models/none/encode"])
def test_trailers_without_end(target: Target, path: str, field: bytes) -> None:
    """Behind a body that is used, and behind one that was refused before it came."""
    with target.withstands(), connect(target.url) as connection:
        connection.send(head(path, **CHUNKED) + chunk(ROW) + b"0\r\nx: ")
        assert flood(connection, (field * (PIECE // len(field)) for _ in range(SENT_BYTES // PIECE)))


def test_trailers_are_dropped(target: Target) -> None:
    """They change nothing of the request that they end, and nothing of the next one."""
    trailers = b"X-Request-Id: trailer\r\nX-Timeout-Ms: 0\r\nExpect: 100-continue\r\n\r\n"
    with connect(target.url) as connection:
        for _ in range(3):
            connection.send(head("/encode", X_Request_Id="head", **CHUNKED) + chunk(ROW))
            connection.send(b"0\r\n" + trailers)
            answer = connection.answer()
            assert (answer.status_code, answer.headers["x-request-id"]) == (200, "head")


def test_a_chunk_whose_extension_does_not_end(target: Target) -> None:
    """It is no body, however long it is."""
    with target.withstands(), connect(target.url) as connection:
        connection.send(head("/encode", **CHUNKED) + chunk(ROW[:5]) + b"5;")
        assert flood(connection, (b"x" * PIECE for _ in range(SENT_BYTES // PIECE)))


def npy(rows: int, values: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((rows, values), np.float32))
    return file.getvalue()


def large(target: Target) -> httpx.Response:
    """The answer to a large request of somebody else."""
    url, body = f"{target.url}/models/{WIDE}/encode", npy(1024, WIDE_VALUES)
    headers = {"content-type": "application/x-npy", "accept": "application/x-npy"}
    return httpx.post(url, content=body, headers=headers, timeout=CALLER_TIMEOUT_S, trust_env=False)


def test_bodies_that_are_announced_and_do_not_come(target: Target) -> None:
    """An announcement takes nothing from anybody, large requests included."""
    with target.withstands(), ExitStack() as stack:
        for begins in (b"", b"\x93NUMPY") * 8:
            connection = stack.enter_context(connect(target.url))
            connection.send(head("/encode", **NPY, Content_Length=str(BODY_BYTES)) + begins)
        for _ in range(3):
            assert large(target).status_code == 200


def test_bodies_that_stop_before_their_end(target: Target) -> None:
    """What came of them is all that may be held: others who are large are told so, small ones are served."""
    with target.withstands(), ExitStack() as stack:
        body = npy(BODY_BYTES // 4 // WIDE_VALUES - 1, WIDE_VALUES)
        sent = head(f"/models/{WIDE}/encode", **NPY, Content_Length=str(len(body))) + body[:-1]
        statuses = []
        for _ in range(6):
            connection = stack.enter_context(connect(target.url))
            connection.send(sent)
            statuses.append(large(target).status_code)
        assert statuses[0] == 200
        assert statuses[-1] == 429
    assert large(target).status_code == 200


def test_answers_that_nobody_takes(target: Target) -> None:
    """A hundred callers who ask for 8 MiB each, small as their requests are."""
    body = gzip.compress(npy(2048, WIDE_VALUES))
    headers = {**NPY, "Accept": "application/x-npy", "Content_Encoding": "gzip", "Content_Length": str(len(body))}
    with target.withstands(), ExitStack() as stack:
        connections = [stack.enter_context(connect(target.url)) for _ in range(100)]
        for connection in connections:
            connection.send(head(f"/models/{WIDE}/denoise", **headers) + body)
        statuses = [int(connection.sock.recv(12)[9:]) for connection in connections]
        assert set(statuses) == {200, 429}


@pytest.fixture
def grpc_attack(tmp_path: Path) -> Iterator[Callable[..., tuple[Target, grpc.Channel]]]:
    """Start services with settings of their own, and a client of their gRPC."""
    with ExitStack() as stack:

        def start(**settings: int) -> tuple[Target, grpc.Channel]:
            target, process = stack.enter_context(attacked(tmp_path, grpc_port=0, **settings))
            # As it is, the client takes some megabytes before anybody asks for them.
            window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16)]
            options = [("grpc.max_receive_message_length", -1), *window]
            return target, grpc.insecure_channel(grpc_address(process), options=options)

        yield start


def leave_answers(target: Target, channel: grpc.Channel) -> list[grpc.StatusCode]:
    """Ask a hundred times for 8 MiB over gRPC, and take them only when each has its answer; the codes of refusals."""
    request = message_class("inference.ModelInferRequest")(model_name=WIDE)
    request.inputs.add(name="instances", datatype="FP32", shape=[2048, WIDE_VALUES])
    request.outputs.add(name="denoised")
    request.raw_input_contents.append(bytes(4 * 2048 * WIDE_VALUES))
    message = gzip.compress(request.SerializeToString(), 1)
    with target.withstands(), channel:
        calls = [channel.unary_stream(GRPC_INFER)(message) for _ in range(100)]
        for call in calls:
            call.initial_metadata()  # it is being answered, or refused
        refused = []
        for call in calls:
            try:
                assert sum(map(len, call)) > 4 * 2048 * WIDE_VALUES
            except grpc.RpcError as error:
                refused.append(error.code())
        return refused


def test_answers_over_grpc_that_nobody_takes(
    grpc_attack: Callable[..., tuple[Target, grpc.Channel]],
) -> None:
    """They are held like those over HTTP: beyond what the service may hold, callers are refused."""
    refused = leave_answers(*grpc_attack())
    assert set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refused) < 100


def test_answers_over_grpc_without_a_bound_are_seen(
    grpc_attack: Callable[..., tuple[Target, grpc.Channel]],
) -> None:
    """A service that may hold all of them."""
    target, channel = grpc_attack(max_received_bytes=10**10)
    with pytest.raises(AssertionError, match="memory grew by"):
        leave_answers(target, channel)


def test_streams_whose_line_does_not_end(target: Target) -> None:
    """Each may be as long as a line may be; together they are held like bodies."""
    with target.withstands(), ExitStack() as stack:
        for _ in range(330):
            connection = stack.enter_context(connect(target.url))
            connection.send(head("/encode", Content_Type="application/x-ndjson", Transfer_Encoding="chunked"))
            connection.send(chunk(b"[" + b" " * (2**20 - 10)))


def test_a_caller_who_takes_nothing_of_the_answer_is_closed(attack: Callable[..., Target]) -> None:
    """Whether more requests were to follow on the connection or not; one who takes a little at a time is not."""
    target = attack(write_timeout_s=1.0)
    body = npy(4096, WIDE_VALUES)
    headers = {**NPY, "Accept": "application/x-npy", "Content_Length": str(len(body))}
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(target.url)) for _ in range(3)]
        for connection, kind in zip(connections, ("keep-alive", "close", "keep-alive"), strict=True):
            connection.send(head(f"/models/{WIDE}/reconstruct", Connection=kind, **headers) + body)
        idle, ending, slow = (connection.sock.getsockname()[1] for connection in connections)
        ends = time.monotonic() + CALLER_TIMEOUT_S
        while {idle, ending} & (peers := {peer.raddr.port for peer in target.process.net_connections() if peer.raddr}):
            assert time.monotonic() < ends, "the connections stay open"
            connections[2].sock.recv(2**16)
            time.sleep(0.05)
        assert slow in peers
