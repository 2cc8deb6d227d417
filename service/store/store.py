"""Versions and aliases of models in one directory: what the training job writes and the services read."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import (
    AliasNotFound,
    InvalidOption,
    InvalidVersion,
    ModelNotFound,
    StoreError,
    VersionInUse,
    VersionNotFound,
)
from service.store import aliases as alias_files
from service.store.aliases import PRODUCTION, read_aliases
from service.store.digests import check_digests
from service.store.directory import DELETED_PREFIX, LocalDirectory
from service.store.manifest import Manifest, read_manifest
from service.store.publish import Staging
from service.store.versions import is_name, list_versions, next_version, record_version


class Store:
    """The store at ``root``. Reading never writes and takes no lock; any number of threads and processes may use it.

    Every method raises StoreUnavailable when the root is missing or unreadable, and those that take a model raise
    ModelNotFound when it has no folder. Those that write raise StoreReadOnly where that is not allowed, and StoreError
    when it failed otherwise.
    """

    def __init__(self, root: Path | str) -> None:
        self._directory = LocalDirectory(Path(root))

    @property
    def root(self) -> Path:
        return self._directory.root

    def models(self) -> list[str]:
        """Names of the models, sorted; a model may have no version yet."""
        entries = self._directory.entries() or {}
        return sorted(name for name, is_folder in entries.items() if is_folder and is_name(name))

    def versions(self, model: str) -> list[int]:
        """Ascending. A version that is listed need not be whole: see ``manifest`` and ``verify_digests``."""
        found = list_versions(self._directory, self._known(model))
        if found is None:
            raise ModelNotFound("There is no such model in the store.")
        return found

    def aliases(self, model: str) -> dict[str, int]:
        """Alias -> version. Raises StoreError when ``aliases.json`` is damaged."""
        return read_aliases(self._directory, self._known(model))

    def resolve(self, model: str, *, version: int | None = None, alias: str | None = None) -> int:
        """The version that is meant: this one, the alias's, or with neither that of ``production``, else the highest.

        Raises:
            VersionNotFound: it is not there, or the alias points at a version that is not.
            AliasNotFound: the model has no such alias.
        """
        if version is not None and alias is not None:
            raise ValueError("Give a version or an alias, not both.")
        versions = self.versions(model)
        if version is not None:
            return _existing(version, versions, f"Model {model} has no such version.")
        aliases = self.aliases(model)
        if alias is None and PRODUCTION not in aliases:
            return _existing(max(versions, default=0), versions, f"Model {model} has no version yet.")
        name = PRODUCTION if alias is None else alias
        if name not in aliases:
            raise AliasNotFound(f"Model {model} has no such alias.")
        return _existing(aliases[name], versions, f"The alias {name} of model {model} points at a missing version.")

    def path(self, model: str, version: int) -> Path:
        """Folder of a version, a SavedModel."""
        return self._directory.path(f"{model}/{self.resolve(model, version=version)}")

    def manifest(self, model: str, version: int) -> Manifest:
        """Raises InvalidVersion when it is damaged, or not of this model and version."""
        path = self.path(model, version)
        with self._still_there(model, version):
            manifest = read_manifest(path)
        if (manifest.model, manifest.version) != (model, version):
            raise InvalidVersion("manifest.json is of another model or version.")
        return manifest

    def verify_digests(self, model: str, version: int) -> Manifest:
        """Check every byte of a version; its manifest. Raises InvalidVersion naming the first bad file."""
        manifest = self.manifest(model, version)
        with self._still_there(model, version):
            check_digests(self.path(model, version), manifest)
        return manifest

    @contextmanager
    def stage(self, model: str) -> Iterator[Staging]:
        """A new private folder on the store's file system; removed at the end unless it was published.

        The model's folder is made where it is missing, and what killed trainers left there is removed.

        Raises:
            InvalidOption: this cannot be the name of a model.
        """
        if not is_name(model):
            raise InvalidOption(
                "A model's name is 1 to 63 characters of a-z, 0-9, - and _, and starts with a letter or a digit."
            )
        self._directory.make_folder(model)
        self.sweep(model)
        with self._directory.private_folder(model) as folder:
            yield Staging(self._directory, model, folder)

    def set_alias(self, model: str, alias: str, version: int) -> int | None:
        """Point an alias at a version. Returns the version that it pointed at before, None for a new alias.

        Raises:
            InvalidOption: this cannot be an alias.
            VersionNotFound: there is no such version.
        """
        with self._directory.locked(self._known(model)):
            self.resolve(model, version=version)
            return alias_files.point(self._directory, model, alias=alias, version=version)

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias and forget where it pointed. Raises AliasNotFound."""
        with self._directory.locked(self._known(model)):
            alias_files.remove(self._directory, model, alias)

    def rollback(self, model: str, alias: str = PRODUCTION) -> int:
        """Point an alias at the version that it pointed at before; again goes one further back. Returns that version.

        Raises:
            AliasNotFound: there is no such alias.
            VersionNotFound: it has not pointed at another version before, or that version is gone.
        """
        with self._directory.locked(self._known(model)):
            return alias_files.point_back(self._directory, model, alias=alias, versions=self.versions(model))

    def delete(self, model: str, version: int) -> None:
        """Delete a version for ever; its number does not come back.

        Raises:
            VersionInUse: an alias points at it.
            VersionNotFound: there is no such version.
        """
        with self._directory.locked(self._known(model)):
            self.resolve(model, version=version)
            using = sorted(alias for alias, target in self.aliases(model).items() if target == version)
            if using:
                raise VersionInUse(f"Version {version} of model {model} is in use by the alias {using[0]}.")
            record_version(self._directory, model, next_version(self._directory, model) - 1)
            gone = f"{model}/{DELETED_PREFIX}{version}-{secrets.token_hex(8)}"
            if not self._directory.move(f"{model}/{version}", gone):
                raise StoreError("The version could not be moved away; try again.")
        self.sweep(model)

    def sweep(self, model: str | None = None) -> list[str]:
        """Remove what killed trainers and deletions left of a model, or of all; what has gone, as ``model/name``.

        A living trainer's staging folder stays.
        """
        models = self.models() if model is None else [self._known(model)]
        return [f"{name}/{gone}" for name in models for gone in self._directory.clear(name)]

    def _known(self, model: str) -> str:
        """``model``, once it is certain that it names a folder of ours and no path elsewhere."""
        if model not in self.models():
            raise ModelNotFound("There is no such model in the store.")
        return model

    @contextmanager
    def _still_there(self, model: str, version: int) -> Iterator[None]:
        """Tell a version that is bad from one that went away, or whose store did, while it was read."""
        try:
            yield
        except InvalidVersion:
            self.resolve(model, version=version)
            raise


def _existing(version: int, versions: list[int], otherwise: str) -> int:
    if version not in versions:
        raise VersionNotFound(otherwise)
    return version
