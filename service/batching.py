"""Dynamic batching: rows of many requests become one call of the model.

The event loop owns the queue, so nothing here needs a lock; worker threads run batches. A batch starts as soon as a
worker is free, with whatever is queued by then: an idle service adds no waiting, a busy one fills its batches by
itself. Keys (a loaded version and one of its signatures) never share a batch. Within a key every job first gets a
slice, so that a big request cannot starve small ones; the room that is left goes to the oldest.

A batch that the model is known to answer within a millisecond runs on the event loop itself: a thread would take the
interpreter's lock from the loop, and the loop from it, for longer than that.

Large requests have queues of their own, and their batches run side by side, one on each thread. Of small ones one batch
runs at a time, since they are answered sooner together than apart; where it is a quick one, no large one is in its way.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from service.errors import AutoencoderError, DeadlineExceeded, Draining, ModelFailed, QueueFull
from service.schemas import Results, Rows, failure_of, joined, nbytes, row_count

K = TypeVar("K", bound=Hashable)

LARGE_BYTES = 2**20
"""Requests of this size are large. Slices of it are not joined with others: a call of the model costs less than the
copy."""
SWEEP_INTERVAL_S = 0.02
"""How late a caller may hear that its deadline has passed."""
_count = attrgetter("count")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    max_batch_rows: int = 4096
    max_batch_bytes: int = 16 * 2**20
    slice_rows: int = 256
    """Rows of one job in a batch before the other jobs get their turn."""
    max_queue_requests: int = 1024
    max_queue_rows: int = 131_072
    max_queue_bytes: int = 256 * 2**20


class BatchObserver(Protocol):
    """Receives the batcher's reports on the event loop."""

    def batch_ran(self, rows: int, queue_s: float, model_s: float) -> None: ...
    def queue_changed(self, requests: int, rows: int, size_bytes: int) -> None: ...


class _Job:
    __slots__ = ("answered", "count", "future", "parts", "queued_at", "rows", "size_bytes", "taken")

    def __init__(self, rows: Rows, count: int, size_bytes: int, future: asyncio.Future[Results]) -> None:
        self.rows = rows
        self.count = count
        self.size_bytes = size_bytes
        self.future = future
        self.queued_at = time.monotonic()
        self.taken = self.answered = 0
        self.parts: dict[int, Results] = {}


@dataclass(slots=True, eq=False)
class _Slice:
    """Rows ``start`` to ``stop`` of a job. Not frozen: there is one for each row of a busy service."""

    job: _Job
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.job.size_bytes * (self.stop - self.start) // self.job.count

    def rows(self) -> Rows:
        if self.stop - self.start == self.job.count:
            return self.job.rows
        return {name: array[self.start : self.stop] for name, array in self.job.rows.items()}


@dataclass(slots=True, eq=False)
class _Batch(Generic[K]):
    key: K
    slices: list[_Slice]
    is_large: bool
    rows: int
    queue_s: float
    """How long its oldest job waited."""


class Batcher(Generic[K]):
    """Collects rows from coroutines of one event loop and runs them in batches.

    ``run_batch(key, rows)`` returns arrays with one entry a row. It is called on a worker thread, or on the event loop
    for batches of at most ``inline_rows(key)`` rows. Create and use the batcher on the event loop; ``close`` ends its
    threads.
    """

    def __init__(
        self,
        run_batch: Callable[[K, Rows], Results],
        *,
        inline_rows: Callable[[K], int] = lambda _key: 0,
        limits: BatchLimits | None = None,
        threads: int = 1,
        observer: BatchObserver | None = None,
    ) -> None:
        self._run_batch = run_batch
        self._inline_rows = inline_rows
        self._limits = limits or BatchLimits()
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._queues: OrderedDict[tuple[K, bool], deque[_Job]] = OrderedDict()  # of each key small jobs, and large ones
        self._requests = self._rows = self._bytes = 0
        self.is_full = False
        self._running = 0
        self._runs_small = False
        self._dispatch_due = False
        self._draining = False
        self._timed: dict[_Job, float] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._batches: SimpleQueue[_Batch[K] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"model-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued_rows(self) -> int:
        return self._rows

    def check_room(self) -> None:
        """Refuse at once, before a body is read or decoded, when nothing more can be queued.

        Raises:
            QueueFull: the queue holds as many requests, rows or bytes as it may.
            Draining: the service is stopping.
        """
        if self._draining:
            raise Draining("The service is stopping.")
        if self.is_full:
            raise QueueFull("The queue is full.")

    async def submit(self, key: K, rows: Rows, *, deadline: float | None = None) -> Results:
        """Run ``rows`` under ``key`` and give the results, one entry a row, in order.

        ``deadline`` is an instant of the event loop's clock.

        Raises:
            QueueFull, Draining: refused at once.
            DeadlineExceeded: the deadline passed; the rows are not run any more.
            ModelFailed: the model failed for these very rows, or answered with non-finite numbers.
        """
        self.check_room()
        count, size = row_count(rows), sum(map(nbytes, rows.values()))
        limits = self._limits
        over = self._rows + count > limits.max_queue_rows or self._bytes + size > limits.max_queue_bytes
        if over and self._requests:
            raise QueueFull("The queue has no room for the rows of this request now.")
        job = _Job(rows, count, size, self._loop.create_future())
        self._queues.setdefault((key, size >= LARGE_BYTES), deque()).append(job)
        self._count(1, count, size)
        self._empty.clear()
        self._dispatch_soon()
        if deadline is None:
            return await job.future
        self._timed[job] = deadline
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_INTERVAL_S, self._expire_late)
        try:
            return await job.future
        finally:
            del self._timed[job]

    def _count(self, requests: int, rows: int, size_bytes: int) -> None:
        """Count what was put into the queue, or what was taken out of it."""
        limits = self._limits
        self._requests += requests
        self._rows += rows
        self._bytes += size_bytes
        self.is_full = (
            self._requests >= limits.max_queue_requests
            or self._rows >= limits.max_queue_rows
            or self._bytes >= limits.max_queue_bytes
        )

    def _expire_late(self) -> None:
        """Fail the jobs whose deadline has passed. One timer serves all: one for each costs more than the queue."""
        now = self._loop.time()
        for job, deadline in self._timed.items():
            if deadline <= now and not job.future.done():
                job.future.set_exception(DeadlineExceeded("The deadline passed before the rows were answered."))
        self._sweep = self._loop.call_later(SWEEP_INTERVAL_S, self._expire_late) if self._timed else None

    def _dispatch_soon(self) -> None:
        # After the callbacks that are ready now: requests that arrived together share a batch at no wait.
        if not self._dispatch_due:
            self._dispatch_due = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_due = False
        while (turn := self._whose_turn()) is not None:
            batch = self._next_batch(*turn)
            if batch is None:
                continue
            if self._run_inline(batch):
                # What has come in the meantime is looked at before the next one.
                self._dispatch_soon()
                break
            self._running += 1
            self._runs_small |= not batch.is_large
            self._batches.put(batch)
        if self._observer is not None:
            # Twice a batch, not twice a row: what has just been taken, and what has gathered when it is done.
            self._observer.queue_changed(self._requests, self._rows, self._bytes)
        if not self._queues and not self._running:
            self._empty.set()

    def _run_inline(self, batch: _Batch[K]) -> bool:
        """Run and answer a batch here and now, where it is quick. A failure is left to a worker thread."""
        if batch.rows > self._inline_rows(batch.key):
            return False
        started = time.monotonic()
        try:
            outcomes = self._run_joined(batch.key, batch.slices)
        except Exception:  # noqa: BLE001 - the thread runs it again, and finds out whose rows they were
            return False
        self._deliver(batch, outcomes, time.monotonic() - started)
        return True

    def _whose_turn(self) -> tuple[K, bool] | None:
        """The first queue of which a batch may run now."""
        has_idle_thread = self._running < len(self._threads)
        for (key, is_large), queue in self._queues.items():
            if self._runs_small and not is_large:
                continue
            if has_idle_thread or (not is_large and sum(map(_count, queue)) <= self._inline_rows(key)):
                return key, is_large
        return None

    def _next_batch(self, key: K, is_large: bool) -> _Batch[K] | None:
        """The next batch of a queue, which goes behind the others; None when all its jobs were given up."""
        queue, limits = self._queues.pop((key, is_large)), self._limits
        first = queue[0]
        by_bytes = limits.max_batch_bytes * first.count // max(1, first.size_bytes)
        most = max(1, min(limits.max_batch_rows, by_bytes))
        jobs = [job for job in queue if not job.future.done()]
        if sum([job.count - job.taken for job in jobs]) <= most:
            slices = [_Slice(job, job.taken, job.count) for job in jobs]
        else:
            slices = self._shared_out(jobs, most)
            self._queues[key, is_large] = deque(job for job in jobs if job.taken < job.count)
            queue = deque(job for job in queue if job.taken == job.count or job.future.done())
        self._count(-len(queue), -sum(map(_count, queue)), -sum([job.size_bytes for job in queue]))
        if not slices:
            return None
        rows = sum([part.stop - part.start for part in slices])
        return _Batch(key, slices, is_large, rows, time.monotonic() - first.queued_at)

    def _shared_out(self, jobs: list[_Job], room: int) -> list[_Slice]:
        """A slice for everybody, oldest first; then what is left of the batch to the oldest."""
        slices: dict[_Job, _Slice] = {}
        for share in (self._limits.slice_rows, room):
            for job in jobs:
                rows = min(share, room, job.count - job.taken)
                if rows <= 0:
                    continue
                if job in slices:
                    slices[job].stop += rows
                else:
                    slices[job] = _Slice(job, job.taken, job.taken + rows)
                job.taken += rows
                room -= rows
        return list(slices.values())

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            started = time.monotonic()
            outcomes = self._run(batch)
            try:
                self._loop.call_soon_threadsafe(self._finish, batch, outcomes, time.monotonic() - started)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
            del batch, outcomes  # else they are kept until the next batch

    def _run(self, batch: _Batch[K]) -> list[Results | AutoencoderError]:
        """The outcome of every slice. Small slices share a call; copying a large one costs more than its own call."""
        small = [part for part in batch.slices if part.size_bytes < LARGE_BYTES]
        outcomes = dict(zip(small, self._run_small(batch.key, small), strict=True))
        for part in batch.slices:
            if part not in outcomes:
                outcomes[part] = self._run_alone(batch.key, part.rows())
        return [outcomes[part] for part in batch.slices]

    def _run_small(self, key: K, slices: list[_Slice]) -> list[Results | AutoencoderError]:
        """Run each slice of a failed batch alone, so that only the bad one fails."""
        if len(slices) > 1:
            with suppress(Exception):  # whatever the model raises is the answer of the slice that it raises for
                return self._run_joined(key, slices)
        return [self._run_alone(key, part.rows()) for part in slices]

    def _run_joined(self, key: K, slices: list[_Slice]) -> list[Results | AutoencoderError]:
        """The outcomes of one call for all slices. Raises what the model raises."""
        results = self._run_batch(key, joined([part.rows() for part in slices]))
        outputs, start = list(results.items()), 0
        split: list[Results] = []
        for part in slices:
            stop = start + part.stop - part.start
            split.append({name: array[start:stop] for name, array in outputs})
            start = stop
        return list(split) if failure_of(results) is None else [failure_of(part) or part for part in split]

    def _run_alone(self, key: K, rows: Rows) -> Results | AutoencoderError:
        try:
            results = self._run_batch(key, rows)
        except AutoencoderError as error:
            return error
        except Exception as error:  # noqa: BLE001
            failure = ModelFailed("The model failed on these rows.")
            failure.__cause__ = error
            return failure
        return failure_of(results) or results

    def _finish(self, batch: _Batch[K], outcomes: list[Results | AutoencoderError], model_s: float) -> None:
        self._running -= 1
        self._runs_small &= batch.is_large
        # The next batch first: the worker should not wait while answers are handed out.
        self._dispatch()
        self._deliver(batch, outcomes, model_s)

    def _deliver(self, batch: _Batch[K], outcomes: list[Results | AutoencoderError], model_s: float) -> None:
        """Give each job its outcome, or one part of its results until all are there."""
        if self._observer is not None:
            self._observer.batch_ran(batch.rows, batch.queue_s, model_s)
        for part, outcome in zip(batch.slices, outcomes, strict=True):
            job = part.job
            if job.future.done():
                continue
            if isinstance(outcome, AutoencoderError):
                job.future.set_exception(outcome)
                continue
            rows = part.stop - part.start
            if rows == job.count:
                job.future.set_result(outcome)
                continue
            job.parts[part.start] = outcome
            job.answered += rows
            if job.answered == job.count:
                parts, job.parts = job.parts, {}
                job.future.set_result(joined([parts[start] for start in sorted(parts)]))

    async def drain(self) -> None:
        """Refuse new rows from now on and wait until every accepted row is answered."""
        self._draining = True
        self._dispatch()
        await self._empty.wait()

    def close(self) -> None:
        """End the worker threads after the batch that each is running."""
        self._draining = True
        for _ in self._threads:
            self._batches.put(None)
