"""Callers who ask for another protocol: their requests are answered in this one (RFC 9110, 7.8)."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.api.raw import RawConnection, chunk, connect, head
from tests.api.samples import assert_problem
from tests.attack.caller import ROW
from tests.attack.conftest import Target

pytestmark = pytest.mark.slow

H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAEAAEAAAAIAAAABAAMAAABk"}
UPGRADES = {
    "h2c": H2C,
    "websocket": {"Connection": "keep-alive, Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Key": "eA=="},
    "tls": {"Upgrade": "TLS/1.0, HTTP/2.0", "Connection": "upgrade"},
    "without connection": {"Upgrade": "h2c"},
    "without upgrade": {"Connection": "upgrade"},
}
PIECES = {"one packet": 2**20, "head and body": 0, "bytes": 1, "some": 37}
JAVA = Path(__file__).parent / "Score.java"


def post(body: bytes, *, kind: str = "application/json", path: str = "/encode", **headers: str) -> tuple[bytes, bytes]:
    return head(path, Content_Type=kind, Content_Length=str(len(body)), **headers), body


def send(connection: RawConnection, sent: tuple[bytes, bytes], piece: int) -> None:
    """In packets of ``piece`` bytes; 0 for the head first and the body after it."""
    whole = b"".join(sent)
    cuts = [len(sent[0])] if piece == 0 else range(piece, len(whole), piece)
    at = 0
    for cut in (*cuts, len(whole)):
        connection.send(whole[at:cut])
        time.sleep(0.001)
        at = cut


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("headers", UPGRADES.values(), ids=UPGRADES)
def test_an_upgrade_is_ignored(target: Target, headers: dict[str, str], piece: int) -> None:
    """The body is read as announced, however the request is cut into packets, and so is the request behind it."""
    with connect(target.url) as connection:
        for value in (1.0, 2.0):
            send(connection, post(json.dumps({"instances": [[value, 0]]}).encode(), **headers), piece)
            answer = connection.answer()
            assert (answer.status_code, answer.json().get("latents")) == (200, [[value]])
        connection.send(head("/livez", method="GET"))
        assert connection.answer().status_code == 200


def test_requests_behind_an_upgrade_in_one_packet(target: Target) -> None:
    """With and without a body, of a known length and in chunks."""
    chunked = head("/encode", Content_Type="application/json", Transfer_Encoding="chunked", **H2C)
    requests = [
        b"".join(post(ROW, **H2C)),
        head("/livez", method="GET", **H2C),
        chunked + chunk(ROW[:5]) + chunk(ROW[5:]) + chunk(b""),
        b"".join(post(ROW)),
        head("/livez", method="GET"),
    ]
    with connect(target.url) as connection:
        connection.send(b"".join(requests))
        for sent in requests:
            answer = connection.answer()
            assert answer.status_code == 200
            assert ("latents" in answer.json()) == sent.startswith(b"POST")


def test_a_stream_with_an_upgrade(target: Target) -> None:
    """Each line is answered: none is lost behind the head."""
    lines = b"".join(b"[%d, 0]\n" % at for at in range(1000))
    with connect(target.url) as connection:
        send(connection, post(lines, kind="application/x-ndjson", **H2C), 1000)
        answers = connection.answer().text.splitlines()
    assert [json.loads(line)["latent"] for line in answers] == [[float(at)] for at in range(1000)]


def test_a_body_that_looks_like_a_request_is_a_body(target: Target) -> None:
    """Whether it comes with the head or after it: one answer, and then that to the next request."""
    inner = head("/livez", method="GET")
    for piece in (0, 2**20):
        with connect(target.url) as connection:
            send(connection, post(inner, **H2C), piece)
            assert_problem(connection.answer(), 400)
            connection.send(b"".join(post(ROW)))
            assert connection.answer().json()["latents"] == [[1.0]]


def test_a_large_body_with_an_upgrade_and_100_continue(target: Target) -> None:
    """It takes the way that large bodies take."""
    body = ROW[:-1] + b" " * (3 * 2**20) + b"}"
    with connect(target.url) as connection:
        first, rest = post(body, Expect="100-continue", **H2C)
        connection.send(first)
        assert connection.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(rest + head("/livez", method="GET"))
        assert connection.answer().json()["latents"] == [[1.0]]
        assert connection.answer().status_code == 200


@pytest.mark.parametrize("authority", ["example.com:443", "/encode", "*"])
def test_a_tunnel_is_refused(target: Target, authority: str) -> None:
    """What comes behind CONNECT is nothing of ours, so the connection ends."""
    with connect(target.url) as connection:
        connection.send(head(authority, method="CONNECT") + head("/livez", method="GET"))
        assert_problem(connection.answer(), 400)
        assert connection.is_closed()


def test_curl_that_offers_http2(target: Target) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not there: apt-get install curl")
    command = [curl, "-sS", "--http2", "--noproxy", "*", "--max-time", "20", "-H", "content-type: application/json"]
    answer = subprocess.run([*command, "--data-binary", ROW, f"{target.url}/encode"], capture_output=True, check=True)
    assert json.loads(answer.stdout)["latents"] == [[1.0]]


def test_javas_own_client_with_its_defaults(target: Target) -> None:
    """JSON, and NDJSON of a known length and of none."""
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("Java's compiler is not there: apt-get install openjdk-17-jdk-headless")
    ran = subprocess.run([java, str(JAVA), target.url], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    whole, stream, chunked, probe = ran.stdout.splitlines()
    assert whole.startswith("200 ")
    assert json.loads(whole[4:])["latents"] == [[1.0]]
    assert (stream, chunked, probe) == ("200 1000 lines", "200 1000 lines", "200")
