"""Versions of an object store on the local disk, from where TensorFlow loads them: whole, checked, bounded, shared.

``<cache>/<store>/<model>/<version>-<manifest>/`` appears in one rename, after every digest was compared. The name holds
a part of the manifest's own digest, so what is there is never out of date. Processes share it; the least recently used
versions go when it grows too large.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import StoreError
from service.store.manifest import MANIFEST, check_digests, check_paths, parse_manifest

CACHE_VARIABLE = "AUTOENCODER_STORE_CACHE"
SIZE_VARIABLE = "AUTOENCODER_STORE_CACHE_BYTES"
DEFAULT_BYTES = 10 * 2**30
IN_USE_S = 3600.0
"""Copies used within this time stay, whatever the size: a process may be loading them."""
PARTIAL_PREFIX = ".partial-"
_LOCK = ".lock"

Download = Callable[[str, Path], None]
"""(file of the version, where to put it)"""


def default_cache() -> Path:
    """The user's cache folder by the XDG convention, unless ``AUTOENCODER_STORE_CACHE`` names another."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "autoencoder-service"


class VersionCache:
    """Local copies of the versions of one store."""

    def __init__(self, url: str, folder: Path | None = None, *, max_bytes: int | None = None) -> None:
        self.folder = folder or default_cache()
        self._home = self.folder / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._max_bytes = max_bytes or int(os.environ.get(SIZE_VARIABLE) or DEFAULT_BYTES)

    def version(self, model: str, version: int, manifest: bytes, download: Download) -> Path:
        """Folder with all files of a version; downloads what is not there yet.

        Raises:
            InvalidVersion: what was downloaded is not what the manifest says.
            StoreError: the cache cannot be written.
        """
        target = self._home / model / f"{version}-{hashlib.sha256(manifest).hexdigest()[:16]}"
        with _local_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target.parent / f".{target.name}{_LOCK}"):
                if not target.is_dir():
                    self._fill(target, manifest, download)
                os.utime(target)
        self._evict(keep=target)
        return target

    def staging(self) -> "tempfile.TemporaryDirectory[str]":
        """A private folder in which a version is downloaded."""
        with _local_errors():
            self._home.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=self._home, ignore_cleanup_errors=True)

    def _fill(self, target: Path, manifest: bytes, download: Download) -> None:
        known = parse_manifest(manifest)
        check_paths(known)
        with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=self._home, ignore_cleanup_errors=True) as partial:
            folder = Path(partial) / "version"
            for path in (*known.digests, MANIFEST):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                if path == MANIFEST:
                    (folder / path).write_bytes(manifest)
                else:
                    download(path, folder / path)
            check_digests(folder, known)
            folder.rename(target)

    def _evict(self, *, keep: Path) -> None:
        """Remove the remains of killed downloads, and the least recently used versions until the rest fits."""
        with suppress(OSError):
            for left in self.folder.glob(f"*/{PARTIAL_PREFIX}*"):
                if time.time() - left.stat().st_mtime > 24 * IN_USE_S:
                    shutil.rmtree(left, ignore_errors=True)
            found = sorted(self.folder.glob("*/*/[0-9]*-*"), key=lambda path: path.stat().st_mtime)
            sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in found}
            total = sum(sizes.values())
            for path in found:
                if total <= self._max_bytes or time.time() - path.stat().st_mtime < IN_USE_S:
                    return
                if path != keep:
                    gone = path.with_name(f"{PARTIAL_PREFIX}{path.name}")  # first the name: nobody finds half of it
                    path.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)
                    total -= sizes[path]


@contextmanager
def _local_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The local cache of the store cannot be used: {error.strerror}; name another with {CACHE_VARIABLE}."
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process downloads, the others wait for it; the lock ends with its process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
