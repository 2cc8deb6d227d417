"""Pages of other sites in a real browser: they reach nothing of a service that runs beside it, unless allowed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route

from tests.fakes import load_fake
from tests.live import LiveService

Serve = Callable[..., LiveService]
pytestmark = pytest.mark.slow

SCORE = {"method": "POST", "body": '{"instances": [[1, 2]]}'}
ATTEMPTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/models/pumps:predict", SCORE | {"headers": {"Content-Type": "text/plain"}}),
    ("/v1/models/pumps:predict", SCORE | {"mode": "no-cors"}),
    ("/v2/repository/models/pumps/load", {"method": "POST", "body": "{}", "mode": "no-cors"}),
    ("/anomaly-score", SCORE | {"headers": {"Content-Type": "application/json"}}),
    ("/models/pumps/aliases/production", {"method": "PUT", "body": '{"version": 1}'}),
    ("/models/pumps/aliases/production", {"method": "DELETE"}),
    ("/models/pumps/aliases/production/rollback", {"method": "POST", "mode": "no-cors"}),
    ("/models", {}),
)
FETCH = """async ([url, options]) => {
  try { return (await fetch(url, options)).status; } catch { return "blocked"; }
}"""

SUBMIT = """(url) => {
  const form = Object.assign(document.createElement("form"), { method: "post", action: url, enctype: "text/plain" });
  const field = Object.assign(document.createElement("input"), { name: '{"instances": [[1, 2]], "x":"', value: '"}' });
  form.append(field);
  document.body.append(form);
  form.submit();
}"""


@pytest.fixture
def service(fake_store: Path, serve: Serve) -> LiveService:
    """``production`` is 2."""
    live = serve(fake_store, load=load_fake, allowed_origins=["http://app.localhost"])
    live.service.manager.store.set_alias("pumps", "production", 2)
    live.service.manager.refresh()
    return live


def page_at(browser: Browser, url: str) -> Page:
    """An empty page at ``url``, whoever serves that: what an attacker's own server would have answered."""
    page = browser.new_page()

    def answer(route: Route) -> None:
        route.fulfill(body="<!doctype html><title>page</title>", content_type="text/html")

    page.route(url, answer)
    page.goto(url)
    return page


def untouched(service: LiveService) -> bool:
    scored: int = service.get("/models/pumps/drift").json()["scored_rows"]
    return scored == 0 and service.service.manager.store.aliases("pumps") == {"production": 2}


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:9", "http://127.0.0.1:9"])
def test_a_page_elsewhere_reaches_nothing(browser: Browser, service: LiveService, origin: str) -> None:
    """Whether the browser asks first or not; a page of the same machine's other service neither."""
    page = page_at(browser, f"{origin}/attack")
    for path, options in ATTEMPTS:
        assert page.evaluate(FETCH, [service.url + path, options]) in ("blocked", 0)
    page.evaluate(SUBMIT, f"{service.url}/v1/models/pumps:predict")
    page.wait_for_url(f"{service.url}/**")
    assert "may not call" in page.content()
    assert untouched(service)
    page.close()


def test_a_rebound_name_reaches_nothing(browser: Browser, service: LiveService) -> None:
    """The name of the page leads to this machine by now, so the browser takes the service for its own."""
    own = f"http://evil.example:{service.url.rpartition(':')[2]}"
    page = page_at(browser, f"{own}/attack")
    for path, options in ATTEMPTS:
        assert page.evaluate(FETCH, [own + path, options]) == 400
    assert untouched(service)
    page.close()


def test_an_allowed_page_reaches_all(browser: Browser, service: LiveService) -> None:
    """Its requests with keys and bodies of JSON, which the browser asks for first, and the headers of the answers."""
    page = page_at(browser, "http://app.localhost/app")
    version = page.evaluate(
        """async (url) => {
      const headers = { "Content-Type": "application/json", "X-API-Key": "key" };
      const answer = await fetch(url, { method: "POST", headers, body: '{"instances": [[1, 2]]}' });
      return [(await answer.json()).model.version, answer.headers.get("x-model-version")];
    }""",
        f"{service.url}/anomaly-score",
    )
    assert version == [2, "2"]
    promote = {"method": "PUT", "headers": {"Content-Type": "application/json"}, "body": '{"version": 1}'}
    assert page.evaluate(FETCH, [f"{service.url}/models/pumps/aliases/production", promote]) == 200
    assert service.service.manager.store.aliases("pumps") == {"production": 1}
    page.close()


def test_a_link_leads_to_the_console(browser: Browser, service: LiveService) -> None:
    """From any page; the console then works as ever."""
    page = page_at(browser, "http://evil.example/page")
    page.evaluate("(url) => { location.href = url; }", f"{service.url}/ui")
    page.get_by_role("heading", level=1, name="Models", exact=True).wait_for()
    page.close()
