"""An object-store prefix as the home of the store: what ``LocalDirectory`` is, where there is no rename and no lock.

    <prefix>/.store                      says that here is a store
    <prefix>/<model>/.claims/<number>    every number ever given; written with "must not exist", never deleted
    <prefix>/<model>/<number>/…          the version; its manifest is written last

A version without a manifest does not exist. Who claims a number first has it, and nobody gets it again. Small files
change by compare-and-swap: where another writer was quicker, the whole change is made again from what is there now.
"""

import fcntl
import hashlib
import os
import random
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from service.errors import InvalidVersion, StoreError, StoreUnavailable
from service.store.buckets import Bucket, LostRace, Object
from service.store.manifest import MANIFEST, check_digests, check_paths, list_files, parse_manifest

T = TypeVar("T")

MARKER = ".store"
CLAIMS = ".claims"
ABANDONED = b"abandoned\n"
ABANDONED_AFTER_S = 24 * 3600.0
"""A claim that was not renewed for so long, and whose version has no manifest, is of a trainer that was killed."""
MAX_RACES = 50
KNOWN_FOR_S = 60.0
"""A manifest that was seen is not looked for again in this time: a version that is there stays, or is deleted."""


# --- copies on this machine -------------------------------------------------------------------------------------------


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
    """Local copies of the versions of one store, from where TensorFlow loads them: whole, checked, bounded, shared.

    ``<cache>/<store>/<model>/<version>-<manifest>/`` appears in one rename, after every digest was compared. The name
    holds a part of the manifest's own digest, so what is there is never out of date. Processes share it; the least
    recently used versions go when it grows too large.
    """

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
            with (target.parent / f".{target.name}{_LOCK}").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # one process downloads, the others wait for it
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


# --- the store --------------------------------------------------------------------------------------------------------


class ObjectDirectory:
    """A prefix of an object store and everything below it."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        cache: VersionCache | None = None,
        abandoned_after_s: float = ABANDONED_AFTER_S,
    ) -> None:
        self._bucket = bucket
        self._cache = cache or VersionCache(bucket.url)
        self._abandoned_after_s = abandoned_after_s
        self._known: dict[str, float] = {}
        self._small: dict[str, Object] = {}
        """Small files that were read last, so that one that did not change is not fetched again."""
        self._change = threading.local()
        """``tags``: of what this thread has read in the change that it is making."""

    # --- reading ---

    def entries(self, folder: str = "") -> dict[str, bool] | None:
        """Name -> whether it is a folder; None when there is no such folder.

        Raises:
            StoreUnavailable: there is no store here, or it cannot be read.
        """
        found = self._bucket.names(folder)
        if not folder and not found:
            raise StoreUnavailable("The store cannot be read: there is nothing under this prefix.")
        return found or None

    def exists(self, relative: str) -> bool:
        if self._known.get(relative, 0.0) > time.monotonic():
            return True
        there = self._bucket.tag(relative) is not None
        if there and relative.endswith(MANIFEST):
            self._known[relative] = time.monotonic() + KNOWN_FOR_S
        return there

    def read(self, relative: str) -> bytes | None:
        """Content of a small file, None when there is none."""
        found = self._small.get(relative)
        if found is None or found.tag != self._bucket.tag(relative):
            found = self._bucket.read(relative)
        if found is None:
            self._small.pop(relative, None)
        else:
            self._small[relative] = found
        if (tags := getattr(self._change, "tags", None)) is not None:
            tags[relative] = None if found is None else found.tag
        return None if found is None else found.content

    def read_file(self, relative: str) -> bytes | None:
        """Content of a file of a version, which nobody changes."""
        found = self._bucket.read(relative)
        return None if found is None else found.content

    def file_sizes(self, folder: str) -> dict[str, int]:
        return self._bucket.sizes(folder)

    def version_path(self, model: str, version: int) -> Path:
        """A checked copy of a version on this machine."""
        folder = f"{model}/{version}"
        manifest = self._bucket.read(f"{folder}/{MANIFEST}")
        if manifest is None:
            raise InvalidVersion("manifest.json is missing.")

        def download(path: str, target: Path) -> None:
            try:
                self._bucket.download(f"{folder}/{path}", target)
            except FileNotFoundError as error:
                raise InvalidVersion(f"{path} is missing.") from error

        return self._cache.version(model, version, manifest.content, download)

    def is_claimed(self, model: str, number: int) -> bool:
        """Whether a publisher of this service has the number: the version's manifest comes later, or was deleted."""
        return self.exists(f"{model}/{CLAIMS}/{number}")

    def last_number(self, model: str) -> int:
        """The highest number that was ever claimed."""
        return max((int(name) for name in self._bucket.names(f"{model}/{CLAIMS}") if name.isdecimal()), default=0)

    # --- writing ---

    def create(self) -> None:
        """Make the store, unless it is there."""
        if not self._bucket.names(""):
            self.check_writable("")

    def check_writable(self, folder: str) -> None:
        """Raises StoreError where nothing can be written. What is tried is the store's marker."""
        self._create_once(MARKER, b"autoencoder model store\n")

    def make_folder(self, folder: str) -> None:
        """Make a model's folder, unless it is there; the store itself is never made."""
        self.entries()
        self._create_once(f"{folder}/{CLAIMS}/0", b"")

    def note_number(self, model: str, number: int) -> None:
        """Do nothing: a publisher claims its number, and claims stay."""

    def replace(self, relative: str, content: bytes) -> None:
        """Write a small file over the one that was read in this change. Raises LostRace when it is another one now."""
        tag = self._change.tags.pop(relative)
        if tag is None:
            self._bucket.create(relative, content)
        else:
            self._bucket.replace(relative, content, tag=tag)

    def exclusively(self, model: str, work: Callable[[], T]) -> T:
        """Run ``work``, again from the start if another writer was quicker."""
        for _ in range(MAX_RACES):
            self._change.tags = {}
            try:
                return work()
            except LostRace:
                time.sleep(random.uniform(0, 0.2))  # noqa: S311 - apart from each other, not secret
            finally:
                del self._change.tags
        raise LostRace

    @contextmanager
    def private_folder(self, folder: str) -> Iterator[Path]:
        """A new private folder on this machine, removed at the end."""
        with self._cache.staging() as path:
            yield Path(path)

    def publish(self, source: Path, model: str, number: int) -> bool:
        """Upload a folder as a version, its manifest last; False where the number is claimed already."""
        claim, owner = f"{model}/{CLAIMS}/{number}", f"{secrets.token_hex(16)}\n".encode()
        try:
            self._bucket.create(claim, owner)
        except LostRace:
            return False
        folder = f"{model}/{number}"
        paths = [path for path in list_files(source) if path != MANIFEST]
        # What makes a SavedModel loadable comes last, for readers that know no manifest, as TensorFlow Serving.
        for path in sorted(paths, key=lambda path: path == "saved_model.pb"):
            self._bucket.upload(source / path, f"{folder}/{path}")
        self._check_upload(source, paths, folder)
        self._renew(claim, owner)
        self._bucket.create(f"{folder}/{MANIFEST}", (source / MANIFEST).read_bytes())
        return True

    def discard(self, model: str, version: int, *, wanted: Callable[[], bool]) -> bool:
        """Delete a version, its manifest first; puts it back and gives False where it turns out to be ``wanted``."""
        key = f"{model}/{version}/{MANIFEST}"
        manifest = self._bucket.read(key)
        self._known.pop(key, None)
        self._bucket.delete(key)
        if manifest is not None and wanted():
            self._create_once(key, manifest.content)
            return False
        self._remove(f"{model}/{version}")
        return True

    def clear(self, model: str) -> list[str]:
        """Remove the remains of killed trainers and deletions, and return their names."""
        entries = self._bucket.names(model)
        numbers = [name for name, is_folder in entries.items() if is_folder and name.isdecimal()]
        gone = [name for name in numbers if self._bucket.tag(f"{model}/{name}/{MANIFEST}") is None]
        return [name for name in gone if self._abandon(f"{model}/{CLAIMS}/{name}") and self._remove(f"{model}/{name}")]

    def _abandon(self, claim: str) -> bool:
        """Take over a claim that its owner has not renewed for long; leave a younger one alone."""
        written = self._bucket.modified(claim)
        found = self._bucket.read(claim)
        if written is None or found is None or time.time() - written < self._abandoned_after_s:
            return False
        try:
            self._bucket.replace(claim, ABANDONED, tag=found.tag)
        except LostRace:
            return False
        return True

    def _renew(self, claim: str, owner: bytes) -> None:
        """Renew the owner's claim. Raises StoreError if it was taken over."""
        found = self._bucket.read(claim)
        if found is None or found.content != owner:
            raise StoreError("Publishing took so long that the number was given up; publish again.")
        self._bucket.replace(claim, owner, tag=found.tag)

    def _check_upload(self, source: Path, paths: list[str], folder: str) -> None:
        found = self._bucket.sizes(folder)
        if found != {path: (source / path).stat().st_size for path in paths}:
            raise StoreError("What was uploaded is not what was sent; publish again.")

    def _remove(self, folder: str) -> bool:
        for path in self._bucket.sizes(folder):
            self._bucket.delete(f"{folder}/{path}")
        return True

    def _create_once(self, key: str, content: bytes) -> None:
        try:
            self._bucket.create(key, content)
        except LostRace:
            return
