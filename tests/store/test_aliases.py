"""Aliases: promoting, rolling back, and what a damaged file does."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import AliasNotFound, InvalidOption, StoreError, VersionInUse, VersionNotFound
from service.store import ALIASES, Store

from .trainer import MODEL, publish

HISTORY = ".alias_history.json"


@pytest.fixture
def three_versions(two_versions: Store) -> Store:
    publish(two_versions, "three")
    return two_versions


def file_of(store: Store, name: str = ALIASES) -> Path:
    return store.root / MODEL / name


def test_set_alias(two_versions: Store) -> None:
    """Promoting tells the version before and leaves exactly the documented file, readable by all."""
    assert two_versions.aliases(MODEL) == {}
    assert two_versions.set_alias(MODEL, "production", 1) is None
    assert two_versions.set_alias(MODEL, "candidate", 2) is None
    assert two_versions.set_alias(MODEL, "production", 2) == 1
    assert two_versions.set_alias(MODEL, "production", 2) == 2
    assert two_versions.aliases(MODEL) == {"production": 2, "candidate": 2}
    assert json.loads(file_of(two_versions).read_text()) == {"production": 2, "candidate": 2}
    assert file_of(two_versions).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("alias", ["", "Production", "a b", "../x", "x" * 64, "-a", "a\n", "1.0", "é"])
def test_alias_names(two_versions: Store, alias: str) -> None:
    """Names that could be mistaken for something else are refused and not echoed."""
    with pytest.raises(InvalidOption) as caught:
        two_versions.set_alias(MODEL, alias, 1)
    assert not alias or alias not in str(caught.value) or len(alias) == 1
    assert not file_of(two_versions).exists()


def test_set_alias_to_missing_version(two_versions: Store) -> None:
    """An alias cannot point at a version that is not there."""
    with pytest.raises(VersionNotFound):
        two_versions.set_alias(MODEL, "production", 3)
    assert two_versions.aliases(MODEL) == {}


def test_delete_alias(two_versions: Store) -> None:
    """A deleted alias is gone with its history; others stay."""
    two_versions.set_alias(MODEL, "candidate", 2)
    two_versions.set_alias(MODEL, "production", 1)
    two_versions.set_alias(MODEL, "production", 2)
    two_versions.delete_alias(MODEL, "production")
    assert two_versions.aliases(MODEL) == {"candidate": 2}
    with pytest.raises(AliasNotFound):
        two_versions.delete_alias(MODEL, "production")
    with pytest.raises(AliasNotFound):
        two_versions.rollback(MODEL)
    assert two_versions.set_alias(MODEL, "production", 2) is None
    with pytest.raises(VersionNotFound):
        two_versions.rollback(MODEL)


def test_rollback(three_versions: Store) -> None:
    """Rolling back goes to the version before, and again one further back, not back and forth."""
    for version in (1, 2, 3, 3, 1):
        three_versions.set_alias(MODEL, "production", version)
    assert three_versions.rollback(MODEL) == 3
    assert three_versions.aliases(MODEL) == {"production": 3}
    assert three_versions.rollback(MODEL) == 2
    assert three_versions.rollback(MODEL, "production") == 1
    with pytest.raises(VersionNotFound, match="has not pointed at another version before"):
        three_versions.rollback(MODEL)
    assert three_versions.aliases(MODEL) == {"production": 1}


def test_promote_after_rollback(three_versions: Store) -> None:
    """After a rollback the version that was left is not in the history any more."""
    for version in (1, 2):
        three_versions.set_alias(MODEL, "production", version)
    assert three_versions.rollback(MODEL) == 1
    assert three_versions.set_alias(MODEL, "production", 3) == 1
    assert three_versions.rollback(MODEL) == 1


def test_rollback_is_by_alias(three_versions: Store) -> None:
    """Every alias has a history of its own."""
    for alias, version in (("production", 1), ("candidate", 2), ("production", 2), ("candidate", 3)):
        three_versions.set_alias(MODEL, alias, version)
    assert three_versions.rollback(MODEL, "candidate") == 2
    assert three_versions.aliases(MODEL) == {"production": 2, "candidate": 2}
    assert three_versions.rollback(MODEL) == 1


def test_rollback_to_deleted_version(two_versions: Store) -> None:
    """A version before that was deleted is said to be gone, and the alias stays."""
    two_versions.set_alias(MODEL, "production", 1)
    two_versions.set_alias(MODEL, "production", 2)
    two_versions.delete(MODEL, 1)
    with pytest.raises(VersionNotFound, match="version 1 before, which is no longer there"):
        two_versions.rollback(MODEL)
    assert two_versions.resolve(MODEL) == 2


def test_history_is_bounded(two_versions: Store) -> None:
    """The history keeps the last hundred versions."""
    for step in range(120):
        two_versions.set_alias(MODEL, "production", 1 + step % 2)
    assert len(json.loads(file_of(two_versions, HISTORY).read_text())["production"]) == 100


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"production": "2"}',
        b'{"production": 2.0}',
        b'{"production": true}',
        b'{"production": 0}',
        b'{"production": 1000000000000000000}',
        b'{"production": null}',
        b'{"Production": 1}',
        b'{"": 1}',
        b'{"production": 1, "production": 2}',
        b'{"production": \xff}',
        b'{"production": ' + b"9" * 10_000 + b"}",
        b"[" * 100_000,
        b" " * (5 * 2**20),
    ],
)
def test_damaged_file(two_versions: Store, content: bytes) -> None:
    """A damaged file is an error in one clear sentence wherever aliases matter, and is never written over."""
    file_of(two_versions).write_bytes(content)
    calls: tuple[Callable[[], object], ...] = (
        lambda: two_versions.aliases(MODEL),
        lambda: two_versions.resolve(MODEL),
        lambda: two_versions.set_alias(MODEL, "production", 1),
        lambda: two_versions.rollback(MODEL),
        lambda: two_versions.delete(MODEL, 1),
    )
    for call in calls:
        with pytest.raises(StoreError, match=r"^aliases\.json of model pumps is damaged;|is too large"):
            call()
    assert file_of(two_versions).read_bytes() == content
    assert two_versions.resolve(MODEL, version=1) == 1
    assert two_versions.versions(MODEL) == [1, 2]


@pytest.mark.parametrize("content", [b"", b'{"production": 1}', b'{"production": ["1"]}', b'{"production": [0]}'])
def test_damaged_history(two_versions: Store, content: bytes) -> None:
    """A damaged history stops rollbacks and promotions with the way out of it; reading aliases goes on."""
    two_versions.set_alias(MODEL, "production", 1)
    file_of(two_versions, HISTORY).write_bytes(content)
    assert two_versions.resolve(MODEL) == 1
    calls: tuple[Callable[[], object], ...] = (
        lambda: two_versions.rollback(MODEL),
        lambda: two_versions.set_alias(MODEL, "production", 2),
    )
    for call in calls:
        with pytest.raises(StoreError, match="remove it to start anew"):
            call()
    file_of(two_versions, HISTORY).unlink()
    assert two_versions.set_alias(MODEL, "production", 2) == 1


def test_readers_see_whole_files(three_versions: Store) -> None:
    """Who reads while an alias moves sees one of its versions, always."""
    three_versions.set_alias(MODEL, "production", 1)
    ended, seen = threading.Event(), set[int]()

    def read() -> None:
        while not ended.is_set():
            seen.add(three_versions.resolve(MODEL))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(60):
            three_versions.set_alias(MODEL, "production", 1 + step % 3)
    finally:
        ended.set()
        reader.join()
    assert seen <= {1, 2, 3}
    assert seen


def test_promotions_from_many_threads(three_versions: Store) -> None:
    """Promotions at once lose none of the aliases."""
    threads = [
        threading.Thread(target=three_versions.set_alias, args=(MODEL, f"alias-{number}", 1 + number % 3))
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert three_versions.aliases(MODEL) == {f"alias-{number}": 1 + number % 3 for number in range(16)}


def test_delete_in_use(two_versions: Store) -> None:
    """A version that an alias points at is not deleted."""
    two_versions.set_alias(MODEL, "candidate", 1)
    with pytest.raises(VersionInUse, match="Version 1 of model pumps is in use by the alias candidate"):
        two_versions.delete(MODEL, 1)
    assert two_versions.versions(MODEL) == [1, 2]
    two_versions.delete_alias(MODEL, "candidate")
    two_versions.delete(MODEL, 1)
    assert two_versions.versions(MODEL) == [2]


def test_leftover_of_a_killed_promotion(two_versions: Store) -> None:
    """What a killed promotion left beside the file neither disturbs the next one nor stays."""
    (two_versions.root / MODEL / f".staging-{ALIASES}").write_text("half")
    two_versions.set_alias(MODEL, "production", 1)
    assert two_versions.aliases(MODEL) == {"production": 1}
    (two_versions.root / MODEL / f".staging-{ALIASES}").write_text("half")
    assert two_versions.sweep(MODEL) == [f"{MODEL}/.staging-{ALIASES}"]


def test_alias_survives_removal_of_other_versions(three_versions: Store) -> None:
    """Versions that were removed by hand do not hurt aliases of others."""
    three_versions.set_alias(MODEL, "production", 2)
    shutil.rmtree(three_versions.root / MODEL / "3")
    assert three_versions.resolve(MODEL) == 2
