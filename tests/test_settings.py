"""Settings: each one described, read from arguments, environment and file in this order, wrong ones in one sentence."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import ENV_PREFIX, FILE_VARIABLE, Settings, SettingsError, load_settings

HASH = "0" * 64


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
    with pytest.raises(SettingsError) as error:
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
