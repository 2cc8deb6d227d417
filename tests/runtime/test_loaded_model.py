"""A real version in memory: what is loaded is what was published, and what is damaged is refused."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidVersion, OperationNotSupported
from service.runtime.loaded_model import LoadedModel, load_version, sample_rows
from service.runtime.verify import main
from service.schemas import INSTANCES, Results, Rows, row_count
from service.store import (
    ASSETS,
    GOLDEN_OUTPUTS,
    MANIFEST,
    MODEL_CARD,
    SAMPLE_REQUEST,
    file_digests,
    read_manifest,
    write_manifest,
)
from service.words import DENOISE
from tests.api.samples import digits

pytestmark = pytest.mark.tf

FLIPS = 20


@pytest.fixture
def version(store: Path) -> Path:
    """A version of the trained store that may be damaged."""
    folder = store / "payments" / "1"
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def loaded(trained_store: Path) -> LoadedModel:
    return load_version(trained_store / "digits" / "1")


def variables(version: Path) -> Path:
    return next((version / "variables").glob("*.data-*"))


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def edit_json(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_bytes())
    change(content)
    file.write_text(json.dumps(content))


def sign(version: Path) -> None:
    """Make the digests those of the files as they are now: what a mistaken or malicious trainer would publish."""
    manifest = read_manifest(version)
    digests = {name: digest for name, digest in file_digests(version).items() if name != MANIFEST}
    write_manifest(version, manifest.model_copy(update={"digests": digests}))


# --- integrity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["saved_model.pb", "variables", MANIFEST, SAMPLE_REQUEST, GOLDEN_OUTPUTS, MODEL_CARD])
def test_no_flipped_bit_is_loaded(version: Path, name: str) -> None:
    """Single bit flips over a whole file, each of them refused before TensorFlow sees it."""
    file = variables(version) if name == "variables" else version / name
    size = 8 * file.stat().st_size
    for bit in np.random.default_rng(0).integers(0, size, FLIPS).tolist():
        flip(file, bit)
        with pytest.raises(InvalidVersion):
            load_version(version)
        flip(file, bit)
    load_version(version)


@pytest.mark.parametrize("damage", ["truncated", "gone", "more", "symlink", "swapped"])
def test_other_damage_is_refused(version: Path, damage: str, tmp_path: Path) -> None:
    """Truncated, missing, additional and swapped files, and links out of the version."""
    file = variables(version)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "more":
        (version / ASSETS / "more.txt").write_text("more")
    elif damage == "symlink":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        card, request = (version / name for name in (MODEL_CARD, SAMPLE_REQUEST))
        content = card.read_bytes(), request.read_bytes()
        card.write_bytes(content[1])
        request.write_bytes(content[0])
    with pytest.raises(InvalidVersion):
        load_version(version)


def test_a_version_that_answers_differently_is_refused(version: Path) -> None:
    """Right digests over changed weights: the golden outputs find it."""
    content = np.fromfile(variables(version), np.uint8)
    content[: len(content) // 2] ^= 1  # of every float's lowest and other bytes
    content.tofile(variables(version))
    sign(version)
    with pytest.raises(InvalidVersion, match=r"golden output|cannot load it"):
        load_version(version)


def test_golden_outputs_are_compared_for_every_signature(version: Path) -> None:
    """One changed number in any of them is found."""
    original = (version / GOLDEN_OUTPUTS).read_bytes()
    for signature, output in (
        ("encode", "latent"),
        ("reconstruct", "error"),
        ("anomaly_score", "score"),
        ("anomaly_score", "p_value"),
    ):

        def change(golden: Any, signature: str = signature, output: str = output) -> None:
            values = np.asarray(golden[signature][output])
            values.flat[0] += 0.1
            golden[signature][output] = values.tolist()

        edit_json(version / GOLDEN_OUTPUTS, change)
        sign(version)
        with pytest.raises(InvalidVersion, match=f"'{output}' of signature '{signature}'"):
            load_version(version)
        (version / GOLDEN_OUTPUTS).write_bytes(original)


def test_a_sample_request_that_is_none_is_refused(version: Path) -> None:
    """It must fit the schema."""
    (version / SAMPLE_REQUEST).write_text('{"instances": [[1, 2]]}')
    sign(version)
    with pytest.raises(InvalidVersion, match="sample request"):
        load_version(version)


def test_a_signature_that_is_not_there_is_refused(version: Path) -> None:
    """The manifest names one that the SavedModel lacks."""
    manifest = read_manifest(version)
    signatures = {**manifest.signatures, "point_errors": manifest.signatures["reconstruct"]}
    write_manifest(version, manifest.model_copy(update={"signatures": signatures}))
    with pytest.raises(InvalidVersion, match="point_errors"):
        load_version(version)


def test_what_is_no_savedmodel_is_refused(version: Path) -> None:
    """Signed garbage: the reason is TensorFlow's kind of error and no path."""
    (version / "saved_model.pb").write_bytes(b"garbage" * 100)
    (version / "fingerprint.pb").unlink(missing_ok=True)
    sign(version)
    with pytest.raises(InvalidVersion) as refused:
        load_version(version)
    assert str(version) not in str(refused.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """No manifest, no version."""
    with pytest.raises(InvalidVersion, match="manifest"):
        load_version(tmp_path)


# --- running ----------------------------------------------------------------------------------------------------------


def test_every_signature_gives_what_the_bare_savedmodel_gives(loaded: LoadedModel, trained_store: Path) -> None:
    """Each output under its own name, for one row and for many."""
    import tensorflow as tf

    bare = tf.saved_model.load(str(trained_store / "digits" / "1"))
    for count in (1, 7, 300):
        rows = {INSTANCES: digits(count)}
        for name in loaded.manifest.signatures:
            expected = bare.signatures[name](instances=tf.constant(rows[INSTANCES]))
            results = loaded.run(name, rows)
            assert set(results) == set(expected) == set(loaded.manifest.signatures[name].outputs)
            for output, values in results.items():
                np.testing.assert_allclose(values, expected[output].numpy(), rtol=1e-5, atol=1e-5)


def test_shapes_and_dtypes_are_those_of_the_manifest(loaded: LoadedModel) -> None:
    """What the manifest says of an output holds."""
    for name, spec in loaded.manifest.signatures.items():
        for output, values in loaded.run(name, {INSTANCES: digits(3)}).items():
            assert values.dtype.name == spec.outputs[output].dtype
            assert values.shape == tuple(3 if size is None else size for size in spec.outputs[output].shape)


def test_a_model_can_be_called_from_several_threads(loaded: LoadedModel) -> None:
    """Eight threads, each with its own rows."""
    rows = digits(800)
    alone = loaded.run("anomaly_score", {INSTANCES: rows})["score"]

    def score(at: int) -> Any:
        return loaded.run("anomaly_score", {INSTANCES: rows[at : at + 100]})["score"]

    with ThreadPoolExecutor(8) as pool:
        together = np.concatenate(list(pool.map(score, range(0, 800, 100))))
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_version_without_denoising_says_so(series_store: Path, loaded: LoadedModel) -> None:
    """``require`` names the model and the operation."""
    loaded.require(DENOISE)
    plain = load_version(series_store / "boiler" / "1")
    assert not plain.supports("denoise")
    with pytest.raises(OperationNotSupported, match="boiler"):
        plain.require(DENOISE)


def test_the_sample_request_is_a_request(trained_store: Path) -> None:
    """A few rows of the model's shape."""
    for model, shape in (("digits", (8, 8)), ("payments", (6,))):
        version = trained_store / model / "1"
        rows = sample_rows(version, read_manifest(version).input)
        assert rows[INSTANCES].shape[1:] == shape
        assert 1 <= len(rows[INSTANCES]) <= 64


def test_loading_in_a_thread_leaves_no_thread_behind(trained_store: Path) -> None:
    """As the store's watcher does, time and again."""
    before = threading.active_count()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(load_version, trained_store / "payments" / "1").result()
    assert threading.active_count() == before


# --- the verify command -----------------------------------------------------------------------------------------------


def verify(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service.runtime.verify", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )


def test_verify_accepts_a_good_version(trained_store: Path) -> None:
    """Exit code 0. In this process: publishing has run the command itself for every version here."""
    assert main([str(trained_store / "payments" / "1")]) == 0


def test_verify_refuses_a_bad_version(version: Path) -> None:
    """Exit code 1 and one sentence; refused before TensorFlow is needed."""
    flip(variables(version), 77)
    done = verify(version)
    assert done.returncode == 1
    assert "variables" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("row_s", "least", "most"), [(0.0, 256, 256), (0.0001, 1, 31), (0.002, 0, 0)])
def test_how_many_rows_are_quick_is_timed(trained_store: Path, row_s: float, least: int, most: int) -> None:
    """As many rows as a call answers within a millisecond; none before anything was timed, none of a slow version."""

    def encode(rows: Rows) -> Results:
        until = time.perf_counter() + row_s * row_count(rows)
        while time.perf_counter() < until:
            pass
        return {"latent": rows[INSTANCES]}

    manifest = read_manifest(trained_store / "payments" / "1")
    loaded = LoadedModel(manifest, {"encode": encode})
    assert loaded.inline_rows["encode"] == 0
    loaded.warm_up({INSTANCES: np.zeros((2, 3), np.float32)})
    assert loaded.inline_rows["encode"] == 0
    loaded.measure()
    assert least <= loaded.inline_rows["encode"] <= most
