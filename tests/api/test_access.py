"""Keys, roles and host names: which routes are open, who may do what, and that refusals say little."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.api.access import hash_key
from service.errors import ConfigurationError
from service.settings import Settings
from service.store import Store
from tests.api.raw import connect, head
from tests.api.samples import OPERATIONS, assert_problem
from tests.fakes import load_fake, publish_fake
from tests.live import LiveService, serve_live

Serve = Callable[..., LiveService]

ROWS = {"instances": [[1.0, 2.0]]}
OPEN = (
    "/livez",
    "/readyz",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/",
    "/docs/static/swagger-ui.css",
    "/ui",
    "/ui/console.js",
)
CALLERS = ("/models", "/models/pumps", "/models/pumps/versions/1", "/metrics")
OPERATION_ROUTES = [
    f"{prefix}/{operation}"
    for prefix in ("", "/models/pumps", "/models/pumps/versions/1", "/models/pumps/aliases/x")
    for operation in OPERATIONS
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """Two callers' keys, two admins' keys; one service for all tests here."""
    root = tmp_path_factory.mktemp("guarded")
    for _ in range(2):
        publish_fake(Store(root))
    callers, admins = ([hash_key(f"{role}-{index}") for index in (1, 2)] for role in ("caller", "admin"))
    settings = Settings(store=root, port=0, key_hashes=tuple(callers), admin_key_hashes=tuple(admins))
    with serve_live(settings, load=load_fake) as live:
        yield live


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_documentation_are_open(guarded: LiveService, path: str) -> None:
    """No key is asked for."""
    assert guarded.get(path).status_code in (200, 307)


def test_every_other_route_needs_a_key(guarded: LiveService) -> None:
    """All routes of the OpenAPI document but the probes: 401 with WWW-Authenticate, before anything else is said."""
    paths = guarded.get("/openapi.json").json()["paths"]
    for path, item in paths.items():
        if path in OPEN:
            continue
        for method in item:
            shown = path.format(model="pumps", version=1, alias="x", plot="losses")
            response = guarded.http.request(method.upper(), shown)
            assert_problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/models/nothing/encode", "/models/pumps/versions/9/encode"])
def test_a_stranger_learns_nothing_of_the_store(guarded: LiveService, path: str) -> None:
    """401 whether the model exists or not."""
    assert_problem(guarded.post(path, json=ROWS), 401)


@pytest.mark.parametrize("path", [*OPERATION_ROUTES[:4], *CALLERS])
def test_every_key_opens_the_routes_of_callers(guarded: LiveService, path: str) -> None:
    """In ``Authorization: Bearer`` and in ``X-API-Key``; an admin may do what a caller may."""
    method, body = ("POST", ROWS) if path in OPERATION_ROUTES else ("GET", None)
    for key in ("caller-1", "caller-2", "admin-1", "admin-2"):
        for headers in ({"Authorization": f"Bearer {key}"}, {"Authorization": f"bearer {key}"}, {"X-API-Key": key}):
            assert guarded.http.request(method, path, headers=headers, json=body).status_code == 200, headers


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": "caller-3"},
        {"X-API-Key": ""},
        {"X-API-Key": "caller-1 "[:-1] + "x"},
        {"X-API-Key": hash_key("caller-1")},
        {"Authorization": "caller-1"},
        {"Authorization": "Basic caller-1"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong", "X-API-Key": "wrong"},
    ],
)
def test_wrong_keys_are_401(guarded: LiveService, headers: dict[str, str]) -> None:
    """Unknown, empty, the hash itself, another scheme; the answer does not repeat the key."""
    response = guarded.post("/encode", json=ROWS, headers=headers)
    assert_problem(response, 401)
    assert "caller-1" not in response.text


def test_bytes_that_are_no_text_are_a_wrong_key(guarded: LiveService) -> None:
    """Not a 500."""
    with connect(guarded.url) as connection:
        connection.send(head("/encode", X_API_Key="\xff\xfe\xe9", Content_Length="0"))
        assert_problem(connection.answer(), 401)


def test_a_wrong_key_is_refused_before_the_body_is_read(guarded: LiveService) -> None:
    """A stranger's upload is not received."""
    with connect(guarded.url) as connection:
        connection.send(head("/encode", Content_Type="application/json", Content_Length="5000000"))
        assert_problem(connection.answer(), 401)


def test_changing_an_alias_needs_an_admin(guarded: LiveService) -> None:
    """403 for a caller, 200 for an admin, and the alias has moved only then."""
    path = "/models/pumps/aliases/production"
    assert_problem(guarded.http.put(path, json={"version": 1}, headers={"X-API-Key": "caller-1"}), 403)
    assert guarded.get("/models/pumps", headers={"X-API-Key": "caller-1"}).json()["aliases"] == {}
    assert guarded.http.put(path, json={"version": 1}, headers={"X-API-Key": "admin-2"}).status_code == 200
    assert_problem(guarded.http.delete(path, headers={"Authorization": "Bearer caller-2"}), 403)
    assert guarded.get("/models/pumps", headers={"X-API-Key": "caller-1"}).json()["aliases"] == {"production": 1}


def test_a_caller_with_a_broken_change_is_403_first(guarded: LiveService) -> None:
    """Who may not change anything is not told what would be right."""
    path = "/models/pumps/aliases/production"
    response = guarded.http.put(path, json={"version": "x"}, headers={"X-API-Key": "caller-1"})
    assert response.status_code in (403, 422)
    assert_problem(response, response.status_code)


def test_admin_keys_alone_close_the_service_too(fake_store: Path, serve: Serve) -> None:
    """With only admin keys set a stranger may do nothing either."""
    service = serve(fake_store, load=load_fake, admin_key_hashes=[hash_key("admin")])
    assert_problem(service.post("/encode", json=ROWS), 401)
    assert service.post("/encode", json=ROWS, headers={"X-API-Key": "admin"}).status_code == 200


def test_without_keys_everything_is_open(fake_store: Path, serve: Serve) -> None:
    """On loopback: operations and aliases."""
    service = serve(fake_store, load=load_fake)
    assert service.post("/encode", json=ROWS).status_code == 200
    assert service.http.put("/models/pumps/aliases/a", json={"version": 1}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_strangers_are_not_served_by_accident(host: str) -> None:
    """An address that other machines reach, without keys: refused, unless told so explicitly."""
    with pytest.raises(ConfigurationError, match="KEY_HASHES"):
        Settings(host=host).check_access()
    Settings(host=host, key_hashes=(hash_key("a"),)).check_access()
    Settings(host=host, admin_key_hashes=(hash_key("a"),)).check_access()
    Settings(host=host, allow_anonymous=True).check_access()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    """Nobody else reaches it."""
    Settings(host=host).check_access()


# --- host names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("models.example.org", 200),
        ("MODELS.example.org:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("models.example.org.evil.example", 400),
        ("", 400),
    ],
)
@pytest.mark.parametrize("path", ["/livez", "/models"])
def test_only_allowed_host_names_are_served(fake_store: Path, serve: Serve, host: str, status: int, path: str) -> None:
    """Against DNS rebinding; operations, models and probes alike."""
    service = serve(fake_store, load=load_fake, allowed_hosts=["models.example.org", "::1"])
    with connect(service.url) as connection:
        connection.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = connection.answer()
    assert answer.status_code == status
    if status == 400:
        assert_problem(answer, 400)
        assert "evil" not in answer.text


def test_header_injection_through_paths_and_ids(fake_service: LiveService) -> None:
    """Line ends in a path or an id never become headers."""
    for path in ("/models/x%0d%0aset-cookie:%20a=b/encode", "/%0d%0aset-cookie:%20a=b"):
        with connect(fake_service.url) as connection:
            connection.send(head(path, X_Request_ID="a%0d%0ab", Content_Length="0"))
            answer = connection.answer()
            assert_problem(answer, 404)
            assert "set-cookie" not in answer.headers
            assert "set-cookie" not in answer.text
