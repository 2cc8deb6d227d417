"""The documents say what the code does."""

import re
from pathlib import Path

import pytest

from service.training.config import PRESETS

ROOT = Path(__file__).parent.parent
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
