"""SHA-256 of every file of a version: what its bytes must be before anything is loaded from it."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from service.errors import InvalidVersion
from service.store.manifest import MANIFEST, Manifest

MAX_DEPTH = 16


def file_digests(version_dir: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file but the manifest, by POSIX path relative to ``version_dir``, in order.

    Raises:
        InvalidVersion: something is neither a file nor a folder, has an unusable name, or cannot be read.
    """
    return {path: _sha256(version_dir, path) for path in list_files(version_dir) if path != MANIFEST}


def check_digests(version_dir: Path, manifest: Manifest) -> None:
    """Check that a version's files are exactly those of its manifest, byte by byte.

    Raises:
        InvalidVersion: names the first file that is missing, not listed, altered, a link, or outside the folder.
    """
    check_paths(manifest)
    present = set(list_files(version_dir)) - {MANIFEST}
    for path in sorted(present | manifest.digests.keys()):
        if path not in present:
            raise InvalidVersion(f"{_shown(path)} is missing.")
        if path not in manifest.digests:
            raise InvalidVersion(f"{_shown(path)} is not in the manifest.")
        if _sha256(version_dir, path) != manifest.digests[path]:
            raise InvalidVersion(f"{_shown(path)} is not what was published: its SHA-256 differs from the manifest's.")


def list_files(version_dir: Path) -> list[str]:
    """POSIX paths of all files of a version, relative to its folder, sorted; raises as ``file_digests``."""
    if version_dir.is_symlink():
        raise InvalidVersion("The version is a symbolic link.")
    try:
        return sorted(_walk(version_dir, ""))
    except OSError as error:
        raise InvalidVersion(f"The version's files cannot be listed: {error.strerror}.") from error


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    if prefix.count("/") > MAX_DEPTH:
        raise InvalidVersion("Folders are nested too deeply.")
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        path = prefix + entry.name
        if path.encode(errors="replace").decode() != path:
            raise InvalidVersion(f"{_shown(path)} is not a name in UTF-8.")
        if entry.is_symlink():
            raise InvalidVersion(f"{_shown(path)} is a symbolic link.")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, path + "/")
        elif entry.is_file(follow_symlinks=False):
            yield path
        else:
            raise InvalidVersion(f"{_shown(path)} is neither a file nor a folder.")


def check_paths(manifest: Manifest) -> None:
    """Raise InvalidVersion if the manifest lists anything but plain paths within the version."""
    for path in manifest.digests:
        plain = PurePosixPath(path)
        if (
            not plain.parts
            or plain.is_absolute()
            or ".." in plain.parts
            or "/".join(plain.parts) != path
            or "\0" in path
        ):
            raise InvalidVersion(f"The manifest lists {_shown(path)}, which is not a plain relative path.")
        if path == MANIFEST:
            raise InvalidVersion("The manifest lists itself.")


def _sha256(version_dir: Path, path: str) -> str:
    try:
        # A link or a pipe put there after the listing must neither be followed nor waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(version_dir / path, flags), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidVersion(f"{_shown(path)} cannot be read: {error.strerror}.") from error


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)
