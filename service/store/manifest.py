"""The JSON beside a SavedModel that makes it a version: what it takes, gives, was trained on, and its digests."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from service.errors import InvalidVersion
from service.schemas import Frozen, InputSchema

ASSETS = "assets.extra"
MANIFEST = f"{ASSETS}/manifest.json"
SAMPLE_REQUEST = f"{ASSETS}/sample_request.json"
GOLDEN_OUTPUTS = f"{ASSETS}/golden_outputs.json"
MODEL_CARD = f"{ASSETS}/MODEL_CARD.md"
KERAS_MODEL = f"{ASSETS}/model.keras"
PLOTS = f"{ASSETS}/plots"
HISTORY = f"{ASSETS}/history.json"
LATENT_MAP = f"{ASSETS}/latent_map.json"
TRAVERSALS = f"{ASSETS}/traversals.png"
REPORT = f"{ASSETS}/report.html"

_SEAL = b',\n "manifest_sha256": "%b"\n}\n'
"""The last lines of the file; the digest is over all bytes before them. One flipped bit anywhere is found."""
_SEAL_BYTES = len(_SEAL % b"") + 64

SCHEMA_VERSION: Final = 1
MAX_REFERENCE_FEATURES: Final = 1024
MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class TensorSpec(Frozen):
    """Shape and dtype of one input or output of a signature; ``None`` is a free dimension."""

    dtype: str
    shape: tuple[int | None, ...]


class SignatureSpec(Frozen):
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


class Corruption(Frozen):
    """Noise that was added to the inputs in training, so that the network learned to remove it."""

    kind: Literal["gaussian", "masking", "salt_and_pepper"]
    level: float
    """Standard deviation (gaussian, in scaled units) or the share of values hit (masking, salt_and_pepper)."""


class Calibration(Frozen):
    """Scores of rows that training never saw, from which p-values and thresholds come."""

    rows: int
    false_alarm_rate: float
    threshold: float
    scores: tuple[float, ...]
    """All calibration scores in ascending order, float32 values."""


class RowCounts(Frozen):
    train: int
    validation: int
    calibration: int
    test: int


class FeatureReference(Frozen):
    """The distribution of one feature over the training rows, which live rows are compared with."""

    name: str | int
    """Column name, or the flat index of the value in a row."""
    edges: tuple[float, ...]
    """Ascending; bin i holds the values in (edges[i - 1], edges[i]]."""
    shares: tuple[float, ...]
    """Share of the present values in each of the ``len(edges) + 1`` bins."""
    missing: float
    """Share of missing values."""
    labels: tuple[str, ...] = ()
    """Labels of a categorical column: label i counts as i, any other label as a number beyond all edges."""


class Manifest(Frozen):
    schema_version: Literal[1] = SCHEMA_VERSION
    model: str = Field(pattern=MODEL_NAME_PATTERN)
    version: int = Field(ge=1, lt=10**18)
    created: datetime
    """UTC."""
    input: InputSchema
    signatures: dict[str, SignatureSpec]
    latent_dim: int
    training: dict[str, Any]
    """The whole training configuration, as it was used."""
    seed: int
    corruption: Corruption | None = None
    source: str
    """Source of the rows: a file name without its folders, or the name of a bundled set."""
    source_sha256: str
    """Fingerprint of the rows after reading: SHA-256 of their bytes in order."""
    row_counts: RowCounts
    source_rows: int | None = None
    """Rows of the source, where those counted are a sample of them."""
    libraries: dict[str, str]
    metrics: dict[str, Any]
    """Reconstruction errors by split, with the PCA baseline beside them; more where the training measured more."""
    warnings: tuple[str, ...] = ()
    """The trainer's warnings: overfitting, a baseline not beaten, too few calibration rows."""
    calibration: Calibration
    point_calibration: Calibration | None = None
    """Calibration of single points, for models of series."""
    reference: tuple[FeatureReference, ...] = ()
    """Distributions of the features in order, at most the first ``MAX_REFERENCE_FEATURES``."""
    digests: dict[str, str]
    """SHA-256 of every other file of the version, by POSIX path relative to the version's folder."""


def read_manifest(version_dir: Path) -> Manifest:
    """Read and validate the manifest of a version folder.

    Raises:
        InvalidVersion: it is missing, unreadable, altered since it was written, or not a manifest.
    """
    try:
        content = (version_dir / MANIFEST).read_bytes()
    except OSError as error:
        raise InvalidVersion(f"manifest.json cannot be read: {error.strerror}.") from error
    return parse_manifest(content)


def write_manifest(version_dir: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` with a digest of its own, because all other digests rest on it."""
    body = manifest.model_dump_json(indent=1).removesuffix("\n}").encode()
    path = version_dir / MANIFEST
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(body + _SEAL % hashlib.sha256(body).hexdigest().encode())


def parse_manifest(content: bytes) -> Manifest:
    """The manifest in ``content``. Raises InvalidVersion if it was altered since it was written, or is none."""
    body, digest = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    if digest != _SEAL % hashlib.sha256(body).hexdigest().encode():
        raise InvalidVersion(
            "manifest.json is not what was published: it does not end with the SHA-256 of its content."
        )
    try:
        return Manifest.model_validate_json(body + b"\n}")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise InvalidVersion(f"manifest.json is not valid at {place}: {first['msg']}.") from error
