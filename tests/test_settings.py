"""Settings: each one described, read from arguments, environment and file in this order, wrong ones in one sentence."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.cli import app
from service.errors import ConfigurationError
from service.settings import ENV_PREFIX, FILE_VARIABLE, Settings, check_variables, load_settings

HASH = "0" * 64
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Nothing of the machine's own settings, and nothing left behind."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def write_toml(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    os.environ[FILE_VARIABLE] = str(file)


def refused(**arguments: object) -> str:
    with pytest.raises(ConfigurationError) as error:
        load_settings(**arguments)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    """In a sentence: a capital or a name in code at its start, a full stop at its end."""
    description = Settings.model_fields[name].description
    assert description
    assert description[0].isupper() or description.startswith("`")
    assert description.endswith(".")


def test_the_defaults_are_safe() -> None:
    """Loopback, no keys needed there, the limits of a service on a small machine."""
    settings = load_settings()
    assert settings.host == "127.0.0.1"
    assert not settings.keys_required
    assert not settings.allow_anonymous
    settings.check_access()
    assert settings.max_json_bytes == 8 * 2**20
    assert settings.max_body_bytes == 64 * 2**20
    assert settings.max_depth == 32
    assert settings.max_rows == 65_536
    assert settings.max_header_bytes == 16 * 2**10
    assert (settings.header_timeout_s, settings.body_timeout_s) == (10, 30)
    assert (settings.request_timeout_ms, settings.drain_timeout_s) == (10_000, 20)


def test_the_first_source_wins(tmp_path: Path) -> None:
    """Arguments, then the environment, then the file, then the defaults."""
    write_toml(tmp_path, 'port = 1\nhost = "localhost"\nworkers = 2\n')
    os.environ[f"{ENV_PREFIX}PORT"] = "2"
    os.environ[f"{ENV_PREFIX}HOST"] = "127.0.0.2"
    settings = load_settings(port=3, host=None)
    assert (settings.port, settings.host, settings.workers, settings.model_threads) == (3, "127.0.0.2", 2, 2)


@pytest.mark.parametrize("name", ["key_hashes", "admin_key_hashes"])
def test_lists_in_the_environment_have_commas(name: str) -> None:
    """Several keys for rotation."""
    os.environ[f"{ENV_PREFIX}{name.upper()}"] = f"{HASH}, {HASH[:-1]}1,"
    settings = load_settings()
    assert getattr(settings, name) == (HASH, HASH[:-1] + "1")
    assert settings.keys_required


def test_lists_in_a_file_are_lists(tmp_path: Path) -> None:
    """TOML has arrays."""
    write_toml(tmp_path, f'key_hashes = ["{HASH}"]\nallowed_hosts = ["a.example", "b.example"]\n')
    settings = load_settings()
    assert settings.key_hashes == (HASH,)
    assert settings.allowed_hosts == ("a.example", "b.example")


def test_a_key_in_place_of_its_hash_is_refused_and_not_shown() -> None:
    """The most likely mistake must not print the key."""
    sentence = refused(key_hashes="my-secret-key")
    assert "key_hashes" in sentence
    assert "my-secret-key" not in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "99999"),
        ("port", "http"),
        ("max_rows", "0"),
        ("max_rows", "-1"),
        ("request_timeout_ms", "soon"),
        ("shadow_share", "1.5"),
        ("log_level", "loud"),
        ("workers", "0"),
        ("header_timeout_s", "0"),
        ("header_timeout_s", "nan"),
    ],
)
def test_wrong_values_are_named(name: str, value: str) -> None:
    """The setting and its environment variable, in one sentence."""
    os.environ[f"{ENV_PREFIX}{name.upper()}"] = value
    sentence = refused()
    assert f"'{name}'" in sentence
    assert f"{ENV_PREFIX}{name.upper()}" in sentence


def test_an_unknown_setting_in_the_file_is_refused(tmp_path: Path) -> None:
    """A typing error must not be ignored."""
    write_toml(tmp_path, "prot = 8000\n")
    assert "prot" in refused()


def test_a_file_that_is_missing_or_broken_is_refused(tmp_path: Path) -> None:
    """Whoever names a file wants it read."""
    os.environ[FILE_VARIABLE] = str(tmp_path / "missing.toml")
    assert "missing.toml" in refused()
    write_toml(tmp_path, "port = = 1\n")
    assert "settings file" in refused()


def test_settings_do_not_change() -> None:
    """They are handed down, not looked up again."""
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


# --- names of variables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ALOWED_HOSTS", "AUTOENCODER_ALLOWED_HOSTS?"),
        ("KEY_HASH", "AUTOENCODER_KEY_HASHES?"),
        ("MAX_QUEUE_REQUEST", "AUTOENCODER_MAX_QUEUE_REQUESTS?"),
        ("STORE_CACHE_SIZE", "AUTOENCODER_STORE_CACHE"),
        ("PROT", "AUTOENCODER_PORT?"),
        ("XYZZY", "autoencoder settings"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest(name: str, hint: str) -> None:
    """It would be ignored: a service without its keys."""
    os.environ[ENV_PREFIX + name] = "secret-value"
    sentence = refused()
    assert f"{ENV_PREFIX}{name}" in sentence
    assert hint in sentence
    assert "secret-value" not in sentence


@pytest.mark.parametrize(
    "arguments", [("settings",), ("models", "list"), ("train", "digits"), ("key",), ("health",), ("serve",)]
)
def test_every_command_refuses_a_misspelt_variable(arguments: tuple[str, ...]) -> None:
    """Before it does anything; exit code 1."""
    result = CliRunner(env={f"{ENV_PREFIX}STOER": "x"}).invoke(app, arguments)
    assert result.exit_code == 1
    assert f"{ENV_PREFIX}STORE?" in result.stderr


def test_variables_of_a_cluster_are_no_mistakes() -> None:
    """Kubernetes tells each pod of the services around it, by names that begin with theirs."""
    service_links = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP", "PORT_8000_TCP_ADDR")
    check_variables(ENV_PREFIX + name for name in service_links)
    check_variables(["AUTOENCODERS_X", "PATH", "AUTOENCODER"])


def test_every_variable_of_this_repository_is_known() -> None:
    """Of the code, the documents and what is deployed."""
    suffixes = {".py", ".md", ".yml", ".yaml", ".sh", ".toml", ""}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [path for name in listed.split() if (path := ROOT / name).suffix in suffixes and path.is_file()]
    named: set[str] = set()
    for file in files:
        if file != Path(__file__):
            named.update(re.findall(rf"\b{ENV_PREFIX}[A-Z0-9_]*[A-Z0-9]\b", file.read_text(errors="replace")))
    assert len(named) > 30
    check_variables(named)
