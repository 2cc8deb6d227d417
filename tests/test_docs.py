"""The documents say what the code does."""

import re
from pathlib import Path

import pytest

from service.settings import ENV_PREFIX, Settings
from service.training.config import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_settings_table() -> None:
    """The README lists every setting with its default and meaning, and no other."""
    table = README.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0]
    listed = {}
    for line in table.strip().splitlines()[2:]:
        _, name, default, meaning, _ = re.split(r"(?<!\\)\|", line)
        listed[name.strip().strip("`")] = (default.strip().strip("`"), meaning.strip())
    expected = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default in (None, ()) else str(default).lower() if isinstance(default, bool) else str(default)
        expected[ENV_PREFIX + name.upper()] = (shown, field.description)
    assert listed == expected


def test_presets() -> None:
    """Every preset stands in the README."""
    assert all(f"| `{preset}` |" in README for preset in PRESETS)


@pytest.mark.tf
def test_files_of_a_version(trained_store: Path) -> None:
    """The README's list of them names none that a version does not have."""
    shown = re.search(r"^model_store/digits/1/ +(.*\.pb.*)$", README, flags=re.M)
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
