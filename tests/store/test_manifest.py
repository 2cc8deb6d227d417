"""The manifest on its own: what is written is read, and nothing else is."""

import hashlib
import json
from pathlib import Path

import pytest

from service.errors import InvalidVersion
from service.store import ASSETS, MANIFEST, read_manifest, write_manifest

from .trainer import manifest_of

DIGESTS = {"saved_model.pb": "0" * 64}


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    write_manifest(tmp_path, manifest_of(3, DIGESTS))
    return tmp_path


def write_sealed(version_dir: Path, body: str) -> None:
    """Write a manifest that is not one, closed as it should be."""
    digest = hashlib.sha256(body.encode()).hexdigest()
    (version_dir / MANIFEST).write_text(f'{body},\n "manifest_sha256": "{digest}"\n}}\n')


def test_round_trip(version_dir: Path) -> None:
    """A manifest is read as it was written, and writing it again changes no byte."""
    content = (version_dir / MANIFEST).read_bytes()
    manifest = read_manifest(version_dir)
    assert manifest == manifest_of(3, DIGESTS)
    write_manifest(version_dir, manifest)
    assert (version_dir / MANIFEST).read_bytes() == content


def test_other_programs_can_read_it(version_dir: Path) -> None:
    """The file is plain JSON."""
    manifest = json.loads((version_dir / MANIFEST).read_text())
    assert (manifest["model"], manifest["version"], manifest["digests"]) == ("pumps", 3, DIGESTS)


def test_every_altered_byte_is_found(version_dir: Path) -> None:
    """One altered bit in any byte is found, though the manifest is in no list of digests."""
    content = (version_dir / MANIFEST).read_bytes()
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= 1 << (position % 8)
        (version_dir / MANIFEST).write_bytes(altered)
        with pytest.raises(InvalidVersion):
            read_manifest(version_dir)


@pytest.mark.parametrize("kept", [0, 1, 50, 100, 500, -1])
def test_truncated(version_dir: Path, kept: int) -> None:
    """A manifest that ends early is refused."""
    content = (version_dir / MANIFEST).read_bytes()
    (version_dir / MANIFEST).write_bytes(content[:kept])
    with pytest.raises(InvalidVersion, match="not what was published"):
        read_manifest(version_dir)


def test_missing(tmp_path: Path) -> None:
    """A folder without a manifest is no version."""
    with pytest.raises(InvalidVersion, match=r"cannot be read: No such file or directory\.$"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("version", 0, "version"),
        ("version", "three", "version"),
        ("model", "../pumps", "model"),
        ("schema_version", 2, "schema_version"),
        ("surprise", 1, "surprise"),
        ("digests", ["saved_model.pb"], "digests"),
    ],
)
def test_not_a_manifest(tmp_path: Path, field: str, value: object, place: str) -> None:
    """A manifest of another shape is refused with the place and without the value."""
    (tmp_path / ASSETS).mkdir()
    content = manifest_of(3, DIGESTS).model_dump(mode="json") | {field: value}
    write_sealed(tmp_path, json.dumps(content)[:-1])
    with pytest.raises(InvalidVersion, match=f"not valid at {place}: ") as caught:
        read_manifest(tmp_path)
    assert "three" not in str(caught.value)


@pytest.mark.parametrize("body", ["", "[", "{", '{"model": 1', "\x00", '{"a":' * 5000])
def test_not_json(tmp_path: Path, body: str) -> None:
    """What is no JSON, or nests without end, is refused like any other."""
    (tmp_path / ASSETS).mkdir()
    write_sealed(tmp_path, body)
    with pytest.raises(InvalidVersion):
        read_manifest(tmp_path)
