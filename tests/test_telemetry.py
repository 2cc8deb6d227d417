"""What is counted for each request."""

import json
import subprocess
import sys
import threading

from service.telemetry import Telemetry

REQUESTS = 200_000


def test_each_request_is_counted_once_whoever_reads_the_metrics() -> None:
    """Readers on other threads neither lose nor repeat what comes while they count."""
    telemetry, ended = Telemetry(), threading.Event()

    def read() -> None:
        while not ended.is_set():
            telemetry.flush()

    readers = [threading.Thread(target=read) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as often in the middle of something as can be
    for reader in readers:
        reader.start()
    for _ in range(REQUESTS):
        telemetry.request_finished("encode", "pumps", 200, 0.002)
        telemetry.stage_took("decode", 0.0001)
    ended.set()
    sys.setswitchinterval(before)
    for reader in readers:
        reader.join()
    value = telemetry.registry.get_sample_value
    assert value("autoencoder_requests_total", {"operation": "encode", "model": "pumps", "status": "200"}) == REQUESTS
    assert value("autoencoder_request_seconds_count", {"operation": "encode"}) == REQUESTS
    assert value("autoencoder_request_seconds_bucket", {"operation": "encode", "le": "0.001"}) == 0
    assert value("autoencoder_request_seconds_bucket", {"operation": "encode", "le": "0.0025"}) == REQUESTS
    assert value("autoencoder_stage_seconds_count", {"stage": "decode"}) == REQUESTS


LOGS = """
import logging
from service.telemetry import configure_logging
configure_logging("info", "json")
logging.getLogger("uvicorn.error").info("Started [%d]", 7, extra={"color_message": "Started [\\x1b[36m%d\\x1b[0m]"})
"""


def test_a_log_line_has_its_message_once() -> None:
    """uvicorn gives each of its own a second time, with colours."""
    done = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, check=True)
    line = json.loads(done.stderr)
    assert line.pop("event") == "Started [7]"
    assert set(line) == {"level", "logger", "timestamp"}
