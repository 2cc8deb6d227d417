"""Model names and version numbers: which exist, and which comes next.

The directory remembers the highest number ever given, so that no number comes back after its version was deleted.
"""

import re

from service.errors import StoreError
from service.store.directory import Directory
from service.store.manifest import MANIFEST, MODEL_NAME_PATTERN

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
