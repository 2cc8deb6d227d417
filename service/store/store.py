"""Versions and aliases of models in one directory: what the training job writes and the services read."""

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
from service.store.aliases import read_aliases
from service.store.directory import Directory, LocalDirectory
from service.store.manifest import MANIFEST, Manifest, check_digests, parse_manifest
from service.store.publish import Staging, is_name, list_versions, next_version, why_no_version
from service.words import PRODUCTION


class Store:
    """The store at ``root``. Reading never writes and takes no lock; any number of threads and processes may use it.

    Every method raises StoreUnavailable when the root is missing or unreadable, and those that take a model raise
    ModelNotFound when it has no folder. Those that write raise StoreReadOnly where that is not allowed, and StoreError
    when it failed otherwise.
    """

    def __init__(self, root: Path | str | Directory) -> None:
        """``root``: a folder, or the URL of an object-store prefix as ``s3://bucket/prefix``."""
        self._directory = directory_at(root) if isinstance(root, Path | str) else root

    @property
    def root(self) -> Path:
        """Raises ValueError for a store that is no folder."""
        if isinstance(self._directory, LocalDirectory):
            return self._directory.root
        raise ValueError("This store is not a folder.")

    def create(self) -> None:
        """Make the store itself, unless it is there."""
        self._directory.create()

    def check_writable(self, model: str) -> None:
        """Raises StoreReadOnly or StoreError where no version of ``model`` could be written."""
        self._directory.check_writable(model)

    def models(self) -> list[str]:
        """Names of the models, sorted; a model may have no version yet."""
        entries = self._directory.entries() or {}
        return sorted(name for name, is_folder in entries.items() if is_folder and is_name(name))

    def versions(self, model: str) -> list[int]:
        """Version numbers, ascending. A listed version need not be whole: see ``manifest`` and ``verify_digests``."""
        return self.listing(model)[0]

    def listing(self, model: str) -> tuple[list[int], dict[int, str]]:
        """Version numbers, ascending, and those of folders that are no versions, each with the sentence that says why.

        The latter hold no manifest: another program wrote them.
        """
        found = list_versions(self._directory, self._known(model))
        if found is None:
            raise ModelNotFound("There is no such model in the store.")
        versions, others = found
        return versions, {number: why_no_version(self._directory, model, number) for number in others}

    def aliases(self, model: str) -> dict[str, int]:
        """The aliases with their versions. Raises StoreError if ``aliases.json`` is damaged."""
        return read_aliases(self._directory, self._known(model))

    def earlier(self, model: str) -> dict[str, int]:
        """The version that each alias pointed at before; an alias that never moved is not in it."""
        return alias_files.read_earlier(self._directory, self._known(model))

    def resolve(self, model: str, *, version: int | None = None, alias: str | None = None) -> int:
        """The version that is meant: this one, the alias's, or with neither that of ``production`` or the highest.

        Raises:
            VersionNotFound: it is not there, or no version, or the alias points at a version that is not.
            AliasNotFound: the model has no such alias.
        """
        if version is not None and alias is not None:
            raise ValueError("Give a version or an alias, not both.")
        versions, others = self.listing(model)
        if version is not None:
            return _existing(version, versions, others.get(version, f"Model {model} has no such version."))
        aliases = self.aliases(model)
        if alias is None and PRODUCTION not in aliases:
            reasons = [f"Model {model} has no version yet.", *others.values()]
            return _existing(max(versions, default=0), versions, " ".join(reasons[:2]))
        name = PRODUCTION if alias is None else alias
        if name not in aliases:
            raise AliasNotFound(f"Model {model} has no such alias.")
        return _existing(aliases[name], versions, f"The alias {name} of model {model} points at a missing version.")

    def path(self, model: str, version: int) -> Path:
        """Local folder of a version, a SavedModel; of an object store, a copy that is made and checked by this.

        Raises:
            InvalidVersion: a file that is to be copied is missing or not what was published.
        """
        resolved = self.resolve(model, version=version)
        with self._still_there(model, resolved):
            return self._directory.version_path(model, resolved)

    def file_sizes(self, model: str, version: int) -> dict[str, int]:
        """Bytes of every file of a version, by its path within the version."""
        return self._directory.file_sizes(f"{model}/{self.resolve(model, version=version)}")

    def read_file(self, model: str, version: int, path: str) -> bytes | None:
        """One file of a version, None when it has no such file."""
        return self._directory.read_file(f"{model}/{self.resolve(model, version=version)}/{path}")

    def manifest(self, model: str, version: int) -> Manifest:
        """The manifest of a version. Raises InvalidVersion if it is damaged, or of another model or version."""
        with self._still_there(model, version):
            content = self.read_file(model, version, MANIFEST)
            if content is None:
                raise InvalidVersion("manifest.json is missing.")
            manifest = parse_manifest(content)
        if (manifest.model, manifest.version) != (model, version):
            raise InvalidVersion("manifest.json is of another model or version.")
        return manifest

    def verify_digests(self, model: str, version: int) -> Manifest:
        """Check every byte of a version and return its manifest. Raises InvalidVersion naming the first bad file."""
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

        def point() -> int | None:
            self.resolve(model, version=version)
            before = alias_files.point(self._directory, model, alias=alias, version=version)
            if version not in self.versions(model):  # deleted meanwhile, where there are no locks
                alias_files.withdraw(self._directory, model, alias=alias, before=before)
                raise VersionNotFound(f"Version {version} of model {model} was deleted at the same time.")
            return before

        return self._directory.exclusively(self._known(model), point)

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias and forget where it pointed. Raises AliasNotFound."""
        self._directory.exclusively(self._known(model), lambda: alias_files.remove(self._directory, model, alias))

    def rollback(self, model: str, alias: str = PRODUCTION) -> int:
        """Point an alias at the version that it pointed at before; again goes one further back. Returns that version.

        Raises:
            AliasNotFound: there is no such alias.
            VersionNotFound: it has not pointed at another version before, or that version is gone.
        """

        def point_back() -> int:
            return alias_files.point_back(self._directory, model, alias=alias, versions=self.versions(model))

        return self._directory.exclusively(self._known(model), point_back)

    def delete(self, model: str, version: int) -> None:
        """Delete a version for good; its number is never used again.

        Raises:
            VersionInUse: an alias points at it.
            VersionNotFound: there is no such version.
        """

        def named() -> list[str]:
            return sorted(alias for alias, target in self.aliases(model).items() if target == version)

        def remove() -> None:
            self.resolve(model, version=version)
            self._refuse_in_use(model, version, named())
            self._directory.note_number(model, next_version(self._directory, model) - 1)
            if not self._directory.discard(model, version, wanted=lambda: bool(named())):
                self._refuse_in_use(model, version, named())
                raise StoreError("The version could not be moved away; try again.")

        self._directory.exclusively(self._known(model), remove)
        self.sweep(model)

    @staticmethod
    def _refuse_in_use(model: str, version: int, aliases: list[str]) -> None:
        if aliases:
            raise VersionInUse(f"Version {version} of model {model} is in use by the alias {aliases[0]}.")

    def sweep(self, model: str | None = None) -> list[str]:
        """Remove the remains of killed trainers and deletions, and return them as ``model/name``.

        A living trainer's staging folder stays.
        """
        models = self.models() if model is None else [self._known(model)]
        return [f"{name}/{gone}" for name in models for gone in self._directory.clear(name)]

    def _known(self, model: str) -> str:
        """``model``, checked to be a model's name and no path elsewhere."""
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


def directory_at(root: Path | str) -> Directory:
    """The home of a store: a folder, or an object-store prefix where ``root`` is a URL.

    Raises:
        ConfigurationError: there is no such kind of store, or the libraries for it are not installed.
    """
    if "://" not in str(root):
        return LocalDirectory(Path(root))
    from service.store.buckets import Bucket
    from service.store.objects import ObjectDirectory

    return ObjectDirectory(Bucket(str(root)))
