"""Names that move between versions, and where they pointed before.

``aliases.json`` is one JSON object of alias -> version. The versions that an alias pointed to before, oldest first,
are beside it in ``.alias_history.json``. The two files cannot change in one step, so a kill may fall between them;
therefore an alias's newest earlier version that equals its present one does not count.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter

from service.errors import AliasNotFound, InvalidOption, StoreError, VersionNotFound
from service.store.buckets import LostRace
from service.store.directory import Directory
from service.store.publish import NAME_PATTERN, is_name

ALIASES = "aliases.json"
HISTORY = ".alias_history.json"
MAX_EARLIER_VERSIONS = 100

T = TypeVar("T")
AliasName = Annotated[str, Field(pattern=NAME_PATTERN)]
VersionNumber = Annotated[int, Field(strict=True, ge=1, lt=10**18)]

_ALIASES = TypeAdapter(dict[AliasName, VersionNumber])
_HISTORY = TypeAdapter(dict[AliasName, list[VersionNumber]])


def read_aliases(directory: Directory, model: str) -> dict[str, int]:
    """Alias to version, {} if there is no ``aliases.json``. Raises StoreError if it is malformed."""
    return _read(directory, f"{model}/{ALIASES}", _ALIASES)


def point(directory: Directory, model: str, *, alias: str, version: int) -> int | None:
    """Point an alias at a version, within ``exclusively``. Returns the version before, None for a new alias."""
    if not is_name(alias):
        raise InvalidOption("An alias is 1 to 63 characters of a-z, 0-9, - and _, and starts with a letter or a digit.")
    aliases, history = read_aliases(directory, model), _read_history(directory, model)
    before = aliases.get(alias)
    if before == version:
        return before
    # The history goes first: a kill before the alias moves leaves an entry that does not count.
    earlier = [] if before is None else [*_earlier(history, alias, before), before]
    _write_history(directory, model, history | {alias: earlier[-MAX_EARLIER_VERSIONS:]})
    _write(directory, f"{model}/{ALIASES}", aliases | {alias: version})
    return before


def withdraw(directory: Directory, model: str, *, alias: str, before: int | None) -> None:
    """Undo ``point``, unless somebody else moved the alias since."""
    aliases = read_aliases(directory, model)
    others = {name: version for name, version in aliases.items() if name != alias}
    _write(directory, f"{model}/{ALIASES}", others if before is None else others | {alias: before})


def remove(directory: Directory, model: str, alias: str) -> None:
    """Remove an alias and its history, within ``exclusively``."""
    aliases, history = read_aliases(directory, model), _read_history(directory, model)
    if alias not in aliases:
        raise AliasNotFound(f"Model {model} has no such alias.")
    _write(directory, f"{model}/{ALIASES}", {name: aliases[name] for name in aliases if name != alias})
    with suppress(LostRace):  # the alias has gone; what its history was does not count
        _write_history(directory, model, {name: history[name] for name in history if name != alias})


def point_back(directory: Directory, model: str, *, alias: str, versions: list[int]) -> int:
    """Point an alias at the version it pointed to before, within ``exclusively``. Returns that version."""
    aliases, history = read_aliases(directory, model), _read_history(directory, model)
    if alias not in aliases:
        raise AliasNotFound(f"Model {model} has no such alias.")
    earlier = _earlier(history, alias, aliases[alias])
    if not earlier:
        raise VersionNotFound(f"The alias {alias} of model {model} has not pointed at another version before.")
    if earlier[-1] not in versions:
        raise VersionNotFound(
            f"The alias {alias} of model {model} pointed at version {earlier[-1]} before, which is no longer there."
        )
    # The alias goes first here: a kill before the history follows leaves an entry that does not count.
    _write(directory, f"{model}/{ALIASES}", aliases | {alias: earlier[-1]})
    with suppress(LostRace):
        _write_history(directory, model, history | {alias: earlier[:-1]})
    return earlier[-1]


def read_earlier(directory: Directory, model: str) -> dict[str, int]:
    """The version that each alias pointed at before, for those that have pointed at another."""
    aliases, history = read_aliases(directory, model), _read_history(directory, model)
    earlier = {alias: _earlier(history, alias, version) for alias, version in aliases.items()}
    return {alias: versions[-1] for alias, versions in earlier.items() if versions}


def _earlier(history: dict[str, list[int]], alias: str, current: int) -> list[int]:
    earlier = history.get(alias, [])
    return earlier[:-1] if earlier and earlier[-1] == current else earlier


def _read_history(directory: Directory, model: str) -> dict[str, list[int]]:
    return _read(directory, f"{model}/{HISTORY}", _HISTORY)


def _write_history(directory: Directory, model: str, history: dict[str, list[int]]) -> None:
    _write(directory, f"{model}/{HISTORY}", {name: earlier for name, earlier in history.items() if earlier})


def _write(directory: Directory, relative: str, content: Mapping[str, int | list[int]]) -> None:
    directory.replace(relative, json.dumps(content).encode() + b"\n")


def _read(directory: Directory, relative: str, adapter: TypeAdapter[T]) -> T:
    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice")
        return dict(pairs)

    content = directory.read(relative)
    try:
        return adapter.validate_python(
            json.loads(b"{}" if content is None else content, object_pairs_hook=without_duplicates)
        )
    except (ValueError, RecursionError) as error:
        model, name = relative.split("/")
        raise StoreError(f"{name} of model {model} is damaged; restore it, or remove it to start anew.") from error
