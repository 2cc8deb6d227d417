"""The Makefile: its targets, and how it finds a Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.pages import pages

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-C", ROOT, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def code_of(markdown: str) -> str:
    """The code spans and code blocks, a line each."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", markdown, re.MULTILINE)
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", markdown)
    return "\n".join(blocks + indented + spans)


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", ".ci/run", *pages()])
def test_documents_name_targets_that_exist(document: str) -> None:
    """Every `make something` that a reader can copy works."""
    text = (ROOT / document).read_text()
    code = code_of(text) if document.endswith(".md") else text
    assert set(re.findall(r"^(?:\$ )?make ([a-z]+)\b", code, re.MULTILINE)) <= TARGETS


def test_ci_runs_what_the_readme_says_and_installs_nothing_before_it() -> None:
    """What a newcomer types in a fresh clone is what CI types there."""
    readme = re.findall(r"^make ([a-z]+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    ci = re.findall(r"^\s*make (\S+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert readme[:2] == ["demo", "test"]
    assert ci[0] == "test"


def test_demo_installs_no_developers_tools() -> None:
    """Training and serving take the locked dependencies of the service alone; a test run takes the rest."""
    venv = "/tmp/no-such-venv"
    demo, test = (make("--dry-run", target, f"VENV={venv}").stdout for target in ("demo", "test"))
    assert "requirements/service.txt" in demo
    assert "requirements/dev.txt" not in demo
    rest = {f"requirements/{name}.txt" for name in ("dev", "compat", "beam", "export")}
    assert rest <= set(re.findall(r"requirements/\w+\.txt", test))


def test_make_alone_lists_every_target() -> None:
    """The list is made of the comments, so a target without one is missed here."""
    listed = set(re.findall(r"^  make ([a-z]+) ", make().stdout, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert listed == TARGETS == set(phony[1].split())


@pytest.mark.slow
def test_broken_shim_is_passed_over(tmp_path: Path) -> None:
    """An interpreter that only fails, as a version manager's shim can, does not stop the search."""
    shim = tmp_path / "python3.13"
    shim.write_text("#!/bin/sh\necho 'version not installed' >&2\nexit 127\n")
    shim.chmod(0o755)
    venv = tmp_path / ".venv"
    answer = make(f"{venv}/bin/python", f"VENV={venv}", f"PYTHON={shim} {sys.executable}")
    assert answer.returncode == 0, answer.stderr
    assert (venv / "bin" / "pip").exists()


def test_unsupported_python_is_one_sentence(tmp_path: Path) -> None:
    """Nothing is made, and the message says what to do."""
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    venv = tmp_path / ".venv"
    answer = make(f"{venv}/bin/python", f"VENV={venv}", f"PYTHON={old}")
    assert answer.returncode != 0
    assert "Python 3.11, 3.12 or 3.13" in answer.stderr
    assert "make setup PYTHON=" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not venv.exists()
