"""An object-store prefix as keys and bytes: S3, Google Cloud Storage, Azure Blob Storage, through fsspec.

What a store's promises rest on is two conditional writes: one that fails where the key exists, one that fails where
the object is not the one that was read. Each service spells the second in its own way; the functions at the end are
all that knows.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError, StoreError, StoreReadOnly, StoreUnavailable

Tag = str
"""Changes with every write of an object."""


class LostRace(StoreError):
    """Somebody else wrote first. Read again and decide again."""

    def __init__(self) -> None:
        super().__init__("Others write to this store at the same time; try again.")


@dataclass(frozen=True, slots=True)
class Object:
    content: bytes
    tag: Tag


class Bucket:
    """Objects below a URL; keys are relative to it, with ``/`` between their parts. Any number of threads.

    Every method raises StoreUnavailable when reading fails, StoreReadOnly where writing is not allowed, and StoreError
    where it fails otherwise.
    """

    def __init__(self, url: str) -> None:
        """
        Raises:
            ConfigurationError: an unknown scheme, or the libraries for it are not installed.
        """
        self.url = url.rstrip("/")
        self._fs, self._root = _open(self.url)
        self._write = _WRITES[self.url.partition("://")[0]](self._fs)

    def names(self, folder: str) -> dict[str, bool]:
        """Names in a folder, each with whether it is a folder; {} if there is nothing."""
        with _reading():
            try:
                found = self._fs.ls(self._at(folder), detail=True, refresh=True)
            except FileNotFoundError as error:
                if any(word in str(error).lower() for word in ("bucket", "container")):  # the root itself is missing
                    raise StoreUnavailable(f"The store cannot be read: {_reason(error)}.") from error
                return {}
        at = len(self._at(folder)) + 1
        listed = {entry["name"].strip("/")[at:]: entry["type"] == "directory" for entry in found}
        return {name: is_folder for name, is_folder in listed.items() if name and "/" not in name}

    def sizes(self, folder: str) -> dict[str, int]:
        """Every key below a folder, relative to it, and its bytes."""
        with _reading():
            found = self._fs.find(self._at(folder), detail=True, refresh=True)
        at = len(self._at(folder)) + 1
        return {name.strip("/")[at:]: int(entry["size"] or 0) for name, entry in found.items()}

    def tag(self, key: str) -> Tag | None:
        """The tag of an object, or None if there is none."""
        with _reading():
            try:
                found = self._fs.info(self._at(key), refresh=True)
            except FileNotFoundError:
                return None
        return _tag_of(found) if found["type"] == "file" else None

    def read(self, key: str) -> Object | None:
        # The tag first: where the object changes in between, the tag is too old, and a write that rests on it fails.
        tag = self.tag(key)
        if tag is None:
            return None
        with _reading():
            try:
                return Object(self._fs.cat_file(self._at(key)), tag)
            except FileNotFoundError:
                return None

    def modified(self, key: str) -> float | None:
        """When an object was last written, in seconds since 1970 by the store's clock; None where there is none."""
        with _reading():
            try:
                return float(self._fs.modified(self._at(key)).timestamp())
            except FileNotFoundError:
                return None

    def create(self, key: str, content: bytes) -> None:
        """Write an object that must not exist. Raises LostRace where it does."""
        with _writing():
            self._write(self._at(key), content, None)

    def replace(self, key: str, content: bytes, *, tag: Tag) -> None:
        """Write an object that must be the one with this tag. Raises LostRace where it is not."""
        with _writing():
            self._write(self._at(key), content, tag)

    def upload(self, source: Path, key: str) -> None:
        with _writing():
            self._fs.put_file(str(source), self._at(key))

    def download(self, key: str, target: Path) -> None:
        with _reading():
            self._fs.get_file(self._at(key), str(target))

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens where there is none."""
        with _writing(), suppress(FileNotFoundError):
            self._fs.rm_file(self._at(key))

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root


def _open(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    if scheme not in _WRITES:
        raise ConfigurationError(
            f"{scheme}:// cannot hold a store: without conditional writes two trainers could overwrite each other. "
            "Use a local folder, s3://, gs:// or az://."
        )
    try:
        from fsspec.core import url_to_fs

        # What others write must be seen at once.
        filesystem, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise ConfigurationError(
            f"A store at {scheme}:// needs more: pip install 'autoencoder-service[{_EXTRAS[_WRITES[scheme]]}]'."
        ) from error
    return filesystem, root.strip("/")


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StoreUnavailable(f"The store cannot be read: {_reason(error)}.") from error


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except (StoreError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise StoreReadOnly(f"The store is read-only here: {_reason(error)}.") from error
    except Exception as error:
        raise StoreError(f"The store could not be written: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """The first sentence of a library's error, without keys or addresses of requests."""
    text = str(error).splitlines()[0].strip().rstrip(".") if str(error) else ""
    return text[:200] or type(error).__name__


# --- what differs between the services --------------------------------------------------------------------------------

ConditionalWrite = Callable[[str, bytes, Tag | None], None]
"""(path, content, tag): raises LostRace where the object is another one, or, without a tag, where there is one."""


def _tag_of(found: Mapping[str, Any]) -> Tag:
    """ETag (S3, Azure) or generation (Google); fsspec's own memory has the time of writing."""
    for name in ("ETag", "etag", "generation", "created"):
        if found.get(name):
            return str(found[name])
    raise StoreError("This kind of store does not tell one version of an object from the next.")


def _s3(filesystem: Any) -> ConditionalWrite:
    def write(path: str, content: bytes, tag: Tag | None) -> None:
        bucket, key, _ = filesystem.split_path(path)
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)
        except Exception as error:
            # s3fs makes an OSError of botocore's error, which stays its cause.
            answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
            code = str(answer.get("Error", {}).get("Code"))
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                raise LostRace from error
            if tag is not None and isinstance(error, FileNotFoundError):  # deleted meanwhile
                raise LostRace from error
            raise

    return write


def _google(filesystem: Any) -> ConditionalWrite:
    def write(path: str, content: bytes, tag: Tag | None) -> None:
        bucket, key, _ = filesystem.split_path(path)
        try:
            filesystem.call(
                "POST",
                f"{filesystem._location}/upload/storage/v1/b/{bucket}/o",
                uploadType="media",
                name=key,
                ifGenerationMatch=tag or "0",
                data=content,
                headers={"Content-Type": "application/octet-stream"},
                json_out=True,
            )
        except Exception as error:
            if str(getattr(error, "code", "")) == "412" or isinstance(error, FileExistsError):
                raise LostRace from error
            raise

    return write


def _azure(filesystem: Any) -> ConditionalWrite:
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

    def write(path: str, content: bytes, tag: Tag | None) -> None:
        try:
            if tag is None:
                filesystem.pipe_file(path, content, overwrite=False)
            else:
                filesystem.pipe_file(path, content, etag=tag, match_condition=MatchConditions.IfNotModified)
        except (FileExistsError, ResourceModifiedError, ResourceNotFoundError) as error:
            raise LostRace from error

    return write


_memory_lock = threading.Lock()


def _memory(filesystem: Any) -> ConditionalWrite:
    def write(path: str, content: bytes, tag: Tag | None) -> None:
        with _memory_lock:
            found = _tag_of(filesystem.info(path)) if filesystem.exists(path) else None
            if found != tag:
                raise LostRace
            filesystem.pipe_file(path, content)

    return write


_WRITES: Mapping[str, Callable[[Any], ConditionalWrite]] = {
    "s3": _s3,
    "s3a": _s3,
    "gs": _google,
    "gcs": _google,
    "az": _azure,
    "abfs": _azure,
    "abfss": _azure,
    "memory": _memory,
}
_EXTRAS: Mapping[Any, str] = {_s3: "s3", _google: "gcs", _azure: "azure", _memory: "s3"}
"""The optional dependency that installs each library."""
