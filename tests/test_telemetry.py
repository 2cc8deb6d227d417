"""What is counted for each request."""

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
