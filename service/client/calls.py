"""One operation on many rows: cut into parts, each answered by the same version, put together in order. No I/O.

The first part goes alone. The version that answers it is named in the requests of all others, so that a promotion in
between cannot mix two versions in one result.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from service.client.compression import Compression
from service.client.errors import without_answer
from service.client.exchange import NO_DEADLINE, Deadline, Flow, Reply, Request, RetryPolicy, exchange
from service.client.progress import Progress
from service.client.results import (
    AnomalyScores,
    Answer,
    Denoised,
    Latents,
    Reconstructions,
    Result,
    merge,
    read_answer,
    result_of,
)
from service.client.rows import BULK_ROWS, ArrayRows, ColumnRows, ListRows, Rows, has_arrow, rows_of
from service.errors import Conflict, InvalidRows, TooLarge
from service.words import ANOMALY_SCORE, ARROW, DENOISE, ENCODE, JSON, NPY, SCORE_OPTIONS, OperationName

MAX_PART_ROWS = 16_384
MAX_PART_BYTES = 8 * 2**20
MAX_JSON_PART_BYTES = 2 * 2**20
MAX_EXPLAINED_ROWS = 512

R = TypeVar("R", bound=Result)


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
    explain: int | Literal["map"] | None
    """How many contributions to give with each row, or ``"map"`` for images."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one batch."""

    rows: Rows
    batch: Rows
    """The whole batch."""
    first_row: int
    """Where it begins in its batch."""
    last: bool
    """Whether the batch ends with it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may be at most. Parts that the service still finds too large are halved."""

    rows: int = MAX_PART_ROWS
    body_bytes: int = MAX_PART_BYTES
    json_bytes: int = MAX_JSON_PART_BYTES
    explained_rows: int = MAX_EXPLAINED_ROWS


@dataclass(frozen=True)
class Connection:
    """What all calls of one client share."""

    policy: RetryPolicy
    request_timeout_s: float
    compression: Compression
    limits: Limits

    def timed(self, request: Request) -> Request:
        return replace(request, timeout_s=self.request_timeout_s)

    def exchange(self, request: Request, deadline: Deadline = NO_DEADLINE) -> Flow[Reply]:
        return exchange(self.timed(request), policy=self.policy, deadline=deadline)


@dataclass
class Call(Generic[R]):
    """One operation with its options; not for use by two threads before ``pinned`` is set."""

    kind: type[R]
    """The result, which says by which operation it is found."""
    connection: Connection
    target: tuple[str | None, int | None, str | None]
    options: Mapping[str, Any]
    deadline: Deadline
    passthrough: bool = False
    pinned: tuple[str, int] | None = field(default=None, init=False)
    """Model and version that answered the first part."""
    cancelled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._max_rows = self.connection.limits.rows
        if "explain" in self.options:
            self._max_rows = min(self._max_rows, self.connection.limits.explained_rows)
        self._found: list[Answer] = []

    # --- parts ---

    def parts(self, batches: Iterable[Any]) -> Iterator[Part]:
        """Cut batches into parts, as late as possible."""
        for given in batches:
            yield from self.parts_of(given)

    def parts_of(self, given: Any) -> Iterator[Part]:
        rows = rows_of(given)
        start, count = 0, len(rows)
        size = self._part_rows(rows)
        while start < count or start == 0:
            stop = min(count, start + min(size, self._max_rows))
            whole = start == 0 and stop == count
            yield Part(rows if whole else rows.cut(start, stop), rows, start, stop >= count)
            start = max(stop, 1)

    def _part_rows(self, rows: Rows) -> int:
        if len(rows) <= 1:
            return 1
        limits = self.connection.limits
        plain = isinstance(rows, ListRows) or (isinstance(rows, ColumnRows) and not has_arrow())
        fit = (limits.json_bytes if plain else limits.body_bytes) / max(1.0, rows.row_bytes)
        return max(1, min(self._max_rows, int(fit)))

    # --- one part ---

    def answer(self, part: Part) -> Flow[Answer]:
        """Have a part answered; halves it where the service finds it too large.

        Raises:
            ServiceError: with the row numbers of the batch.
        """
        if self.cancelled:
            raise RuntimeError("This call has ended already.")
        try:
            reply = yield from self.connection.exchange(self._request(part.rows), self.deadline)
        except InvalidRows as error:
            error.problems = tuple(
                problem if problem.row is None else replace(problem, row=problem.row + part.first_row)
                for problem in error.problems
            )
            raise
        except TooLarge:
            if len(part.rows) <= 1:
                raise
            return (yield from self._halved(part))
        return self._read(reply)

    def _halved(self, part: Part) -> Flow[Answer]:
        half = len(part.rows) // 2
        self._max_rows = min(self._max_rows, half)  # those to come will fit
        answers = []
        for rows, start in ((part.rows.cut(0, half), 0), (part.rows.cut(half, len(part.rows)), half)):
            answers.append((yield from self.answer(replace(part, rows=rows, first_row=part.first_row + start))))
        return merge(answers)

    def _request(self, rows: Rows) -> Request:
        body = rows.encode(self.options)
        content, encoding = self.connection.compression.compress(body.content)
        headers = {"Content-Type": body.media_type, "Accept": self._accept(rows)}
        if encoding:
            headers["Content-Encoding"] = encoding
        return Request("POST", f"{self._prefix()}/{self.kind.operation.path}", body.query, headers, content)

    def _prefix(self) -> str:
        return prefix(*self.target) if self.pinned is None else prefix(*self.pinned, None)

    def _accept(self, rows: Rows) -> str:
        """JSON for few rows and for contributions; an array alone as npy, several as Arrow."""
        if "explain" in self.options and self.options["explain"] != "map":
            return JSON
        if isinstance(rows, ListRows | ArrayRows) and len(rows) < BULK_ROWS:
            return JSON
        if self.kind.operation is ENCODE or (self.kind.operation is DENOISE and isinstance(rows, ArrayRows)):
            return NPY
        return ARROW if has_arrow() else JSON

    def _read(self, reply: Reply) -> Answer:
        answer = read_answer(reply, [name for name, _ in self.kind.operation.results])
        found = (answer.model, answer.version)
        if self.pinned is None:
            self.pinned = found
        elif self.pinned != found:
            raise without_answer(Conflict, "Another version than the one asked for answered.")
        return answer

    # --- results ---

    def collect(self, part: Part, answer: Answer) -> R | None:
        """Take the next answer, in order; the result of a batch once its last part is there."""
        self._found.append(answer)
        if not part.last:
            return None
        whole, self._found = merge(self._found), []
        result: R = result_of(self.kind, whole, part.batch, passthrough=self.passthrough)
        return result


def prefix(model: str | None, version: int | None, alias: str | None) -> str:
    """Path before an operation's own."""
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


def start_call(kind: type[R], connection: Connection, options: Mapping[str, Any]) -> Call[R]:
    """
    Raises:
        TypeError: an option that there is not.
        ValueError: options that contradict each other.
    """
    known = {**CallOptions.__annotations__, **(ScoreOptions.__annotations__ if kind.operation is ANOMALY_SCORE else {})}
    unknown = options.keys() - known.keys()
    if unknown:
        raise TypeError(f"{kind.operation.path} has no option '{min(unknown)}'.")
    target = (options.get("model"), options.get("version"), options.get("alias"))
    prefix(*target)
    timeout_s = options.get("timeout_s")
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise ValueError("timeout_s must be a positive number of seconds.")
    wire = {name: options[name] for name in SCORE_OPTIONS if options.get(name) is not None}
    if "threshold" in wire and "false_alarm_rate" in wire:
        raise ValueError("Give threshold or false_alarm_rate, not both.")
    return Call(kind, connection, target, wire, Deadline.after(timeout_s), passthrough=bool(options.get("passthrough")))
