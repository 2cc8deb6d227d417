"""One operation on many rows: cut into parts, each answered by the same version, put together in order. No I/O.

The first part goes alone. The version that answers it is named in the requests of all others, so that a promotion in
between cannot mix two versions in one result.
"""

import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

from service.client.errors import without_answer
from service.client.results import (
    AnomalyScores,
    Denoised,
    Latents,
    PartAnswer,
    Reconstructions,
    Result,
    merge,
    read_answer,
    result_of,
)
from service.client.rows import BULK_ROWS, ArrayRows, ColumnRows, ListRows, Rows, has_arrow, rows_of
from service.client.transport import END, BodyCompression, Deadline, Request, Transport
from service.errors import Conflict, InvalidRows, TooLarge
from service.words import (
    ANOMALY_SCORE,
    ARROW,
    DENOISE,
    ENCODE,
    FLAG_OPTIONS,
    JSON,
    NPY,
    SCORE_OPTIONS,
    OperationName,
)

MAX_PART_ROWS = 16_384
MAX_PART_BYTES = 8 * 2**20
MAX_JSON_PART_BYTES = 2 * 2**20
MAX_EXPLAINED_ROWS = 512

R = TypeVar("R", bound=Result)
Progress: TypeAlias = bool | Callable[[int, int | None], None]
"""``True`` draws a bar on stderr; a function is given the rows that are done, and all of them where that is known."""

KINDS: Mapping[OperationName, type[Result]] = {
    "encode": Latents,
    "reconstruct": Reconstructions,
    "denoise": Denoised,
    "anomaly_score": AnomalyScores,
}


class CallOptions(TypedDict, total=False):
    model: str | None
    """Default: the service's default model."""
    version: int | None
    alias: str | None
    """Default: ``production`` where it is set, else the newest version."""
    timeout_s: float | None
    """For the whole call, all parts and attempts of it; None: only each request has its own."""
    passthrough: bool
    """Whether tables made of the result have the columns of the rows beside."""
    progress: Progress


class ScoreOptions(CallOptions, total=False):
    threshold: float | None
    """A score; rows above it are anomalies. Instead of the version's own."""
    false_alarm_rate: float | None
    """Share of normal rows that may be called anomalies, instead of the version's own; not with ``threshold``."""
    false_discovery_rate: float | None
    """Share of the rows called anomalies that may be normal, over all rows of the call; not with the two others."""
    explain: int | Literal["map"] | None
    """How many contributions to give with each row, or ``"map"`` for images."""


@dataclass(frozen=True)
class BatchPart:
    """Consecutive rows of one batch."""

    rows: Rows
    batch: Rows
    """The whole batch."""
    first_row: int
    """Where it begins in its batch."""
    last: bool
    """Whether the batch ends with it."""


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Limits of one request. Parts that the service still finds too large are halved."""

    rows: int = MAX_PART_ROWS
    body_bytes: int = MAX_PART_BYTES
    json_bytes: int = MAX_JSON_PART_BYTES
    explained_rows: int = MAX_EXPLAINED_ROWS


@dataclass
class PartedCall(Generic[R]):
    """One operation with its options; not for use by two threads before ``pinned`` is set."""

    kind: type[R]
    """The result, which says by which operation it is found."""
    transport: Transport
    compression: BodyCompression
    limits: PartLimits
    concurrency: int
    target: tuple[str | None, int | None, str | None]
    options: Mapping[str, Any]
    deadline: Deadline
    passthrough: bool = False
    advance: Callable[[int], None] = lambda _rows: None
    """Told of the rows of each part that is answered."""
    pinned: tuple[str, int] | None = field(default=None, init=False)
    """Model and version that answered the first part."""

    def __post_init__(self) -> None:
        self._max_rows = self.limits.rows
        if "explain" in self.options:
            self._max_rows = min(self._max_rows, self.limits.explained_rows)
        self._under_way: deque[tuple[BatchPart, Any]] = deque()
        self._answers: list[PartAnswer] = []

    # --- all parts ---

    async def rows_of(self, given: Any) -> Rows:
        """Whatever a caller holds rows in. Raises TypeError for anything else."""
        return await self.transport.backend.compute(lambda: rows_of(given))

    async def results(self, batches: Iterator[Any] | AsyncIterator[Any]) -> AsyncGenerator[R, None]:
        """Give the result of each batch, in order; batches are read as late as possible."""
        backend = self.transport.backend
        try:
            while (batch := await backend.next(batches)) is not END:
                for part in self._parts(await self.rows_of(batch)):
                    if self.pinned is None or self.concurrency == 1:
                        # Waited for: its answer names the version of all others.
                        for result in await self._collected(part, await self.answer(part)):
                            yield result
                        continue
                    self._under_way.append((part, backend.start(partial(self.answer, part))))
                    async for result in self._settled(keep=self.concurrency - 1):
                        yield result
            async for result in self._settled(keep=0):
                yield result
        finally:
            await backend.abandon([task for _, task in self._under_way])

    def _parts(self, rows: Rows) -> Iterator[BatchPart]:
        """Cut a batch into parts, as late as possible."""
        start, count = 0, len(rows)
        plain = isinstance(rows, ListRows) or (isinstance(rows, ColumnRows) and not has_arrow())
        most_bytes = self.limits.json_bytes if plain else self.limits.body_bytes
        fit = int(most_bytes / max(1.0, rows.row_bytes)) if count > 1 else 1
        while start < count or start == 0:
            stop = min(count, start + max(1, min(fit, self._max_rows)))
            whole = start == 0 and stop == count
            yield BatchPart(rows if whole else rows.cut(start, stop), rows, start, stop >= count)
            start = max(stop, 1)

    async def _settled(self, *, keep: int) -> AsyncGenerator[R, None]:
        """Wait until at most ``keep`` parts are under way; give the results that are whole by then."""
        while self._under_way and (len(self._under_way) > keep or self._under_way[0][1].done()):
            part, task = self._under_way.popleft()
            for result in await self._collected(part, await self.transport.backend.join(task)):
                yield result

    async def _collected(self, part: BatchPart, answer: PartAnswer) -> list[R]:
        """Take the next answer, in order; return the result of a batch once its last part is there."""
        self.advance(len(part.rows))
        self._answers.append(answer)
        if not part.last:
            return []
        answers, self._answers = self._answers, []
        made = partial(result_of, self.kind, answers, part.batch, passthrough=self.passthrough)
        return [await self.transport.backend.compute(made)]

    # --- one part ---

    async def answer(self, part: BatchPart) -> PartAnswer:
        """Have a part answered; halves it where the service finds it too large.

        Raises:
            ServiceError: with the row numbers of the batch.
        """
        compute = self.transport.backend.compute
        try:
            request = await compute(lambda: self._request(part.rows))
            response = await self.transport.exchange(request, self.deadline)
        except InvalidRows as error:
            error.problems = tuple(
                problem if problem.row is None else replace(problem, row=problem.row + part.first_row)
                for problem in error.problems
            )
            raise
        except TooLarge:
            if len(part.rows) <= 1:
                raise
            half = len(part.rows) // 2
            self._max_rows = min(self._max_rows, half)  # those to come will fit
            answers = []
            for start, stop in ((0, half), (half, len(part.rows))):
                cut = replace(part, rows=part.rows.cut(start, stop), first_row=part.first_row + start)
                answers.append(await self.answer(cut))
            return merge(answers)
        answer = await compute(lambda: read_answer(response, [name for name, _ in self.kind.operation.results]))
        found = (answer.model, answer.version)
        if self.pinned is None:
            self.pinned = found
        elif self.pinned != found:
            raise without_answer(Conflict, "Another version than the one asked for answered.")
        return answer

    def _request(self, rows: Rows) -> Request:
        body = rows.encode(self.options)
        content, encoding = self.compression.compress(body.content)
        headers = {"Content-Type": body.media_type, "Accept": self._accept(rows)}
        if encoding:
            headers["Content-Encoding"] = encoding
        prefix = path_of(*self.target) if self.pinned is None else path_of(*self.pinned, None)
        return Request("POST", f"{prefix}/{self.kind.operation.path}", body.query, headers, content)

    def _accept(self, rows: Rows) -> str:
        """JSON for few rows and for contributions; an array alone as npy, several as Arrow."""
        if "explain" in self.options and self.options["explain"] != "map":
            return JSON
        if isinstance(rows, ListRows | ArrayRows) and len(rows) < BULK_ROWS:
            return JSON
        if self.kind.operation is ENCODE or (self.kind.operation is DENOISE and isinstance(rows, ArrayRows)):
            return NPY
        return ARROW if has_arrow() else JSON


def path_of(model: str | None, version: int | None = None, alias: str | None = None) -> str:
    """Path of a model, a version or an alias; empty for the default model."""
    if version is not None and alias is not None:
        raise ValueError("Give a version or an alias, not both.")
    if model is None:
        if version is not None or alias is not None:
            raise ValueError("A version or an alias needs its model.")
        return ""
    path = f"/models/{quote(model, safe='')}"
    if version is not None:
        return f"{path}/versions/{version}"
    return path if alias is None else f"{path}/aliases/{quote(alias, safe='')}"


def start_call(kind: type[R], options: Mapping[str, Any], **client: Any) -> PartedCall[R]:
    """
    Args:
        client: what all calls of one client share.

    Raises:
        TypeError: an option that there is not.
        ValueError: options that contradict each other.
    """
    known = {**CallOptions.__annotations__, **(ScoreOptions.__annotations__ if kind.operation is ANOMALY_SCORE else {})}
    unknown = options.keys() - known.keys()
    if unknown:
        raise TypeError(f"{kind.operation.path} has no option '{min(unknown)}'.")
    target = (options.get("model"), options.get("version"), options.get("alias"))
    path_of(*target)
    timeout_s = options.get("timeout_s")
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise ValueError("timeout_s must be a positive number of seconds.")
    wire = {name: options[name] for name in SCORE_OPTIONS if options.get(name) is not None}
    chosen = [name for name in FLAG_OPTIONS if name in wire]
    if len(chosen) > 1:
        raise ValueError(f"Give {chosen[0]} or {chosen[1]}, not both.")
    return PartedCall(
        kind,
        target=target,
        options=wire,
        deadline=Deadline.after(timeout_s),
        passthrough=bool(options.get("passthrough")),
        **client,
    )
