"""Which versions are in memory, and which one answers a request.

``refresh`` (on the watcher's thread) compares the store with what is loaded: it loads what is new, the default version
of the default model first and the others side by side, then lets go of what is old. Requests read an immutable
snapshot, so resolving one takes no lock and no file access, and a request keeps its version for as long as it holds it.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from service.errors import (
    AliasNotFound,
    AutoencoderError,
    InvalidVersion,
    ModelNotFound,
    NotReady,
    StoreError,
    StoreUnavailable,
    VersionNotFound,
    VersionNotLoaded,
)
from service.runtime.loaded_model import LoadedModel, load_version
from service.store import Store
from service.words import PRODUCTION

log = logging.getLogger(__name__)

LOADED_AT_ONCE: Final = min(4, os.cpu_count() or 1)
"""Versions that are loaded side by side."""

# Measured over ten copies each: graphs of 0.3, 1.9 and 6.5 MiB took 15, 24 and 49 MiB of memory, weights included.
BASE_BYTES: Final = 13 * 2**20
GRAPH_FACTOR: Final = 6


class VersionState(StrEnum):
    AVAILABLE = "available"
    LOADING = "loading"
    FAILED = "failed"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    version: int
    state: VersionState
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The model, version or alias that a request names; empty means the default."""

    model: str | None = None
    version: int | None = None
    alias: str | None = None


DEFAULT: Final = Target()


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model in the snapshot."""

    name: str
    versions: tuple[VersionStatus, ...]
    aliases: Mapping[str, int]
    """Alias to version, as in the store."""
    serving: Mapping[str, int]
    """Alias to the version that answers for it: the one it names, or the last good one until that is loaded."""
    default_version: int | None
    loaded: Mapping[int, LoadedModel] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Contents:
    """One model in the store."""

    versions: tuple[int, ...]
    aliases: dict[str, int]
    others: dict[int, str]
    """Numbered folders that are no versions, with the reasons."""

    @property
    def default(self) -> int | None:
        return self.aliases.get(PRODUCTION, self.versions[-1] if self.versions else None)


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    at: float


Key = tuple[str, int]


class ModelManager:
    """Keeps the versions of a store loaded by one policy.

    Wanted are, in this order: the default version of each model, every version that an alias names, then the newest
    ``keep_versions`` of each model; as many of them as fit into ``max_loaded_bytes`` of memory. The first one
    always fits.
    """

    def __init__(
        self,
        store: Store,
        *,
        default_model: str | None = None,
        keep_versions: int = 2,
        max_loaded_bytes: int = 2**31,
        failed_retry_s: float = 60.0,
        load: Callable[[Path], LoadedModel] = load_version,
        on_change: Callable[[Mapping[str, ModelStatus]], None] = lambda models: None,
    ) -> None:
        self.store = store
        self.default_model = default_model
        self.store_problem: str | None = None
        self._keep_versions = keep_versions
        self._max_loaded_bytes = max_loaded_bytes
        self._failed_retry_s = failed_retry_s
        self._load = load
        self._on_change = on_change
        self._contents: dict[str, _Contents] = {}
        self._loaded: dict[Key, LoadedModel] = {}
        self._failures: dict[Key, _Failure] = {}
        self._memory_bytes: dict[Key, int] = {}
        self._loading: set[Key] = set()
        self.has_looked = False
        """Whether everything that the store wanted loaded at first has been loaded, or has failed."""
        self._models: Mapping[str, ModelStatus] = {}
        self._default: LoadedModel | None = None
        """What answers where a request names nothing."""
        self._refreshing = threading.Lock()
        self._changing = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._watcher: threading.Thread | None = None

    # --- what requests read -------------------------------------------------------------------------------------

    @property
    def models(self) -> Mapping[str, ModelStatus]:
        return self._models

    def model(self, name: str | None = None) -> ModelStatus:
        """
        Raises:
            ModelNotFound: no such model, or no default among several.
            NotReady: there is no model at all yet.
        """
        name = name or self.default_model or self._only_model()
        status = self._models.get(name)
        if status is None and not self._models and not self.has_looked:
            raise NotReady("The store is being read.")
        if status is None:
            raise ModelNotFound("There is no such model.")
        return status

    def _only_model(self) -> str:
        if len(self._models) == 1:
            return next(iter(self._models))
        if not self._models:
            raise NotReady("No model is loaded yet.")
        raise ModelNotFound("There are several models: name one in the path, or set a default model.")

    def acquire(self, target: Target) -> LoadedModel:
        """The version that answers. It stays usable for as long as the caller holds it.

        Raises:
            ModelNotFound, VersionNotFound, AliasNotFound: the store has no such thing.
            VersionNotLoaded: it is in the store, but not in memory.
            NotReady: no version of this model could be loaded yet, or the one that is named is being loaded.
        """
        if target is DEFAULT and self._default is not None:
            return self._default
        model = self.model(target.model)
        if target.version is not None:
            loaded = model.loaded.get(target.version)
            return loaded if loaded is not None else _refuse(model, target.version)
        if target.alias is not None:
            if target.alias not in model.aliases:
                raise AliasNotFound(f"Model '{model.name}' has no such alias.")
            serving = model.serving.get(target.alias)
            return model.loaded[serving] if serving is not None else _refuse(model, model.aliases[target.alias])
        if model.default_version is None:
            reasons = (f" Version {each.version}: {each.reason}" for each in reversed(model.versions) if each.reason)
            raise NotReady(f"No version of model '{model.name}' is available.{next(reasons, '')}")
        return model.loaded[model.default_version]

    @property
    def not_ready_reason(self) -> str | None:
        """The reason why no default version can answer, or None if one can."""
        try:
            self.acquire(Target())
        except ModelNotFound as error:
            if self.default_model is None and any(model.loaded for model in self._models.values()):
                return None if self.has_looked else "Models are being loaded."
            return str(error)
        except AutoencoderError as error:
            return self.store_problem or str(error)
        return None

    @property
    def has_failures(self) -> bool:
        """Whether a version could not be loaded."""
        return bool(self._failures)

    # --- what changes it ----------------------------------------------------------------------------------------

    def start(self, interval_s: float) -> None:
        """Watch the store, now and after each interval, on a thread of its own until ``stop``."""
        self._watcher = threading.Thread(target=self._watch, args=(interval_s,), name="store-watcher", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def _watch(self, interval_s: float) -> None:
        while not self._stopped:
            try:
                self.refresh()
            except Exception:
                log.exception("looking at the store failed; trying again")
            self.has_looked = True
            self._wake.wait(interval_s)
            self._wake.clear()

    def refresh(self) -> None:
        """Bring memory in line with the store. Blocks while versions load; what serves goes on serving."""
        with self._refreshing:
            contents = self._read_store()
            if contents is None:
                return
            self._contents = contents
            self._forget_failures()
            self._load_all(self._wanted())
            for name in contents:
                self._ensure_any(name)
            with self._changing:
                self._unload()
                self.has_looked = True
                self._publish()
            self._measure()

    def _load_all(self, wanted: list[Key]) -> None:
        """Have versions loaded: the first one by itself, since it shall answer soonest, the others side by side."""
        keys = deque(key for key in wanted if key not in self._loaded and key not in self._failures)
        if not keys:
            return
        with self._changing:
            self._loading = set(keys)
            self._publish()
        self._ensure(keys.popleft())
        self._measure()

        def load_on() -> None:
            while keys and not self._stopped:
                try:
                    key = keys.popleft()
                except IndexError:  # another thread was quicker
                    return
                self._ensure(key)

        # Daemons, for which a process that ends does not wait.
        threads = [
            threading.Thread(target=load_on, name="loader", daemon=True) for _ in range(min(LOADED_AT_ONCE, len(keys)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _measure(self) -> None:
        """Time what is loaded and not timed yet, while nothing loads."""
        for loaded in list(self._loaded.values()):
            if not self._stopped:
                loaded.measure()

    def _read_store(self) -> dict[str, _Contents] | None:
        """Models of the store, or None when it cannot be trusted: then nothing may be unloaded for it."""
        try:
            contents = {name: self._read_model(name) for name in self.store.models()}
        except StoreUnavailable as error:
            self._distrust(str(error))
            return None
        if self._loaded and not any(model.versions for model in contents.values()):
            self._distrust("The store is empty now; what was loaded goes on serving.")
            return None
        if self.store_problem:
            log.info("the store can be read again")
        self.store_problem = None
        return contents

    def _distrust(self, problem: str) -> None:
        if problem != self.store_problem:
            log.error("store: %s", problem)
        self.store_problem = problem

    def _read_model(self, name: str) -> _Contents:
        try:
            versions, others = self.store.listing(name)
        except ModelNotFound:  # deleted since it was listed
            versions, others = [], {}
        known = self._contents.get(name)
        for number in others.keys() - (known.others if known else {}):
            log.error("version %d of %s is not loaded: %s", number, name, others[number])
        try:
            aliases = self.store.aliases(name)
        except StoreUnavailable:
            raise
        except (StoreError, ModelNotFound) as error:
            log.error("aliases of model %s: %s", name, error)
            aliases = known.aliases if known else {}
        return _Contents(tuple(versions), aliases, others)

    def _wanted(self) -> list[Key]:
        """Versions to have in memory, the most important first."""
        self._memory_bytes = {
            key: self._memory_bytes.get(key) or self._estimate(key) for key in dict.fromkeys(self._by_priority())
        }
        wanted: list[Key] = []
        left = self._max_loaded_bytes
        for key, size in self._memory_bytes.items():
            if not wanted or size <= left:
                wanted.append(key)
                left -= size
        return wanted

    def _by_priority(self) -> Iterator[Key]:
        names = sorted(self._contents, key=lambda name: (name != self.default_model, name))
        for name in names:
            default = self._contents[name].default
            if default in self._contents[name].versions:
                yield name, default
        for name in names:
            model = self._contents[name]
            yield from ((name, version) for version in model.aliases.values() if version in model.versions)
        for name in names:
            yield from ((name, version) for version in reversed(self._contents[name].versions[-self._keep_versions :]))

    def _estimate(self, key: Key) -> int:
        try:
            return memory_bytes(self.store.file_sizes(*key))
        except (OSError, AutoencoderError):
            return 0

    def _forget_failures(self) -> None:
        """Failures of versions that are gone, and those that are old enough for another try."""
        now = time.monotonic()
        self._failures = {
            (name, version): failure
            for (name, version), failure in self._failures.items()
            if name in self._contents
            and version in self._contents[name].versions
            and now - failure.at < self._failed_retry_s
        }

    def _ensure(self, key: Key) -> bool:
        """Load a version; False if that fails."""
        if key in self._loaded:
            return True
        if key in self._failures:
            return False
        started = time.monotonic()
        loaded: LoadedModel | None = None
        try:
            loaded = self._load_checked(key)
        except Exception as error:  # noqa: BLE001 - whatever stops a load is the version's reason
            self._fail(key, error)
        with self._changing:
            self._loading.discard(key)
            if loaded is not None:
                self._loaded[key] = loaded
            self._publish()
        if loaded is not None:
            log.info("loaded %s version %d in %.2f s", *key, time.monotonic() - started)
        return loaded is not None

    def _load_checked(self, key: Key) -> LoadedModel:
        loaded = self._load(self.store.path(*key))
        if (loaded.name, loaded.version) != key:
            raise InvalidVersion("its manifest names another model or version")
        return loaded

    def _fail(self, key: Key, error: Exception) -> None:
        known = isinstance(error, AutoencoderError)
        reason = str(error) if known else f"loading failed: {type(error).__name__}"
        log.error("version %d of %s is not loaded: %s", key[1], key[0], reason, exc_info=None if known else error)
        self._failures[key] = _Failure(reason, time.monotonic())

    def _ensure_any(self, name: str) -> None:
        """When nothing of a model could be loaded, the next best version before its default one."""
        default = self._contents[name].default
        if default is None or (name, default) not in self._failures:
            return
        if not any(model == name for model, _ in self._loaded):
            older = [version for version in self._contents[name].versions if version < default]
            next((version for version in reversed(older) if self._ensure((name, version))), None)

    def _unload(self) -> None:
        keep = set(self._wanted())
        for name, status in self._snapshot().items():
            keep.update((name, version) for version in status.serving.values())
            if status.default_version is not None:
                keep.add((name, status.default_version))
        for key in set(self._loaded) - keep:
            del self._loaded[key]
            log.info("unloaded %s version %d", *key)

    def _publish(self) -> None:
        self._default = None
        self._models = self._snapshot()
        with suppress(AutoencoderError):
            self._default = self.acquire(DEFAULT)
        self._on_change(self._models)

    def _snapshot(self) -> dict[str, ModelStatus]:
        return {name: self._status(name, contents) for name, contents in self._contents.items()}

    def _status(self, name: str, contents: _Contents) -> ModelStatus:
        loaded = {version: model for (owner, version), model in self._loaded.items() if owner == name}
        before = self._models.get(name)
        status = ModelStatus(
            name=name,
            versions=tuple(
                self._version_status(name, version) for version in sorted([*contents.versions, *contents.others])
            ),
            aliases=dict(contents.aliases),
            serving={},
            default_version=None,
            loaded=loaded,
        )
        serving = {}
        for alias, version in contents.aliases.items():
            answering = _answering(version, loaded, before.serving.get(alias) if before else None)
            if answering is not None:
                serving[alias] = answering
        default = _answering(contents.default, loaded, before.default_version if before else None)
        return replace(status, serving=serving, default_version=default)

    def _version_status(self, name: str, version: int) -> VersionStatus:
        key = name, version
        if key in self._loaded:
            return VersionStatus(version, VersionState.AVAILABLE)
        if key in self._loading:
            return VersionStatus(version, VersionState.LOADING)
        if key in self._failures:
            return VersionStatus(version, VersionState.FAILED, self._failures[key].reason)
        if (reason := self._contents[name].others.get(version)) is not None:
            return VersionStatus(version, VersionState.FAILED, reason)
        return VersionStatus(version, VersionState.RETIRED)


def memory_bytes(file_sizes: Mapping[str, int]) -> int:
    """Estimated bytes of memory that a version takes once it is loaded, from the bytes of its files by path.

    TensorFlow's graphs, functions and kernels take several times the bytes of the graph's file; weights take their own.
    """
    weights = sum(size for path, size in file_sizes.items() if path.startswith("variables/"))
    return BASE_BYTES + GRAPH_FACTOR * file_sizes.get("saved_model.pb", 0) + weights


def _answering(wanted: int | None, loaded: Mapping[int, LoadedModel], before: int | None) -> int | None:
    """The wanted version where it is loaded; else the one that answered before; else the best one below it."""
    if wanted is None or wanted in loaded:
        return wanted
    if before in loaded:
        return before
    return max((version for version in loaded if version < wanted), default=None)


def _refuse(model: ModelStatus, version: int) -> LoadedModel:
    status = next((status for status in model.versions if status.version == version), None)
    if status is None:
        raise VersionNotFound(f"Model '{model.name}' has no version {version}.")
    if status.state is VersionState.LOADING:
        raise NotReady(f"Version {version} of model '{model.name}' is being loaded.")
    reason = f": {status.reason}" if status.reason else "; give it an alias to have it loaded"
    raise VersionNotLoaded(f"Version {version} of model '{model.name}' is {status.state}{reason}.")
