"""Files that appear whole or not at all."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import DataError
from service.tables.writing import whole_file

HOLDS = "import sys, time; from service.tables.writing import whole_file\n"
HOLDS += "with whole_file(sys.argv[1]) as file:\n    file.write(b'half'); print('now', flush=True); time.sleep(600)"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """By the next run with the same name; a run that lives keeps its own, and other files stay."""
    target = tmp_path / "out[1].csv"
    (tmp_path / ".out[1].csv.notes").touch()
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(target)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"now\n"
        with whole_file(str(target)) as file:
            file.write(b"first")
        assert len(list(tmp_path.glob(".*.tmp"))) == 1
        other.send_signal(signal.SIGKILL)
    with whole_file(str(target)) as file:
        file.write(b"second")
    assert target.read_bytes() == b"second"
    assert {path.name for path in tmp_path.iterdir()} == {"out[1].csv", ".out[1].csv.notes"}


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "missing/out.parquet"])
def test_a_full_disk_is_one_sentence(tmp_path: Path, name: str) -> None:
    """It names the file; what was there stays. (A limit on the size of files is as near to it as a test may come.)"""
    target = tmp_path / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with (
            pytest.raises(DataError, match=rf"{name} cannot be written: .*[Ff]ile too large"),
            whole_file(str(target)) as file,
        ):
            file.write(bytes(range(256)) * 1000 * 256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"before"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """A file stands where the folder should."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match="cannot be written: Not a directory"),
        whole_file(str(tmp_path / "file/sub/out.csv")),
    ):
        pass
