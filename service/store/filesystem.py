"""The few steps on a file system that a store's promises rest on: durable writes and a rename that never replaces."""

import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

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
