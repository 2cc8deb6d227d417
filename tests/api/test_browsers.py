"""What web pages of others can make a browser send to the service: host names, origins, and CORS for those allowed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from service.errors import ConfigurationError
from service.settings import load_settings
from tests.api.raw import connect
from tests.api.samples import assert_problem
from tests.api.test_errors import full
from tests.fakes import load_fake
from tests.live import LiveService

Serve = Callable[..., LiveService]

ROWS = {"instances": [[1.0, 2.0]]}
ALIAS = "/models/pumps/aliases/production"
APP = "https://app.example"
CROSS = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
FORM = {**CROSS, "Sec-Fetch-Mode": "no-cors", "Content-Type": "text/plain"}
PREFLIGHT = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type,x-api-key"}
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/anomaly-score", ROWS),
    ("POST", "/models/pumps/encode", ROWS),
    ("POST", "/v1/models/pumps:predict", ROWS),
    ("POST", "/v2/repository/models/pumps/load", {}),
    ("POST", "/v2/repository/models/pumps/unload", {}),
    ("PUT", ALIAS, {"version": 1}),
    ("DELETE", ALIAS, None),
    ("POST", f"{ALIAS}/rollback", None),
    ("GET", "/models", None),
    ("GET", "/metrics", None),
    ("OPTIONS", ALIAS, None),
)


@pytest.fixture
def service(fake_store: Path, serve: Serve) -> LiveService:
    """On loopback, without keys, as it starts without a setting; ``production`` is 2."""
    live = serve(fake_store, load=load_fake)
    live.service.manager.store.set_alias("pumps", "production", 2)
    live.service.manager.refresh()
    return live


def assert_refused(response: httpx.Response, status: int, path: str) -> None:
    """In the form of the route, saying nothing of the request."""
    if path.startswith(("/v1", "/v2")):
        assert response.status_code == status, response.text
        assert list(response.json()) == ["error"]
    else:
        assert_problem(response, status)
    assert "evil" not in response.text
    assert "access-control-allow-origin" not in response.headers


def production(live: LiveService) -> int | None:
    return live.service.manager.store.aliases("pumps").get("production")


# --- host names ---------------------------------------------------------------------------------------------------


def test_a_page_that_rebinds_its_name_reaches_nothing(service: LiveService) -> None:
    """Its requests are of the same origin for the browser; only their host name tells."""
    port = service.url.rpartition(":")[2]
    rebound = {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}", "Sec-Fetch-Site": "same-origin"}
    for method, path, body in ROUTES:
        assert_refused(service.http.request(method, path, json=body, headers=rebound), 400, path)
    assert production(service) == 2


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "models.localhost:80", "127.0.0.1", "127.8.8.8:8000", "[::1]:8000", "localhost."],
)
def test_loopback_names_are_served(fake_service: LiveService, host: str) -> None:
    """Whatever the port: it may be forwarded."""
    assert fake_service.post("/encode", json=ROWS, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example", "10.0.0.1", "[::2]", "notlocalhost"],
)
@pytest.mark.parametrize("path", ["/livez", "/models"])
def test_other_names_are_not_served_on_loopback(fake_service: LiveService, host: str, path: str) -> None:
    """Whatever they look like."""
    with connect(fake_service.url) as connection:
        connection.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert_problem(connection.answer(), 400)


def test_each_of_several_host_names_counts(fake_service: LiveService) -> None:
    """A second one does not stand behind the first."""
    for names in (("localhost", "evil.example"), ("evil.example", "localhost")):
        with connect(fake_service.url) as connection:
            hosts = "".join(f"Host: {name}\r\n" for name in names)
            connection.send(f"GET /models HTTP/1.1\r\n{hosts}\r\n".encode())
            assert connection.answer().status_code == 400


def test_a_set_list_takes_the_place_of_loopback_names(fake_store: Path, serve: Serve) -> None:
    """Of names that the operator chooses."""
    live = serve(fake_store, load=load_fake, allowed_hosts=["models.example"])
    assert live.get("/models", headers={"Host": "models.example"}).status_code == 200
    refused = live.get("/models", headers={"Host": "localhost"})
    assert "AUTOENCODER_ALLOWED_HOSTS" in assert_problem(refused, 400)["detail"]


@pytest.mark.parametrize("form", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "Text/Plain"])
def test_forms_change_nothing(service: LiveService, form: str) -> None:
    """Old browsers send them for any page, without a word of whose it is."""
    for path in (f"{ALIAS}/rollback", "/v2/repository/models/pumps/load", "/v2/repository/models/pumps/unload"):
        assert_refused(service.http.post(path, content=b"{}", headers={"Content-Type": form}), 403, path)
    assert production(service) == 2
    assert service.http.post("/v2/repository/models/pumps/load", content=b"{}").status_code == 200


# --- origins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        CROSS,
        FORM,
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "x"},
    ],
)
def test_pages_of_others_reach_nothing(service: LiveService, headers: dict[str, str]) -> None:
    """Neither operations, which count into drift, nor changes; a ``text/plain`` body needs no preflight."""
    for method, path, body in ROUTES:
        assert_refused(service.http.request(method, path, json=body, headers=headers), 403, path)
    assert production(service) == 2
    assert service.get("/models/pumps/drift").json()["scored_rows"] == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "{url}"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy.example"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "{url}"},
    ],
)
def test_own_pages_and_programs_reach_everything(service: LiveService, headers: dict[str, str]) -> None:
    """A browser says whose page it is; curl and the client send neither header."""
    given = {name: value.format(url=service.url) for name, value in headers.items()}
    assert service.post("/anomaly-score", json=ROWS, headers=given).status_code == 200
    assert service.post("/v1/models/pumps:predict", json=ROWS, headers=given).status_code == 200
    assert service.http.put(ALIAS, json={"version": 1}, headers=given).status_code == 200
    assert service.http.post(f"{ALIAS}/rollback", headers=given).status_code == 200
    assert service.http.post("/v2/repository/models/pumps/load", headers=given).status_code == 200


def test_links_lead_to_the_console(service: LiveService) -> None:
    """A page may lead here, but neither draw ours within itself nor load parts of it."""
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert service.get("/ui", headers=link).status_code == 200
    assert service.get("/ui", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert (
        service.get("/ui", headers=link | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}).status_code == 403
    )
    assert service.post("/encode", json=ROWS, headers=link).status_code == 403


def test_a_full_queue_says_nothing_to_pages_of_others(fake_store: Path, serve: Serve) -> None:
    """Refusals for load, which come first of all, hold to the same rules; an allowed origin may read them."""
    with full(fake_store, serve, allowed_origins=[APP]) as (service, _):
        assert service.post("/encode", json=ROWS).status_code == 429
        assert_refused(service.post("/encode", json=ROWS, headers={"Host": "evil.example"}), 400, "/encode")
        assert_refused(service.post("/encode", json=ROWS, headers=CROSS), 403, "/encode")
        allowed = service.post("/encode", json=ROWS, headers=CROSS | {"Origin": APP})
        assert allowed.status_code == 429
        assert allowed.headers["access-control-allow-origin"] == APP


# --- CORS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(fake_store: Path, serve: Serve) -> LiveService:
    return serve(fake_store, load=load_fake, allowed_origins=[APP, "http://localhost:3000"])


@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
@pytest.mark.parametrize("path", ["/encode", "/v1/models/pumps:predict", "/models/none/encode", "/models"])
def test_allowed_origins_read_answers(shared: LiveService, site: str | None, path: str) -> None:
    """Errors too, and the headers that name the version; caches keep the answers of two origins apart."""
    headers = {"Origin": APP} | ({"Sec-Fetch-Site": site} if site else {})
    answer = shared.get(path, headers=headers) if path == "/models" else shared.post(path, json=ROWS, headers=headers)
    assert answer.status_code == (404 if "none" in path else 200)
    assert answer.headers["access-control-allow-origin"] == APP
    assert "origin" in answer.headers["vary"].lower()
    assert "X-Model-Version" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers


def test_preflights_of_allowed_origins(shared: LiveService) -> None:
    """Any method and header that a route takes; no key is asked for, since browsers send none."""
    for path in (ALIAS, "/encode", "/v2/models/pumps/infer"):
        answer = shared.http.options(path, headers=PREFLIGHT | {"Origin": APP, "Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == APP
        assert "PUT" in answer.headers["access-control-allow-methods"]
        assert "x-api-key" in answer.headers["access-control-allow-headers"].lower()


def test_large_answers_and_streams_reach_allowed_origins(shared: LiveService) -> None:
    """Past the short cuts of a connection."""
    rows = {"instances": [[float(at), 1.0] for at in range(5000)]}
    answer = shared.post("/reconstruct", json=rows, headers={"Origin": APP, "Accept-Encoding": "gzip"})
    assert len(answer.json()["errors"]) == 5000
    assert answer.headers["access-control-allow-origin"] == APP
    assert {part.strip() for part in answer.headers["vary"].lower().split(",")} == {"origin", "accept-encoding"}
    lines = {"Origin": APP, "Content-Type": "application/x-ndjson"}
    stream = shared.post("/encode", content=b"[1, 2]\n" * 10, headers=lines)
    assert stream.text.count("\n") == 10
    assert stream.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize("path", ["/encode", "/v2/models/pumps/infer", ALIAS])
def test_other_origins_stay_refused(shared: LiveService, path: str) -> None:
    """Also their preflights, and those that look alike."""
    for origin in ("https://evil.example", "http://app.example", f"{APP}.evil.example", "null"):
        assert_refused(shared.post(path, json=ROWS, headers={"Origin": origin}), 403, path)
        assert_refused(shared.http.options(path, headers=PREFLIGHT | {"Origin": origin}), 403, path)


def test_every_origin_can_be_allowed(fake_store: Path, serve: Serve) -> None:
    """With a star, for a service whose keys are its guard."""
    live = serve(fake_store, load=load_fake, allowed_origins=["*"])
    answer = live.post("/encode", json=ROWS, headers=CROSS)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert live.get("/models", headers={"Host": "evil.example", "Origin": "http://evil.example"}).status_code == 400


@pytest.mark.parametrize(
    "origin", ["app.example", "https://APP.example", "https://app.example/", "https://app.example/path", "ftp://x", ""]
)
def test_what_is_no_origin_is_refused_as_a_setting(origin: str) -> None:
    """It would never match."""
    with pytest.raises(ConfigurationError, match="allowed_origins"):
        load_settings(allowed_origins=[origin])
