"""The asynchronous client does what the blocking one does; here is what differs."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any, assert_type

import httpx2 as httpx
import numpy as np
import pytest

from service.client import AsyncClient, Client, InvalidRows, Latents, Model, ModelFailed
from tests.client.conftest import QUICK, Script, refused, scored
from tests.live import LiveService

Array = np.ndarray[Any, np.dtype[np.float32]]
FEW = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


async def test_operations_and_routes(named_service: LiveService, rows: Array) -> None:
    """In parts, in order; models and readiness."""
    async with AsyncClient(named_service.url) as client:
        scored_rows = await client.anomaly_score(rows)
        assert scored_rows.scores.tolist() == list(range(1000))
        assert (await client.reconstruct(rows)).reconstructions.shape == (1000, 2)
        assert (await client.denoise(rows[:2])).denoised.shape == (2, 2)
        assert (await client.encode(rows)).latents.shape == (1000, 1)
        await client.wait_until_ready()
        assert await client.ready()
        assert [model.name for model in await client.models()] == ["wells"]
        assert await client.aliases("wells") == {}
        assert "autoencoder_ready" in await client.metrics()


async def test_streams_of_both_kinds(named_service: LiveService, rows: Array) -> None:
    """Batches that are awaited for, and such that are there."""

    async def batches() -> AsyncIterator[Array]:
        for size in (1, 600, 3):
            await asyncio.sleep(0)
            yield rows[:size]

    async with AsyncClient(named_service.url) as client:
        assert [len(found) async for found in client.stream("encode", batches())] == [1, 600, 3]
        assert [len(found) async for found in client.stream("anomaly_score", [rows, rows[:2]])] == [1000, 2]


async def test_many_calls_at_once(named_service: LiveService, rows: Array) -> None:
    """Each gets its own answers."""
    async with AsyncClient(named_service.url) as client:
        found = await asyncio.gather(*(client.anomaly_score(rows[at : at + 5]) for at in range(50)))
    assert [answer.scores.tolist() for answer in found] == [list(range(at, at + 5)) for at in range(50)]


async def test_errors_name_the_callers_rows(named_service: LiveService, rows: Array) -> None:
    """As the blocking client does: both run the same code."""
    rows[777, 1] = np.nan
    async with AsyncClient(named_service.url) as client:
        with pytest.raises(InvalidRows) as refused_rows:
            await client.encode(rows)
    assert refused_rows.value.problems[0].row == 777


async def test_retries_and_errors() -> None:
    """Tried again where that helps; after an error no further parts are sent, and no task is left."""
    script = Script(refused(429), scored, refused(500))
    transport = httpx.MockTransport(script)
    async with AsyncClient("http://service", transport=transport, retry=QUICK, compression="none") as client:
        with pytest.raises(ModelFailed):
            await client.anomaly_score(np.ones((100 * 16_384, 2), np.float32))
    assert len(script.requests) < 12
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_a_call_cancels_its_parts(named_service: LiveService, rows: Array) -> None:
    """Nothing goes on behind the caller's back."""
    async with AsyncClient(named_service.url) as client:
        task = asyncio.create_task(client.anomaly_score(np.concatenate([rows] * 200)))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (await client.encode(rows[:1])).latents.shape == (1, 1)


async def test_methods_are_written_once_and_typed_twice(named_service: LiveService) -> None:
    """mypy knows what both clients give; both say what their methods take and do."""
    with Client(named_service.url) as blocking:
        assert_type(blocking.models(), list[Model])
        latents = await asyncio.to_thread(blocking.encode, FEW, model="wells")
        assert_type(latents, Latents)
        assert list(inspect.signature(blocking.promote).parameters) == ["model", "version", "alias"]
        assert inspect.getdoc(blocking.encode) == inspect.getdoc(Client.encode) == "Rows to latents."
    async with AsyncClient(named_service.url) as client:
        found = await client.encode(FEW, model="wells")
        assert_type(found, Latents)
        assert inspect.signature(client.promote) == inspect.signature(blocking.promote)
    assert found.latents.tolist() == latents.latents.tolist()
