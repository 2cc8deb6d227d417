"""What must hold when many callers come at once: mixed traffic, promotions, overload. Nothing here measures speed."""

import asyncio
import io
import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.store import Store
from tests.live import LiveService

pytestmark = [pytest.mark.tf, pytest.mark.slow]

REQUESTS = 3_000
CALLERS = 64


def _arrow(rows: NDArray[np.float32]) -> bytes:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows[0].size)
    out = io.BytesIO()
    with pa.ipc.new_stream(out, pa.schema([("instances", flat.type)])) as writer:
        writer.write_batch(pa.record_batch([flat], names=["instances"]))
    return out.getvalue()


def _npy(rows: NDArray[np.float32]) -> bytes:
    out = io.BytesIO()
    np.save(out, rows)
    return out.getvalue()


def _ndjson(rows: NDArray[np.float32]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows.tolist())


def _png(rows: NDArray[np.float32]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.rint(rows[0] / 16 * 255).astype(np.uint8)).save(out, format="PNG")
    return out.getvalue()


ENCODINGS = {
    "application/json": lambda rows: json.dumps({"instances": rows.tolist()}).encode(),
    "application/x-npy": _npy,
    "application/vnd.apache.arrow.stream": _arrow,
    "application/x-ndjson": _ndjson,
    "image/png": _png,
}
RESULTS = {
    "encode": ("latents", "latent"),
    "reconstruct": ("errors", "error"),
    "denoise": ("denoised", "denoised"),
    "anomaly-score": ("scores", "score"),
}


class Expected:
    """What each version gives for each row alone."""

    def __init__(self, service: LiveService, rows: NDArray[np.float32]) -> None:
        loaded = service.service.manager.models["digits"].loaded
        self.rows = rows
        self.answers = {
            (version, operation): np.concatenate(
                [model.run(operation.replace("-", "_"), {"instances": row[None]})[output] for row in rows]
            )
            for version, model in loaded.items()
            for operation, (_, output) in RESULTS.items()
        }


async def _one(http: httpx.AsyncClient, expected: Expected, random: np.random.Generator, seen: Counter[str]) -> None:
    """One request of a random kind; its answer must be the one that its rows have alone."""
    version, operation = int(random.integers(1, 3)), str(random.choice(list(RESULTS)))
    picked = random.integers(0, len(expected.rows), int(random.choice([1, 1, 1, 5, 40])))
    media_type = str(random.choice(list(ENCODINGS)))
    headers = {"Content-Type": media_type, "Accept": "application/json"}
    if media_type == "application/x-ndjson":
        headers["Accept"] = "*/*"
    if media_type == "image/png":
        picked = picked[:1]
    path = f"/models/digits/versions/{version}/{operation}"
    rows = expected.rows[picked]
    kind = str(random.choice(["good", "poison", "leaves", "late"], p=[0.85, 0.05, 0.05, 0.05]))
    if kind == "poison":
        body = ENCODINGS["application/json"](rows[:, :7])
        answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
    elif kind == "leaves":
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 0.002)):
                await http.post(path, content=ENCODINGS[media_type](rows), headers=headers)
    elif kind == "late":
        headers["X-Timeout-Ms"] = "1"
        answer = await http.post(path, content=ENCODINGS[media_type](rows), headers=headers)
        # A stream that has begun says so in its last line.
        assert answer.status_code in (200, 504)
    else:
        answer = await http.post(path, content=ENCODINGS[media_type](rows), headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-model-version"] == str(version)
        name, output = RESULTS[operation]
        if media_type == "application/x-ndjson":
            given = np.asarray([json.loads(line)[output] for line in answer.text.splitlines()])
        else:
            given = np.asarray(answer.json()[name])
        wanted = expected.answers[version, operation][picked]
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    seen[kind] += 1


def test_answers_do_not_depend_on_batching(service: LiveService) -> None:
    """10,000 mixed requests at once each get what the model gives for those rows alone."""
    random = np.random.default_rng(0)
    levels = random.integers(0, 256, (64, 8, 8))  # as an image has them
    expected = Expected(service, (levels / 255 * 16).astype(np.float32))
    seen: Counter[str] = Counter()

    async def caller(number: int) -> None:
        own = np.random.default_rng(number)
        async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as http:
            for _ in range(REQUESTS // CALLERS):
                await _one(http, expected, own, seen)

    async def all_callers() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(caller(number))

    asyncio.run(all_callers())
    assert sum(seen.values()) == REQUESTS // CALLERS * CALLERS
    assert min(seen[kind] for kind in ("good", "poison", "leaves", "late")) > 100
    metrics = service.get("/metrics").text
    assert "autoencoder_queue_rows 0.0" in metrics
    assert "autoencoder_queue_requests 0.0" in metrics


def test_promotions_under_load(serve: Callable[..., LiveService], store: Path) -> None:
    """While ``production`` moves to and fro no request fails, and each answer is that of the version it names."""
    live = serve(store, default_model="digits", watch_interval_s=0.2, keep_versions=1)
    Store(store).set_alias("digits", "production", 1)
    live.service.manager.refresh()
    row = np.random.default_rng(1).uniform(0, 16, (1, 8, 8)).astype(np.float32)
    from service.runtime.loaded_model import load_version

    expected = {
        version: float(
            load_version(store / "digits" / str(version)).run("anomaly_score", {"instances": row})["score"][0]
        )
        for version in (1, 2)
    }
    answered: Counter[int] = Counter()
    failures: list[Any] = []
    over = threading.Event()

    def call() -> None:
        with httpx.Client(base_url=live.url, timeout=30, trust_env=False) as http:
            while not over.is_set():
                answer = http.post("/anomaly-score", json={"instances": row.tolist()})
                if answer.status_code != 200:
                    failures.append((answer.status_code, answer.text))
                    continue
                version = answer.json()["model"]["version"]
                if answer.json()["scores"][0] != pytest.approx(expected[version], rel=1e-5):
                    failures.append((version, answer.json()))
                answered[version] += 1

    callers = [threading.Thread(target=call) for _ in range(4)]
    for thread in callers:
        thread.start()
    for turn in range(12):
        promoted = live.http.put("/models/digits/aliases/production", json={"version": 1 + turn % 2})
        assert promoted.status_code == 200
        assert promoted.json()["serving"] == 1 + turn % 2
        over.wait(0.4)
    over.set()
    for thread in callers:
        thread.join()
    assert not failures
    assert min(answered[1], answered[2]) > 10


def test_overload_is_refused_and_recovers(serve: Callable[..., LiveService], trained_store: Path) -> None:
    """Far more callers than the queue holds: some are refused, none fails, and it ends with them."""
    live = serve(trained_store, default_model="digits", max_queue_requests=4)
    rows = np.random.default_rng(2).uniform(0, 16, (200, 8, 8)).astype(np.float32)
    body = _npy(rows)
    statuses: Counter[int] = Counter()

    async def caller() -> None:
        async with httpx.AsyncClient(base_url=live.url, timeout=60, trust_env=False) as http:
            for _ in range(5):
                answer = await http.post(
                    "/anomaly-score", params={"explain": 3}, content=body, headers={"Content-Type": "application/x-npy"}
                )
                statuses[answer.status_code] += 1
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1

    async def all_callers() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(32):
                group.create_task(caller())

    asyncio.run(all_callers())
    assert set(statuses) == {200, 429}
    assert live.post("/anomaly-score", content=body, headers={"Content-Type": "application/x-npy"}).status_code == 200
