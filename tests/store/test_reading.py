"""Finding models and versions: what counts as one, what does not, and what is an error."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import (
    AliasNotFound,
    InvalidVersion,
    ModelNotFound,
    StoreUnavailable,
    VersionNotFound,
)
from service.store import ASSETS, MANIFEST, Store, write_manifest

from .trainer import FILES, MODEL, manifest_of, publish, whole

CALLS: dict[str, Callable[[Store], object]] = {
    "models": lambda store: store.models(),
    "versions": lambda store: store.versions(MODEL),
    "aliases": lambda store: store.aliases(MODEL),
    "resolve": lambda store: store.resolve(MODEL),
    "path": lambda store: store.path(MODEL, 1),
    "manifest": lambda store: store.manifest(MODEL, 1),
    "verify_digests": lambda store: store.verify_digests(MODEL, 1),
    "set_alias": lambda store: store.set_alias(MODEL, "production", 1),
    "delete_alias": lambda store: store.delete_alias(MODEL, "production"),
    "rollback": lambda store: store.rollback(MODEL),
    "delete": lambda store: store.delete(MODEL, 1),
    "sweep": lambda store: store.sweep(),
    "sweep a model": lambda store: store.sweep(MODEL),
    "publish": publish,
}
CALLS_OF_A_MODEL = {name: call for name, call in CALLS.items() if name not in ("models", "sweep", "publish")}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_missing_root(tmp_path: Path, call: Callable[[Store], object]) -> None:
    """A missing root is an error of every call, and nothing makes it."""
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        call(Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_root_is_a_file(tmp_path: Path, call: Callable[[Store], object]) -> None:
    """So is a root that is no folder."""
    (tmp_path / "store").touch()
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        call(Store(tmp_path / "store"))


def test_root_that_goes_away(two_versions: Store) -> None:
    """A root that goes away while a store is in use is missing, and back when it is back."""
    two_versions.root.rename(two_versions.root.with_name("elsewhere"))
    with pytest.raises(StoreUnavailable):
        two_versions.versions(MODEL)
    two_versions.root.with_name("elsewhere").rename(two_versions.root)
    assert two_versions.versions(MODEL) == [1, 2]


@pytest.mark.parametrize("call", CALLS_OF_A_MODEL.values(), ids=CALLS_OF_A_MODEL)
def test_missing_model(store: Store, call: Callable[[Store], object]) -> None:
    """A model without a folder is not found, and none is made."""
    with pytest.raises(ModelNotFound):
        call(store)
    assert store.models() == []
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../store/pumps", "pumps/", "pumps/1", "/", "pumps\n", "Pumps", "p\0"])
def test_model_names_are_no_paths(two_versions: Store, name: str) -> None:
    """What is not the name of a model is not found, wherever it would lead as a path."""
    with pytest.raises(ModelNotFound):
        two_versions.versions(name)
    with pytest.raises(ModelNotFound):
        two_versions.path(name, 1)


def test_models(store: Store, tmp_path: Path) -> None:
    """Models are the folders with a model's name; files, links and other names are ignored."""
    for name in ("a", "b-2", "c_3", "0", "z" * 63):
        (store.root / name).mkdir()
    for name in ("A", "_a", "-a", ".hidden", "z" * 64, "é", "a.b", "lost+found"):
        (store.root / name).mkdir()
    (store.root / "file").touch()
    (store.root / "link").symlink_to(tmp_path)
    assert store.models() == ["0", "a", "b-2", "c_3", "z" * 63]
    assert store.versions("a") == []


def test_versions(store: Store) -> None:
    """Versions are folders with plain ASCII numbers and a manifest, in the order of numbers."""
    numbers = ("1", "2", "10", "999999999999999999")
    others = ("0", "01", "+3", "-3", "3 ", "٣", "３", "²", "3.0", "1e3", "1000000000000000000", ".staging-3", "v3", "३")
    for name in (*numbers, *others):
        (store.root / MODEL / name / ASSETS).mkdir(parents=True)
        (store.root / MODEL / name / MANIFEST).touch()
    assert store.versions(MODEL) == [1, 2, 10, 999999999999999999]


def test_what_is_no_version(two_versions: Store) -> None:
    """A folder without a manifest, a link to a version, and a file with a number are no versions."""
    model = two_versions.root / MODEL
    (model / "3").mkdir()
    (model / "4").symlink_to(model / "1")
    (model / "5").touch()
    shutil.copytree(model / "1", model / "6")
    (model / "6" / MANIFEST).unlink()
    assert two_versions.versions(MODEL) == [1, 2]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("saved_model.pb", "A SavedModel"),
        ("best.keras", "A Keras model"),
        ("old.h5", "A Keras model"),
        ("MLmodel", "An MLflow"),
    ],
)
def test_what_another_program_wrote_is_explained(store: Store, file: str, kind: str) -> None:
    """Its number is listed beside the versions, with what it is and the command that makes a version of it."""
    publish(store, "one")
    (store.root / MODEL / "2").mkdir()
    (store.root / MODEL / "2" / file).touch()
    (store.root / MODEL / "3").mkdir()
    versions, others = store.listing(MODEL)
    assert (versions, list(others)) == ([1], [2, 3])
    assert others[2].startswith(kind)
    assert f"`autoencoder import {MODEL}/2 --rows ROWS`" in others[2]
    assert "no manifest" in others[3]
    assert store.resolve(MODEL) == 1
    with pytest.raises(VersionNotFound, match="autoencoder import"):
        store.manifest(MODEL, 2)


def test_a_model_of_another_program_alone_says_so(store: Store) -> None:
    """Whoever asks for the version that answers is told why there is none."""
    (store.root / MODEL / "1").mkdir(parents=True)
    (store.root / MODEL / "1" / "saved_model.pb").touch()
    with pytest.raises(VersionNotFound, match=r"no version yet\. A SavedModel .* `autoencoder import"):
        store.resolve(MODEL)


def test_linked_model(two_versions: Store) -> None:
    """A link to a model is not a model."""
    (two_versions.root / "link").symlink_to(two_versions.root / MODEL)
    with pytest.raises(ModelNotFound):
        two_versions.versions("link")


def test_linked_root(two_versions: Store, tmp_path: Path) -> None:
    """The root itself may be a link, as mounts often are."""
    (tmp_path / "link").symlink_to(two_versions.root)
    assert Store(tmp_path / "link").versions(MODEL) == [1, 2]


def test_resolve(two_versions: Store) -> None:
    """A version stands for itself, an alias for its version, nothing for the highest or for ``production``."""
    publish(two_versions)
    assert two_versions.resolve(MODEL) == 3
    two_versions.set_alias(MODEL, "candidate", 1)
    assert two_versions.resolve(MODEL) == 3
    two_versions.set_alias(MODEL, "production", 2)
    assert two_versions.resolve(MODEL) == 2
    assert two_versions.resolve(MODEL, alias="production") == 2
    assert two_versions.resolve(MODEL, alias="candidate") == 1
    assert two_versions.resolve(MODEL, version=3) == 3


@pytest.mark.parametrize("number", [0, -1, 3, 10**18, 10**4000])
def test_resolve_missing_version(two_versions: Store, number: int) -> None:
    """A version that is not there is not found."""
    with pytest.raises(VersionNotFound):
        two_versions.resolve(MODEL, version=number)
    with pytest.raises(VersionNotFound):
        two_versions.path(MODEL, number)


@pytest.mark.parametrize("alias", ["", "production", "../pumps/aliases", "nobody"])
def test_resolve_missing_alias(two_versions: Store, alias: str) -> None:
    """An alias that is not there is not found, ``production`` by name included."""
    with pytest.raises(AliasNotFound):
        two_versions.resolve(MODEL, alias=alias)


def test_resolve_alias_of_missing_version(two_versions: Store) -> None:
    """An alias whose version was removed by hand is an error and does not fall back on another version."""
    two_versions.set_alias(MODEL, "production", 1)
    shutil.rmtree(two_versions.root / MODEL / "1")
    for alias in (None, "production"):
        with pytest.raises(VersionNotFound, match="production of model pumps points at a missing version"):
            two_versions.resolve(MODEL, alias=alias)


def test_resolve_without_versions(store: Store) -> None:
    """A model without a version is said to be one."""
    (store.root / MODEL).mkdir()
    with pytest.raises(VersionNotFound, match="no version yet"):
        store.resolve(MODEL)


def test_resolve_version_and_alias(two_versions: Store) -> None:
    """A version and an alias together are a mistake of the program."""
    with pytest.raises(ValueError, match="not both"):
        two_versions.resolve(MODEL, version=1, alias="production")


def test_manifest_of_another_version(two_versions: Store) -> None:
    """A version that was copied to another number or model is refused."""
    shutil.copytree(two_versions.path(MODEL, 1), two_versions.root / MODEL / "7")
    shutil.copytree(two_versions.path(MODEL, 1), two_versions.root / "other" / "1")
    for model, number in ((MODEL, 7), ("other", 1)):
        with pytest.raises(InvalidVersion, match="of another model or version"):
            two_versions.manifest(model, number)


def test_reading_does_not_write(two_versions: Store) -> None:
    """Reading leaves no trace in the store."""

    def snapshot() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (two_versions.root, *two_versions.root.rglob("*"))}

    before = snapshot()
    assert two_versions.models() == [MODEL]
    assert all(whole(two_versions, number) for number in two_versions.versions(MODEL))
    assert two_versions.aliases(MODEL) == {}
    assert two_versions.resolve(MODEL) == 2
    assert two_versions.sweep() == []
    assert snapshot() == before


def test_version_that_goes_away_while_it_is_read(two_versions: Store) -> None:
    """A deleted version is missing, not invalid, for who asks for it just then."""
    two_versions.manifest(MODEL, 1)
    two_versions.delete(MODEL, 1)
    with pytest.raises(VersionNotFound):
        two_versions.verify_digests(MODEL, 1)


def test_manifest_with_paths_outside(two_versions: Store) -> None:
    """Digests of files outside the version's folder make it invalid, whether the files match or not."""
    path = two_versions.path(MODEL, 1)
    manifest = two_versions.manifest(MODEL, 1)
    digest = manifest.digests[FILES[0]]
    for name in (
        f"../2/{FILES[0]}",
        f"../1/{FILES[0]}",
        str(path / FILES[0]),
        f"./{FILES[0]}",
        f"variables/../{FILES[0]}",
    ):
        write_manifest(path, manifest_of(1, {**manifest.digests, name: digest}))
        with pytest.raises(InvalidVersion, match="not a plain relative path"):
            two_versions.verify_digests(MODEL, 1)
