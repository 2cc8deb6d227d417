"""Stopping, and callers who are slow: what was accepted is answered, what is half-sent holds nobody up."""

import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.api.processes import ServiceProcess, fakes, running
from tests.api.raw import chunk, connect, head
from tests.api.samples import assert_problem, digits
from tests.fakes import load_fake
from tests.live import LiveService

pytestmark = pytest.mark.slow

Serve = Callable[..., LiveService]

GRACE_S = 20
ROWS = {"instances": [[1.0, 2.0]] * 3}


def ask_until_refused(url: str, path: str, body: Any, answered: Callable[[], Any]) -> list[Any]:
    """One request after another on one connection until no new connection is taken; what went wrong before that."""
    wrong: list[Any] = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        while True:
            try:
                response = http.post(path, json=body)
            except httpx.ConnectError:
                return wrong
            except httpx.TransportError as error:
                return [*wrong, error]
            answered()
            if response.status_code != 200 or len(response.json()["latents"]) != len(body["instances"]):
                wrong.append(response.text)


def stop_under_load(service: ServiceProcess, path: str, body: Any) -> None:
    deadline = time.monotonic() + 120
    while httpx.get(f"{service.url}/readyz", trust_env=False).status_code != 200:
        assert time.monotonic() < deadline, service.log
        time.sleep(0.05)
    count = threading.Semaphore(0)
    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(ask_until_refused, service.url, path, body, count.release) for _ in range(8)]
        for _ in range(100):
            assert count.acquire(timeout=60)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(GRACE_S) == 0, service.log
        assert [caller.result() for caller in callers] == [[]] * 8
    assert "Traceback" not in service.log


@pytest.mark.tf
def test_sigterm_under_load_loses_no_request(trained_store: Path) -> None:
    """The real command: every request that was sent has its whole answer, and the exit code is 0."""
    command = ["service.cli", "serve", "--store", str(trained_store), "--port", "0", "--default-model", "digits"]
    with running(command) as service:
        stop_under_load(service, "/encode", {"instances": digits(5).tolist()})


def test_sigterm_with_a_slow_model_loses_no_request(fake_store: Path) -> None:
    """Requests that wait in the queue are answered as well: 50 ms a batch of three rows."""
    with running(fakes(fake_store, delay_s=0.05, max_batch_rows=3)) as service:
        stop_under_load(service, "/encode", ROWS)


def test_half_sent_requests_do_not_hold_up_the_stop(fake_store: Path) -> None:
    """Half headers, half a body, half a stream and a silent connection: exit 0 well before their deadlines."""
    settings = {"header_timeout_s": 600, "body_timeout_s": 600, "drain_timeout_s": 600}
    with (
        running(fakes(fake_store, **settings)) as service,
        connect(service.url) as headers,
        connect(service.url) as body,
        connect(service.url) as stream,
        connect(service.url),
    ):
        headers.send(b"POST /encode HTTP/1.1\r\nHost: loc")
        body.send(head("/encode", Content_Type="application/json", Content_Length="1000") + b'{"instances": [')
        stream.send(
            head("/encode", Content_Type="application/x-ndjson", Transfer_Encoding="chunked") + chunk(b"[1, 2]\n")
        )
        assert b"200 OK" in stream.sock.recv(1000)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(GRACE_S) == 0, service.log


def test_a_body_that_is_still_arriving_is_answered(fake_store: Path) -> None:
    """SIGTERM in the middle of an upload: the rest comes and the answer goes out, the last one on its connection."""
    body = json.dumps(ROWS).encode()
    with running(fakes(fake_store)) as service, connect(service.url) as connection:
        connection.send(head("/encode", Content_Type="application/json", Content_Length=str(len(body))) + body[:5])
        with httpx.Client(base_url=service.url, trust_env=False) as http:
            http.get("/livez")
        service.process.send_signal(signal.SIGTERM)
        for at in range(5, len(body), 10):
            connection.send(body[at : at + 10])
            time.sleep(0.05)
        answer = connection.answer()
        assert answer.json()["latents"] == [[1.0]] * 3
        assert answer.headers["connection"] == "close"
        assert service.process.wait(GRACE_S) == 0, service.log


def test_a_request_on_an_open_connection_just_after_the_signal_is_answered(fake_store: Path) -> None:
    """It was on its way; the answer says that the connection closes. Readiness is over by then."""
    with running(fakes(fake_store, delay_s=0.3)) as service, connect(service.url) as idle, connect(service.url) as busy:
        idle.send(head("/readyz", method="GET"))
        assert idle.answer().status_code == 200
        body = json.dumps(ROWS).encode()
        busy.send(head("/encode", Content_Type="application/json", Content_Length=str(len(body))) + body)
        service.process.send_signal(signal.SIGTERM)
        while "Shutting down" not in service.log and _accepts(service.url):
            pass
        idle.send(head("/readyz", method="GET"))
        answer = idle.answer()
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert answer.json() == {"ready": False, "reason": "draining"}
        assert busy.answer().status_code == 200
        assert service.process.wait(GRACE_S) == 0, service.log


def _accepts(url: str) -> bool:
    try:
        with connect(url):
            return True
    except ConnectionError:
        return False


def test_sigint_stops_as_sigterm_does(fake_store: Path) -> None:
    """Ctrl-C is no failure."""
    with running(fakes(fake_store)) as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(GRACE_S) == 0, service.log


# --- receipt deadlines ------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(fake_store: Path, serve: Serve) -> LiveService:
    return serve(fake_store, load=load_fake, header_timeout_s=0.3, body_timeout_s=0.3)


@pytest.mark.parametrize("sent", [b"", b"POST /encode HT", b"POST /encode HTTP/1.1\r\nHost: localhost\r\nX-Header: "])
def test_headers_that_never_end_are_408(impatient: LiveService, sent: bytes) -> None:
    """The connection is answered and closed by the deadline; others are served meanwhile."""
    with connect(impatient.url) as connection:
        connection.send(sent)
        assert impatient.post("/encode", json=ROWS).status_code == 200
        assert_problem(connection.answer(), 408)
        assert connection.is_closed()


def test_a_body_that_never_ends_is_504(impatient: LiveService) -> None:
    """Half a body, then silence."""
    with connect(impatient.url) as connection:
        connection.send(head("/encode", Content_Type="application/json", Content_Length="1000") + b'{"inst')
        assert impatient.post("/encode", json=ROWS).status_code == 200
        assert_problem(connection.answer(), 504)
        assert connection.is_closed()


def test_a_body_that_drips_is_504(impatient: LiveService) -> None:
    """The deadline is for the whole body: a byte now and then does not extend it."""
    stop = threading.Event()
    with connect(impatient.url) as connection:

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    connection.send(b" ")
                except OSError:
                    return

        connection.send(head("/encode", Content_Type="application/json", Content_Length="100000"))
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert_problem(connection.answer(), 504)
        finally:
            stop.set()
            thread.join()


def test_a_body_of_a_service_route_that_never_ends_is_closed(impatient: LiveService) -> None:
    """The routes of FastAPI have no deadline of their own: the connection's is theirs."""
    with connect(impatient.url) as connection:
        connection.send(
            head("/models/pumps/aliases/a", method="PUT", Content_Type="application/json", Content_Length="9") + b"{"
        )
        assert connection.is_closed()


def test_an_idle_connection_is_not_closed_by_the_header_deadline(impatient: LiveService) -> None:
    """Between two requests nothing is owed."""
    with connect(impatient.url) as connection:
        for pause_s in (1.2, 0):
            connection.send(head("/livez", method="GET"))
            assert connection.answer().status_code == 200
            time.sleep(pause_s)


def test_an_idle_connection_is_closed_after_a_while(fake_store: Path, serve: Serve) -> None:
    """Which begins anew with each answer."""
    service = serve(fake_store, load=load_fake)
    service.server.config.timeout_keep_alive = 2
    with connect(service.url) as connection:
        for _ in range(3):
            time.sleep(0.8)
            connection.send(head("/livez", method="GET"))
            assert connection.answer().status_code == 200
        started = time.monotonic()
        assert connection.is_closed()
        assert 1.9 < time.monotonic() - started < 10


def test_a_slow_answer_is_not_taken_for_an_idle_connection(fake_store: Path, serve: Serve) -> None:
    """However long the model takes."""
    service = serve(fake_store, load=partial(load_fake, before=partial(time.sleep, 2.5)))
    service.server.config.timeout_keep_alive = 1
    body = json.dumps(ROWS).encode()
    with connect(service.url) as connection:
        for _ in range(2):
            connection.send(head("/encode", Content_Type="application/json", Content_Length=str(len(body))) + body)
            assert connection.answer().status_code == 200


def test_many_silent_connections_leave_room_for_others(fake_store: Path, serve: Serve) -> None:
    """200 connections that send nothing: requests are answered all the same."""
    service = serve(fake_store, load=load_fake)
    connections = [connect(service.url) for _ in range(200)]
    opened = [connection.__enter__() for connection in connections]
    try:
        opened[0].send(b"POST /encode HTTP/1.1\r\n")
        assert service.post("/encode", json=ROWS).status_code == 200
    finally:
        for connection in connections:
            connection.__exit__(None, None, None)


def test_callers_who_leave_do_not_hurt_others(fake_store: Path, serve: Serve) -> None:
    """Connections that close in every phase of a request; then the service answers as ever."""
    service = serve(fake_store, load=load_fake)
    body = json.dumps({"instances": [[float(at), 0.0] for at in range(500)]}).encode()
    whole = head("/encode", Content_Type="application/json", Content_Length=str(len(body))) + body
    for cut in (0, 10, 60, len(whole) - 400, len(whole) - 1, len(whole)):
        with connect(service.url) as connection:
            connection.send(whole[:cut])
    with connect(service.url) as connection:
        connection.send(whole)
        assert connection.answer().json()["latents"] == [[float(at)] for at in range(500)]
