"""Every encoding of requests and answers, each against the JSON answer to the same rows."""

import gzip
import io
import json
from collections.abc import Callable
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from backports import zstd
from numpy.typing import NDArray
from PIL import Image

from service.api.exchange import ALIGNED_BYTES
from tests.api.raw import RawConnection, chunk, connect, head
from tests.api.samples import (
    OPERATIONS,
    assert_problem,
    digits,
    in_columns,
    named,
    payments,
)
from tests.conftest import COLUMNS
from tests.fakes import RAISES, Gate, load_fake
from tests.live import LiveService

Serve = Callable[..., LiveService]

NPY = "application/x-npy"
ARROW = "application/vnd.apache.arrow.stream"
NDJSON = "application/x-ndjson"
FIRST = {"encode": "latents", "reconstruct": "reconstructions", "denoise": "denoised", "anomaly-score": "scores"}


def json_answer(service: LiveService, operation: str, rows: Any, *, model: str = "digits", **options: Any) -> Any:
    response = service.post(f"/models/{model}/{operation}", json={"instances": rows, **options})
    assert response.status_code == 200, response.text
    return response.json()


def to_npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def from_npy(content: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def to_arrow(columns: dict[str, Any]) -> bytes:
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def from_arrow(content: bytes) -> Any:
    return pa.ipc.open_stream(content).read_all()


def post(service: LiveService, path: str, content: bytes, media_type: str, **headers: str) -> Any:
    named_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.post(path, content=content, headers={"Content-Type": media_type, **named_headers})


def payments_named(answer: Any) -> NDArray[np.float64]:
    """Rows of named columns of a JSON answer as an array."""
    return np.array([[row[name] for name in COLUMNS] for row in answer])


# --- npy --------------------------------------------------------------------------------------------------------------


@pytest.mark.tf
@pytest.mark.parametrize("operation", OPERATIONS)
def test_npy_in_and_out_gives_the_first_array(service: LiveService, operation: str) -> None:
    """The operation's first array as npy, equal to the JSON answer."""
    rows = digits(5)
    response = post(service, f"/{operation}", to_npy(rows), NPY, Accept=NPY)
    assert response.headers["content-type"] == NPY
    expected = json_answer(service, operation, rows.tolist())[FIRST[operation]]
    np.testing.assert_allclose(from_npy(response.content), expected, rtol=1e-5, atol=1e-5)
    assert response.headers["x-model-version"] == "2"


@pytest.mark.tf
@pytest.mark.parametrize("dtype", ["<f8", ">f4", "f2", "i1", "u2", ">i8", "?"])
def test_npy_of_any_real_dtype_and_order(service: LiveService, dtype: str) -> None:
    """Numbers of any width, byte order and memory order are the same rows."""
    rows = digits(3).astype(dtype)
    expected = json_answer(service, "encode", rows.astype(np.float32).tolist())
    for array in (rows, np.asfortranarray(rows)):
        assert post(service, "/encode", to_npy(array), NPY).json() == expected


@pytest.mark.tf
@pytest.mark.parametrize("operation", OPERATIONS)
def test_npy_rows_of_a_model_with_columns(service: LiveService, operation: str) -> None:
    """An array in the order of the columns; numbers come back as an array."""
    rows = payments(4)
    response = post(service, f"/models/payments/{operation}", to_npy(rows), NPY, Accept=NPY)
    expected = json_answer(service, operation, rows.tolist(), model="payments")[FIRST[operation]]
    wanted = payments_named(expected) if operation in ("reconstruct", "denoise") else expected
    np.testing.assert_allclose(from_npy(response.content), wanted, rtol=1e-5)


@pytest.mark.tf
def test_an_array_of_megabytes_is_answered_like_its_rows(service: LiveService) -> None:
    """It is received in place, piece by piece: no byte is lost or moved."""
    rows = np.random.default_rng(0).uniform(0, 16, (6000, *digits(1).shape[1:])).astype(np.float32)
    assert rows.nbytes > ALIGNED_BYTES
    scores = from_npy(post(service, "/anomaly-score", to_npy(rows), NPY, Accept=NPY).content)
    expected = json_answer(service, "anomaly-score", rows[[0, 17, 4095, 5999]].tolist())["scores"]
    np.testing.assert_allclose(scores[[0, 17, 4095, 5999]], expected, rtol=1e-5)
    assert len(scores) == len(rows)


# --- Arrow ------------------------------------------------------------------------------------------------------------


@pytest.mark.tf
@pytest.mark.parametrize("operation", OPERATIONS)
def test_arrow_with_one_column_of_fixed_size_lists(service: LiveService, operation: str) -> None:
    """``instances`` of flat rows; all result columns come back."""
    rows = digits(5)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 64)
    response = post(service, f"/{operation}", to_arrow({"instances": lists}), ARROW, Accept=ARROW)
    assert response.headers["content-type"] == ARROW
    table = from_arrow(response.content)
    expected = json_answer(service, operation, rows.tolist())
    results = [name for name in expected if isinstance(expected[name], list)]
    assert table.column_names == results
    for name in results:
        values = np.asarray(table.column(name).to_pylist(), np.float64)
        np.testing.assert_allclose(values, np.asarray(expected[name], np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.tf
@pytest.mark.parametrize("operation", OPERATIONS)
def test_arrow_with_named_columns_and_passthrough(service: LiveService, operation: str) -> None:
    """Columns in any order; with ``passthrough=true`` they come back beside the results."""
    rows = payments(6)
    columns = dict(reversed(in_columns(rows).items()))
    path = f"/models/payments/{operation}"
    expected = json_answer(service, operation, rows.tolist(), model="payments")
    plain = from_arrow(post(service, path, to_arrow(columns), ARROW, Accept=ARROW).content)
    both = from_arrow(post(service, f"{path}?passthrough=true", to_arrow(columns), ARROW, Accept=ARROW).content)
    assert {name: both.column(name).to_pylist() for name in COLUMNS} == columns
    if operation in ("reconstruct", "denoise"):
        output = "reconstruction" if operation == "reconstruct" else "denoised"
        rows_of_it = np.array([both.column(f"{output}.{name}").to_pylist() for name in COLUMNS]).T
        np.testing.assert_allclose(rows_of_it, payments_named(expected[FIRST[operation]]), rtol=1e-5)
        assert set(plain.column_names) == {*(["errors"] if operation == "reconstruct" else []), *COLUMNS}
    else:
        results = {name for name in expected if isinstance(expected[name], list)}
        assert set(plain.column_names) == results
        assert set(both.column_names) == results | set(COLUMNS)
        for name in results:
            np.testing.assert_allclose(plain.column(name).to_pylist(), expected[name], rtol=1e-5)


@pytest.mark.tf
def test_arrow_options_travel_in_the_query(service: LiveService) -> None:
    """Threshold and explain as in JSON; what belongs to all rows is in the schema's metadata."""
    rows = payments(3)
    path = "/models/payments/anomaly-score?threshold=0.001&explain=2"
    table = from_arrow(post(service, path, to_arrow(in_columns(rows)), ARROW, Accept=ARROW).content)
    expected = json_answer(service, "anomaly-score", rows.tolist(), model="payments", threshold=0.001, explain=2)
    assert table.column("is_anomaly").to_pylist() == expected["is_anomaly"]
    features = [[entry["feature"] for entry in row] for row in table.column("contributions").to_pylist()]
    assert features == [[entry["feature"] for entry in row] for row in expected["contributions"]]


@pytest.mark.tf
def test_arrow_nulls_are_missing_values(service: LiveService) -> None:
    """Where a value may not be missing, a null is 422 with its row and column."""
    columns = in_columns(payments(3))
    columns["age"][2] = None  # type: ignore[call-overload]
    problem = assert_problem(post(service, "/models/payments/encode", to_arrow(columns), ARROW), 422)
    assert (problem["errors"][0]["row"], problem["errors"][0]["column"]) == (2, "age")


# --- NDJSON -----------------------------------------------------------------------------------------------------------


def lines_of(response: Any) -> list[Any]:
    assert response.headers["content-type"] == NDJSON
    return [orjson.loads(line) for line in response.content.splitlines()]


def ndjson(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.tf
@pytest.mark.parametrize("operation", OPERATIONS)
def test_ndjson_answers_one_object_a_line_in_order(service: LiveService, operation: str) -> None:
    """Each line has what JSON has for its row; 700 rows, so several blocks."""
    rows = digits(700)
    answers = lines_of(post(service, f"/{operation}", ndjson(rows.tolist()), NDJSON))
    expected = json_answer(service, operation, rows.tolist())
    singular = {"latents": "latent", "reconstructions": "reconstruction", "errors": "error", "denoised": "denoised"}
    singular |= {"scores": "score", "p_values": "p_value", "is_anomaly": "is_anomaly"}
    assert len(answers) == 700
    for name in set(expected) & set(singular):
        values = np.asarray([answer[singular[name]] for answer in answers], np.float64)
        np.testing.assert_allclose(values, np.asarray(expected[name], np.float64), rtol=1e-5, atol=1e-5)
    assert all(set(answer) == {singular[name] for name in set(expected) & set(singular)} for answer in answers)


@pytest.mark.tf
def test_ndjson_of_named_rows_with_options(service: LiveService) -> None:
    """Objects as lines, options in the query."""
    rows = named(payments(20))
    answers = lines_of(post(service, "/models/payments/anomaly-score?threshold=0.01&explain=1", ndjson(rows), NDJSON))
    expected = json_answer(service, "anomaly-score", rows, model="payments", threshold=0.01, explain=1)
    assert [answer["is_anomaly"] for answer in answers] == expected["is_anomaly"]
    assert [answer["contributions"][0]["feature"] for answer in answers] == [
        row[0]["feature"] for row in expected["contributions"]
    ]


def test_bad_lines_are_answered_in_their_place(fake_service: LiveService) -> None:
    """What is no row becomes a problem at its line; the rows around it are answered; blank lines are none."""
    body = b'[1, 2]\n{"no": "row"}\n[3, 4]\n\nnot json\n[5, NaN]\n[6, 7, 8]\n[9, 10]'
    answers = lines_of(post(fake_service, "/encode", body, NDJSON))
    good = {0: 1.0, 2: 3.0, 6: 9.0}
    bad = {1: 422, 3: 400, 4: 422, 5: 422}
    assert len(answers) == 7
    for at, answer in enumerate(answers):
        if at in good:
            assert answer == {"latent": [good[at]]}
        else:
            assert answer["row"] == at
            assert answer["error"]["status"] == bad[at]
            assert answer["error"]["request_id"]
            assert "not json" not in str(answer)


def test_rows_that_the_model_fails_on_hurt_no_others_of_their_stream(fake_service: LiveService) -> None:
    """Their lines say 500, those before and behind them in the same block are answered."""
    rows = [[float(at), 0.0] for at in range(300)]
    for at in (7, 290):
        rows[at][0] = RAISES
    answers = lines_of(post(fake_service, "/encode", ndjson(rows), NDJSON))
    assert len(answers) == 300
    for at, answer in enumerate(answers):
        if at in (7, 290):
            assert (answer["row"], answer["error"]["status"]) == (at, 500)
        else:
            assert answer == {"latent": [float(at)]}


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_ndjson_answers_are_compressed_where_the_caller_asks(fake_service: LiveService, encoding: str) -> None:
    """Line by line all the same: each can be read as soon as it is sent."""
    rows = [[float(at), 0.0] for at in range(2000)]
    response = post(fake_service, "/encode", ndjson(rows), NDJSON, Accept_Encoding=encoding)
    assert response.headers["content-encoding"] == encoding
    assert [answer["latent"][0] for answer in lines_of(response)] == [row[0] for row in rows]


def read_line(response: HTTPResponse) -> Any:
    return orjson.loads(response.readline())


def started(connection: RawConnection) -> HTTPResponse:
    response = HTTPResponse(connection.sock)
    response.begin()
    return response


def test_a_stream_is_answered_while_it_is_sent(fake_service: LiveService) -> None:
    """The answer to a line is readable before the next line is sent, and long before the body ends."""
    with connect(fake_service.url) as connection:
        connection.send(head("/encode", Content_Type=NDJSON, Transfer_Encoding="chunked"))
        connection.send(chunk(b"[1, 1]\n"))
        with started(connection) as response:
            assert response.status == 200
            assert response.getheader("x-model-version") == "2"
            assert read_line(response) == {"latent": [1.0]}
            for number in range(2, 6):
                connection.send(chunk(b"[%d, 1]\n" % number))
                assert read_line(response) == {"latent": [float(number)]}
            connection.send(chunk(b"[6, "))
            connection.send(chunk(b"1]"))
            connection.send(chunk(b""))
            assert read_line(response) == {"latent": [6.0]}
            assert response.read() == b""


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
def test_a_stream_may_be_longer_than_any_limit_of_a_body(fake_store: Path, serve: Serve, encoding: str) -> None:
    """20,000 rows in 400 KB, where bodies may have 20 KB and 100 rows."""
    limits = {"max_json_bytes": 20_000, "max_body_bytes": 20_000, "max_decoded_bytes": 200_000, "max_rows": 100}
    service = serve(fake_store, load=load_fake, **limits)
    plain = b"".join(b"[%d, 1.0000000]\n" % number for number in range(20_000))
    compress: Any = {"identity": bytes, "gzip": gzip.compress, "zstd": zstd.compress}[encoding]

    def pieces() -> Any:
        body = compress(plain)
        for at in range(0, len(body), 5000):
            yield body[at : at + 5000]

    headers = {"Content-Type": NDJSON, "Content-Encoding": encoding}
    with service.http.stream("POST", "/encode", content=pieces(), headers=headers) as response:
        answers = [orjson.loads(line) for line in response.iter_lines()]
    assert [answer["latent"][0] for answer in answers] == list(range(20_000))


def test_a_line_that_is_too_long_is_a_bad_line(fake_store: Path, serve: Serve) -> None:
    """Skipped, not kept; the stream goes on."""
    service = serve(fake_store, load=load_fake, max_line_bytes=1000)
    body = b"[1, 2]\n[" + b" " * 5000 + b"3, 4]\n[5, 6]\n"
    answers = lines_of(post(service, "/encode", body, NDJSON))
    assert answers[1]["error"]["status"] == 413
    assert [answers[0]["latent"], answers[2]["latent"]] == [[1.0], [5.0]]


def test_a_bomb_in_a_stream_ends_it(fake_store: Path, serve: Serve) -> None:
    """What decompresses to a thousand times its size is there to keep the service busy: 413."""
    service = serve(fake_store, load=load_fake, max_decoded_bytes=1_000_000)
    response = post(service, "/encode", gzip.compress(b"\n" * 20_000_000), NDJSON, Content_Encoding="gzip")
    assert_problem(response, 413)


def test_what_ends_a_stream_early_is_its_last_line(fake_service: LiveService) -> None:
    """A body that turns out to be no gzip after good rows: the rows are answered, the last line is the problem."""
    body = gzip.compress(b"[1, 2]\n[3, 4]\n")
    with connect(fake_service.url) as connection:
        connection.send(
            head("/encode", Content_Type=NDJSON, Content_Encoding="gzip", Transfer_Encoding="chunked") + chunk(body)
        )
        with started(connection) as response:
            assert [read_line(response) for _ in range(2)] == [{"latent": [1.0]}, {"latent": [3.0]}]
            connection.send(chunk(b"this is no gzip") + chunk(b""))
            assert read_line(response)["error"]["status"] == 400
            assert response.read() == b""


def test_an_empty_stream_has_an_empty_answer(fake_service: LiveService) -> None:
    """No rows, no lines, 200."""
    response = post(fake_service, "/encode", b"\n\n", NDJSON)
    assert (response.status_code, response.content) == (200, b"")


def test_wrong_options_of_a_stream_are_422(fake_service: LiveService) -> None:
    """Known before the first line, so with a status."""
    assert_problem(post(fake_service, "/anomaly-score?threshold=x", b"[1, 2]\n", NDJSON), 422)


def test_a_stream_waits_for_room_in_the_queue(fake_store: Path, serve: Serve) -> None:
    """A full queue makes a stream that has begun wait instead of ending it."""
    gate = Gate()
    service = serve(fake_store, load=partial(load_fake, before=gate), max_queue_rows=10, slice_rows=4)
    with connect(service.url) as connection:
        connection.send(head("/encode", Content_Type=NDJSON, Transfer_Encoding="chunked"))
        connection.send(chunk(b"[1, 2]\n" * 100) + chunk(b""))
        gate.await_call()
        gate.opened.set()
        with started(connection) as response:
            assert [orjson.loads(line) for line in response] == [{"latent": [1.0]}] * 100


def test_a_silent_stream_ends_with_504(fake_store: Path, serve: Serve) -> None:
    """Nothing more within the body timeout: the last line says so."""
    service = serve(fake_store, load=load_fake, body_timeout_s=0.3)
    with connect(service.url) as connection:
        connection.send(head("/encode", Content_Type=NDJSON, Transfer_Encoding="chunked") + chunk(b"[1, 2]\n"))
        with started(connection) as response:
            assert read_line(response) == {"latent": [1.0]}
            assert read_line(response)["error"]["status"] == 504


# --- images -----------------------------------------------------------------------------------------------------------


def image_bytes(row: NDArray[np.float32], kind: str) -> bytes:
    """A digit with its levels 0..16 stretched to 0..255."""
    content = io.BytesIO()
    levels = np.round(row / 16 * 255).astype(np.uint8)
    Image.fromarray(levels).save(content, kind, **({"quality": 100} if kind == "JPEG" else {}))
    return content.getvalue()


@pytest.mark.tf
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_png_is_one_row(service: LiveService, operation: str) -> None:
    """Its levels are scaled into the model's range; the answer is that of the same row in JSON."""
    row = np.round(digits(3)[2] / 16 * 255) / 255 * 16
    answer = post(service, f"/{operation}", image_bytes(row, "PNG"), "image/png").json()
    expected = json_answer(service, operation, [row.tolist()])
    for name in set(expected) - {"model"}:
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.tf
def test_a_jpeg_is_nearly_the_same_row(service: LiveService) -> None:
    """JPEG loses a little."""
    row = digits(3)[2]
    rebuilt = post(service, "/reconstruct", image_bytes(row, "JPEG"), "image/jpeg").json()["reconstructions"]
    expected = json_answer(service, "reconstruct", [row.tolist()])["reconstructions"]
    assert np.abs(np.asarray(rebuilt) - expected).mean() < 0.3


@pytest.mark.tf
@pytest.mark.parametrize("operation", ["reconstruct", "denoise"])
def test_rows_come_back_as_png(service: LiveService, operation: str) -> None:
    """Image in, image out: the reconstruction with its levels stretched to 0..255."""
    row = digits(1)
    response = post(service, f"/{operation}", image_bytes(row[0], "PNG"), "image/png", Accept="image/png")
    assert response.headers["content-type"] == "image/png"
    levels = np.asarray(Image.open(io.BytesIO(response.content)), np.float32)
    expected = np.asarray(json_answer(service, operation, row.tolist())[FIRST[operation]])[0]
    np.testing.assert_allclose(levels / 255 * 16, np.clip(expected, 0, 16), atol=0.1)


@pytest.mark.tf
def test_png_is_not_offered_where_there_is_no_image(service: LiveService) -> None:
    """For latents, for scores, and for named columns: 406; an image body for named columns: 415."""
    for operation in ("encode", "anomaly-score"):
        assert_problem(post(service, f"/{operation}", to_npy(digits(1)), NPY, Accept="image/png"), 406)
    assert_problem(
        post(service, "/models/payments/reconstruct", to_npy(payments(1)), NPY, Accept="image/png"), 406
    )  # fmt: skip
    assert_problem(post(service, "/models/payments/encode", image_bytes(digits(1)[0], "PNG"), "image/png"), 415)


@pytest.mark.tf
def test_what_is_no_image_is_400(service: LiveService) -> None:
    """Damaged, cut short, or of another kind than announced."""
    png = image_bytes(digits(1)[0], "PNG")
    for body in (b"no image", png[:40], b"", image_bytes(digits(1)[0], "JPEG")):
        assert_problem(post(service, "/encode", body, "image/png"), 400)


@pytest.mark.tf
def test_a_pixel_bomb_is_413(trained_store: Path, serve: Serve) -> None:
    """More pixels than the limit, in a few bytes."""
    service = serve(trained_store, default_model="digits", keep_versions=1, max_pixels=10_000)
    content = io.BytesIO()
    Image.new("L", (2000, 2000)).save(content, "PNG")
    assert_problem(post(service, "/encode", content.getvalue(), "image/png"), 413)


# --- negotiation and compression --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        (f"text/html, {NPY};q=0.5", NPY),
        (f"application/json;q=0.1, {ARROW}", ARROW),
        (f"{NDJSON}, application/json;q=0.9", NDJSON),
        (f"{NPY};q=0, */*;q=0.1", "application/json"),
        ("", "application/json"),
    ],
)
def test_accept_chooses_the_answers_encoding(fake_service: LiveService, accept: str, given: str) -> None:
    """The best by quality, JSON where the caller does not care."""
    response = fake_service.post("/encode", json={"instances": [[1, 2]]}, headers={"Accept": accept})
    assert response.headers["content-type"] == given


@pytest.mark.parametrize("media_type", ["application/json", NPY, ARROW])
@pytest.mark.parametrize("answer_type", ["application/json", NPY, ARROW, NDJSON])
def test_every_request_encoding_goes_with_every_answer_encoding(
    fake_service: LiveService, media_type: str, answer_type: str
) -> None:
    """Request and answer are chosen apart."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6, dtype=np.float32)), 2)
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    bodies = {NPY: to_npy(rows), ARROW: to_arrow({"instances": lists})}
    bodies["application/json"] = json.dumps({"instances": rows.tolist()}).encode()
    response = post(fake_service, "/encode", bodies[media_type], media_type, Accept=answer_type)
    readers: dict[str, Callable[[bytes], Any]] = {
        "application/json": lambda content: orjson.loads(content)["latents"],
        NPY: lambda content: from_npy(content).tolist(),
        ARROW: lambda content: from_arrow(content).column("latents").to_pylist(),
        NDJSON: lambda content: [orjson.loads(line)["latent"] for line in content.splitlines()],
    }
    assert response.headers["content-type"] == answer_type
    assert readers[answer_type](response.content) == [[0.0], [2.0], [4.0]]


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate", "x-gzip", "identity", "GZIP"])
def test_requests_may_be_compressed(fake_service: LiveService, encoding: str) -> None:
    """Content-Encoding of the request."""
    import zlib

    body = json.dumps({"instances": [[1, 2]] * 1000}).encode()
    compress: Any = {"zstd": zstd.compress, "deflate": zlib.compress, "identity": bytes}.get(encoding, gzip.compress)
    response = post(fake_service, "/encode", compress(body), "application/json", Content_Encoding=encoding)
    assert response.json()["latents"] == [[1.0]] * 1000


@pytest.mark.parametrize(
    ("accept", "given"),
    [("gzip", "gzip"), ("zstd", "zstd"), ("gzip, zstd", "zstd"), ("gzip;q=1, zstd;q=0.5", "gzip"), ("br", None),
     ("identity", None), ("zstd;q=0", None)],
)  # fmt: skip
def test_answers_may_be_compressed(fake_service: LiveService, accept: str, given: str | None) -> None:
    """Accept-Encoding; the decompressed answer is the same, and caches are told that it varies."""
    body = {"instances": [[1, 2]] * 1000}
    with fake_service.http.stream("POST", "/encode", json=body, headers={"Accept-Encoding": accept}) as response:
        content = b"".join(response.iter_raw())
    assert response.headers.get("content-encoding") == given
    decompress: Any = {"gzip": gzip.decompress, "zstd": zstd.decompress, None: bytes}[given]
    plain = decompress(content)
    assert orjson.loads(plain)["latents"] == [[1.0]] * 1000
    if given is not None:
        assert len(content) < len(plain) / 5
        assert response.headers["vary"].lower() == "accept-encoding"


def test_small_answers_are_sent_as_they_are(fake_service: LiveService) -> None:
    """Compressing them costs more than it saves."""
    response = fake_service.post("/encode", json={"instances": [[1, 2]]}, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in response.headers


@pytest.mark.tf
def test_a_false_discovery_rate_in_every_encoding(service: LiveService) -> None:
    """In the query, over all rows of the body; what belongs to all rows is in Arrow's metadata."""
    rows = np.concatenate([payments(40), payments(10) + np.float32(10_000)])
    wanted = json_answer(service, "anomaly-score", rows.tolist(), model="payments", false_discovery_rate=0.2)
    assert 10 <= sum(wanted["is_anomaly"]) < len(rows)
    path = "/models/payments/anomaly-score?false_discovery_rate=0.2"
    assert post(service, path, to_npy(rows), NPY, Accept="application/json").json() == wanted
    lines = post(service, path, to_npy(rows), NPY, Accept=NDJSON).text.splitlines()
    assert [json.loads(line)["is_anomaly"] for line in lines] == wanted["is_anomaly"]
    table = from_arrow(post(service, path, to_arrow(in_columns(rows)), ARROW, Accept=ARROW).content)
    assert table.column("is_anomaly").to_pylist() == wanted["is_anomaly"]
    once = {name.decode(): float(value) for name, value in table.schema.metadata.items() if name != b"model"}
    del once["version"]
    assert once == {name: wanted[name] for name in once}
    assert once.keys() == {"threshold", "false_alarm_rate", "false_discovery_rate", "calibration_rows"}
