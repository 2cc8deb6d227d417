"""Every byte of a version counts, and every file, and where it really is."""

import os
import random
import socket
from pathlib import Path

import pytest

from service.errors import InvalidVersion
from service.store import ASSETS, MANIFEST, Store, check_digests, file_digests, read_manifest, write_manifest

from .trainer import FILES, MODEL, fill, manifest_of, publish


@pytest.fixture
def version_dir(store: Store) -> Path:
    """A published version whose files may be altered."""
    path = store.path(MODEL, publish(store))
    for name in (*FILES, MANIFEST):
        (path / name).chmod(0o644)
    return path


def check(version_dir: Path) -> None:
    check_digests(version_dir, read_manifest(version_dir))


def test_untouched(version_dir: Path) -> None:
    """A version is good as it was published."""
    check(version_dir)


def test_bit_flips(version_dir: Path) -> None:
    """400 single flipped bits, in all files and the manifest, are found, every one."""
    generator = random.Random(7)
    for _ in range(400):
        path = version_dir / generator.choice((*FILES, MANIFEST))
        content = path.read_bytes()
        altered = bytearray(content)
        altered[generator.randrange(len(altered))] ^= 1 << generator.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(InvalidVersion):
            check(version_dir)
        path.write_bytes(content)
    check(version_dir)


@pytest.mark.parametrize("name", FILES)
def test_truncated_or_longer(version_dir: Path, name: str) -> None:
    """Bytes that are gone or added at the end are found, and the file is named."""
    content = (version_dir / name).read_bytes()
    for altered in (b"", content[:1], content[:-1], content + b"\0", content + b"\n"):
        (version_dir / name).write_bytes(altered)
        with pytest.raises(InvalidVersion, match=f"^{name} is not what was published"):
            check(version_dir)


def test_swapped(version_dir: Path) -> None:
    """Two files that changed places are found."""
    first, second = version_dir / FILES[0], version_dir / FILES[1]
    first.rename(version_dir / "aside")
    second.rename(first)
    (version_dir / "aside").rename(second)
    with pytest.raises(InvalidVersion, match=rf"^{FILES[0]} is not what was published"):
        check(version_dir)


def test_files_of_another_version(two_versions: Store) -> None:
    """A file of another version of the same model is found."""
    (two_versions.path(MODEL, 2) / FILES[1]).replace(two_versions.path(MODEL, 1) / FILES[1])
    with pytest.raises(InvalidVersion, match=f"^{FILES[1]} is not"):
        two_versions.verify_digests(MODEL, 1)
    with pytest.raises(InvalidVersion, match=f"^{FILES[1]} is missing"):
        two_versions.verify_digests(MODEL, 2)


@pytest.mark.parametrize(
    "name", ["extra", "variables/extra", f"{ASSETS}/.hidden", "new/extra", f"{ASSETS}/manifest.json~"]
)
def test_additional_file(version_dir: Path, name: str) -> None:
    """A file that the manifest does not list is found."""
    (version_dir / name).parent.mkdir(exist_ok=True)
    (version_dir / name).touch()
    with pytest.raises(InvalidVersion, match=f"^{name} is not in the manifest"):
        check(version_dir)


def test_empty_folder(version_dir: Path) -> None:
    """Empty folders count for nothing: TensorFlow writes one, and object stores have none."""
    (version_dir / "assets").mkdir()
    check(version_dir)


def test_first_bad_file_is_named(version_dir: Path) -> None:
    """Of several bad files the first one in order is named."""
    for name in FILES:
        (version_dir / name).write_text("bad")
    with pytest.raises(InvalidVersion, match=f"^{min(FILES)} is not"):
        check(version_dir)


@pytest.mark.parametrize("name", FILES)
def test_linked_file(version_dir: Path, tmp_path: Path, name: str) -> None:
    """A link is refused even where it leads to the right bytes."""
    (version_dir / name).rename(tmp_path / "moved")
    (version_dir / name).symlink_to(tmp_path / "moved")
    with pytest.raises(InvalidVersion, match=f"^{name} is a symbolic link"):
        check(version_dir)


def test_linked_folders(version_dir: Path, tmp_path: Path) -> None:
    """So is a folder that is a link, and a version that is one."""
    (tmp_path / "version").symlink_to(version_dir)
    with pytest.raises(InvalidVersion, match="version is a symbolic link"):
        check(tmp_path / "version")
    for folder in ("variables", ASSETS):
        (version_dir / folder).rename(tmp_path / folder)
        (version_dir / folder).symlink_to(tmp_path / folder)
        with pytest.raises(InvalidVersion, match=f"^{folder} is a symbolic link"):
            check(version_dir)
        (version_dir / folder).unlink()
        (tmp_path / folder).rename(version_dir / folder)


def test_dangling_link(version_dir: Path) -> None:
    """A link to nowhere is refused too."""
    (version_dir / "link").symlink_to("nowhere")
    with pytest.raises(InvalidVersion, match=r"^link is a symbolic link"):
        check(version_dir)


def test_special_files(version_dir: Path) -> None:
    """A pipe or a socket is refused at once and not waited for."""
    os.mkfifo(version_dir / "pipe")
    with pytest.raises(InvalidVersion, match=r"^pipe is neither"):
        check(version_dir)
    (version_dir / "pipe").unlink()
    here = Path.cwd()
    os.chdir(version_dir)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("socket")
    finally:
        os.chdir(here)
    with pytest.raises(InvalidVersion, match=r"^socket is neither"):
        check(version_dir)


def test_names_that_are_not_utf_8(version_dir: Path) -> None:
    """A name that no JSON can hold is refused, and shown escaped."""
    try:
        Path(os.fsdecode(os.fsencode(version_dir) + b"/\xff")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InvalidVersion, match="udcff"):
        check(version_dir)


def test_endless_folders(version_dir: Path) -> None:
    """Folders nested without end are refused before they exhaust anything."""
    (version_dir / "/".join(["deep"] * 100)).mkdir(parents=True)
    with pytest.raises(InvalidVersion, match="nested too deeply"):
        check(version_dir)


@pytest.mark.parametrize(
    "path", ["", ".", "/etc/hostname", "..", "../1/saved_model.pb", "a/../saved_model.pb", "./a", "a//b", "a/", "a\0b"]
)
def test_paths_in_the_manifest(version_dir: Path, path: str) -> None:
    """Absolute paths, ``..`` and every other way of saying the same are refused."""
    manifest = read_manifest(version_dir)
    write_manifest(version_dir, manifest.model_copy(update={"digests": {**manifest.digests, path: "0" * 64}}))
    with pytest.raises(InvalidVersion, match="not a plain relative path"):
        check(version_dir)


def test_manifest_that_lists_itself(version_dir: Path) -> None:
    """A manifest cannot hold its own digest among the others."""
    write_manifest(version_dir, manifest_of(1, {MANIFEST: "0" * 64}))
    with pytest.raises(InvalidVersion, match="lists itself"):
        check(version_dir)


def test_file_digests(tmp_path: Path) -> None:
    """Digests are SHA-256 in hexadecimal by POSIX path, in order, without the manifest."""
    fill(tmp_path, "a")
    (tmp_path / MANIFEST).touch()
    (tmp_path / "empty").touch()
    digests = file_digests(tmp_path)
    assert list(digests) == sorted([*FILES, "empty"])
    assert digests["empty"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
