"""From a flag back to its row: the header of an answer, and the alerts."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.fakes import load_fake
from tests.live import LiveService


def test_flagged_rows_are_named_in_a_header(fake_store: Path, serve: Callable[..., LiveService]) -> None:
    """By their indices, at most 50, over every protocol; of an answer without any there is no header."""
    live = serve(fake_store, load=load_fake)
    ordinary, odd = [1.0, 1.0], [5.0, 1.0]
    answer = live.post("/anomaly-score", json={"instances": [ordinary, odd, ordinary, odd]})
    assert answer.headers["x-flagged-rows"] == "1,3"
    assert "x-flagged-rows" not in live.post("/anomaly-score", json={"instances": [ordinary]}).headers
    many = live.post("/v1/models/pumps:predict", json={"instances": [odd] * 51}).headers["x-flagged-rows"]
    assert many == ",".join(map(str, range(50))) + ",..."


def test_alerts_of_requests_that_share_a_batch_and_of_a_stream(
    fake_store: Path, serve: Callable[..., LiveService]
) -> None:
    """Each names its own request and the index in it; of a stream the index over all of its blocks."""
    live = serve(fake_store, load=load_fake, slice_rows=2)
    lines = b"".join(b"[%d, 1]\n" % (5 if at == 6 else 1) for at in range(8))
    headers = {"Content-Type": "application/x-ndjson", "X-Request-ID": "stream"}
    assert live.post("/anomaly-score", content=lines, headers=headers).status_code == 200
    with ThreadPoolExecutor(8) as threads:
        for row in range(8):
            rows = [[5.0 if at == row else 1.0, 1.0] for at in range(8)]
            send = partial(live.post, json={"instances": rows}, headers={"X-Request-ID": f"request-{row}"})
            threads.submit(send, "/anomaly-score")
    found = {(alert["request_id"], alert["row"]) for alert in live.get("/activity").json()["alerts"]}
    assert found == {("stream", 6)} | {(f"request-{row}", row) for row in range(8)}
