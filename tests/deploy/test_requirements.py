"""The locked requirements: whole, up to date with pyproject.toml, hashed, and free of addresses."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, list[Requirement]]:
    """The requirements of a lock file by package; a package can stand there once for each Python."""
    lines = (ROOT / "requirements" / name).read_text().replace("\\\n", " ").splitlines()
    packages: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line.split(" --hash=")[0])
            packages.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return packages


def wanted(name: str) -> list[str]:
    sources: dict[str, list[str]] = {
        "service": PYPROJECT["project"]["dependencies"],
        "dev": PYPROJECT["project"]["dependencies"] + PYPROJECT["dependency-groups"]["dev"],
        "build": PYPROJECT["build-system"]["requires"],
        "client": [
            line
            for line in (ROOT / "requirements" / "client.in").read_text().splitlines()
            if line and not line.startswith("#")
        ],
    }
    return sources[name]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_line_is_pinned_and_hashed(path: Path) -> None:
    """pip --require-hashes refuses a lock file in which one requirement has no hash."""
    blocks = [line for line in path.read_text().replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert blocks
    for block in blocks:
        assert re.fullmatch(r"[a-z0-9._-]+==[^ ;]+( ; [^\\]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", block), block


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_no_file_names_an_address(path: Path) -> None:
    """Where packages come from is the business of the machine that installs them."""
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted|@ |file:|(^|\s)\.{0,2}/", path.read_text())


@pytest.mark.parametrize("name", ["service", "dev", "build", "client"])
def test_lock_satisfies_its_source(name: str) -> None:
    """A dependency that was added or moved without `make lock` is found here."""
    packages = locked(f"{name}.txt")
    for text in wanted(name):
        requirement = Requirement(text)
        pins = packages.get(canonicalize_name(requirement.name))
        assert pins, f"{text} is not in {name}.txt: run make lock"
        for pin in pins:
            assert requirement.specifier.contains(str(pin.specifier).removeprefix("=="), prereleases=True), str(pin)


@pytest.mark.parametrize("name", ["client", "dev"])
def test_locks_agree(name: str) -> None:
    """What is tested, what is served and what a client installs are the same versions."""
    service = locked("service.txt")
    for package, pins in locked(f"{name}.txt").items():
        if package in service:
            assert {str(pin.specifier) for pin in pins} == {str(pin.specifier) for pin in service[package]}


def test_client_needs_only_its_own_lock() -> None:
    """`import service.client` works where only requirements/client.txt is installed."""
    program = """
import importlib.metadata, sys
allowed, distributions = set(sys.argv[1:]), importlib.metadata.packages_distributions()

class OnlyLocked:
    def find_spec(self, name, path=None, target=None):
        owners = distributions.get(name.partition(".")[0], [])
        known = {owner.lower().replace("_", "-") for owner in owners}
        if known and not known & allowed:
            raise ModuleNotFoundError(f"{name} is not in requirements/client.txt", name=name)

sys.meta_path.insert(0, OnlyLocked())
import service.client
"""
    allowed = [*locked("client.txt"), "autoencoder-service"]
    subprocess.run([sys.executable, "-c", program, *allowed], check=True, cwd=ROOT)
