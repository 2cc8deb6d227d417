"""Names of models and numbers of versions: which exist, and which comes next.

The highest number ever given is kept in ``<model>/.last_version``, so that no number comes back after its version was
deleted.
"""

import re

from service.errors import StoreError
from service.store.directory import LocalDirectory
from service.store.manifest import MANIFEST, MODEL_NAME_PATTERN

NAME_PATTERN = MODEL_NAME_PATTERN
LAST_VERSION = ".last_version"
MAX_VERSION = 10**18 - 1

_NAME = re.compile(NAME_PATTERN)
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def is_name(name: str) -> bool:
    """Whether this may be the name of a model or of an alias."""
    return _NAME.fullmatch(name) is not None


def list_versions(directory: LocalDirectory, model: str) -> list[int] | None:
    """Ascending numbers of the folders that hold a manifest; None when the model has no folder."""
    entries = directory.entries(model)
    if entries is None:
        return None
    folders = (name for name, is_folder in entries.items() if is_folder and _NUMBER.fullmatch(name))
    return sorted(int(name) for name in folders if directory.exists(f"{model}/{name}/{MANIFEST}"))


def next_version(directory: LocalDirectory, model: str) -> int:
    """One more than every number that was given or that anything in the model's folder bears, valid or not."""
    taken = [int(name) for name in directory.entries(model) or () if _NUMBER.fullmatch(name)]
    number = max([_read_last(directory, model), *taken]) + 1
    if number > MAX_VERSION:
        raise StoreError(f"Model {model} has no version numbers left.")
    return number


def record_version(directory: LocalDirectory, model: str, number: int) -> None:
    """Note durably that ``number`` was given, under the model's lock."""
    if number > _read_last(directory, model):
        directory.replace(f"{model}/{LAST_VERSION}", f"{number}\n".encode())


def _read_last(directory: LocalDirectory, model: str) -> int:
    content = directory.read(f"{model}/{LAST_VERSION}")
    if content is None:
        return 0
    text = content.decode("ascii", errors="replace").removesuffix("\n")
    if not _NUMBER.fullmatch(text):
        raise StoreError(
            f"{LAST_VERSION} of model {model} is damaged; write the highest number ever published into it."
        )
    return int(text)
