"""The documentation site: it holds what the code has, loads nothing from elsewhere, and a broken link fails it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

from service.api.grpc import health
from service.api.grpc.server import SERVICES
from service.api.oip import _ROUTES
from service.cli import app
from service.settings import ENV_PREFIX, Settings
from service.telemetry import Telemetry
from tools.docs.commands import contexts
from tools.docs.reference import alerts, error_types
from tools.docs.routes import protocol_routes, service_app

pytestmark = pytest.mark.slow  # builds the site

ROOT = Path(__file__).parent.parent
PAGES = ("tutorial", "how-to/service-owner", "how-to/pipeline-author", "how-to/data-scientist", "how-to/operator")
LOADING = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("use", "href")}
"""Attributes whose files a browser gets by itself, with no click."""


class Html(HTMLParser):
    """Anchors and references of a page, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.references: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in ("href", "src") and value:
                self.references.append((tag, name, value))

    def handle_data(self, text: str) -> None:
        self.words.append(text)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", unescape("".join(self.words)))


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Html]:
    return {path.relative_to(site).as_posix().removesuffix(".html"): Html(path) for path in site.rglob("*.html")}


# --- what stands in it ----------------------------------------------------------------------------------------------


def test_pages_for_every_user(pages: dict[str, Html]) -> None:
    """There is a tutorial, a page for each of the four users, and the explanations."""
    explained = ("scores", "explanation/p-values", "explanation/drift", "explanation/autoencoder")
    assert {*PAGES, *explained} <= set(pages)


def test_every_route(pages: dict[str, Html]) -> None:
    """Every route of the OpenAPI document stands in the reference with its method."""
    text = pages["reference/routes"].text
    paths = service_app().openapi()["paths"]
    missing = [
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if f"{method.upper()} {path}" not in text
    ]
    assert len(paths) > 25
    assert not missing


def test_every_route_of_other_protocols(pages: dict[str, Html]) -> None:
    """Every Open Inference route is matched by one in the reference, and every gRPC method stands there."""
    text = pages["reference/routes"].text
    shown = [route for _, route, _ in protocol_routes()]
    assert all(route in text for route in shown)
    asked = [route.replace("{model}", "m").split(" ") for route in shown]
    for route in _ROUTES:
        assert any(method == route.method and route.pattern.fullmatch(path) for method, path in asked), route.pattern
    assert all(f"{each.service}/{method.name}" in text for each in SERVICES for method in each.methods)
    assert f"{health.SERVICE}/Check" in text


def test_keys_of_routes(pages: dict[str, Html]) -> None:
    """The reference says which routes need an admin key, and which none."""
    text = pages["reference/routes"].text
    assert "PUT /models/{model}/aliases/{alias}¶ Promote or roll back. Key: admin." in text
    assert "GET /readyz¶ A warmed version of the default model answers. Key: none." in text
    assert {key for _, route, key in protocol_routes() if "load" in route} == {"admin"}


def test_every_setting(pages: dict[str, Html]) -> None:
    """Every setting stands in the reference with its default and meaning."""
    text = pages["reference/settings"].text
    for name, field in Settings.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        meaning = re.sub(r"\s+", " ", (field.description or "").replace("`", ""))
        assert ENV_PREFIX + name.upper() in text
        assert meaning in text, name
        assert default in (None, ()) or str(default) in text, name


def test_every_metric(pages: dict[str, Html]) -> None:
    """Every metric of an exposition that counts something stands in the reference with its help."""
    text = pages["reference/metrics"].text
    families = list(Telemetry().registry.collect())
    assert len([family for family in families if family.name.startswith("autoencoder_")]) > 15
    for family in families:
        assert family.name + ("_total" if family.type == "counter" else "") in text
        assert family.documentation.replace("`", "") in text


def test_labels_of_metrics(pages: dict[str, Html]) -> None:
    """Labels are those that samples really have."""
    telemetry = Telemetry()
    telemetry.request_finished("encode", "pumps", 200, 0.1)
    labels = [set(sample.labels) for family in telemetry.families() for sample in family.samples if sample.labels]
    assert {"operation", "model", "status"} in labels
    assert "autoencoder_requests_total counter operation, model, status" in cells(pages["reference/metrics"])


def cells(page: Html) -> str:
    return re.sub(r"\s+", " ", " ".join(word.strip() for word in page.words)).replace(" ,", ",")


def test_every_command(pages: dict[str, Html]) -> None:
    """Every command of the command line stands in the reference with all its options and their help."""
    text = pages["reference/command-line"].text
    found = list(contexts(click.Context(app, info_name="autoencoder")))
    assert {"autoencoder train", "autoencoder models promote", "autoencoder score"} <= {
        context.command_path for context in found
    }
    for context in found:
        assert context.command_path in text
        for option in (each for each in context.command.params if isinstance(each, click.Option)):
            assert all(name in text for name in option.opts), (context.command_path, option.opts)
            meaning = (option.help or "").partition("  [default")[0].replace("`", "")
            assert meaning in text, (context.command_path, option.opts)


def test_every_error(pages: dict[str, Html]) -> None:
    """Every error of the tree stands in the reference."""
    assert all(kind.__name__ in pages["reference/errors"].text for kind in error_types())


def test_what_to_do_for_every_alert(pages: dict[str, Html]) -> None:
    """The operator's page has a section for each alert of the rules."""
    names = {rule["alert"].lower() for rule in alerts()}
    assert len(names) > 5
    assert names <= pages["how-to/operator"].anchors
    assert names <= pages["reference/alerts"].anchors


# --- links ----------------------------------------------------------------------------------------------------------


def test_every_reference_leads_somewhere(site: Path, pages: dict[str, Html]) -> None:
    """Each link, picture, script and style names a file of the site, and an anchor that its page has."""
    broken = [f"{name}: {value}" for name, page in pages.items() for value in _broken(site, page)]
    assert not broken


def _broken(site: Path, page: Html) -> Iterator[str]:
    for _, _, value in page.references:
        parts = urlsplit(value)
        if parts.scheme or value.startswith("//") or page.path.name == "404.html":
            continue
        target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
        target = target / "index.html" if target.is_dir() else target
        is_there = target.is_file() and target.is_relative_to(site.resolve())
        has_anchors = target.suffix == ".html" and parts.fragment
        if not is_there or (has_anchors and unquote(parts.fragment) not in _anchors(target)):
            yield value


@cache
def _anchors(path: Path) -> frozenset[str]:
    return frozenset(Html(path).anchors)


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Html]) -> None:
    """No page has a script, style, font or picture of another host, and no style names one."""
    loaded = [
        (name, value)
        for name, page in pages.items()
        for tag, attribute, value in page.references
        if (tag, attribute) in LOADING and (urlsplit(value).scheme not in ("", "data") or value.startswith("//"))
    ]
    assert not loaded
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_works_from_disk(site: Path) -> None:
    """In a browser, from files alone: pages are drawn and searched without one request to the network."""
    from playwright.sync_api import sync_playwright

    from tests.ui.conftest import NAMES, OPTIONS

    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=OPTIONS)
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for name in ("reference/routes", "explanation/p-values", "index"):
            page.goto((site / f"{name}.html").as_uri())
        page.locator("input.md-search__input").click()
        page.keyboard.type("conformal")
        page.locator(".md-search-result__item", has_text="P-values and calibration").first.wait_for(timeout=20_000)
        browser.close()
    assert asked
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("[nowhere](nowhere.md)", "nowhere.md"),
        ("[no such part](index.md#no-such-part)", "no-such-part"),
        ("[absolute](/index.md)", "absolute link"),
        ("[outside](../nowhere.txt)", "nowhere.txt"),
        ("![no picture](nowhere.png)", "nowhere.png"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str, told: str) -> None:
    """With the project's own configuration; the same page without the link builds."""
    docs = tmp_path / "docs"
    docs.mkdir()
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: []\nnav: [index.md]\ntheme: {{favicon: null}}\n")
    page = docs / "index.md"
    page.write_text("# Whole\n", encoding="utf-8")
    whole = build(config, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    page.write_text(f"# Broken\n\n{link}\n", encoding="utf-8")
    broken = build(config, tmp_path / "broken")
    assert broken.returncode != 0
    assert told in broken.stderr
