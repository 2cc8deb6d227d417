"""Which versions are in memory, and which one answers: by the store, by aliases, by what loads, by memory."""

import shutil
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from service.errors import (
    AliasNotFound,
    InvalidVersion,
    ModelNotFound,
    NotReady,
    StoreUnavailable,
    VersionNotFound,
    VersionNotLoaded,
)
from service.runtime import ModelManager, ModelStatus, Target, VersionState
from service.runtime.loaded_model import LoadedModel
from service.runtime.manager import LOADED_AT_ONCE, memory_bytes
from service.schemas import INSTANCES
from service.settings import Settings
from service.store import ALIASES, Store
from service.words import PRODUCTION
from tests.fakes import MODEL, Gate, load_fake, publish_fake

GRAPH_BYTES = 1_000_000
SMALL = memory_bytes({"saved_model.pb": GRAPH_BYTES})


class Loader:
    """Loads fakes, remembers what it was asked for, and fails where it is told to."""

    def __init__(self) -> None:
        self.bad: dict[int, Exception] = {}
        self.asked: list[tuple[str, int]] = []
        self.during: Callable[[Path], None] = lambda path: None

    def __call__(self, path: Path) -> LoadedModel:
        version = int(path.name)
        self.asked.append((path.parent.name, version))
        self.during(path)
        if version in self.bad:
            raise self.bad[version]
        return load_fake(path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def manager(store: Store, loader: Loader) -> ModelManager:
    """Keeps the two newest versions; not started: a test refreshes it."""
    return ModelManager(store, load=loader)


def publish(store: Store, count: int = 1, *, model: str = MODEL, size_bytes: int = 0) -> None:
    for _ in range(count):
        publish_fake(store, model=model, size_bytes=size_bytes)


def states(manager: ModelManager, model: str = MODEL) -> dict[int, str]:
    return {status.version: status.state.value for status in manager.model(model).versions}


def answering(manager: ModelManager, **target: int | str) -> int:
    return manager.acquire(Target(**target)).version  # type: ignore[arg-type]


def test_a_model_of_another_program_is_explained(
    manager: ModelManager, store: Store, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    """It is listed as failed, in the log once, and is why nothing answers; a version beside it answers."""
    (store.root / MODEL / "1").mkdir(parents=True)
    (store.root / MODEL / "1" / "saved_model.pb").touch()
    for _ in range(2):
        manager.refresh()
    assert states(manager) == {1: "failed"}
    command = f"`autoencoder import {MODEL}/1 --rows ROWS`"
    assert command in str(manager.not_ready_reason)
    assert [command in record.message for record in caplog.records] == [True]
    assert not manager.has_failures  # another process would do no better
    publish(store)
    manager.refresh()
    assert states(manager) == {1: "failed", 2: "available"}
    assert (answering(manager), manager.not_ready_reason) == (2, None)
    assert loader.asked == [(MODEL, 2)]


# --- policy -----------------------------------------------------------------------------------------------------------


def test_the_newest_versions_are_loaded_and_the_highest_answers(manager: ModelManager, store: Store) -> None:
    """Of four versions the two newest; the default is the highest."""
    publish(store, 4)
    manager.refresh()
    assert states(manager) == {1: "retired", 2: "retired", 3: "available", 4: "available"}
    assert answering(manager) == answering(manager, model=MODEL) == 4
    assert answering(manager, model=MODEL, version=3) == 3


def test_production_is_the_default_where_it_is_set(manager: ModelManager, store: Store) -> None:
    """The alias and not the number decides, and it keeps its version loaded."""
    publish(store, 4)
    store.set_alias(MODEL, PRODUCTION, 1)
    manager.refresh()
    assert answering(manager) == 1
    assert states(manager) == {1: "available", 2: "retired", 3: "available", 4: "available"}


def test_every_alias_keeps_its_version_loaded(manager: ModelManager, store: Store) -> None:
    """Set, moved and removed, each with the next look."""
    publish(store, 4)
    store.set_alias(MODEL, "old", 1)
    manager.refresh()
    assert answering(manager, model=MODEL, alias="old") == 1
    store.set_alias(MODEL, "old", 2)
    manager.refresh()
    assert answering(manager, model=MODEL, alias="old") == 2
    assert states(manager)[1] == "retired"
    store.delete_alias(MODEL, "old")
    manager.refresh()
    with pytest.raises(AliasNotFound):
        manager.acquire(Target(MODEL, alias="old"))
    assert states(manager)[2] == "retired"


def test_a_version_is_loaded_once(manager: ModelManager, store: Store, loader: Loader) -> None:
    """Looking again loads nothing again."""
    publish(store, 2)
    for _ in range(3):
        manager.refresh()
    assert sorted(loader.asked) == [(MODEL, 1), (MODEL, 2)]


def test_unknown_things_are_not_found(manager: ModelManager, store: Store) -> None:
    """Model, version and alias, each with its own error; a version that is only in the store with another."""
    publish(store, 3)
    manager.refresh()
    with pytest.raises(ModelNotFound):
        manager.acquire(Target("nothing"))
    with pytest.raises(VersionNotFound):
        manager.acquire(Target(MODEL, 9))
    with pytest.raises(AliasNotFound):
        manager.acquire(Target(MODEL, alias="nothing"))
    with pytest.raises(VersionNotLoaded, match="retired"):
        manager.acquire(Target(MODEL, 1))


def test_several_models_are_loaded_side_by_side(store: Store, loader: Loader) -> None:
    """Each by the same policy; without a name the default model answers, or nobody."""
    for model in ("pumps", "valves"):
        publish(store, 2, model=model)
    several = ModelManager(store, load=loader)
    several.refresh()
    assert {name: sorted(status.loaded) for name, status in several.models.items()} == {
        "pumps": [1, 2],
        "valves": [1, 2],
    }
    with pytest.raises(ModelNotFound, match="several"):
        several.acquire(Target())
    assert several.not_ready_reason is None
    named = ModelManager(store, load=loader, default_model="valves")
    named.refresh()
    assert named.acquire(Target()).name == "valves"


def test_the_default_model_is_loaded_first(store: Store, loader: Loader) -> None:
    """A service is ready as early as it can be."""
    for model in ("pumps", "valves"):
        publish(store, model=model)
    ModelManager(store, load=loader, default_model="valves").refresh()
    assert loader.asked[0] == ("valves", 1)


# --- new before old ---------------------------------------------------------------------------------------------------


def test_the_old_version_answers_until_the_new_one_is_loaded(
    manager: ModelManager, store: Store, loader: Loader
) -> None:
    """While a version loads, all that was available is; the snapshot says ``loading``."""
    manager = ModelManager(store, load=loader, keep_versions=1)
    publish(store)
    manager.refresh()
    seen: list[tuple[int, dict[int, str]]] = []
    loader.during = lambda path: seen.append((answering(manager), states(manager)))
    publish(store)
    manager.refresh()
    assert seen == [(1, {1: "available", 2: "loading"})]
    assert answering(manager) == 2
    assert states(manager) == {1: "retired", 2: "available"}


def test_a_request_keeps_its_version_while_it_is_swapped(store: Store, loader: Loader) -> None:
    """The old version is gone from memory when the last request lets go of it, and not before."""
    manager = ModelManager(store, load=loader, keep_versions=1)
    publish(store)
    manager.refresh()
    held = manager.acquire(Target())
    watched = weakref.ref(held)
    publish(store)
    manager.refresh()
    assert states(manager)[1] == "retired"
    assert held.version == 1
    assert watched() is not None
    del held
    assert watched() is None


def test_requests_during_swaps_never_miss(store: Store, loader: Loader) -> None:
    """Two threads resolve the default and an alias without a pause while versions and aliases come and go."""
    manager = ModelManager(store, load=loader, keep_versions=1)
    publish(store, 2)
    store.set_alias(MODEL, PRODUCTION, 1)
    manager.refresh()
    stop = threading.Event()
    wrong: list[Exception] = []

    def resolve() -> None:
        while not stop.wait(0.0002):
            try:
                manager.acquire(Target())
                manager.acquire(Target(MODEL, alias=PRODUCTION))
            except Exception as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=resolve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for at in range(40):
        store.set_alias(MODEL, PRODUCTION, 1 + at % 2)
        manager.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_changes_are_told_with_every_new_snapshot(store: Store, loader: Loader) -> None:
    """The observer sees the versions come and go; what it is given is the snapshot."""
    seen: list[list[int]] = []

    def note(models: Mapping[str, ModelStatus]) -> None:
        if MODEL in models:
            seen.append(sorted(models[MODEL].loaded))

    manager = ModelManager(store, load=loader, keep_versions=1, on_change=note)
    publish(store)
    manager.refresh()
    publish(store)
    manager.refresh()
    assert [1] in seen
    assert [1, 2] in seen  # the new before the old goes
    assert seen[-1] == [2]


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_version_keeps_its_reason_and_the_last_good_one_answers(
    manager: ModelManager, store: Store, loader: Loader
) -> None:
    """By default and by the alias that names the failed one."""
    publish(store, 2)
    loader.bad[2] = InvalidVersion("saved_model.pb is not what was published.")
    store.set_alias(MODEL, "candidate", 2)
    manager.refresh()
    failed = manager.model(MODEL).versions[1]
    assert (failed.state, failed.reason) == (VersionState.FAILED, "saved_model.pb is not what was published.")
    assert answering(manager) == answering(manager, model=MODEL, alias="candidate") == 1
    with pytest.raises(VersionNotLoaded, match="what was published"):
        manager.acquire(Target(MODEL, 2))
    assert manager.not_ready_reason is None


def test_what_served_before_goes_on_when_its_successor_fails(store: Store, loader: Loader) -> None:
    """With room for one version the good one is not unloaded for a bad one."""
    manager = ModelManager(store, load=loader, keep_versions=1)
    publish(store)
    manager.refresh()
    loader.bad[2] = MemoryError()
    publish(store)
    manager.refresh()
    assert answering(manager) == 1
    assert states(manager) == {1: "available", 2: "failed"}


def test_promoting_a_bad_version_leaves_what_answered_before(store: Store, loader: Loader) -> None:
    """Not the next lower one: the one that the alias named before."""
    manager = ModelManager(store, load=loader, keep_versions=3)
    publish(store, 3)
    loader.bad[3] = InvalidVersion("bad")
    store.set_alias(MODEL, PRODUCTION, 1)
    manager.refresh()
    assert answering(manager) == 1
    store.set_alias(MODEL, PRODUCTION, 3)
    manager.refresh()
    assert answering(manager) == answering(manager, model=MODEL, alias=PRODUCTION) == 1


def test_the_last_good_one_is_loaded_where_nothing_newer_loads(store: Store, loader: Loader) -> None:
    """Version 1 is not among the newest two, and both of these are bad."""
    manager = ModelManager(store, load=loader)
    publish(store, 3)
    loader.bad = {2: InvalidVersion("bad"), 3: InvalidVersion("bad")}
    manager.refresh()
    assert answering(manager) == 1
    manager.refresh()
    assert answering(manager) == 1


def test_a_failed_version_is_tried_again_later_and_not_before(store: Store, loader: Loader) -> None:
    """Not on every look; after ``failed_retry_s`` it may have become good."""
    patient = ModelManager(store, load=loader, failed_retry_s=3600)
    publish(store)
    loader.bad[1] = OSError(5, "Input/output error")
    for _ in range(3):
        patient.refresh()
    assert loader.asked == [(MODEL, 1)]
    with pytest.raises(NotReady):
        patient.acquire(Target())
    hasty = ModelManager(store, load=loader, failed_retry_s=1e-9)
    hasty.refresh()
    assert states(hasty) == {1: "failed"}
    loader.bad.clear()
    hasty.refresh()
    assert answering(hasty) == 1


def test_an_unexpected_error_gives_its_kind_as_reason(manager: ModelManager, store: Store, loader: Loader) -> None:
    """Its text may hold paths."""
    publish(store)
    loader.bad[1] = RuntimeError("/srv/secret")
    manager.refresh()
    reason = manager.model(MODEL).versions[0].reason
    assert reason == "loading failed: RuntimeError"


def test_a_version_of_another_model_is_refused(manager: ModelManager, store: Store) -> None:
    """A folder that was copied under another name."""
    publish(store)
    publish(store, model="valves")
    shutil.copytree(store.root / "valves" / "1", store.root / MODEL / "2")
    manager.refresh()
    assert states(manager) == {1: "available", 2: "failed"}


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_missing_root_unloads_nothing(manager: ModelManager, store: Store) -> None:
    """It is an error and not 'no versions'; when it is back all goes on."""
    publish(store, 2)
    manager.refresh()
    away = store.root.rename(store.root.with_name("away"))
    manager.refresh()
    assert manager.store_problem is not None
    assert str(store.root) not in manager.store_problem
    assert answering(manager) == 2
    assert answering(manager, model=MODEL, version=1) == 1
    away.rename(store.root)
    publish(store)
    manager.refresh()
    assert manager.store_problem is None
    assert answering(manager) == 3


def test_an_empty_root_unloads_nothing(manager: ModelManager, store: Store) -> None:
    """As when a volume is not mounted: what was loaded goes on serving."""
    publish(store)
    manager.refresh()
    away = store.root.rename(store.root.with_name("away"))
    store.root.mkdir()
    manager.refresh()
    assert manager.store_problem is not None
    assert answering(manager) == 1
    store.root.rmdir()
    away.rename(store.root)
    manager.refresh()
    assert manager.store_problem is None


def test_a_root_that_was_never_there_is_an_error(tmp_path: Path) -> None:
    """Not ready, with the reason."""
    manager = ModelManager(Store(tmp_path / "nowhere"), load=load_fake)
    manager.refresh()
    assert manager.not_ready_reason == manager.store_problem is not None
    with pytest.raises(StoreUnavailable):
        manager.store.models()


def test_damaged_aliases_leave_those_that_were_known(manager: ModelManager, store: Store) -> None:
    """A half-written or altered ``aliases.json`` moves nothing."""
    publish(store, 2)
    store.set_alias(MODEL, PRODUCTION, 1)
    manager.refresh()
    (store.root / MODEL / ALIASES).write_bytes(b'{"production": ')
    manager.refresh()
    assert answering(manager) == 1


def test_a_deleted_version_goes(manager: ModelManager, store: Store) -> None:
    """Deleted from the store: gone from memory with the next look."""
    publish(store, 2)
    manager.refresh()
    store.delete(MODEL, 2)
    manager.refresh()
    assert answering(manager) == 1
    assert list(manager.model(MODEL).loaded) == [1]
    with pytest.raises(VersionNotFound):
        manager.acquire(Target(MODEL, 2))


def test_a_model_without_a_version_is_not_ready(manager: ModelManager, store: Store) -> None:
    """Its folder is there; the first version makes it ready."""
    (store.root / MODEL).mkdir()
    manager.refresh()
    with pytest.raises(NotReady):
        manager.acquire(Target())
    assert manager.not_ready_reason
    publish(store)
    manager.refresh()
    assert manager.not_ready_reason is None


# --- memory -----------------------------------------------------------------------------------------------------------


def test_no_more_is_loaded_than_memory_allows(store: Store, loader: Loader) -> None:
    """Defaults first, then what aliases name, then the newest; never over the bound."""
    publish(store, 4, size_bytes=GRAPH_BYTES)
    store.set_alias(MODEL, "old", 1)
    manager = ModelManager(store, load=loader, keep_versions=4, max_loaded_bytes=2 * SMALL + SMALL // 2)
    manager.refresh()
    assert states(manager) == {1: "available", 2: "retired", 3: "retired", 4: "available"}


def test_the_default_version_is_loaded_however_large(store: Store, loader: Loader) -> None:
    """A bound that nothing fits into would serve nothing."""
    publish(store, 2, size_bytes=GRAPH_BYTES)
    manager = ModelManager(store, load=loader, max_loaded_bytes=10)
    manager.refresh()
    assert states(manager) == {1: "retired", 2: "available"}


def test_every_default_goes_before_any_second_version(store: Store, loader: Loader) -> None:
    """Two models, room for two versions: one of each."""
    for model in ("pumps", "valves"):
        publish(store, 2, model=model, size_bytes=GRAPH_BYTES)
    manager = ModelManager(store, load=loader, max_loaded_bytes=2 * SMALL + SMALL // 2)
    manager.refresh()
    assert states(manager, "pumps") == states(manager, "valves") == {1: "retired", 2: "available"}


def test_memory_is_estimated_from_graph_and_weights() -> None:
    """Every version takes some, a graph several times its file, weights their own; reports and the Keras file none."""
    small = {"saved_model.pb": 800_000, "variables/variables.data-00000-of-00001": 3_000}
    assert 15 * 2**20 < memory_bytes(small) < 25 * 2**20
    grown = {**small, "saved_model.pb": 1_800_000}
    assert memory_bytes(grown) - memory_bytes(small) >= 5_000_000
    heavy = {**small, "variables/variables.data-00000-of-00001": 100_003_000}
    assert memory_bytes(heavy) - memory_bytes(small) == 100_000_000
    assert memory_bytes({**small, "assets.extra/model.keras": 10**9}) == memory_bytes(small)


def test_the_bound_is_of_memory_and_not_of_files(store: Store, loader: Loader) -> None:
    """Four versions of a few kilobytes of files each; there is memory for two."""
    publish(store, 4, size_bytes=1_000)
    manager = ModelManager(store, load=loader, keep_versions=4, max_loaded_bytes=35 * 2**20)
    manager.refresh()
    assert states(manager) == {1: "retired", 2: "retired", 3: "available", 4: "available"}


def test_sixty_small_models_fit_by_default() -> None:
    """And take no more than half of a container of 4 GiB."""
    limit = Settings.model_fields["max_loaded_bytes"].default
    assert 60 * SMALL <= limit <= 2 * 2**30


# --- many at once -----------------------------------------------------------------------------------------------------


def test_the_default_model_is_loaded_first_and_the_others_side_by_side(store: Store, loader: Loader) -> None:
    """By itself, since it shall answer soonest; of the others no more at once than there may be."""
    names = [f"m{number}" for number in range(8)]
    for name in names:
        publish(store, model=name)
    at_once, most = 0, 0
    counting, met = threading.Lock(), threading.Barrier(LOADED_AT_ONCE)

    def during(path: Path) -> None:
        nonlocal at_once, most
        with counting:
            at_once += 1
            most = max(most, at_once)
        if path.parent.name != "m5":
            with suppress(threading.BrokenBarrierError):  # the last ones are fewer
                met.wait(2)
        with counting:
            at_once -= 1

    loader.during = during
    manager = ModelManager(store, load=loader, default_model="m5")
    manager.refresh()
    assert loader.asked[0] == ("m5", 1)
    assert sorted(loader.asked) == [(name, 1) for name in names]
    assert most == LOADED_AT_ONCE
    assert all(states(manager, name) == {1: "available"} for name in names)


def test_versions_are_timed_while_nothing_is_loaded(store: Store) -> None:
    """What loads beside them would make them slow, and they would be taken for slow ever after."""
    names = [f"m{number}" for number in range(6)]
    for name in names:
        publish(store, model=name)
    own, loading, timed = threading.local(), list[Path](), list[int]()

    def call() -> None:
        if not getattr(own, "is_loading", False):
            timed.append(len(loading))

    def load(path: Path) -> LoadedModel:
        own.is_loading = True
        loading.append(path)
        loaded = load_fake(path, before=call)
        loaded.warm_up({INSTANCES: np.zeros((1, 2), np.float32)})
        time.sleep(0.01)
        loading.remove(path)
        own.is_loading = False
        return loaded

    manager = ModelManager(store, load=load)
    manager.refresh()
    assert set(timed) == {0}
    assert all(manager.acquire(Target(name)).inline_rows["encode"] > 0 for name in names)
    count = len(timed)
    manager.refresh()
    assert len(timed) == count


def test_what_is_still_to_be_loaded_is_shown_as_loading(store: Store) -> None:
    """And asked for, it is not ready: no word of its being retired or not there."""
    for name in ("a", "b"):
        publish(store, 2, model=name)
    gates = {"a": Gate(), "b": Gate()}

    def load(path: Path) -> LoadedModel:
        gates[path.parent.name]()
        return load_fake(path)

    manager = ModelManager(store, load=load, default_model="b")
    with pytest.raises(NotReady):
        manager.acquire(Target("a"))
    manager.start(60)
    gates["b"].await_call()
    assert states(manager, "a") == states(manager, "b") == {1: "loading", 2: "loading"}
    for target in (Target("a"), Target("a", 1), Target("b", 2), Target()):
        with pytest.raises(NotReady):
            manager.acquire(target)
    gates["b"].opened.set()
    gates["a"].await_call()
    assert answering(manager) == 2
    assert manager.not_ready_reason is None
    assert not manager.has_looked
    gates["a"].opened.set()
    manager.stop()


def test_without_a_default_model_ready_means_all(store: Store) -> None:
    """Whichever is asked for first."""
    for name in ("a", "b"):
        publish(store, model=name)
    gate = Gate()

    def load(path: Path) -> LoadedModel:
        if path.parent.name == "b":
            gate()
        return load_fake(path)

    manager = ModelManager(store, load=load)
    manager.start(60)
    gate.await_call()
    assert answering(manager, model="a") == 1
    assert manager.not_ready_reason == "Models are being loaded."
    gate.opened.set()
    while not manager.has_looked:
        time.sleep(0.01)
    assert manager.not_ready_reason is None
    manager.stop()


# --- the watcher ------------------------------------------------------------------------------------------------------


def test_the_watcher_sees_new_versions(store: Store) -> None:
    """Without a call from outside; until it is stopped."""
    loaded = threading.Event()
    manager = ModelManager(store, load=load_fake, on_change=lambda models: loaded.set() if MODEL in models else None)
    manager.refresh()
    manager.start(0.01)
    try:
        publish(store)
        assert loaded.wait(30)
    finally:
        manager.stop()


def test_stopping_does_not_wait_for_a_load(store: Store) -> None:
    """The load that the watcher is in the middle of goes on after ``stop`` has returned, and is its last."""
    gate = Gate()
    loaded: list[int] = []
    watchers: list[threading.Thread] = []
    ended = threading.Event()

    def load(path: Path) -> LoadedModel:
        watchers.append(threading.current_thread())
        try:
            gate()
            loaded.append(int(path.name))
            return load_fake(path)
        finally:
            ended.set()

    manager = ModelManager(store, load=load)
    publish(store)
    manager.start(0.01)
    gate.await_call()
    manager.stop()
    assert not ended.is_set()
    publish(store)
    gate.opened.set()
    watchers[0].join(30)
    assert not watchers[0].is_alive()
    assert loaded == [1]


def test_two_refreshes_at_once_load_once(store: Store, loader: Loader) -> None:
    """As when an alias is changed while the watcher looks."""
    gate = Gate()
    loader.during = lambda path: gate()
    manager = ModelManager(store, load=loader)
    publish(store)
    threads = [threading.Thread(target=partial(manager.refresh)) for _ in range(2)]
    for thread in threads:
        thread.start()
    gate.await_call()
    gate.opened.set()
    for thread in threads:
        thread.join()
    assert loader.asked == [(MODEL, 1)]
