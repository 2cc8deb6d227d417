"""Death, full disks, rivals and forbidden folders. Each is tried on a naive publisher too, where it must do harm."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .faults import run

pytestmark = pytest.mark.slow

OPERATIONS = ["publish", "promote", "roll_back", "delete"]
NAMESPACE = ("unshare", "--map-root-user", "--mount")


def can_trace() -> bool:
    return shutil.which("strace") is not None and subprocess.run(["strace", "-qq", "true"], check=False).returncode == 0


def can_mount() -> bool:
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, check=False).returncode == 0


needs_strace = pytest.mark.skipif(not can_trace(), reason="strace is not installed or may not trace here")
needs_mounts = pytest.mark.skipif(not can_mount(), reason="no mount namespace of our own here")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_step(quick_disk: Path, operation: str) -> None:
    """SIGKILL at any step leaves all of the change or nothing; the store works on and is swept clean."""
    report = run("kills", quick_disk, operation)
    assert report.problems == []
    assert report.runs > 40


def test_killed_naive_publisher(quick_disk: Path) -> None:
    """The same deaths show half a version of a publisher that copies into the final folder."""
    assert "saved_model.pb is missing" in str(run("kills", quick_disk, "publish_naively").problems)


@needs_strace
@pytest.mark.parametrize("operation", OPERATIONS)
def test_fault_at_every_system_call(quick_disk: Path, operation: str) -> None:
    """SIGKILL, EIO and ENOSPC at any system call: the same, and errors are the store's own."""
    report = run("system_calls", quick_disk, operation)
    assert report.problems == []
    assert report.refused > 40


@needs_strace
def test_fault_in_naive_publisher(quick_disk: Path) -> None:
    """The same faults show half a version of the naive publisher."""
    assert "saved_model.pb is missing" in str(run("system_calls", quick_disk, "publish_naively").problems)


@needs_strace
def test_everything_is_on_the_disk_before_the_rename(quick_disk: Path) -> None:
    """Every file and folder is synced after its last change and before the rename, the name after it."""
    report = run("durability", quick_disk, "publish")
    assert report.problems == []
    assert report.runs == 8


@needs_strace
def test_file_system_without_exclusive_rename(quick_disk: Path) -> None:
    """Where the kernel refuses the exclusive rename, publishing works all the same."""
    assert run("refused_flag", quick_disk).problems == []


def test_number_taken_at_the_last_moment(quick_disk: Path) -> None:
    """What appears under the number right before the rename is neither replaced nor merged: the next one is taken."""
    report = run("strangers", quick_disk)
    assert report.problems == []
    assert report.runs == 4


def test_eight_trainers(quick_disk: Path) -> None:
    """Eight trainers at once: no number twice, no version merged, no number lost."""
    report = run("trainers", quick_disk, "publish")
    assert report.problems == []
    assert report.runs == 64


@needs_strace
def test_eight_trainers_without_exclusive_rename(quick_disk: Path) -> None:
    """The same where the kernel refuses the exclusive rename, and the model's lock alone keeps them apart."""
    refusing = ("strace", "-f", "-o", "/dev/null", "-e", "trace=renameat2", "-e", "inject=renameat2:error=EINVAL")
    assert run("trainers", quick_disk, "publish", within=refusing).problems == []


def test_eight_naive_trainers(quick_disk: Path) -> None:
    """Eight naive ones get the same number and merge their files."""
    assert run("trainers", quick_disk, "publish_naively").problems != []


@needs_mounts
def test_full_disk(quick_disk: Path) -> None:
    """A disk that is full after any number of pages or files refuses the version and keeps the others."""
    report = run("full_disk", quick_disk, within=NAMESPACE)
    assert report.problems == []
    assert report.refused > 5


@needs_mounts
def test_read_only_mount(quick_disk: Path) -> None:
    """A store mounted read-only is read as ever, and refuses every change as read-only."""
    report = run("read_only", quick_disk, within=NAMESPACE)
    assert report.problems == []
    assert report.refused == report.runs == 7


def test_another_user(quick_disk: Path) -> None:
    """What another user may not read is unavailable, not empty; one unreadable version hides no other."""
    report = run("other_user", quick_disk)
    assert report.problems == []
    assert report.runs == 5
