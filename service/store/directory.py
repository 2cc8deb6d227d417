"""A local directory as the home of the store. All reading and writing of the store goes through one class, in paths
relative to its root, so that an object-store prefix (``objects.py``) can take its place.

Reading needs no lock: what is read is either immutable or replaced in one step. Writers of one model exclude each
other by flock on ``<model>/.lock``; the kernel lets go of it when a process dies, however it dies.
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

from service.errors import InvalidVersion, StoreError, StoreReadOnly, StoreUnavailable

LOCK = ".lock"
LAST_VERSION = ".last_version"
STAGING_PREFIX = ".staging-"
DELETED_PREFIX = ".deleted-"
MAX_SMALL_FILE_BYTES = 4 * 2**20

T = TypeVar("T")

_LAST_NUMBER = re.compile(r"[1-9][0-9]{0,17}\n?")
_NOT_ALLOWED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Directory(Protocol):
    """A home of the store. Paths are relative to its root, with ``/`` between their parts."""

    def create(self) -> None: ...
    def check_writable(self, folder: str) -> None: ...
    def entries(self, folder: str = "") -> dict[str, bool] | None: ...
    def exists(self, relative: str) -> bool: ...
    def read(self, relative: str) -> bytes | None: ...
    def read_file(self, relative: str) -> bytes | None: ...
    def file_sizes(self, folder: str) -> dict[str, int]: ...
    def version_path(self, model: str, version: int) -> Path: ...
    def is_claimed(self, model: str, number: int) -> bool: ...
    def last_number(self, model: str) -> int: ...
    def note_number(self, model: str, number: int) -> None: ...
    def make_folder(self, folder: str) -> None: ...
    def replace(self, relative: str, content: bytes) -> None: ...
    def exclusively(self, model: str, work: Callable[[], T]) -> T: ...
    def private_folder(self, folder: str) -> AbstractContextManager[Path]: ...
    def publish(self, source: Path, model: str, number: int) -> bool: ...
    def discard(self, model: str, version: int, *, wanted: Callable[[], bool]) -> bool: ...
    def clear(self, model: str) -> list[str]: ...


@contextmanager
def reading() -> Iterator[None]:
    """Turn an OSError into StoreUnavailable."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"The store cannot be read: {error.strerror}.") from error


@contextmanager
def writing() -> Iterator[None]:
    """Turn an OSError into StoreReadOnly where we may not write, else into StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in _NOT_ALLOWED:
            raise StoreReadOnly(f"The store is read-only here: {error.strerror}.") from error
        raise StoreError(f"The store could not be written: {error.strerror}.") from error


class LocalDirectory:
    """``root`` and what is below it. Folders are never reached through symbolic links, except ``root`` itself."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def create(self) -> None:
        """Make the root, unless it is there."""
        with writing():
            self.root.mkdir(parents=True, exist_ok=True)

    def check_writable(self, folder: str) -> None:
        """Raises StoreReadOnly or StoreError where nothing can be written in ``folder``, or in the root without it."""
        with writing(), tempfile.TemporaryFile(dir=self.path(folder) if self.exists(folder) else self.root):
            pass

    def path(self, relative: str) -> Path:
        return self.root / relative

    def entries(self, folder: str = "") -> dict[str, bool] | None:
        """Name -> whether it is a real folder; None when there is no such folder.

        Raises:
            StoreUnavailable: the root is missing, or it or the folder cannot be read.
        """
        with reading():
            found = _scan(self.root)
            if not folder:
                return found
            try:
                return None if self.path(folder).is_symlink() else _scan(self.path(folder))
            except OSError as error:
                if error.errno in _NOT_THERE:
                    return None
                raise

    def exists(self, relative: str) -> bool:
        """Whether a path exists. One that cannot be looked at counts as existing: reading it reports the error."""
        try:
            self.path(relative).lstat()
        except OSError as error:
            return error.errno not in _NOT_THERE
        return True

    def read(self, relative: str) -> bytes | None:
        """Content of a small file, None when there is none."""
        with reading():
            try:
                with self.path(relative).open("rb") as file:
                    content = file.read(MAX_SMALL_FILE_BYTES + 1)
            except FileNotFoundError:
                return None
        if len(content) > MAX_SMALL_FILE_BYTES:
            raise StoreError(f"{self.path(relative).name} is too large to be what it should be.")
        return content

    def read_file(self, relative: str) -> bytes | None:
        """Content of a file of a version, None when there is none.

        Raises:
            InvalidVersion: it cannot be read; whether the store can be is found out before.
        """
        try:
            return self.path(relative).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidVersion(f"{self.path(relative).name} cannot be read: {error.strerror}.") from error

    def file_sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path within it."""
        root = self.path(folder)
        with reading():
            return {
                file.relative_to(root).as_posix(): file.stat().st_size for file in root.rglob("*") if file.is_file()
            }

    def version_path(self, model: str, version: int) -> Path:
        return self.path(f"{model}/{version}")

    def is_claimed(self, model: str, number: int) -> bool:
        """Whether a folder with this number and without a manifest is being published: never, a rename makes it."""
        return False

    def last_number(self, model: str) -> int:
        """The highest version number that was noted."""
        content = self.read(f"{model}/{LAST_VERSION}")
        if content is None:
            return 0
        text = content.decode("ascii", errors="replace")
        if not _LAST_NUMBER.fullmatch(text):
            raise StoreError(
                f"{LAST_VERSION} of model {model} is damaged; write the highest number ever published into it."
            )
        return int(text)

    def note_number(self, model: str, number: int) -> None:
        """Record durably that ``number`` was given. Only within ``exclusively``."""
        if number > self.last_number(model):
            self.replace(f"{model}/{LAST_VERSION}", f"{number}\n".encode())

    def make_folder(self, folder: str) -> None:
        """Make a folder below the root, unless it is there; the root itself is never made."""
        self.entries()
        path = self.path(folder)
        with writing():
            with suppress(FileExistsError):
                path.mkdir()
                # Another user's service reads it, whatever the umask of this one.
                path.chmod(path.stat().st_mode | FOLDER_MODE)
            # Even where it was there: who made it may have been killed before this.
            fsync_path(self.root)

    def replace(self, relative: str, content: bytes) -> None:
        """Replace a file in one step, on the disk when this returns. Only under the lock of its folder."""
        target = self.path(relative)
        temporary = target.with_name(STAGING_PREFIX + target.name)
        with writing():
            temporary.unlink(missing_ok=True)
            write_durably(temporary, content)
            temporary.replace(target)
            fsync_path(target.parent)

    @contextmanager
    def locked(self, folder: str) -> Iterator[None]:
        """Hold the exclusive lock of a folder: among threads as among processes. Not reentrant."""
        with writing():
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path(folder) / LOCK, flags, 0o666)
        try:
            with writing():
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def exclusively(self, model: str, work: Callable[[], T]) -> T:
        """Run ``work`` while no other writer changes the model."""
        with self.locked(model):
            return work()

    @contextmanager
    def private_folder(self, folder: str) -> Iterator[Path]:
        """A new private folder in ``folder``, removed at the end unless it was moved away.

        The flock on it says that its owner lives; ``clear`` leaves it alone until the owner has gone.
        """
        relative = f"{folder}/{STAGING_PREFIX}{secrets.token_hex(8)}"
        with self.locked(folder), writing():
            self.path(relative).mkdir(PRIVATE_FOLDER_MODE)
            claim = _claim(self.path(relative))
        try:
            yield self.path(relative)
        finally:
            shutil.rmtree(self.path(relative), ignore_errors=True)
            if claim is not None:
                os.close(claim)

    def publish(self, source: Path, model: str, number: int) -> bool:
        """Turn a private folder into a version; False if the number is taken. Only within ``exclusively``."""
        with writing():
            source.chmod(FOLDER_MODE)
            fsync_path(source)
        return self.move(str(source.relative_to(self.root)), f"{model}/{number}")

    def discard(self, model: str, version: int, *, wanted: Callable[[], bool]) -> bool:
        """Move a version aside for ``clear`` to remove; False if it could not be moved. Only within ``exclusively``."""
        return self.move(f"{model}/{version}", f"{model}/{DELETED_PREFIX}{version}-{secrets.token_hex(8)}")

    def move(self, source: str, target: str) -> bool:
        """Rename a folder within its parent, on the disk when this returns; False when ``target`` is there already.

        Only under the lock of the parent.
        """
        with writing():
            try:
                rename_no_replace(self.path(source), self.path(target))
            except FileExistsError:
                return False
            fsync_path(self.path(target).parent)
        return True

    def clear(self, folder: str) -> list[str]:
        """Remove the remains of killed writers in ``folder``, and return their names."""
        if not self._remains(folder):
            return []
        claims: dict[str, int] = {}
        try:
            with self.locked(folder):
                remains = self._remains(folder)
                for name, is_folder in remains.items():
                    with suppress(OSError):
                        if not is_folder:
                            (self.path(folder) / name).unlink()
                        elif (claim := _claim(self.path(folder) / name)) is not None:
                            claims[name] = claim
            # Not under the lock: large folders take their time, and the claims keep others away.
            for name in claims:
                shutil.rmtree(self.path(folder) / name, ignore_errors=True)
        finally:
            for claim in claims.values():
                os.close(claim)
        return [name for name in remains if not self.exists(f"{folder}/{name}")]

    def _remains(self, folder: str) -> dict[str, bool]:
        entries = self.entries(folder) or {}
        return {name: entries[name] for name in sorted(entries) if name.startswith((STAGING_PREFIX, DELETED_PREFIX))}


def _scan(folder: Path) -> dict[str, bool]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}


def _claim(folder: Path) -> int | None:
    """Take the lock that shows that a folder's owner is alive; None if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


# --- files and folders on the disk ------------------------------------------------------------------------------------


RENAME_NOREPLACE = 1
RENAME_EXCL = 4
AT_FDCWD = -100

FILE_MODE = 0o644
FROZEN_FILE_MODE = 0o444
FOLDER_MODE = 0o755
PRIVATE_FOLDER_MODE = 0o700

_FLAG_REFUSED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def fsync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync(descriptor: int) -> None:
    if sys.platform == "darwin":
        # There fsync stops at the drive's own cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and wait for the disk.

    Raises:
        FileExistsError: something is there already, be it a link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, FILE_MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), FILE_MODE)
        fsync(file.fileno())


def rename_no_replace(source: Path, target: Path) -> None:
    """Rename in one step that fails where ``target`` exists; the caller holds the lock of the folder.

    Plain rename(2) silently replaces an empty folder. Where the file system has no exclusive rename, the lock is what
    keeps others of us away between the look and the rename.

    Raises:
        FileExistsError: ``target`` is there, whatever it is.
    """
    sys.audit("os.rename", str(source), str(target), -1, -1)
    number = _rename_exclusively()(os.fsencode(source), os.fsencode(target))
    if number in _FLAG_REFUSED:
        check_and_rename(source, target)
    elif number:
        raise OSError(number, os.strerror(number), str(target))


def check_and_rename(source: Path, target: Path) -> None:
    """Rename for file systems that refuse the flag. Safe only under the lock of the folder."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


@cache
def _rename_exclusively() -> Callable[[bytes, bytes], int]:
    """A function (source, target) -> errno, which is 0 on success."""
    libc = ctypes.CDLL(None, use_errno=True)

    def linux(source: bytes, target: bytes) -> int:
        failed = libc.renameat2(AT_FDCWD, source, AT_FDCWD, target, RENAME_NOREPLACE)
        return ctypes.get_errno() if failed else 0

    def darwin(source: bytes, target: bytes) -> int:
        failed = libc.renamex_np(source, target, RENAME_EXCL)
        return ctypes.get_errno() if failed else 0

    if hasattr(libc, "renameat2"):
        return linux
    return darwin if hasattr(libc, "renamex_np") else lambda _source, _target: errno.ENOSYS
