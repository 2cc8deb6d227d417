"""Version numbers, and making a version out of a staged folder: whole and checked before it gets one, in one step.

The directory remembers the highest number ever given, so that no number comes back after its version was deleted.
"""

import re
from collections.abc import Callable
from pathlib import Path

from service.errors import InvalidVersion, StoreError
from service.store.directory import FOLDER_MODE, FROZEN_FILE_MODE, Directory, fsync_path, writing
from service.store.manifest import (
    ASSETS,
    MANIFEST,
    MODEL_NAME_PATTERN,
    Manifest,
    check_digests,
    file_digests,
    read_manifest,
    write_manifest,
)

NAME_PATTERN = MODEL_NAME_PATTERN
MAX_VERSION = 10**18 - 1

_NAME = re.compile(NAME_PATTERN)
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def is_name(name: str) -> bool:
    """Whether a text is a valid name of a model or of an alias."""
    return _NAME.fullmatch(name) is not None


def list_versions(directory: Directory, model: str) -> tuple[list[int], list[int]] | None:
    """Ascending numbers of the folders that hold a manifest, and of those that hold none; None without a model folder.

    A folder that is being published is neither.
    """
    entries = directory.entries(model)
    if entries is None:
        return None
    numbers = sorted(int(name) for name, is_folder in entries.items() if is_folder and _NUMBER.fullmatch(name))
    versions = [number for number in numbers if directory.exists(f"{model}/{number}/{MANIFEST}")]
    others = [number for number in numbers if number not in versions and not directory.is_claimed(model, number)]
    return versions, others


def why_no_version(directory: Directory, model: str, number: int) -> str:
    """The sentence about a numbered folder without a manifest: what it holds, and what makes a version of that."""
    names = directory.entries(f"{model}/{number}") or {}
    kinds = {
        "MLmodel": "An MLflow model",
        "saved_model.pb": "A SavedModel",
        ".keras": "A Keras model",
        ".h5": "A Keras model",
    }
    found = next((kind for end, kind in kinds.items() if any(name.endswith(end) for name in names)), None)
    if found is None:
        return "The folder has no manifest, so it is no version."
    return (
        f"{found} without a manifest, which another program wrote: "
        f"`autoencoder import {model}/{number} --rows ROWS` makes a version of it."
    )


def next_version(directory: Directory, model: str) -> int:
    """One more than every number that was ever given or that occurs in the model's folder, valid or not."""
    taken = [int(name) for name in directory.entries(model) or () if _NUMBER.fullmatch(name)]
    number = max([directory.last_number(model), *taken]) + 1
    if number > MAX_VERSION:
        raise StoreError(f"Model {model} has no version numbers left.")
    return number


BuildManifest = Callable[[int, dict[str, str]], Manifest]
Verify = Callable[[Path], None]


class Staging:
    """A private folder that may become a version: fill ``path``, then ``publish``. One thread."""

    def __init__(self, directory: Directory, model: str, folder: Path) -> None:
        self.model = model
        self.path = folder
        self._directory = directory
        self._published = False

    def publish(self, build_manifest: BuildManifest, verify: Verify) -> int:
        """Publish what is in ``path`` as the next version and return its number. The folder is gone afterwards.

        ``build_manifest(number, digests)`` must be quick and give the same for the same arguments; it is called again
        where another trainer took the number, and then only the manifest changes. ``verify(path)`` sees the whole
        folder with its manifest before it has a number for others to see; whatever it raises stops the publishing.

        Raises:
            InvalidVersion: the folder or the manifest cannot be a version's, or ``verify`` altered the files.
            StoreReadOnly, StoreError: it could not be written. Where only the last fsync failed the version is there.
        """
        if self._published:
            raise ValueError("This staging folder has been published already.")
        digests = self._settle()
        number = next_version(self._directory, self.model)
        self._write_manifest(build_manifest(number, digests), number, digests)
        verify(self.path)
        check_digests(self.path, read_manifest(self.path))

        def take() -> int:
            taken = number
            while not self._take(taken):
                taken = next_version(self._directory, self.model)
                self._write_manifest(build_manifest(taken, digests), taken, digests)
            return taken

        return self._directory.exclusively(self.model, take)

    def _settle(self) -> dict[str, str]:
        """Flush every file and folder to the disk, readable by all, writable by nobody; return the files' digests."""
        digests = file_digests(self.path)
        with writing():
            (self.path / ASSETS).mkdir(exist_ok=True)
            for path in digests:
                (self.path / path).chmod(FROZEN_FILE_MODE)
                fsync_path(self.path / path)
            for folder in sorted(path for path in self.path.rglob("*") if path.is_dir()):
                folder.chmod(FOLDER_MODE)
                fsync_path(folder)
            fsync_path(self.path)
        return digests

    def _write_manifest(self, manifest: Manifest, number: int, digests: dict[str, str]) -> None:
        if (manifest.model, manifest.version, manifest.digests) != (self.model, number, digests):
            raise InvalidVersion("The manifest is not of this model, version and files.")
        with writing():
            write_manifest(self.path, manifest)
            (self.path / MANIFEST).chmod(FROZEN_FILE_MODE)
            fsync_path(self.path / MANIFEST)
            fsync_path(self.path / ASSETS)
        # What does not survive JSON (a NaN, say) shows here and not in the service.
        read_manifest(self.path)

    def _take(self, number: int) -> bool:
        """Become ``number``; False when it is not the next one or something is there. Within ``exclusively``."""
        if number != next_version(self._directory, self.model):
            return False
        self._directory.note_number(self.model, number)
        self._published = self._directory.publish(self.path, self.model, number)
        return self._published
