"""TensorFlow's notices are kept off the terminal, and nothing else is."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.tf

LOGS_WHILE_SILENT = """
import logging, os
from service.telemetry import configure_logging
configure_logging("info", "json")
from service.runtime.quiet import silent_stderr
with silent_stderr():
    logging.getLogger("service").info("kept")
    os.write(2, b"a notice of native code")
"""


def test_log_lines_are_kept_while_tensorflow_is_imported() -> None:
    """The service answers, and logs, while another thread imports TensorFlow."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", LOGS_WHILE_SILENT]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert '"event":"kept"' in log
    assert "a notice" not in log
