"""A training job without the training: small files, a real manifest, and the real way of publishing them."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

from service.schemas import InputSchema
from service.store import (
    ASSETS,
    MANIFEST,
    BuildManifest,
    Calibration,
    Manifest,
    RowCounts,
    SignatureSpec,
    Staging,
    Store,
    TensorSpec,
    Verify,
    file_digests,
    write_manifest,
)

MODEL = "pumps"
FILES = ("saved_model.pb", "variables/variables.index", f"{ASSETS}/sample_request.json")


def fill(folder: Path, token: str) -> None:
    """Write a version's files; every one of them bears the token of the trainer that wrote it."""
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{token}\n{name}\n" + 8 * "0123456789abcdef")


def token_of(path: Path) -> str:
    return path.read_text().split("\n")[0]


def manifest_of(number: int, digests: dict[str, str], *, token: str = "a", model: str = MODEL) -> Manifest:
    instances = TensorSpec(dtype="float32", shape=(None, 2))
    return Manifest(
        model=model,
        version=number,
        created=datetime(2025, 1, 1, tzinfo=UTC),
        input=InputSchema(kind="tabular", row_shape=(2,)),
        signatures={"encode": SignatureSpec(inputs={"instances": instances}, outputs={"latent": instances})},
        latent_dim=2,
        training={"epochs": 1, "layers": [4, 2]},
        seed=0,
        source=token,
        source_sha256="0" * 64,
        row_counts=RowCounts(train=1, validation=1, calibration=2, test=1),
        libraries={"numpy": "2.0"},
        metrics={"reconstruction_error": {"test": 0.25}},
        calibration=Calibration(rows=2, false_alarm_rate=0.5, threshold=0.5, scores=(0.25, 0.5)),
        digests=digests,
    )


def accept(_path: Path) -> None:
    """The verification that finds nothing."""


def publish_staged(staging: Staging, token: str) -> int:
    def build_manifest(number: int, digests: dict[str, str]) -> Manifest:
        return manifest_of(number, digests, token=token, model=staging.model)

    return staging.publish(build_manifest, accept)


def publish(store: Store, token: str = "a", *, model: str = MODEL) -> int:
    with store.stage(model) as staging:
        fill(staging.path, token)
        return publish_staged(staging, token)


def publish_with(store: Store, *, build_manifest: BuildManifest = manifest_of, verify: Verify = accept) -> int:
    with store.stage(MODEL) as staging:
        fill(staging.path, "a")
        return staging.publish(build_manifest, verify)


def staged_in(store: Store) -> list[str]:
    """Names of what is staged, or left over."""
    names = (path.name for path in (store.root / MODEL).iterdir())
    return sorted(name for name in names if name.startswith((".staging-", ".deleted-")))


def publish_naively(store: Store, token: str) -> int:
    """What must fail the tests of this folder: takes the next number and copies the files into the final folder."""
    staged = store.root / MODEL / f"copy-{token}"
    staged.mkdir()
    fill(staged, token)
    number = max(store.versions(MODEL), default=0) + 1
    write_manifest(staged, manifest_of(number, file_digests(staged), token=token))
    shutil.copytree(staged, store.root / MODEL / str(number), dirs_exist_ok=True)
    shutil.rmtree(staged)
    return number


def whole(store: Store, number: int) -> bool:
    """Whether a version has matching digests and all its files come from one trainer."""
    manifest = store.verify_digests(MODEL, number)
    path = store.path(MODEL, number)
    return {token_of(path / name) for name in FILES} == {manifest.source} and (path / MANIFEST).is_file()
