"""The documents say what the code does."""

import re
from pathlib import Path

import click
import pytest

from service.cli import app
from service.settings import Settings
from service.telemetry import Telemetry
from service.training.config import PRESETS
from tools.docs.commands import contexts

ROOT = Path(__file__).parent.parent
MAX_PICTURES_BYTES = 500_000
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    """It is for newcomers: figures, settings and protocols are in docs/ and in the generated reference."""
    assert len(README.encode()) <= 9 * 1024


def test_presets() -> None:
    """Every preset is described in docs/training.md."""
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert all(f"| `{preset}` |" in page for preset in PRESETS)


@pytest.mark.tf
def test_files_of_a_version(trained_store: Path) -> None:
    """The list in docs/stores.md names none that a version does not have."""
    page = (ROOT / "docs/stores.md").read_text(encoding="utf-8")
    shown = re.search(r"^model_store/digits/1/ +(.*\.pb.*)$", page, flags=re.M)
    assert shown is not None
    top, _, assets = shown[1].partition("assets.extra/")
    listed = [*top.split(), *(f"assets.extra/{name}" for name in assets.strip("{}").split(", ") if name != "…")]
    assert len(listed) == 7
    assert all((trained_store / "digits/1" / name).exists() for name in listed)


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_local_links(document: str) -> None:
    """No document points at a file that is not there."""
    text = (ROOT / document).read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_rooms_of_the_architecture_exist() -> None:
    """Every room in ARCHITECTURE.md's table stands in ``service``, and every one there is in the table.

    ``benchmarks`` is in the table too, and stands beside ``service``: it is not installed.
    """
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("## Rooms")[2].partition("## Life of a request")[0]
    named = {
        name.rstrip("/")
        for row in re.findall(r"^\| \d \| ([^|]+) \|", table, re.M)
        for name in re.findall(r"`([^`]+)`", row)
    }
    rooms = {entry.name for entry in (ROOT / "service").iterdir() if entry.suffix == ".py" or entry.is_dir()}
    assert (ROOT / "benchmarks").is_dir()
    assert named == rooms - {"__init__.py", "__pycache__", "py.typed"} | {"benchmarks"}


def test_commands_of_the_pages_exist() -> None:
    """Every ``autoencoder`` command in the documents is one, and so is every option that stands behind it."""
    paths = {context.command_path: context for context in contexts(click.Context(app, info_name="autoencoder"))}
    for line in commands_shown():
        words = line.split()
        depth = next(size for size in range(len(words), 0, -1) if " ".join(words[:size]) in paths)
        context = paths[" ".join(words[:depth])]
        assert depth > 1, line
        known = {name for each in context.command.params for name in (*each.opts, *each.secondary_opts)}
        given = {word.partition("=")[0] for word in words[depth:] if word.startswith("--") and word != "--"}
        assert given <= known | {"--help"}, line


def commands_shown() -> set[str]:
    shown = set()
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
            found = re.findall(r"(?:^|[\s/|])(autoencoder [a-z].*?)(?:\s#|\s\||\s>|\s-- |\)|$)", block, re.M)
            shown |= {re.sub(r"\s+", " ", line).strip() for line in found}
    assert len(shown) > 40
    return shown


def test_settings_and_metrics_of_the_pages_exist() -> None:
    """Whatever the documents call ``AUTOENCODER_…`` or ``autoencoder_…`` is a setting or a metric."""
    beside = {"KEY", "STORE_CACHE", "STORE_CACHE_BYTES", "SETTINGS_FILE"}
    names = {name.upper() for name in Settings.model_fields} | beside
    families = {family.name for family in Telemetry().registry.collect()}
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = document.read_text(encoding="utf-8")
        assert set(re.findall(r"AUTOENCODER_([A-Z0-9_]*[A-Z0-9])(?![A-Z0-9_]|…)", text)) <= names, document
        metrics = set(re.findall(r"`(autoencoder_[a-z_]+)", text)) - {"autoencoder_nightly"}
        assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in metrics} <= families, document


def test_pictures_are_small() -> None:
    """Those of the explanations are under 500 kB together."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "explanation").glob("*.md"))
    pictures = {ROOT / "docs" / "images" / name for name in re.findall(r"\.\./images/([\w.-]+)", text)}
    assert len(pictures) >= 5
    assert sum(path.stat().st_size for path in pictures) < MAX_PICTURES_BYTES


def test_make_and_ci_build_the_site() -> None:
    """``make docs`` is part of what CI runs."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "for check in lint docs; do" in ci
    assert "mkdocs --quiet build --strict" in (ROOT / "Makefile").read_text(encoding="utf-8")
