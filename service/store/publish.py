"""Making a version out of a staged folder: whole and checked before it gets its number, in one step."""

from collections.abc import Callable
from pathlib import Path

from service.errors import InvalidVersion
from service.store.digests import check_digests, file_digests
from service.store.directory import Directory, writing
from service.store.filesystem import FOLDER_MODE, FROZEN_FILE_MODE, fsync_path
from service.store.manifest import ASSETS, MANIFEST, Manifest, read_manifest, write_manifest
from service.store.versions import next_version

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
