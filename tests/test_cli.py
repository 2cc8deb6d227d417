"""The command line: what it prints, what it changes in a store, and how it fails."""

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service import __version__
from service.cli import app
from service.settings import ENV_PREFIX, Settings
from service.store import MODEL_CARD, Store
from tests.api.processes import running
from tests.conftest import COLUMNS, table_rows, write_csv
from tests.fakes import MODEL, publish_fake


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def refused(*arguments: object) -> str:
    """The one sentence on standard error of a command that ends with exit code 1."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    *progress, sentence = result.stderr.splitlines()
    assert sentence.startswith("autoencoder: ")
    assert all(line in ("Reading rows",) for line in progress)
    return sentence


@pytest.fixture
def two_versions(fake_store: Path) -> Path:
    return fake_store


# --- help and small commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((name,) for name in app.commands), ("models", "verify")])
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    """Exit code 0 and a sentence on what it does."""
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_version_and_unknown_commands() -> None:
    """Exit code 2 is for a wrong use of the command line."""
    assert run("--version").stdout.strip() == f"autoencoder, version {__version__}"
    assert run("nothing").exit_code == 2
    assert run("models", "promote").exit_code == 2


def test_settings_lists_every_setting() -> None:
    """With its environment variable and its meaning."""
    listed = run("settings").stdout
    for name, field in Settings.model_fields.items():
        assert f"{ENV_PREFIX}{name.upper()} " in listed
        assert str(field.description) in listed


def test_key_prints_a_key_and_its_hash() -> None:
    """Each time another one; the hash is what the settings want."""
    lines = [dict(line.split() for line in run("key").stdout.splitlines()) for _ in range(2)]
    assert lines[0]["key"] != lines[1]["key"]
    for line in lines:
        assert hashlib.sha256(line["key"].encode()).hexdigest() == line["hash"]
        Settings(key_hashes=(line["hash"],))


def test_health_of_nobody() -> None:
    """Exit code 1 and one sentence."""
    assert "does not answer" in refused("health", "--url", "http://127.0.0.1:1")


# --- models -----------------------------------------------------------------------------------------------------------


def test_list_shows_every_version_with_its_aliases(two_versions: Path) -> None:
    """One line a version."""
    Store(two_versions).set_alias(MODEL, "production", 1)
    lines = run("models", "list", "--store", two_versions).stdout.splitlines()
    rows = [line for line in lines if MODEL in line]
    assert len(rows) == 2
    assert "production" in rows[0]
    assert "production" not in rows[1]


def test_list_reads_well_in_80_columns(two_versions: Path) -> None:
    """No word is cut."""
    Store(two_versions).set_alias(MODEL, "production", 2)
    result = CliRunner().invoke(app, ["models", "list", "--store", str(two_versions)], env={"COLUMNS": "80"})
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout
    assert all(word in result.stdout for word in (MODEL, "production", "tabular", "threshold"))


def test_list_of_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    """Not an empty table."""
    assert "autoencoder train" in run("models", "list", "--store", tmp_path).stdout


def test_list_goes_on_past_a_damaged_version(two_versions: Path) -> None:
    """It is listed with what is wrong with it."""
    manifest = next((two_versions / MODEL / "1").rglob("manifest.json"))
    manifest.chmod(0o644)
    manifest.write_text("{}")
    result = run("models", "list", "--store", two_versions)
    assert result.exit_code == 0
    assert "manifest.json" in result.stdout
    assert sum(MODEL in line for line in result.stdout.splitlines()) == 3  # the versions, and why one failed


def test_a_model_of_another_program_is_listed_with_the_command_that_imports_it(two_versions: Path) -> None:
    """By list, in one piece, and by verify, which fails."""
    (two_versions / MODEL / "3").mkdir()
    (two_versions / MODEL / "3" / "saved_model.pb").touch()
    command = f"`autoencoder import {MODEL}/3 --rows ROWS`"
    listed = run("models", "list", "--store", two_versions)
    assert (listed.exit_code, command in listed.stdout) == (0, True)
    verified = run("models", "verify", "--digests-only", "--store", two_versions)
    assert verified.exit_code == 1
    assert f"{MODEL} 2: good" in verified.stdout
    assert f"{MODEL} 3: BAD: A SavedModel without" in verified.stdout
    assert command in verified.stdout


def test_show_gives_the_manifest_as_json(two_versions: Path) -> None:
    """Of the version in production, of the newest without one, or of the one that is named."""
    assert json.loads(run("models", "show", MODEL, "--store", two_versions).stdout)["version"] == 2
    assert json.loads(run("models", "show", MODEL, 1, "--store", two_versions).stdout)["version"] == 1
    Store(two_versions).set_alias(MODEL, "production", 1)
    assert json.loads(run("models", "show", MODEL, "--store", two_versions).stdout)["version"] == 1


def test_promote_and_rollback(two_versions: Path) -> None:
    """The alias moves, and goes back to where it was."""
    store = Store(two_versions)
    for version in (1, 2):
        assert run("models", "promote", MODEL, version, "--store", two_versions).exit_code == 0
        assert store.aliases(MODEL) == {"production": version}
    assert "names version 1 again" in run("models", "rollback", MODEL, "--store", two_versions).stdout
    assert store.aliases(MODEL) == {"production": 1}
    assert run("models", "promote", MODEL, 2, "--alias", "candidate", "--store", two_versions).exit_code == 0
    assert store.aliases(MODEL) == {"production": 1, "candidate": 2}


def test_delete_is_refused_while_an_alias_names_the_version(two_versions: Path) -> None:
    """Afterwards it is done, and the number does not come back."""
    store = Store(two_versions)
    store.set_alias(MODEL, "production", 2)
    assert "production" in refused("models", "delete", MODEL, 2, "--store", two_versions)
    store.delete_alias(MODEL, "production")
    assert run("models", "delete", MODEL, 2, "--store", two_versions).exit_code == 0
    assert store.versions(MODEL) == [1]
    assert publish_fake(store) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "nothing"),
        ("show", MODEL, 9),
        ("promote", "nothing", 1),
        ("promote", MODEL, 9),
        ("promote", MODEL, 1, "--alias", "Not An Alias"),
        ("rollback", MODEL),
        ("delete", MODEL, 9),
        ("verify", "nothing"),
    ],
)
def test_errors_of_models_commands_are_one_sentence(two_versions: Path, arguments: tuple[object, ...]) -> None:
    """Exit code 1, and the store is as it was."""
    refused("models", *arguments, "--store", two_versions)
    assert Store(two_versions).versions(MODEL) == [1, 2]
    assert Store(two_versions).aliases(MODEL) == {}


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("show", MODEL), ("promote", MODEL, 1), ("rollback", MODEL), ("delete", MODEL, 1), ("verify",)],
)
def test_a_missing_store_is_one_sentence(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    """And it is not made."""
    assert "store" in refused("models", *arguments, "--store", tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_verify_by_digests(two_versions: Path) -> None:
    """Good versions are named as good; a damaged one ends with exit code 1."""
    result = run("models", "verify", "--digests-only", "--store", two_versions)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"{MODEL} 1: good", f"{MODEL} 2: good"]
    file = two_versions / MODEL / "2" / "saved_model.pb"
    file.chmod(0o644)
    file.write_bytes(b"x")
    result = run("models", "verify", "--digests-only", "--store", two_versions)
    assert result.exit_code == 1
    assert f"{MODEL} 1: good" in result.stdout
    assert f"{MODEL} 2: BAD: " in result.stdout


@pytest.mark.tf
def test_verify_loads_the_version(store: Path) -> None:
    """The real thing: digests, a load, the golden outputs."""
    assert run("models", "verify", "payments", "--store", store).stdout.strip() == "payments 1: good"
    file = store / "payments" / "1" / MODEL_CARD
    file.chmod(0o644)
    file.write_text("another card")
    result = run("models", "verify", "--store", store)
    assert result.exit_code == 1
    assert "payments 1: BAD: " in result.stdout
    assert "digits 2: good" in result.stdout


# --- serve ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_serve_without_a_store_is_one_sentence(tmp_path: Path) -> None:
    """It names the folder; before anything is loaded."""
    sentence = refused("serve", "--store", tmp_path / "missing", "--port", 0)
    assert "missing" in sentence


def test_serve_on_a_taken_port_is_one_sentence(fake_store: Path, taken_port: int) -> None:
    """With one process and with several."""
    for workers in (1, 2):
        sentence = refused("serve", "--store", fake_store, "--port", taken_port, "--workers", workers)
        assert str(taken_port) in sentence
        assert "in use" in sentence


def test_serve_with_wrong_settings_is_one_sentence(fake_store: Path) -> None:
    """A port that there is not; an address for all without keys."""
    assert "port" in refused("serve", "--store", fake_store, "--port", 99999)
    assert "KEY_HASHES" in refused("serve", "--store", fake_store, "--host", "0.0.0.0")


def test_serve_and_health(tmp_path: Path) -> None:
    """A service over an empty store is live and not ready: ``health`` says so."""
    (tmp_path / "empty").mkdir()
    with running(["service.cli", "serve", "--store", str(tmp_path / "empty"), "--port", "0"]) as service:
        assert "not ready" in refused("health", "--url", service.url)
        publish_fake(Store(tmp_path / "empty"))  # no SavedModel: it fails, and health goes on to say no
        assert "not ready" in refused("health", "--url", service.url)


def test_demo_tries_its_port_first(tmp_path: Path, taken_port: int) -> None:
    """Another service that listens there would answer in its place; nothing is trained."""
    sentence = refused("demo", "--store", tmp_path / "store", "--port", taken_port)
    assert sentence == f"autoencoder: Port {taken_port} is in use: choose another one with --port."
    assert not (tmp_path / "store").exists()


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_no_process_of_the_demo_outlives_it(tmp_path: Path, number: signal.Signals) -> None:
    """Its server gives the port back."""
    publish_fake(Store(tmp_path), model="digits")  # no SavedModel: the server starts, and is never ready
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "service.cli", "demo", "--store", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
        while not answers(port):
            assert demo.poll() is None
            time.sleep(0.1)
        demo.send_signal(number)
        assert demo.wait(60) == 128 + number
    assert not answers(port)


# --- train ------------------------------------------------------------------------------------------------------------


def test_train_into_what_cannot_be_written_is_noticed_first(tmp_path: Path) -> None:
    """Before any row is read."""
    (tmp_path / "file").touch()
    assert "store" in refused("train", tmp_path / "missing.csv", "--store", tmp_path / "file")
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    (tmp_path / "store").mkdir(0o555)
    assert "read-only" in refused("train", tmp_path / "missing.csv", "--store", tmp_path / "store")


def test_train_without_its_file_is_one_sentence(tmp_path: Path) -> None:
    """And no store is left behind with a model in it."""
    refused("train", tmp_path / "missing.csv", "--store", tmp_path / "store")
    assert not list((tmp_path / "store").glob("*/*"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--preset", "nothing"),
        ("--columns", "height"),
        ("--latent", "60"),
        ("--latent", "0"),
        ("--hidden", "wide"),
        ("--epochs", "0"),
        ("--dropout", "1.5"),
        ("--false-alarm-rate", "2"),
        ("--model", "Not A Name"),
    ],
)
def test_train_with_wrong_options_is_one_sentence(tmp_path: Path, option: str, value: str) -> None:
    """Known before a minute of training is spent."""
    csv = write_csv(tmp_path / "rows.csv", table_rows(200, seed=0))
    refused("train", csv, "--store", tmp_path / "store", option, value)


@pytest.mark.parametrize("content", ["", "a,b\n", "a,b\n1\n2,3,4\n", "\x00\x01\x02", "a,b\n" + "1,1\n" * 5])
def test_train_on_what_is_no_table_is_one_sentence(tmp_path: Path, content: str) -> None:
    """Empty, ragged, binary, and far too few rows."""
    (tmp_path / "rows.csv").write_text(content)
    refused("train", tmp_path / "rows.csv", "--store", tmp_path / "store")


def test_train_on_a_text_column_names_it_or_takes_it(tmp_path: Path) -> None:
    """Free text is no number: refused by the column's name, unless it can be a category."""
    rows = [f"{value},note number {at} with words\n" for at, value in enumerate(table_rows(200, seed=0)[:, 0])]
    (tmp_path / "rows.csv").write_text("amount,note\n" + "".join(rows))
    sentence = refused("train", tmp_path / "rows.csv", "--store", tmp_path / "store", "--epochs", 1)
    assert "note" in sentence


@pytest.mark.tf
def test_train_on_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """No version appears. (A limit on the size of files is as near to it as a test may come.)"""
    csv = write_csv(tmp_path / "rows.csv", table_rows(400, seed=0))
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "train",
        str(csv),
        "--store",
        str(tmp_path / "store"),
        "--epochs",
        "1",
    ]
    limited = f"ulimit -f 60; exec {shlex.join(command)}"  # blocks of 512 or 1,024 bytes
    ended = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == "autoencoder: The store could not be written: File too large."
    assert "Traceback" not in ended.stderr
    assert Store(tmp_path / "store").versions("rows") == []


@pytest.mark.tf
def test_train_and_promote(tmp_path: Path) -> None:
    """A CSV becomes version 1 of a model of its name, named by production; --if-missing leaves it at that.

    Other columns are no failure, but do not take the place of what is in production.
    """
    csv = write_csv(tmp_path / "My Rows.csv", table_rows(400, seed=0))
    arguments = ("train", csv, "--store", tmp_path / "store", "--epochs", 1, "--latent", 2, "--hidden", "8")
    result = run(*arguments, "--drop", "score")
    assert result.exit_code == 0, result.output
    store = Store(tmp_path / "store")
    assert store.models() == ["my-rows"]
    assert store.aliases("my-rows") == {"production": 1}
    assert [column.name for column in store.manifest("my-rows", 1).input.columns] == list(COLUMNS[:-1])
    next_steps = dict(line.split(":  ") for line in result.stdout.splitlines() if ":  " in line)
    assert Path(next_steps["The report"]).is_file()
    with chdir(tmp_path):
        assert run(*shlex.split(next_steps["Score a file"])[1:]).exit_code == 0
    assert len((tmp_path / "scored.csv").read_text().splitlines()) == 401
    assert "nothing to do" in run(*arguments, "--if-missing").stdout
    assert store.versions("my-rows") == [1]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "Version 1 stays in production. Its columns are not those of production: score." in result.stdout
    assert store.versions("my-rows") == [1, 2]
    assert store.aliases("my-rows") == {"production": 1}
