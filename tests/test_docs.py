"""The documents say what the code does."""

import re
from pathlib import Path

import pytest

from service.settings import ENV_PREFIX, Settings
from service.training.config import PRESETS
from tests.live import LiveService

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


def test_commands_of_the_readme_exist() -> None:
    """Every ``autoencoder`` command that the README shows is one."""
    from click.testing import CliRunner

    from service.cli import app

    shown = set(re.findall(r"\.venv/bin/autoencoder ((?:models )?[a-z]+)", README))
    assert {"train", "serve", "models list", "models promote"} <= shown
    for command in shown:
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command


@pytest.mark.tf
def test_calls_of_the_readme(service: LiveService, trained_store: Path) -> None:
    """The curl calls answer with exactly the fields that the README shows."""
    calls = README.partition("<!-- calls -->")[2].partition("<!-- /calls -->")[0]
    body = (trained_store / "digits/1/assets.extra/sample_request.json").read_bytes()
    shown = re.findall(r"curl -s http://127.0.0.1:8000(\S+) .*?```\n```\n(.*?)\n```", calls, flags=re.S)
    assert len(shown) == 4
    for path, answer in shown:
        given = service.post(path, content=body, headers={"Content-Type": "application/json"}).json()
        assert [name for name in re.findall(r'"(\w+)":', answer) if name not in ("name", "version")] == list(given)


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_local_links(document: str) -> None:
    """No document points at a file that is not there."""
    text = (ROOT / document).read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_rooms_of_the_architecture_exist() -> None:
    """Every room in ARCHITECTURE.md's table stands in ``service``, and every one there is in the table."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("## Rooms")[2].partition("## Life of a request")[0]
    named = {
        name.rstrip("/")
        for row in re.findall(r"^\| \d \| ([^|]+) \|", table, re.M)
        for name in re.findall(r"`([^`]+)`", row)
    }
    rooms = {entry.name for entry in (ROOT / "service").iterdir() if entry.suffix == ".py" or entry.is_dir()}
    assert named == rooms - {"__init__.py", "__pycache__", "py.typed"}
