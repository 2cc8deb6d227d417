"""Every status of the contract: who gets it, the problem that says why, and that it gives nothing away."""

import gzip
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.access import hash_key
from service.api.connection import GuardedProtocol
from service.api.errors import problem
from service.errors import QueueFull
from service.settings import Settings
from service.store import Store
from tests.api.raw import chunk, connect, head
from tests.api.samples import OPERATIONS, assert_problem
from tests.fakes import ANSWERS_NAN, RAISES, SECRET, Gate, load_fake, publish_fake
from tests.live import LiveService, serve_live

Serve = Callable[..., LiveService]

MARKER = "sekret7461"
MARKED_NUMBER = "746174617461"
ROWS = [[1.0, 2.0], [3.0, 4.0]]
KEY = "a-key-of-the-tests"
JSON = {"Content-Type": "application/json"}


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.fixture(scope="module")
def columns_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """Fakes with the columns ``amount`` and ``age``."""
    root = tmp_path_factory.mktemp("columns_store")
    publish_fake(Store(root), columns=("amount", "age"))
    with serve_live(Settings(store=root, port=0), load=load_fake) as live:
        yield live


# --- 400 --------------------------------------------------------------------------------------------------------------

UNPARSEABLE: dict[str, tuple[str, bytes]] = {
    "no JSON": ("application/json", f'{{"instances": [["{MARKER}"'.encode()),
    "nothing": ("application/json", b""),
    "not UTF-8": ("application/json", b'{"instances": [["\xff\xfe' + MARKER.encode() + b'"]]}'),
    "deep JSON": ("application/json", b"[" * 100_000),
    "deep objects": ("application/json", b'{"instances":' + b'{"a":' * 50_000),
    "trailing": ("application/json", b'{"instances": [[1, 2]]} ' + MARKER.encode()),
    "no npy": ("application/x-npy", MARKER.encode()),
    "npy that lies": ("application/x-npy", npy(np.zeros((2, 2))).replace(b"(2, 2)", b"(9, 2)")),
    "npy of objects": ("application/x-npy", npy(np.zeros((2, 2))).replace(b"'<f8'", b"'|O' ")),
    "no Arrow": ("application/vnd.apache.arrow.stream", MARKER.encode() * 10),
}  # fmt: skip


@pytest.mark.parametrize("case", UNPARSEABLE)
def test_what_cannot_be_parsed_is_400(fake_service: LiveService, case: str) -> None:
    """Broken JSON, npy and Arrow bodies."""
    media_type, body = UNPARSEABLE[case]
    response = fake_service.post("/encode", content=body, headers={"Content-Type": media_type})
    assert_problem(response, 400)
    assert MARKER not in response.text


@pytest.mark.parametrize("request_line", [b"\x16\x03\x01\x02", b"GET\r\n\r\n", b"POST /encode HTTP/9.9\r\n\r\n"])
def test_what_is_not_http_is_400(fake_service: LiveService, request_line: bytes) -> None:
    """TLS on a plain port, and lines that are no request."""
    with connect(fake_service.url) as connection:
        connection.send(request_line)
        assert_problem(connection.answer(), 400)
        assert connection.is_closed()


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate"])
def test_what_is_not_compressed_as_announced_is_400(fake_service: LiveService, encoding: str) -> None:
    """Plain JSON under a Content-Encoding."""
    body = json.dumps({"instances": ROWS})
    assert_problem(fake_service.post("/encode", content=body, headers={**JSON, "Content-Encoding": encoding}), 400)


def test_a_truncated_gzip_body_is_400(fake_service: LiveService) -> None:
    """Its last bytes are missing."""
    body = gzip.compress(json.dumps({"instances": ROWS}).encode())[:-4]
    assert_problem(fake_service.post("/encode", content=body, headers={**JSON, "Content-Encoding": "gzip"}), 400)


# --- 404 and 405 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/models/nothing/encode",
        "/models/nothing/versions/1/encode",
        "/models/pumps/versions/9/encode",
        "/models/pumps/versions/999999999999999999/encode",
        "/models/pumps/versions/0/encode",
        "/models/pumps/versions/01/encode",
        "/models/pumps/versions/٣/encode",
        "/models/pumps/versions/latest/encode",
        "/models/pumps/versions/1000000000000000000000/encode",
        "/models/pumps/aliases/nothing/encode",
        "/models/pumps/aliases/production/encode",
        "/models/%2e%2e/encode",
        "/models/..%2f..%2fetc/encode",
        "/models/PUMPS/encode",
        "/nothing",
        "/models/pumps/nothing",
    ],
)
def test_unknown_things_are_404(fake_service: LiveService, path: str) -> None:
    """No such model, version, alias or route."""
    assert_problem(fake_service.post(path, json={"instances": ROWS}), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_operations_take_post_only(fake_service: LiveService, method: str) -> None:
    """Every other method is 405 and names what is allowed."""
    response = fake_service.http.request(method, "/models/pumps/encode")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    if method == "HEAD":
        assert response.content == b""
    else:
        assert_problem(response, 405)


def test_service_routes_take_their_methods_only(fake_service: LiveService) -> None:
    """POST on a route that has GET only: 405."""
    response = fake_service.post("/models")
    assert_problem(response, 405)
    assert response.headers["allow"] == "GET"


# --- 406 and 415 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/csv"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": f"{MARKER}/x"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip, gzip"},
        {"Content-Type": "image/png"},
    ],
)
def test_unknown_encodings_of_a_request_are_415(fake_service: LiveService, headers: dict[str, str]) -> None:
    """Unknown media types and codings, and images for a model of no images."""
    response = fake_service.post("/encode", content=json.dumps({"instances": ROWS}), headers=headers)
    assert_problem(response, 415)
    assert MARKER not in response.text


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/jpeg", "image/png", MARKER])
def test_unknown_encodings_of_an_answer_are_406(fake_service: LiveService, accept: str) -> None:
    """Nothing that is accepted can be answered."""
    response = fake_service.post("/reconstruct", json={"instances": ROWS}, headers={"Accept": accept})
    assert_problem(response, 406)
    assert MARKER not in response.text


# --- 409 --------------------------------------------------------------------------------------------------------------


def test_a_version_that_is_not_loaded_is_409(fake_store: Path, serve: Serve) -> None:
    """It is in the store, but the policy did not load it."""
    service = serve(fake_store, load=load_fake, keep_versions=1)
    problem = assert_problem(service.post("/models/pumps/versions/1/encode", json={"instances": ROWS}), 409)
    assert "retired" in problem["detail"]


def test_denoise_without_training_for_it_is_409(tmp_path: Path, serve: Serve) -> None:
    """The signature is missing; known before a byte of the body is read."""
    (tmp_path / "plain").mkdir()
    publish_fake(Store(tmp_path / "plain"), denoises=False)
    service = serve(tmp_path / "plain", load=load_fake)
    with connect(service.url) as connection:
        connection.send(head("/denoise", Content_Length="5000"))
        assert_problem(connection.answer(), 409)


@pytest.mark.parametrize(
    "body", [{"continent": "EU", "population": 3.0}, {}, {"threshold": 1.0}, [[1.0, 2.0]], [{"a": 1.0}], 3]
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_body_without_rows_says_where_they_belong(fake_service: LiveService, operation: str, body: Any) -> None:
    """A row as the whole body, rows without a name, or nothing: 422 that says how, not a word of options."""
    problem = assert_problem(fake_service.post(f"/{operation}", json=body), 422)
    assert problem["detail"].startswith("Put rows under 'instances'")
    assert "continent" not in str(problem)


# --- 413 and 431 ------------------------------------------------------------------------------------------------------


def test_an_announced_length_over_the_limit_is_refused_at_once(fake_service: LiveService) -> None:
    """10 GiB announced, nothing sent: the answer comes all the same."""
    with connect(fake_service.url) as connection:
        connection.send(head("/encode", Content_Type="application/json", Content_Length=str(10 * 2**30)))
        assert_problem(connection.answer(), 413)


@pytest.mark.parametrize("media_type", ["application/json", "application/x-npy", "application/vnd.apache.arrow.stream"])
def test_a_body_without_length_is_refused_at_the_limit(fake_store: Path, serve: Serve, media_type: str) -> None:
    """Chunked, the end never comes: 413 once the limit is passed."""
    service = serve(fake_store, load=load_fake, max_json_bytes=50_000, max_body_bytes=50_000)
    with connect(service.url) as connection:
        connection.send(head("/encode", Content_Type=media_type, Transfer_Encoding="chunked"))
        for _ in range(6):
            connection.send(chunk(b" " * 10_000))
        assert_problem(connection.answer(), 413)


def test_a_chunked_body_under_the_limit_is_answered(fake_service: LiveService) -> None:
    """Without a length, in pieces."""
    body = json.dumps({"instances": ROWS}).encode()
    with connect(fake_service.url) as connection:
        connection.send(head("/encode", Content_Type="application/json", Transfer_Encoding="chunked"))
        connection.send(chunk(body[:7]) + chunk(body[7:]) + chunk(b""))
        answer = connection.answer()
    assert answer.json()["latents"] == [[1.0], [3.0]]


def test_too_many_rows_are_413(fake_store: Path, serve: Serve) -> None:
    """One over the limit; at the limit it is answered."""
    service = serve(fake_store, load=load_fake, max_rows=10)
    assert service.post("/encode", json={"instances": [[1, 2]] * 10}).status_code == 200
    assert_problem(service.post("/encode", json={"instances": [[1, 2]] * 11}), 413)


def test_too_many_rows_to_explain_are_413(fake_store: Path, serve: Serve) -> None:
    """Explaining has a limit of its own."""
    service = serve(fake_store, load=load_fake, max_explain_rows=3)
    assert service.post("/anomaly-score", json={"instances": [[1, 2]] * 3, "explain": 1}).status_code == 200
    assert_problem(service.post("/anomaly-score", json={"instances": [[1, 2]] * 4, "explain": 1}), 413)


@pytest.mark.parametrize("compress", [gzip.compress, "zstd"])
def test_a_decompression_bomb_is_413(fake_store: Path, serve: Serve, compress: Any) -> None:
    """Small on the wire, over the limit when decompressed."""
    service = serve(fake_store, load=load_fake, max_json_bytes=1_000_000)
    encoding = "gzip"
    if compress == "zstd":
        from backports import zstd

        encoding, compress = "zstd", zstd.compress
    bomb = compress(b" " * 5_000_000)
    assert len(bomb) < 20_000
    assert_problem(service.post("/encode", content=bomb, headers={**JSON, "Content-Encoding": encoding}), 413)


def test_an_npy_header_that_claims_gigabytes_allocates_nothing(fake_service: LiveService) -> None:
    """Refused for its size, without an allocation of it."""
    lying = npy(np.zeros((1, 2), np.float32)).replace(b"(1, 2), }          ", b"(9999999999, 2), } ")
    response = fake_service.post("/encode", content=lying, headers={"Content-Type": "application/x-npy"})
    assert response.status_code in (400, 413)
    assert_problem(response, response.status_code)


def test_headers_over_the_limit_are_431(fake_service: LiveService) -> None:
    """A single header of 20 KB, and headers without end."""
    with connect(fake_service.url) as connection:
        connection.send(head("/encode", X_Long="x" * 20_000))
        assert_problem(connection.answer(), 431)
    with connect(fake_service.url) as connection:
        connection.send(b"POST /encode HTTP/1.1\r\n" + b"X-Header: 0123456789\r\n" * 1000)
        assert_problem(connection.answer(), 431)


def test_a_body_larger_than_the_header_limit_is_answered(fake_service: LiveService) -> None:
    """In one piece with its headers, on a connection that is used again."""
    body = json.dumps({"instances": [[1.0, 2.0]] * 4000}).encode()
    with connect(fake_service.url) as connection:
        for _ in range(3):
            connection.send(head("/encode", Content_Type="application/json", Content_Length=str(len(body))) + body)
            assert connection.answer().status_code == 200


# --- 422 --------------------------------------------------------------------------------------------------------------

UNFIT: dict[str, tuple[str, int | None, str | int | None]] = {
    '{"instances": [[1, 2], [3, NaN]]}': ("finite", 1, 1),
    '{"instances": [[1, Infinity]]}': ("finite", 0, 1),
    '{"instances": [[-Infinity, 1]]}': ("finite", 0, 0),
    '{"instances": [[1, 1e400]]}': ("float32", 0, 1),
    '{"instances": [[1, 1e39]]}': ("float32", 0, 1),
    '{"instances": [[1, 2], [1]]}': ("2", 1, None),
    '{"instances": [[1, 2, 3]]}': ("2", 0, None),
    '{"instances": [[1, [2]]]}': ("number", 0, 1),
    '{"instances": [[1, "2"]]}': ("number", 0, 1),
    '{"instances": [[1, true]]}': ("number", 0, 1),
    '{"instances": [[1, null]]}': ("missing", 0, 1),
    '{"instances": [{"a": 1}]}': ("", 0, None),
    '{"instances": [1, 2]}': ("", 0, None),
    '{"instances": []}': ("", None, None),
    '{"instances": {}}': ("", None, None),
    '{"instances": null}': ("", None, None),
    '{"instances": [[1, 2]], "inputs": [[1, 2]]}': ("", None, None),
    "{}": ("", None, None),
    "[[1, 2]]": ("", None, None),
    "null": ("", None, None),
    '"text"': ("", None, None),
    '{"inputs": []}': ("", None, None),
}


@pytest.mark.parametrize("body", UNFIT)
def test_what_are_no_rows_is_422_with_row_and_column(fake_service: LiveService, body: str) -> None:
    """The first problem names the place; unnamed columns have numbers."""
    words, row, column = UNFIT[body]
    problem = assert_problem(fake_service.post("/encode", content=body, headers=JSON), 422)
    first = problem["errors"][0]
    assert (first["row"], first["column"]) == (row, column)
    assert words in first["problem"]


NAMED_UNFIT: dict[str, tuple[str, int | None, str | None]] = {
    '{"instances": [{"amount": 1, "age": 2}, {"amount": 1}]}': ("is missing", 1, "age"),
    '{"instances": [{"amount": 1, "age": 2, "height": 3}]}': ("not a column", 0, "height"),
    '{"instances": [{"amount": 1, "age": "x"}]}': ("number", 0, "age"),
    '{"instances": [{"amount": null, "age": 2}]}': ("missing", 0, "amount"),
    '{"instances": [{"amount": 1, "age": NaN}]}': ("finite", 0, "age"),
    '{"instances": [{"amount": 1, "age": 1e400}]}': ("float32", 0, "age"),
    '{"instances": [{"amount": 1, "age": [2]}]}': ("number", 0, "age"),
    '{"instances": [[1, 2, 3]]}': ("2", 0, None),
    '{"inputs": {"amount": [1, 2], "age": [1, false]}}': ("number", 1, "age"),
    '{"inputs": {"amount": [1, 2]}}': ("is missing", None, "age"),
    '{"inputs": {"amount": [1], "age": [1], "height": [1]}}': ("not a column", None, "height"),
    '{"inputs": {"amount": [1, 2], "age": [1]}}': ("same number", None, None),
    '{"inputs": {"amount": 1, "age": [1]}}': ("array", None, "amount"),
    '{"inputs": {"amount": [], "age": []}}': ("", None, None),
    '{"inputs": {}}': ("", None, "amount"),
    '{"inputs": [[1, 2]]}': ("", None, None),
}


@pytest.mark.parametrize("body", NAMED_UNFIT)
def test_named_columns_are_named_in_a_422(columns_service: LiveService, body: str) -> None:
    """The problem's column is the model's name for it."""
    words, row, column = NAMED_UNFIT[body]
    problem = assert_problem(columns_service.post("/encode", content=body, headers=JSON), 422)
    first = problem["errors"][0]
    assert (first["row"], first["column"]) == (row, column)
    assert words in first["problem"] or words in problem["detail"]


def test_at_most_ten_problems_are_listed(fake_service: LiveService) -> None:
    """1,000 bad rows: the first ten, in order."""
    problem = assert_problem(fake_service.post("/encode", json={"instances": [[1, "x"]] * 1000}), 422)
    assert [error["row"] for error in problem["errors"]] == list(range(10))


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [[1, MARKER]]},
        {"instances": [[1, [MARKER] * 1000]]},
        {"instances": MARKER},
        {"instances": [[1, 2]], MARKER + " and more": 1},
        {"instances": [{MARKER * 100: 1}]},
        {"instances": [{"amount": MARKER, "age": 1}]},
        {"instances": [[1, int(MARKED_NUMBER) * 10**60]]},
        {"instances": [[1, 2]], "threshold": MARKER},
        {"instances": [[1, 2]], "explain": MARKER},
        {"inputs": {"amount": [MARKER], "age": [MARKER]}},
        {"inputs": {MARKER + "\n": [1]}},
        {"instances": [[1, "\ud800" + MARKER]]},
    ],
)
def test_errors_never_echo_input(columns_service: LiveService, body: dict[str, Any]) -> None:
    """A marked value is nowhere in the answer: neither in the body nor in a header."""
    response = columns_service.post("/anomaly-score", content=json.dumps(body), headers=JSON)
    assert response.status_code in (400, 422)
    assert_problem(response, response.status_code)
    everything = response.text + str(response.headers)
    assert MARKER not in everything
    assert MARKED_NUMBER not in everything


@pytest.mark.parametrize("query", ["threshold=high", "thresh=1", "threshold=1&threshold=2", "explain=x", "%ff=1", "x"])
def test_wrong_query_parameters_are_422(fake_service: LiveService, query: str) -> None:
    """Unknown, repeated or malformed options in the query."""
    response = fake_service.post(
        f"/anomaly-score?{query}", content=npy(np.ones((1, 2))), headers={"Content-Type": "application/x-npy"}
    )
    assert_problem(response, 422)


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "1.5", "", "9" * 30])
def test_a_wrong_timeout_is_422(fake_service: LiveService, timeout: str) -> None:
    """``X-Timeout-Ms`` is a whole number of milliseconds, at least 1."""
    response = fake_service.post("/encode", json={"instances": ROWS}, headers={"X-Timeout-Ms": timeout})
    assert_problem(response, 422)


def test_npy_of_a_wrong_shape_is_422(fake_service: LiveService) -> None:
    """Wrong width, wrong number of dimensions, no rows."""
    for array in (np.ones((2, 3)), np.ones(2), np.ones((2, 2, 1)), np.ones((0, 2))):
        response = fake_service.post("/encode", content=npy(array), headers={"Content-Type": "application/x-npy"})
        assert_problem(response, 422)


def test_npy_that_is_not_finite_is_422_with_row_and_column(fake_service: LiveService) -> None:
    """NaN is a missing value, which this model does not take; infinity is no number at all."""
    for value in (np.nan, np.inf, 1e39):
        array = np.ones((4, 2))
        array[2, 1] = value
        response = fake_service.post("/encode", content=npy(array), headers={"Content-Type": "application/x-npy"})
        error = assert_problem(response, 422)["errors"][0]
        assert (error["row"], error["column"]) == (2, 1)


# --- 429, 503, 504 ----------------------------------------------------------------------------------------------------


def await_full_queue(service: LiveService) -> None:
    """Until a request would be refused."""
    while True:
        try:
            service.service.batcher.check_room()
        except QueueFull:
            return
        time.sleep(0.01)


@contextmanager
def full(store: Path, serve: Serve, **settings: Any) -> Iterator[tuple[LiveService, Gate]]:
    """A service whose model is busy until the gate opens, and whose queue holds the one request that it may."""
    gate = Gate()
    service = serve(store, load=partial(load_fake, before=gate), max_queue_requests=1, **settings)
    headers = {"X-API-Key": KEY} if settings else {}
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(service.post, "/encode", json={"instances": ROWS}, headers=headers)]
        gate.await_call()
        answers.append(pool.submit(service.post, "/encode", json={"instances": ROWS}, headers=headers))
        await_full_queue(service)
        try:
            yield service, gate
        finally:
            gate.opened.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]


@pytest.mark.parametrize("limit", ["max_queue_requests", "max_queue_rows", "max_queue_bytes"])
def test_a_full_queue_answers_429_at_once(fake_store: Path, serve: Serve, limit: str) -> None:
    """While the model is busy: one request waits, the next are refused with Retry-After; later all is well."""
    gate = Gate()
    service = serve(fake_store, load=partial(load_fake, before=gate), **{limit: 1})
    with ThreadPoolExecutor(5) as pool:
        running = pool.submit(service.post, "/encode", json={"instances": ROWS})
        gate.await_call()
        others = [pool.submit(service.post, "/encode", json={"instances": ROWS}) for _ in range(4)]
        refused = [future.result() for future in islice(as_completed(others), 3)]
        gate.opened.set()
        assert running.result().status_code == 200
        for response in refused:
            assert_problem(response, 429)
            assert int(response.headers["retry-after"]) >= 1
        assert sorted(future.result().status_code for future in others) == [200, 429, 429, 429]
    assert service.post("/encode", json={"instances": ROWS}).status_code == 200


def test_a_full_queue_refuses_before_the_body_is_read(fake_store: Path, serve: Serve) -> None:
    """The caller need not send its body first."""
    with full(fake_store, serve) as (service, _), connect(service.url) as connection:
        connection.send(head("/encode", Content_Type="application/json", Content_Length="100"))
        assert_problem(connection.answer(), 429)


def test_the_body_of_a_refused_request_is_passed_over(fake_store: Path, serve: Serve) -> None:
    """The connection stays open, and what comes next on it is the next request: with a length and in chunks."""
    refused = {"Content_Type": "application/json", "X_Request_Id": "mine"}
    sent, like_a_request = b'{"instances": [[1, 2]]}', b"POST / HTTP/1.1\r\n\r\n".ljust(70_000, b" ")
    good = head("/encode", Content_Type="application/json", Content_Length=str(len(sent))) + sent
    with full(fake_store, serve) as (service, gate), connect(service.url) as connection:
        connection.send(head("/encode", Content_Length="70000", **refused) + like_a_request)
        first = connection.answer()
        connection.send(head("/encode?threshold=1", Transfer_Encoding="chunked", **refused) + chunk(b"[") + chunk(b""))
        for answer in (first, connection.answer()):
            assert_problem(answer, 429)
            assert answer.headers["x-request-id"] == "mine"
        metrics = service.get("/metrics").text
        gate.opened.set()
        while service.service.batcher.is_full:
            time.sleep(0.01)
        connection.send(good)
        assert connection.answer().json()["latents"] == [[1.0]]
    assert 'autoencoder_refusals_total{reason="QueueFull"} 2.0' in metrics
    assert 'autoencoder_requests_total{model="",operation="encode",status="429"} 2.0' in metrics


def test_a_refusal_does_not_overtake_the_answer_before_it(fake_store: Path, serve: Serve) -> None:
    """A request behind one that waits in the full queue, on the same connection: they are answered in their order."""
    gate = Gate()
    service = serve(fake_store, load=partial(load_fake, before=gate), max_queue_requests=1)
    sent = [b'{"instances": [[%d, 2]]}' % number for number in (3, 4)]
    type_and_length = {"Content_Type": "application/json", "Content_Length": str(len(sent[0]))}
    with ThreadPoolExecutor(1) as pool, connect(service.url) as connection:
        running = pool.submit(service.post, "/encode", json={"instances": ROWS})
        gate.await_call()
        connection.send(head("/encode", **type_and_length) + sent[0])
        await_full_queue(service)
        connection.send(head("/encode", **type_and_length) + sent[1])
        time.sleep(0.1)  # for an answer that comes too early
        gate.opened.set()
        assert [connection.answer().json()["latents"] for _ in sent] == [[[3.0]], [[4.0]]]
        assert running.result().status_code == 200


def test_a_full_queue_tells_only_those_who_may_ask(fake_store: Path, serve: Serve) -> None:
    """Without a key it is 401, with one 429; other methods and routes are answered as ever."""
    with full(fake_store, serve, key_hashes=(hash_key(KEY),)) as (service, _):
        assert_problem(service.post("/encode", json={"instances": ROWS}), 401)
        assert_problem(service.post("/encode", json={"instances": ROWS}, headers={"X-API-Key": KEY}), 429)
        assert_problem(service.get("/encode", headers={"X-API-Key": KEY}), 405)
        assert service.get("/livez").status_code == 200


def test_a_full_queue_refuses_before_a_task_is_made(fake_store: Path, serve: Serve) -> None:
    """The server asks the application with nothing but the headers; with room, or for others, it goes the usual way."""
    refusal = GuardedProtocol.refusal
    assert refusal(b"POST", b"/encode", []) is None
    with full(fake_store, serve) as (service, _):
        refusal = vars(service.server.config.http_protocol_class)["refusal"].__func__
        status, headers, body = refusal(b"POST", b"/models/fake/encode", [(b"x-request-id", b"one")])
        assert (status, json.loads(body)["request_id"], dict(headers)[b"retry-after"]) == (429, "one", b"1")
        assert refusal(b"POST", b"/v2/models/fake/infer", []) is refusal(b"GET", b"/encode", []) is None
    assert refusal(b"POST", b"/encode", []) is None


def test_bodies_beyond_what_may_be_held_are_429(fake_store: Path, serve: Serve) -> None:
    """Many half-sent bodies together: memory stays bounded."""
    service = serve(fake_store, load=load_fake, max_received_bytes=3_000_000)
    with connect(service.url) as one, connect(service.url) as two:
        for connection in (one, two):
            connection.send(head("/encode", Content_Type="application/json", Content_Length="2000000"))
        one.send(bytes(1_900_000))
        while service.service.reception.held < 1_900_000:
            time.sleep(0.01)
        two.send(bytes(1_500_000))
        assert_problem(two.answer(), 429)
        assert service.post("/encode", json={"instances": ROWS}).status_code == 200  # small ones find room


@pytest.mark.parametrize(
    ("server_ms", "headers"), [(10_000, {"X-Timeout-Ms": "50"}), (50, {"X-Timeout-Ms": "10000"}), (50, {})]
)
def test_the_sooner_deadline_is_504(fake_store: Path, serve: Serve, server_ms: int, headers: dict[str, str]) -> None:
    """The request's or the server's own, whichever is sooner; the service goes on."""
    gate = Gate()
    service = serve(fake_store, load=partial(load_fake, before=gate), request_timeout_ms=server_ms)
    assert_problem(service.post("/encode", json={"instances": ROWS}, headers=headers), 504)
    gate.opened.set()


def test_an_empty_store_is_503(tmp_path: Path, serve: Serve) -> None:
    """Not ready: no version of any model is there yet."""
    (tmp_path / "empty").mkdir()
    service = serve(tmp_path / "empty", load=load_fake)
    response = service.post("/encode", json={"instances": ROWS})
    assert_problem(response, 503)
    assert int(response.headers["retry-after"]) >= 1


def test_too_many_connections_are_503(fake_store: Path, serve: Serve) -> None:
    """Beyond the limit, while none is idle, the answer is a problem as well, at once."""
    service = serve(fake_store, load=load_fake, max_connections=2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(service.url)).send(head("/encode", Content_Length="10"))
        time.sleep(0.3)  # until they are no idle ones
        one_too_many = stack.enter_context(connect(service.url))
        one_too_many.send(head("/models", method="GET"))
        assert_problem(one_too_many.answer(), 503)
        assert one_too_many.is_closed()


# --- 500 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [RAISES, ANSWERS_NAN])
def test_a_model_failure_is_500_for_that_request_only(fake_store: Path, serve: Serve, poison: float) -> None:
    """Neighbours in the same batch get their answers; the failure shows nothing of itself."""
    gate = Gate()
    service = serve(fake_store, load=partial(load_fake, before=gate), max_queue_requests=6)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(service.post, "/encode", json={"instances": ROWS})
        gate.await_call()
        rows = [[[float(at), 1.0]] for at in range(6)]
        rows[3][0][0] = poison
        others = [pool.submit(service.post, "/encode", json={"instances": row}) for row in rows]
        await_full_queue(service)
        gate.opened.set()
        assert first.result().status_code == 200
        answers = [future.result() for future in others]
    for at, response in enumerate(answers):
        if at == 3:
            assert_problem(response, 500)
            assert SECRET not in response.text
        else:
            assert response.json()["latents"] == [[float(at)]]


def test_an_unexpected_error_says_nothing_of_itself() -> None:
    """Whatever breaks where nobody thought of it: 500 without its text."""
    status, body, _ = problem(RuntimeError(SECRET), "an-id")
    assert status == 500
    assert SECRET not in body.decode()
    assert json.loads(body)["request_id"] == "an-id"


def test_the_log_says_what_the_answer_does_not(fake_service: LiveService, caplog: pytest.LogCaptureFixture) -> None:
    """A 500 is logged with its cause, once."""
    with caplog.at_level(logging.ERROR):
        assert_problem(fake_service.post("/encode", json={"instances": [[RAISES, 0]]}), 500)
    records = [record for record in caplog.records if record.name.startswith("service")]
    assert len(records) == 1
    assert records[0].exc_info is not None


# --- request ids ------------------------------------------------------------------------------------------------------

PATHS = ("/encode", "/models", "/models/nothing", "/nothing", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs")


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_the_request_id_that_was_given(fake_service: LiveService, path: str) -> None:
    """In a header, and in the body of every problem."""
    response = fake_service.get(path, headers={"X-Request-ID": "order-7.A:b_c"})
    assert response.headers["x-request-id"] == "order-7.A:b_c"
    if response.status_code >= 400:
        assert_problem(response, response.status_code)


@pytest.mark.parametrize("path", PATHS)
def test_ids_are_made_where_none_is_given(fake_service: LiveService, path: str) -> None:
    """Each request has its own."""
    made = {fake_service.get(path).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert all(len(request_id) >= 16 for request_id in made)


@pytest.mark.parametrize("odd", ["x" * 65, "two words", "semi;colon", '"quoted"', "\xe9", ""])
def test_odd_request_ids_are_replaced(fake_service: LiveService, odd: str) -> None:
    """What could hurt a log or a header is not repeated."""
    with connect(fake_service.url) as connection:
        connection.send(head("/models", method="GET", X_Request_ID=odd))
        given = connection.answer().headers["x-request-id"]
    assert given != odd
    assert len(given) >= 16


@pytest.mark.parametrize("operation", OPERATIONS)
def test_problems_of_a_known_version_name_it(fake_service: LiveService, operation: str) -> None:
    """Every answer carries the model's name and version once they are known, refusals too."""
    response = fake_service.post(f"/{operation}", json={"instances": [[1]]})
    assert_problem(response, 422)
    assert response.headers["x-model-name"] == "pumps"
    assert response.headers["x-model-version"] == "2"
