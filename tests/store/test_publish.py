"""Publishing, deleting and sweeping, in one process."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import InvalidOption, InvalidVersion, StoreError, TrainingFailed, VersionNotFound
from service.store import ASSETS, MANIFEST, Manifest, Store
from service.store.directory import check_and_rename, rename_no_replace

from .trainer import FILES, MODEL, accept, fill, manifest_of, publish, publish_staged, publish_with, staged_in, whole


def test_first_version(store: Store) -> None:
    """The first version is 1, whole, and leaves nothing staged."""
    assert publish(store, "one") == 1
    assert store.models() == [MODEL]
    assert store.versions(MODEL) == [1]
    assert whole(store, 1)
    assert store.manifest(MODEL, 1).source == "one"
    assert staged_in(store) == []


def test_numbers_rise(store: Store) -> None:
    """Every version gets the next number; models count for themselves."""
    assert [publish(store) for _ in range(3)] == [1, 2, 3]
    assert publish(store, model="other") == 1


def test_staging_is_private(store: Store) -> None:
    """The staged folder is nobody else's business, is no version, and is on the store's file system."""
    with store.stage(MODEL) as staging:
        assert staging.path.parent == store.root / MODEL
        assert staging.path.stat().st_mode & 0o777 == 0o700
        assert staging.path.name.startswith(".staging-")
        assert store.versions(MODEL) == []


def test_another_user_can_read_it(store: Store) -> None:
    """Whatever the trainer's umask and modes, a published version is readable by all and writable in no file."""
    before = os.umask(0o077)
    try:
        with store.stage(MODEL) as staging:
            fill(staging.path, "a")
            (staging.path / FILES[0]).chmod(0o700)
            publish_staged(staging, "a")
    finally:
        os.umask(before)
    assert (store.root / MODEL).stat().st_mode & 0o755 == 0o755
    version_dir = store.path(MODEL, 1)
    for path in (version_dir, *version_dir.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o444), path


@pytest.mark.parametrize("name", ["", "Pumps", "../pumps", "a/b", ".", "x" * 64])
def test_model_names(store: Store, name: str) -> None:
    """No folder is made for what cannot be a model's name."""
    with pytest.raises(InvalidOption), store.stage(name):
        pass
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("error", [TrainingFailed("no"), KeyboardInterrupt(), SystemExit()], ids=repr)
def test_leaving_without_publishing(store: Store, error: BaseException) -> None:
    """Whatever ends the work before it is published, the staged folder goes."""

    def leave() -> None:
        with store.stage(MODEL) as staging:
            fill(staging.path, "a")
            raise error

    with pytest.raises(type(error)):
        leave()
    assert staged_in(store) == []
    assert store.versions(MODEL) == []


@pytest.mark.parametrize("error", [InvalidVersion("no"), KeyboardInterrupt(), OSError("no")], ids=repr)
def test_failed_verification(store: Store, error: BaseException) -> None:
    """Whatever the verification raises comes out as it is, and nothing is published."""

    def refuse(path: Path) -> None:
        assert (path / MANIFEST).is_file()
        raise error

    with pytest.raises(type(error)) as caught:
        publish_with(store, verify=refuse)
    assert caught.value is error
    assert staged_in(store) == []
    assert store.versions(MODEL) == []
    assert publish(store) == 1


def test_verification_sees_the_whole_version(store: Store) -> None:
    """The verification gets the folder as it will be, while no version is to be seen."""
    seen: list[set[str]] = []

    def look(path: Path) -> None:
        seen.append({str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()})
        assert store.versions(MODEL) == []

    publish_with(store, verify=look)
    assert seen == [{*FILES, MANIFEST}]


def test_verification_that_alters_files(store: Store) -> None:
    """Files that change after their digests were taken are not published."""

    def alter(path: Path) -> None:
        (path / "left by the verification").touch()

    with pytest.raises(InvalidVersion, match="not in the manifest"):
        publish_with(store, verify=alter)
    assert store.versions(MODEL) == []


def test_verification_that_alters_the_manifest(store: Store) -> None:
    """So is a manifest."""

    def alter(path: Path) -> None:
        (path / MANIFEST).chmod(0o644)
        (path / MANIFEST).write_text((path / MANIFEST).read_text().replace("0.5", "0.6"))

    with pytest.raises(InvalidVersion, match=r"manifest\.json is not what was published"):
        publish_with(store, verify=alter)
    assert store.versions(MODEL) == []


def test_number_taken_during_verification(store: Store) -> None:
    """Another trainer that is quicker gets the number; the slower one gets the next, in its manifest too."""

    def overtake(_path: Path) -> None:
        assert publish(store, "quick") == 1

    with store.stage(MODEL) as staging:
        fill(staging.path, "slow")
        assert staging.publish(lambda number, digests: manifest_of(number, digests, token="slow"), overtake) == 2
    assert [store.manifest(MODEL, number).source for number in store.versions(MODEL)] == ["quick", "slow"]
    assert all(whole(store, number) for number in (1, 2))


def test_number_deleted_during_verification(store: Store) -> None:
    """A number that was published and deleted meanwhile is not given again."""

    def come_and_go(_path: Path) -> None:
        publish(store)
        store.delete(MODEL, 1)

    assert publish_with(store, verify=come_and_go) == 2


def test_empty_folder_with_the_number(two_versions: Store) -> None:
    """An empty folder with a number is left alone and its number passed over: nothing is merged into it."""
    (two_versions.root / MODEL / "7").mkdir()
    (two_versions.root / MODEL / "3").mkdir()
    assert publish(two_versions) == 8
    assert list((two_versions.root / MODEL / "7").iterdir()) == []
    assert two_versions.versions(MODEL) == [1, 2, 8]


@pytest.mark.parametrize("rename", [rename_no_replace, check_and_rename])
def test_rename_replaces_nothing(tmp_path: Path, rename: Callable[[Path, Path], None]) -> None:
    """The rename fails on anything that is there, be it an empty folder, and else does what it should."""
    (tmp_path / "staged").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        with pytest.raises(FileExistsError):
            rename(tmp_path / "staged", tmp_path / name)
    rename(tmp_path / "staged", tmp_path / "free")
    assert (tmp_path / "free").is_dir()
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize(
    "wrong", [{"version": 2}, {"model": "other"}, {"digests": {}}, {"digests": {"saved_model.pb": "0" * 64}}], ids=repr
)
def test_manifest_of_something_else(store: Store, wrong: dict[str, object]) -> None:
    """A manifest that is not of this model, number and files is not published."""

    def build_manifest(number: int, digests: dict[str, str]) -> Manifest:
        return manifest_of(number, digests).model_copy(update=wrong)

    with pytest.raises(InvalidVersion, match="not of this model"):
        publish_with(store, build_manifest=build_manifest)
    assert store.versions(MODEL) == []


def test_manifest_that_json_cannot_hold(store: Store) -> None:
    """A threshold that is not a number is found before the verification, let alone by the service."""

    def build_manifest(number: int, digests: dict[str, str]) -> Manifest:
        manifest = manifest_of(number, digests)
        calibration = manifest.calibrated.model_copy(update={"threshold": float("nan")})
        return manifest.model_copy(update={"calibration": calibration})

    with pytest.raises(InvalidVersion, match=r"calibration\.threshold"):
        publish_with(store, build_manifest=build_manifest, verify=lambda _path: pytest.fail("too late"))
    assert store.versions(MODEL) == []


def test_links_are_not_published(store: Store, tmp_path: Path) -> None:
    """A version that no service would load is not published, and what the link leads to stays as it is."""
    (tmp_path / "precious").write_text("precious")
    mode = (tmp_path / "precious").stat().st_mode
    with store.stage(MODEL) as staging:
        fill(staging.path, "a")
        (staging.path / "link").symlink_to(tmp_path / "precious")
        with pytest.raises(InvalidVersion, match="symbolic link"):
            staging.publish(manifest_of, accept)
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "precious").stat().st_mode == mode


@pytest.mark.parametrize("name", [ASSETS, MANIFEST])
def test_obstacles_where_the_manifest_goes(store: Store, name: str) -> None:
    """What stands where the manifest must go ends in an error of the store."""
    with store.stage(MODEL) as staging:
        if name == ASSETS:
            (staging.path / name).touch()
        else:
            (staging.path / name).mkdir(parents=True)
        with pytest.raises(StoreError):
            staging.publish(manifest_of, accept)
    assert store.versions(MODEL) == []


def test_publish_twice(store: Store) -> None:
    """A staged folder is published once."""
    with store.stage(MODEL) as staging:
        fill(staging.path, "a")
        publish_staged(staging, "a")
        with pytest.raises(ValueError, match="already"):
            publish_staged(staging, "a")
    assert store.versions(MODEL) == [1]


def test_error_after_publishing(store: Store) -> None:
    """What goes wrong after publishing does not take the version away."""

    def publish_and_fail() -> None:
        with store.stage(MODEL) as staging:
            fill(staging.path, "a")
            publish_staged(staging, "a")
            raise TrainingFailed("too late")

    with pytest.raises(TrainingFailed):
        publish_and_fail()
    assert whole(store, 1)


def test_deleted_numbers_do_not_come_back(two_versions: Store) -> None:
    """The number of a deleted version is never given again, even of the highest or of all."""
    two_versions.delete(MODEL, 2)
    assert two_versions.versions(MODEL) == [1]
    assert publish(two_versions) == 3
    for number in (1, 3):
        two_versions.delete(MODEL, number)
    assert two_versions.versions(MODEL) == []
    assert publish(two_versions) == 4
    assert staged_in(two_versions) == []


def test_deleted_number_of_a_copied_version(two_versions: Store) -> None:
    """Nor is that of a deleted version that was not published here but copied from elsewhere."""
    shutil.copytree(two_versions.path(MODEL, 1), two_versions.root / MODEL / "8")
    two_versions.delete(MODEL, 8)
    assert publish(two_versions) == 9


def test_removed_by_hand(two_versions: Store) -> None:
    """Nor is that of one that somebody removed with other tools."""
    shutil.rmtree(two_versions.root / MODEL / "2")
    assert publish(two_versions) == 3


def test_delete_missing_version(two_versions: Store) -> None:
    """Only versions can be deleted, not other folders with numbers."""
    (two_versions.root / MODEL / "7").mkdir()
    for number in (3, 7):
        with pytest.raises(VersionNotFound):
            two_versions.delete(MODEL, number)
    assert (two_versions.root / MODEL / "7").is_dir()


@pytest.mark.parametrize("content", ["", "x", "-1", "٣", "1\n2\n", "0"])
def test_damaged_last_version(two_versions: Store, content: str) -> None:
    """Without the highest number nothing is published, as an old number might come back; reading goes on."""
    (two_versions.root / MODEL / ".last_version").write_text(content)
    with pytest.raises(StoreError, match=r"\.last_version of model pumps is damaged"):
        publish(two_versions)
    assert two_versions.resolve(MODEL) == 2
    (two_versions.root / MODEL / ".last_version").write_text("8")
    assert publish(two_versions) == 9


def test_no_numbers_left(store: Store) -> None:
    """After the last number there is none."""
    (store.root / MODEL).mkdir()
    (store.root / MODEL / ".last_version").write_text(str(10**18 - 1))
    with pytest.raises(StoreError, match="no version numbers left"):
        publish(store)


def test_sweep(two_versions: Store) -> None:
    """Sweeping removes what is left over, of one model or of all, and nothing else."""
    publish(two_versions, model="other")
    left = [f"{model}/{name}" for model in ("other", MODEL) for name in (".deleted-3-aa", ".staging-bb")]
    for name in left:
        fill_path = two_versions.root / name
        fill_path.mkdir(0o700)
        fill(fill_path, "dead")
    (two_versions.root / MODEL / "notes").mkdir()
    assert two_versions.sweep("other") == left[:2]
    assert two_versions.sweep() == left[2:]
    assert two_versions.sweep() == []
    assert (two_versions.root / MODEL / "notes").is_dir()
    assert two_versions.versions(MODEL) == [1, 2]


def test_sweep_of_links(two_versions: Store, tmp_path: Path) -> None:
    """A link with such a name goes, and what it leads to stays."""
    (tmp_path / "precious").mkdir()
    (two_versions.root / MODEL / ".staging-link").symlink_to(tmp_path / "precious")
    assert two_versions.sweep() == [f"{MODEL}/.staging-link"]
    assert (tmp_path / "precious").is_dir()


def test_sweep_spares_the_living(store: Store) -> None:
    """The staged folder of a trainer at work stays, and that of one that is gone goes when the next one starts."""
    (store.root / MODEL / ".staging-dead").mkdir(parents=True)
    with store.stage(MODEL) as first:
        assert staged_in(store) == [first.path.name]
        with store.stage(MODEL) as second:
            assert store.sweep() == []
            assert staged_in(store) == sorted([first.path.name, second.path.name])
    assert staged_in(store) == []
