"""The store on object stores: what it promises on a disk, where there is neither rename nor lock."""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.client import Client
from service.errors import (
    AliasNotFound,
    ConfigurationError,
    InvalidVersion,
    ModelNotFound,
    StoreError,
    StoreUnavailable,
    VersionInUse,
    VersionNotFound,
)
from service.settings import Settings
from service.store import MANIFEST, Store
from service.store.buckets import Bucket, LostRace
from service.store.objects import ObjectDirectory, VersionCache
from service.store.store import directory_at
from tests.fakes import load_fake, publish_fake
from tests.live import serve_live

from .remote import ROOT, environment, s3_server, store_at, use_server
from .trainer import FILES, MODEL, manifest_of, publish, whole

pytest.importorskip("fsspec", reason="pip install fsspec")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as (url, _):
        yield url


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_server(server, monkeypatch)


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> str:
    """Of an empty prefix."""
    if request.param == "memory":
        return f"memory://models-{secrets.token_hex(4)}"
    return str(request.getfixturevalue("s3"))


@pytest.fixture
def store(url: str, tmp_path: Path) -> Store:
    opened = store_at(url, tmp_path / "cache")
    opened.create()
    return opened


def test_publish_and_read(store: Store, url: str, tmp_path: Path) -> None:
    """What one machine publishes another one finds, whole; the local copy is a version's folder."""
    assert store.models() == []
    with pytest.raises(ModelNotFound):
        store.versions(MODEL)
    assert [publish(store, "one"), publish(store, "two")] == [1, 2]
    other = store_at(url, tmp_path / "other")
    assert other.models() == [MODEL]
    assert other.versions(MODEL) == [1, 2]
    assert other.resolve(MODEL) == 2
    assert other.manifest(MODEL, 1).source == "one"
    assert whole(other, 1)
    assert other.path(MODEL, 1) != store.path(MODEL, 1)
    assert other.read_file(MODEL, 2, FILES[0]) == (other.path(MODEL, 2) / FILES[0]).read_bytes()
    assert other.read_file(MODEL, 2, "nothing") is None
    copy = other.path(MODEL, 2)
    files = [file for file in copy.rglob("*") if file.is_file()]
    assert other.file_sizes(MODEL, 2) == {str(file.relative_to(copy)): file.stat().st_size for file in files}
    assert list((tmp_path / "cache").glob("*/.partial-*")) == []


def test_what_another_program_wrote_is_told_from_what_is_being_published(store: Store, url: str) -> None:
    """A number that a publisher claimed is not listed before its manifest is there; a stray SavedModel is."""
    publish(store)
    Bucket(url).create(f"{MODEL}/2/saved_model.pb", b"x")
    versions, others = store.listing(MODEL)
    assert (versions, list(others)) == ([1], [2])
    assert f"`autoencoder import {MODEL}/2 --rows ROWS`" in others[2]
    Bucket(url).create(f"{MODEL}/.claims/2", b"owner")
    assert store.listing(MODEL) == ([1], {})


def test_aliases_move_forth_and_back(store: Store, url: str, tmp_path: Path) -> None:
    """As on a disk; another machine sees it at once."""
    other = store_at(url, tmp_path / "other")
    for token in "abc":
        publish(store, token)
    assert store.set_alias(MODEL, "production", 1) is None
    assert other.set_alias(MODEL, "production", 2) == 1
    assert store.set_alias(MODEL, "production", 3) == 2
    assert other.aliases(MODEL) == {"production": 3}
    assert [other.rollback(MODEL), store.rollback(MODEL)] == [2, 1]
    with pytest.raises(VersionNotFound):
        other.rollback(MODEL)
    store.set_alias(MODEL, "candidate", 2)
    other.delete_alias(MODEL, "candidate")
    with pytest.raises(AliasNotFound):
        store.resolve(MODEL, alias="candidate")
    with pytest.raises(VersionNotFound):
        store.set_alias(MODEL, "production", 9)


def test_deleted_numbers_do_not_come_back(store: Store, url: str, tmp_path: Path) -> None:
    """Neither where the highest version went; one that an alias names stays."""
    for token in "ab":
        publish(store, token)
    store.set_alias(MODEL, "production", 1)
    with pytest.raises(VersionInUse, match="production"):
        store.delete(MODEL, 1)
    store.delete(MODEL, 2)
    assert store.versions(MODEL) == [1]
    assert not any(name.startswith(f"{MODEL}/2/") for name in Bucket(url).sizes(""))
    assert publish(store_at(url, tmp_path / "other"), "c") == 3


def test_a_version_that_an_alias_takes_while_it_is_deleted_stays(store: Store) -> None:
    """There is no lock: the deletion looks again after the manifest is gone, and puts it back."""
    publish(store)
    directory = store._directory
    assert not directory.discard(MODEL, 1, wanted=lambda: True)
    assert whole(store, 1)
    assert directory.discard(MODEL, 1, wanted=lambda: False)
    assert store.versions(MODEL) == []


def test_no_store_is_an_error(url: str, tmp_path: Path) -> None:
    """An empty prefix is a typing error until somebody makes a store of it; publishing does not."""
    store = store_at(url, tmp_path / "cache")
    for read in (store.models, lambda: publish(store), lambda: store.versions(MODEL)):
        with pytest.raises(StoreUnavailable, match="nothing under this prefix"):
            read()
    store.create()
    store.create()
    assert store.models() == []


@pytest.mark.slow
def test_no_bucket_is_an_error(s3: str, tmp_path: Path) -> None:
    """Reading, making and publishing alike."""
    store = store_at("s3://there-is-no-such-bucket/x", tmp_path)
    for use in (store.models, store.create, lambda: publish(store)):
        with pytest.raises(StoreError):
            use()


@pytest.mark.parametrize("url", ["ftp://host/x", "nonsense://x", "https://host", "file:///tmp/x"])
def test_what_cannot_hold_a_store_is_refused(url: str) -> None:
    """At once, with what can; nothing is looked up for it."""
    with pytest.raises(ConfigurationError, match="cannot hold a store"):
        directory_at(url)


def test_writes_are_conditional(url: str) -> None:
    """A second one that must be the first fails, and so does one that rests on what is no longer there."""
    bucket = Bucket(url)
    bucket.create("a", b"1")
    with pytest.raises(LostRace):
        bucket.create("a", b"2")
    first = bucket.read("a")
    assert first is not None
    bucket.replace("a", b"3", tag=first.tag)
    with pytest.raises(LostRace):
        bucket.replace("a", b"4", tag=first.tag)
    changed = bucket.read("a")
    assert changed is not None
    assert changed.content == b"3"
    bucket.delete("a")
    bucket.delete("a")
    with pytest.raises(LostRace):
        bucket.replace("a", b"5", tag=changed.tag)
    assert bucket.read("a") is None


def in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_concurrent_publishers_get_numbers_of_their_own(store: Store, url: str, tmp_path: Path) -> None:
    """From machines of their own; every version is of one of them alone."""
    numbers: list[int] = []
    in_threads(4, lambda at: numbers.append(publish(store_at(url, tmp_path / str(at)), f"token{at}")))
    assert sorted(numbers) == [1, 2, 3, 4]
    assert {store.manifest(MODEL, number).source for number in numbers} == {f"token{at}" for at in range(4)}
    assert all(whole(store, number) for number in numbers)


def test_concurrent_promotions_lose_nothing(store: Store, url: str, tmp_path: Path) -> None:
    """Each alias that somebody set is there afterwards, with the history of its own."""
    for token in "ab":
        publish(store, token)

    def promote(at: int) -> None:
        machine = store_at(url, tmp_path / str(at))
        machine.set_alias(MODEL, f"alias-{at}", 1)
        machine.set_alias(MODEL, f"alias-{at}", 2)

    in_threads(4, promote)
    assert store.aliases(MODEL) == {f"alias-{at}": 2 for at in range(4)}
    assert [store.rollback(MODEL, f"alias-{at}") for at in range(4)] == [1] * 4


def test_an_unconditional_writer_loses_promotions(store: Store, url: str, tmp_path: Path) -> None:
    """The control: what the condition is for. Two changes that rest on the same read, one overwrites the other."""

    class Careless(Bucket):
        def replace(self, key: str, content: bytes, *, tag: str) -> None:
            found = self.read(key)
            assert found is not None
            super().replace(key, content, tag=found.tag)

    publish(store)
    store.set_alias(MODEL, "first", 1)
    careless = store_at(url, tmp_path / "careless", bucket=Careless(url))

    def change(directory: object, name: str, between: Callable[[], object]) -> None:
        known = json.loads(careless._directory.read(f"{MODEL}/aliases.json") or b"{}")
        between()
        careless._directory.replace(f"{MODEL}/aliases.json", json.dumps({**known, name: 1}).encode())

    careless._directory.exclusively(
        MODEL, lambda: change(careless, "second", lambda: store.set_alias(MODEL, "third", 1))
    )
    assert store.aliases(MODEL) == {"first": 1, "second": 1}


@pytest.mark.parametrize("name", FILES)
def test_altered_objects_are_not_loaded(store: Store, url: str, tmp_path: Path, name: str) -> None:
    """A flipped bit, a lost file, a foreign manifest: refused with its name; nothing of it stays in the cache."""
    publish(store)
    bucket = Bucket(url)
    key = f"{MODEL}/1/{name}"
    original = bucket.read(key)
    assert original is not None
    bucket.replace(key, bytes([original.content[0] ^ 1]) + original.content[1:], tag=original.tag)
    other = store_at(url, tmp_path / "other")
    with pytest.raises(InvalidVersion, match=name.rpartition("/")[2]):
        other.path(MODEL, 1)
    bucket.delete(key)
    with pytest.raises(InvalidVersion, match=f"{name} is missing"):
        other.path(MODEL, 1)
    bucket.create(key, original.content)
    assert whole(other, 1)


def test_manifests_cannot_name_files_elsewhere(store: Store, url: str, tmp_path: Path) -> None:
    """A path that leaves the version is refused before anything is downloaded."""
    from service.store.manifest import write_manifest

    publish(store)
    write_manifest(tmp_path, manifest_of(1, {"../../evil": "0" * 64}))
    bucket = Bucket(url)
    known = bucket.read(f"{MODEL}/1/{MANIFEST}")
    assert known is not None
    bucket.replace(f"{MODEL}/1/{MANIFEST}", (tmp_path / MANIFEST).read_bytes(), tag=known.tag)
    with pytest.raises(InvalidVersion, match="not a plain relative path"):
        store_at(url, tmp_path / "other").path(MODEL, 1)
    assert not list(tmp_path.rglob("evil"))


def test_the_cache_downloads_once_and_stays_bounded(tmp_path: Path) -> None:
    """Processes share it; the least recently used version goes when it grows too large and nobody needs it."""
    bucket_url = f"memory://models-{secrets.token_hex(4)}"
    downloads: list[str] = []

    class Counting(Bucket):
        def download(self, key: str, target: Path) -> None:
            downloads.append(key)
            super().download(key, target)

    store = store_at(bucket_url, tmp_path / "cache", bucket=Counting(bucket_url))
    store.create()
    for token in "abc":
        publish(store, token)
    first = store.path(MODEL, 1)

    def open_version() -> None:
        assert store_at(bucket_url, tmp_path / "cache").path(MODEL, 1) == first

    in_threads(4, lambda _: open_version())
    store.path(MODEL, 1)
    assert len(downloads) == len(FILES)
    long_ago = time.time() - 7200
    second = store.path(MODEL, 2)
    for path, at in ((first, long_ago - 1), (second, long_ago)):
        os.utime(path, (at, at))
    size = sum(file.stat().st_size for file in first.rglob("*") if file.is_file())
    cache = VersionCache(bucket_url, tmp_path / "cache", max_bytes=int(2.5 * size))
    Store(ObjectDirectory(Bucket(bucket_url), cache=cache)).path(MODEL, 3)
    assert not first.exists()
    assert second.exists()


STEPS = ["create claim", "upload 1", "upload 2", "upload 3", "renew", "create manifest"]


@pytest.mark.slow
@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_a_publisher_killed_half_way_leaves_nothing(s3: str, tmp_path: Path, step: int) -> None:
    """Before any of its writes: no version, the next number is free of it, and what it left is swept once it is old."""
    store = store_at(s3, tmp_path / "cache")
    store.create()
    publish(store, "one")
    command = [sys.executable, "-m", "tests.store.s3_trainer", s3, str(tmp_path / "trainer"), "two"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        assert trainer.stdout.readline().split() == ["create", f"{MODEL}/.claims/0"]  # the model is there already
        for _ in range(step + 1):
            trainer.stdin.write("go on\n")
            trainer.stdin.flush()
            last = trainer.stdout.readline()
        assert last.split()[0] == STEPS[step].split()[0].replace("renew", "replace")
        trainer.kill()
    assert store.versions(MODEL) == [1]
    assert publish(store, "three") == (2 if step == 0 else 3)
    left = f"{MODEL}/2/"
    assert any(key.startswith(left) for key in Bucket(s3).sizes("")) == (step != 1)
    assert store.sweep() == []
    eager = store_at(s3, tmp_path / "cache", abandoned_after_s=-10)
    assert eager.sweep() == ([f"{MODEL}/2"] if step > 1 else [])
    assert step == 0 or not any(key.startswith(left) for key in Bucket(s3).sizes(""))
    assert publish(store, "four") == (3 if step == 0 else 4)


def test_a_trainer_that_was_given_up_does_not_publish(store: Store, url: str, tmp_path: Path) -> None:
    """Its files are being removed: it finds its claim taken before it writes the manifest."""

    class Late(Bucket):
        def upload(self, source: Path, key: str) -> None:
            super().upload(source, key)
            if key.endswith("saved_model.pb"):
                claim = self.read(f"{MODEL}/.claims/1")
                assert claim is not None
                self.replace(f"{MODEL}/.claims/1", b"abandoned\n", tag=claim.tag)

    with pytest.raises(StoreError, match="publish again"):
        publish(store_at(url, tmp_path / "late", bucket=Late(url)))
    assert store.versions(MODEL) == []


@pytest.mark.slow
def test_a_service_follows_an_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Published, promoted and rolled back while it serves; when the store goes away it goes on serving."""
    monkeypatch.setenv("AUTOENCODER_STORE_CACHE", str(tmp_path / "cache"))
    rows = np.ones((3, 2), np.float32)
    with s3_server() as (server, process):
        url = use_server(server, monkeypatch)
        store = Store(url)
        store.create()
        publish_fake(store)
        settings = Settings(store=url, port=0, watch_interval_s=0.1)
        with serve_live(settings, load=load_fake) as live, Client(live.url) as client:
            assert client.encode(rows).version == 1
            assert publish_fake(Store(url)) == 2
            wait_for(lambda: client.encode(rows).version == 2)
            assert client.promote(MODEL, 1).serving == 1
            assert client.promote(MODEL, 2).previous == 1
            assert client.rollback(MODEL).version == 1
            assert client.encode(rows).version == 1
            assert client.version(MODEL, 2)["latent_dim"] == 1
            process.kill()
            wait_for(lambda: live.service.manager.store_problem is not None, timeout_s=60)
            assert client.ready()
            assert client.encode(rows).version == 1


def wait_for(happened: Callable[[], bool], *, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.tf
def test_train_into_a_bucket_and_serve_from_it(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``autoencoder train --store s3://…`` and the service on another machine, with a real model."""
    from click.testing import CliRunner

    from service.cli import app
    from tests.conftest import table_rows, write_csv

    monkeypatch.setenv("AUTOENCODER_STORE_CACHE", str(tmp_path / "cache"))
    csv = write_csv(tmp_path / "payments.csv", table_rows(600, seed=0))
    arguments = ["train", str(csv), "--store", s3, "--epochs", "2", "--hidden", "8", "--latent", "2"]
    for command in (arguments, ["models", "list", "--store", s3], ["models", "verify", "--store", s3]):
        ran = CliRunner().invoke(app, command, catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
    assert "payments 1: good" in ran.output
    monkeypatch.setenv("AUTOENCODER_STORE_CACHE", str(tmp_path / "another machine"))
    with serve_live(Settings(store=s3, port=0)) as live, Client(live.url) as client:
        assert client.anomaly_score(table_rows(5, seed=1)).scores.shape == (5,)


def test_cache_variables_of_the_page_exist() -> None:
    """The cache variables that docs/stores.md shows are those of the code."""
    from service.store import objects

    page = (ROOT / "docs/stores.md").read_text(encoding="utf-8")
    assert f"`{objects.CACHE_VARIABLE}`" in page
    assert f"| `{objects.SIZE_VARIABLE}` | `{objects.DEFAULT_BYTES}` |" in page
