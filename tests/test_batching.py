"""The batcher on its own: a real event loop and real threads, with functions in place of models."""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from service.batching import LARGE_BYTES, Batcher, BatchLimits
from service.errors import DeadlineExceeded, Draining, ModelFailed, QueueFull
from service.schemas import Results, Rows


def rows_of(*values: float) -> Rows:
    return {"instances": np.asarray(values, np.float32).reshape(-1, 1)}


def large_rows() -> Rows:
    """Numbered rows, of just as many bytes as make a request large."""
    return {"instances": np.arange(LARGE_BYTES // 4, dtype=np.float32).reshape(-1, 1024)}


def doubled(_key: str, rows: Rows) -> Results:
    return {"score": rows["instances"][:, 0] * 2}


class Recorder:
    """Runs batches like ``doubled`` and remembers them; ``gate`` holds the worker back until it is set."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[float]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def __call__(self, key: str, rows: Rows) -> Results:
        self.started.set()
        self.gate.wait(10)
        values = rows["instances"][:, 0]
        self.batches.append((key, values.tolist()))
        if (values == 666).any():
            raise RuntimeError("poison")
        return {"score": np.where(values == 13, np.nan, values * 2).astype(np.float32)}


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def blocked(recorder: Recorder, batcher: Batcher[str]) -> asyncio.Task[Results]:
    """Occupy the only worker with one row."""
    recorder.gate.clear()
    recorder.started.clear()
    task = asyncio.create_task(batcher.submit("a", rows_of(0)))
    await until(recorder.started.is_set)
    return task


async def test_many_single_rows_equal_one_batch() -> None:
    """Rows submitted one by one get what they would get together."""
    batcher: Batcher[str] = Batcher(doubled)
    together = await batcher.submit("a", rows_of(*range(300)))
    alone = await asyncio.gather(*(batcher.submit("a", rows_of(value)) for value in range(300)))
    assert np.concatenate([result["score"] for result in alone]).tolist() == together["score"].tolist()
    batcher.close()


async def test_what_waits_shares_a_batch() -> None:
    """While the worker is busy rows gather, and then run in one call."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder)
    first = await blocked(recorder, batcher)
    waiting = [asyncio.create_task(batcher.submit("a", rows_of(value))) for value in range(1, 9)]
    await until(lambda: batcher.queued_rows == 8)
    recorder.gate.set()
    await asyncio.gather(first, *waiting)
    assert recorder.batches == [("a", [0]), ("a", [1, 2, 3, 4, 5, 6, 7, 8])]
    batcher.close()


async def test_keys_never_share_a_batch() -> None:
    """Rows of two versions run in two calls, each with its own key."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder)
    first = await blocked(recorder, batcher)
    waiting = [asyncio.create_task(batcher.submit("ab"[value % 2], rows_of(value))) for value in range(6)]
    await until(lambda: batcher.queued_rows == 6)
    recorder.gate.set()
    await asyncio.gather(first, *waiting)
    assert sorted(recorder.batches[1:]) == [("a", [0, 2, 4]), ("b", [1, 3, 5])]
    batcher.close()


async def test_a_poison_row_hurts_nobody_else() -> None:
    """When the model raises on a batch, only the request with the bad row fails."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder)
    first = await blocked(recorder, batcher)
    waiting = [asyncio.create_task(batcher.submit("a", rows_of(value))) for value in (1, 666, 3)]
    await until(lambda: batcher.queued_rows == 3)
    recorder.gate.set()
    answers = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert isinstance(answers[2], ModelFailed)
    assert [answers[at]["score"].tolist() for at in (1, 3)] == [[2], [6]]  # type: ignore[index]
    batcher.close()


async def test_non_finite_answers_fail_their_own_request_only() -> None:
    """A NaN from the model is an error of the row that it belongs to."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder)
    first = await blocked(recorder, batcher)
    waiting = [asyncio.create_task(batcher.submit("a", rows_of(value))) for value in (13, 4)]
    await until(lambda: batcher.queued_rows == 2)
    recorder.gate.set()
    answers = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert isinstance(answers[1], ModelFailed)
    assert answers[2]["score"].tolist() == [8]  # type: ignore[index]
    batcher.close()


async def test_cancelling_one_leaves_the_others_correct() -> None:
    """A caller who left is dropped before the model runs, and its neighbours get their own answers."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder)
    first = await blocked(recorder, batcher)
    waiting = [asyncio.create_task(batcher.submit("a", rows_of(value))) for value in (1, 2, 3)]
    await until(lambda: batcher.queued_rows == 3)
    waiting[1].cancel()
    await asyncio.sleep(0)
    recorder.gate.set()
    answers = await asyncio.gather(first, waiting[0], waiting[2])
    assert [answer["score"].tolist() for answer in answers] == [[0], [2], [6]]
    assert recorder.batches[1:] == [("a", [1, 3])]
    batcher.close()


async def test_cancelling_while_the_batch_runs_is_harmless() -> None:
    """A caller who leaves during the model's call takes nothing from the others of its batch."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder)
    first = await blocked(recorder, batcher)
    waiting = [asyncio.create_task(batcher.submit("a", rows_of(value))) for value in (1, 2)]
    await until(lambda: batcher.queued_rows == 2)
    recorder.started.clear()
    recorder.gate.set()
    await first
    recorder.gate.clear()
    await until(recorder.started.is_set)
    waiting[0].cancel()
    recorder.gate.set()
    assert (await waiting[1])["score"].tolist() == [4]
    batcher.close()


async def test_a_full_queue_answers_at_once() -> None:
    """Beyond the bound on requests a caller is refused while the model is still busy."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder, limits=BatchLimits(max_queue_requests=3))
    first = await blocked(recorder, batcher)
    waiting = [asyncio.create_task(batcher.submit("a", rows_of(value))) for value in (1, 2, 3)]
    await until(lambda: batcher.queued_rows == 3)
    with pytest.raises(QueueFull):
        await batcher.submit("a", rows_of(4))
    with pytest.raises(QueueFull):
        batcher.check_room()
    recorder.gate.set()
    await asyncio.gather(first, *waiting)
    assert (await batcher.submit("a", rows_of(5)))["score"].tolist() == [10]
    batcher.close()


@pytest.mark.parametrize("limits", [BatchLimits(max_queue_rows=10), BatchLimits(max_queue_bytes=40)])
async def test_rows_and_bytes_are_bounded(limits: BatchLimits) -> None:
    """The queue refuses what would take it over its rows or its bytes, unless it is empty."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder, limits=limits)
    first = await blocked(recorder, batcher)
    fits = asyncio.create_task(batcher.submit("a", rows_of(*range(8))))
    await until(lambda: batcher.queued_rows == 8)
    with pytest.raises(QueueFull):
        await batcher.submit("a", rows_of(*range(8)))
    recorder.gate.set()
    await asyncio.gather(first, fits)
    alone = await batcher.submit("a", rows_of(*range(12)))
    assert alone["score"].tolist() == [2 * value for value in range(12)]
    batcher.close()


async def test_a_passed_deadline_is_answered_and_not_run() -> None:
    """A caller hears of its deadline at the deadline, and its rows never reach the model."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder)
    first = await blocked(recorder, batcher)
    loop = asyncio.get_running_loop()
    with pytest.raises(DeadlineExceeded):
        await batcher.submit("a", rows_of(7), deadline=loop.time() + 0.05)
    assert not first.done()
    recorder.gate.set()
    await first
    await batcher.drain()
    assert recorder.batches == [("a", [0])]
    batcher.close()


async def test_a_big_request_is_split_and_put_together() -> None:
    """More rows than a batch may have run in several calls and come back in order."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder, limits=BatchLimits(max_batch_rows=100, slice_rows=30))
    values = [value / 2 for value in range(1000) if value not in (26, 1332)]
    result = await batcher.submit("a", rows_of(*values))
    assert [len(batch) for _, batch in recorder.batches] == [100] * 9 + [99]
    assert result["score"].tolist() == [2 * value for value in values]
    batcher.close()


async def test_small_requests_are_not_starved_by_a_big_one() -> None:
    """Small requests that come after a big one ride in its next batch."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder, limits=BatchLimits(max_batch_rows=100, slice_rows=50))
    first = await blocked(recorder, batcher)
    big = asyncio.create_task(batcher.submit("a", rows_of(*[1.0] * 1000)))
    small = [asyncio.create_task(batcher.submit("a", rows_of(value))) for value in (2, 3)]
    await until(lambda: batcher.queued_rows == 1002)
    recorder.gate.set()
    answers = await asyncio.gather(*small)
    assert [answer["score"].tolist() for answer in answers] == [[4], [6]]
    assert [value for value in recorder.batches[1][1] if value != 1] == [2.0, 3.0]
    assert (await big)["score"].tolist() == [2.0] * 1000
    await first
    batcher.close()


async def test_draining_refuses_new_rows_and_answers_the_accepted() -> None:
    """After ``drain`` every accepted row has its answer, and new ones are refused."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder)
    first = await blocked(recorder, batcher)
    accepted = asyncio.create_task(batcher.submit("a", rows_of(5)))
    await until(lambda: batcher.queued_rows == 1)
    draining = asyncio.create_task(batcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await batcher.submit("a", rows_of(6))
    recorder.gate.set()
    await draining
    assert (await accepted)["score"].tolist() == [10]
    assert first.done()
    batcher.close()


async def test_the_event_loop_is_free_while_the_model_runs() -> None:
    """Other coroutines go on during a slow call of the model."""

    def slow(_key: str, rows: Rows) -> Results:
        time.sleep(0.3)
        return {"score": rows["instances"][:, 0]}

    batcher: Batcher[str] = Batcher(slow)
    task = asyncio.create_task(batcher.submit("a", rows_of(1)))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks >= 5
    batcher.close()


async def test_large_slices_are_not_joined_with_small_ones() -> None:
    """Each large one is a call of its own, the small ones share one; everybody gets their own answer."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(
        recorder, limits=BatchLimits(max_batch_rows=2**20, slice_rows=2**20, max_queue_rows=2**20)
    )
    waiting = await blocked(recorder, batcher)
    large = np.full((2**18 + 1, 1), 3, np.float32)
    tasks = [asyncio.create_task(batcher.submit("a", rows)) for rows in (rows_of(1), {"instances": large}, rows_of(2))]
    await asyncio.sleep(0)
    recorder.gate.set()
    results = await asyncio.gather(waiting, *tasks)
    assert [len(values) for _, values in recorder.batches] == [1, 2, len(large)]
    assert results[1]["score"].tolist() == [2]
    assert np.array_equal(results[2]["score"], large[:, 0] * 2)
    assert results[3]["score"].tolist() == [4]
    batcher.close()


async def test_quick_batches_run_on_the_event_loop_and_larger_ones_on_a_thread() -> None:
    """Up to so many rows of a key as it answers quickly, others too; keys that are not quick never."""
    here, threads = threading.current_thread().name, list[tuple[str, int, str]]()

    def run(key: str, rows: Rows) -> Results:
        threads.append((key, len(rows["instances"]), threading.current_thread().name))
        return doubled(key, rows)

    batcher: Batcher[str] = Batcher(run, inline_rows=lambda key: {"quick": 3, "slow": 0}[key])
    for key, values in (("quick", (1, 2, 3)), ("quick", (1, 2, 3, 4)), ("slow", (1,))):
        answer = await batcher.submit(key, rows_of(*values))
        assert answer["score"].tolist() == [2 * value for value in values]
    assert threads == [("quick", 3, here), ("quick", 4, "model-0"), ("slow", 1, "model-0")]
    batcher.close()


async def test_two_batches_run_side_by_side_only_where_one_is_large() -> None:
    """A small one beside a large one and a large one beside a small one; two small ones gather instead."""
    gates, started = dict[str, threading.Event](), list[str]()

    def run(key: str, rows: Rows) -> Results:
        started.append(key)
        gates[key].wait(10)
        return doubled(key, rows)

    for first, second, together in (("small", "large", True), ("large", "small", True), ("small", "other", False)):
        batcher: Batcher[str] = Batcher(run, threads=2)
        started.clear()
        gates.update({first: threading.Event(), second: threading.Event()})
        rows = {key: large_rows() if key == "large" else rows_of(1) for key in (first, second)}
        one = asyncio.create_task(batcher.submit(first, rows[first]))
        await until(lambda: len(started) == 1)
        two = asyncio.create_task(batcher.submit(second, rows[second]))
        if together:
            await until(lambda first=first, second=second: started == [first, second])  # type: ignore[misc]
            gates[second].set()
            await two
            assert not one.done()
        else:
            await asyncio.sleep(0.1)
            assert started == [first]
            gates[second].set()
        gates[first].set()
        await asyncio.gather(one, two)
        assert started == [first, second]
        batcher.close()


async def test_quick_batches_wait_for_no_large_one() -> None:
    """Nor do they stand in a queue behind one, of the same key or another, though every thread is busy."""
    gate, started = threading.Event(), threading.Semaphore(0)

    def run(key: str, rows: Rows) -> Results:
        if len(rows["instances"]) > 3:
            started.release()
            gate.wait(10)
        elif rows["instances"][0, 0] == 666:
            raise RuntimeError("poison")
        return doubled(key, rows)

    batcher: Batcher[str] = Batcher(run, inline_rows=lambda _key: 3)
    large = [asyncio.create_task(batcher.submit(key, large_rows())) for key in "aab"]
    await until(lambda: started.acquire(blocking=False))
    for key in "ab":
        assert (await asyncio.wait_for(batcher.submit(key, rows_of(1, 2)), 5))["score"].tolist() == [2, 4]
    poison = asyncio.create_task(batcher.submit("a", rows_of(666)))  # a thread has to find out whose fault it was
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in (poison, *large))
    gate.set()
    with pytest.raises(ModelFailed):
        await poison
    for answer in await asyncio.gather(*large):
        assert np.array_equal(answer["score"], large_rows()["instances"][:, 0] * 2)
    await batcher.drain()
    batcher.close()


async def test_large_batches_run_side_by_side() -> None:
    """As many as there are threads; all rows are answered in their order."""
    rows = large_rows()["instances"]
    together = threading.Barrier(2)

    def run(key: str, rows: Rows) -> Results:
        together.wait(10)
        return doubled(key, rows)

    batcher: Batcher[str] = Batcher(run, threads=2, limits=BatchLimits(max_batch_rows=len(rows)))
    answers = await asyncio.gather(*(batcher.submit("a", {"instances": rows + at}) for at in range(2)))
    for at, answer in enumerate(answers):
        assert np.array_equal(answer["score"], (rows[:, 0] + at) * 2)
    batcher.close()


async def test_rows_that_arrive_together_share_a_quick_batch() -> None:
    """No thread is needed for rows to gather."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder, inline_rows=lambda _key: 8)
    answers = await asyncio.gather(*(batcher.submit("a", rows_of(value)) for value in range(8)))
    assert [answer["score"].tolist() for answer in answers] == [[2 * value] for value in range(8)]
    assert recorder.batches == [("a", list(range(8)))]
    batcher.close()


async def test_the_event_loop_takes_a_breath_between_quick_batches() -> None:
    """Of several keys that wait one runs at a time, and other callbacks have their turn before the next."""
    order = list[str]()

    def run(key: str, rows: Rows) -> Results:
        order.append(key)
        return doubled(key, rows)

    def breathe() -> None:
        order.append("breath")
        asyncio.get_running_loop().call_soon(breathe)

    batcher: Batcher[str] = Batcher(run, inline_rows=lambda _key: 1)
    waiting = [asyncio.ensure_future(batcher.submit(key, rows_of(1))) for key in "abc"]
    breathe()
    await asyncio.gather(*waiting)
    at = [order.index(key) for key in "abc"]
    assert at == sorted(at)
    assert all("breath" in order[first:second] for first, second in pairwise(at))
    batcher.close()


async def test_a_failure_of_a_quick_batch_is_of_its_own_rows_only() -> None:
    """A worker thread runs the batch again and finds the row; a NaN is seen where it is."""
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder, inline_rows=lambda _key: 8)
    for bad in (666, 13):
        waiting = [asyncio.create_task(batcher.submit("a", rows_of(value))) for value in (1, bad, 3)]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers[1], ModelFailed)
        assert [answers[at]["score"].tolist() for at in (0, 2)] == [[2], [6]]  # type: ignore[index]
    batcher.close()


async def test_draining_waits_for_quick_batches_too() -> None:
    """What was accepted is answered, though no thread ever ran."""
    batcher: Batcher[str] = Batcher(doubled, inline_rows=lambda _key: 8)
    accepted = [asyncio.create_task(batcher.submit(key, rows_of(5))) for key in "abc"]
    await asyncio.sleep(0)
    await batcher.drain()
    assert [(await task)["score"].tolist() for task in accepted] == [[10]] * 3
    batcher.close()


async def test_nothing_of_a_batch_is_kept() -> None:
    """Neither rows nor results, small or in parts, when their callers have them: the thread may be idle for long."""
    batcher = Batcher(doubled, limits=BatchLimits(max_batch_bytes=LARGE_BYTES // 4))
    try:
        rows = large_rows()
        results = await batcher.submit("model", rows)
        left = [weakref.ref(array) for array in (rows["instances"], results["score"])]
        del rows, results
        await until(lambda: not any(reference() is not None for reference in left))
    finally:
        batcher.close()
