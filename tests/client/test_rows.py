"""What callers may give as rows, where no service is needed to tell."""

import subprocess
import sys

import pytest

HALF_LOADED = """
import sys, types
import numpy as np
for library in ("pandas", "polars"):
    sys.modules[library] = types.ModuleType(library)
"""
USES = {
    "client": "from service.client.rows import rows_of; print(rows_of(np.zeros((2, 3))) is not None)",
    "tables": "from service.tables.frames import _kind_of; print(_kind_of({'a': [1]}) is not None)",
}


@pytest.mark.parametrize("use", USES)
def test_a_library_that_another_thread_is_loading_is_no_obstacle(use: str) -> None:
    """Its module is there before its data frame is; found when several threads used a client at once."""
    done = subprocess.run([sys.executable, "-c", HALF_LOADED + USES[use]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
