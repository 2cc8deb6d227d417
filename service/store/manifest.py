"""The JSON beside a SavedModel that makes it a version: what it takes, gives, was trained on, and its digests."""

import hashlib
import os
from collections.abc import Iterator
from datetime import datetime
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from service.errors import InvalidVersion
from service.schemas import Frozen, InputSchema, PointScale, unsupported
from service.words import ANOMALY_SCORE

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

TABLE_START, TABLE_END = '<div class="scroll" tabindex="0"><table>', "</table></div>"

_SEAL = b',\n "manifest_sha256": "%b"\n}\n'
"""The last lines of the file; the digest is over all bytes before them. One flipped bit anywhere is found."""
_SEAL_BYTES = len(_SEAL % b"") + 64

SCHEMA_VERSION: Final = 1
MAX_REFERENCE_FEATURES: Final = 1024
_VALUE_BYTES: Final = {"bool": 1, "float32": 4}
MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class TensorSpec(Frozen):
    """Shape and dtype of one input or output of a signature; ``None`` is a free dimension."""

    dtype: str
    shape: tuple[int | None, ...]


class SignatureSpec(Frozen):
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    @property
    def result_bytes(self) -> int:
        """Bytes of all outputs of one row, texts apart."""
        return sum(
            _VALUE_BYTES.get(spec.dtype, 8) * prod(size or 1 for size in spec.shape[1:])
            for spec in self.outputs.values()
        )


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
    calibration: Calibration | None
    """None: the version was made without rows. It encodes and reconstructs, and scores nothing."""
    point_calibration: Calibration | None = None
    """Calibration of single points, for models of series."""
    point_scale: PointScale | None = None
    """Units of the scores of points; None in versions whose scores are plain squared errors."""
    reference: tuple[FeatureReference, ...] = ()
    """Distributions of the features in order, at most the first ``MAX_REFERENCE_FEATURES``."""
    digests: dict[str, str]
    """SHA-256 of every other file of the version, by POSIX path relative to the version's folder."""

    @property
    def calibrated(self) -> Calibration:
        """The calibration.

        Raises:
            OperationNotSupported: the version was made without rows.
        """
        if self.calibration is None:
            raise unsupported(ANOMALY_SCORE, self.model, self.version)
        return self.calibration


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


def card_html(markdown: str) -> str:
    """A model card, or a part of it, as HTML. Names in it cannot become markup; what scrolls can be reached by keys."""
    from markdown_it import MarkdownIt

    text: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return text.replace("<pre>", '<pre tabindex="0">').replace("<table>", TABLE_START).replace("</table>", TABLE_END)


# --- digests ----------------------------------------------------------------------------------------------------------


MAX_DEPTH = 16


def file_digests(version_dir: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file but the manifest, by POSIX path relative to ``version_dir``, in order.

    Raises:
        InvalidVersion: something is neither a file nor a folder, has an unusable name, or cannot be read.
    """
    return {path: _sha256(version_dir, path) for path in list_files(version_dir) if path != MANIFEST}


def check_digests(version_dir: Path, manifest: Manifest) -> None:
    """Check that a version's files are exactly those of its manifest, byte by byte.

    Raises:
        InvalidVersion: names the first file that is missing, not listed, altered, a link, or outside the folder.
    """
    check_paths(manifest)
    present = set(list_files(version_dir)) - {MANIFEST}
    for path in sorted(present | manifest.digests.keys()):
        if path not in present:
            raise InvalidVersion(f"{_shown(path)} is missing.")
        if path not in manifest.digests:
            raise InvalidVersion(f"{_shown(path)} is not in the manifest.")
        if _sha256(version_dir, path) != manifest.digests[path]:
            raise InvalidVersion(f"{_shown(path)} is not what was published: its SHA-256 differs from the manifest's.")


def list_files(version_dir: Path) -> list[str]:
    """POSIX paths of all files of a version, relative to its folder, sorted; raises as ``file_digests``."""
    if version_dir.is_symlink():
        raise InvalidVersion("The version is a symbolic link.")
    try:
        return sorted(_walk(version_dir, ""))
    except OSError as error:
        raise InvalidVersion(f"The version's files cannot be listed: {error.strerror}.") from error


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    if prefix.count("/") > MAX_DEPTH:
        raise InvalidVersion("Folders are nested too deeply.")
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        path = prefix + entry.name
        if path.encode(errors="replace").decode() != path:
            raise InvalidVersion(f"{_shown(path)} is not a name in UTF-8.")
        if entry.is_symlink():
            raise InvalidVersion(f"{_shown(path)} is a symbolic link.")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, path + "/")
        elif entry.is_file(follow_symlinks=False):
            yield path
        else:
            raise InvalidVersion(f"{_shown(path)} is neither a file nor a folder.")


def check_paths(manifest: Manifest) -> None:
    """Raise InvalidVersion if the manifest lists anything but plain paths within the version."""
    for path in manifest.digests:
        plain = PurePosixPath(path)
        if (
            not plain.parts
            or plain.is_absolute()
            or ".." in plain.parts
            or "/".join(plain.parts) != path
            or "\0" in path
        ):
            raise InvalidVersion(f"The manifest lists {_shown(path)}, which is not a plain relative path.")
        if path == MANIFEST:
            raise InvalidVersion("The manifest lists itself.")


def _sha256(version_dir: Path, path: str) -> str:
    try:
        # A link or a pipe put there after the listing must neither be followed nor waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(version_dir / path, flags), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidVersion(f"{_shown(path)} cannot be read: {error.strerror}.") from error


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)
