"""Whether ``production`` moves to a new version. Where it does not, it goes on naming the one that answered before."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidVersion, ModelNotFound, VersionNotFound
from service.runtime.loaded_model import LoadedModel, open_version
from service.store import Manifest, Store
from service.training.config import TrainingConfig
from service.training.gate import Comparison, Promotion
from service.training.split import Split, split_rows
from service.words import PRODUCTION


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a published version."""

    promoted: bool
    sentence: str


def in_production(store: Store, model: str) -> int | None:
    """The version that answers by default; None when there is none."""
    try:
        return store.resolve(model)
    except (ModelNotFound, VersionNotFound):
        return None


def open_production(store: Store, model: str, version: int) -> LoadedModel | None:
    """The version in production with its digests checked, or None where it is damaged."""
    try:
        return open_version(store.path(model, version), store.verify_digests(model, version))
    except InvalidVersion:
        return None


def unseen_rows(
    production: Manifest, split: Split, *, rows: int, sha256: str, blocks: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """Test rows that the version in production was not fitted on either, as far as can be known.

    From the same rows its split follows again. Of other rows nothing is known, and all test rows are taken.

    Args:
        rows, sha256, blocks: number, fingerprint and blocks of the rows that ``split`` divides.
    """
    if production.source_sha256 != sha256:
        return split.test
    known = {name: production.training[name] for name in ("seed", "split") if name in production.training}
    theirs = split_rows(rows, TrainingConfig.model_validate(known), blocks=blocks)
    return split.test[~np.isin(split.test, np.concatenate([theirs.train, theirs.validation]))]


def hold_production(store: Store, model: str) -> None:
    """Let ``production`` name the version that answers now, so that a higher number does not take its place."""
    version = in_production(store, model)
    if version is not None and PRODUCTION not in store.aliases(model):
        store.set_alias(model, PRODUCTION, version)


def decide(promotion: Promotion, comparison: Comparison | None, *, version: int, before: int | None) -> Decision:
    """Whether ``version`` is to be promoted. ``before``: the version in production."""
    promoted = promotion == "always" or (promotion == "auto" and (before is None or _passed(comparison)))
    if promoted:
        reasons = {
            "always": "as asked",
            "auto": f"it is not worse than version {before}" if before else "it is the first",
        }
        return Decision(True, f"Version {version} is in production now: {reasons[promotion]}.")
    if before is None:
        return Decision(False, f"No alias names version {version}, as asked; being the only one, it answers.")
    if promotion == "never":
        return Decision(False, f"Version {before} stays in production, as asked.")
    worse = comparison.worse if comparison else ("It cannot be loaded, so there is nothing to compare with.",)
    return Decision(False, f"Version {before} stays in production. {' '.join(worse)}")


def _passed(comparison: Comparison | None) -> bool:
    return comparison is not None and comparison.passed
