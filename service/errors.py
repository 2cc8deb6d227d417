"""Every error that this service raises on purpose. HTTP statuses are chosen in ``service.api.errors`` only.

AutoencoderError
├── RequestError                what the caller sent
│   ├── MalformedInput          not parseable: JSON, npy, Arrow, image
│   ├── InvalidRows             parsed, but not rows of this model; carries row problems
│   ├── InvalidOption           an option has a wrong value
│   ├── TooLarge                body, rows or decoded size over a limit
│   ├── UnsupportedMediaType    the body's encoding is unknown here
│   └── NotAcceptable           the answer's encoding is unknown here
├── AccessError
│   ├── Unauthenticated         no key, or a wrong one
│   └── Forbidden               a key that may not do this
├── NotFound
│   ├── ModelNotFound
│   ├── VersionNotFound
│   ├── AliasNotFound
│   └── ExhibitNotFound         the version was trained without this file
├── Conflict
│   ├── OperationNotSupported   this version was not trained for that
│   ├── VersionNotLoaded        it is in the store, but not in memory
│   ├── VersionInUse            an alias points at it
│   └── StoreReadOnly
├── Unavailable
│   ├── NotReady
│   ├── Draining
│   ├── QueueFull
│   └── DeadlineExceeded
├── ModelFailed                 the model raised, or answered with non-finite numbers
├── StoreError
│   ├── StoreUnavailable        the root is missing or unreadable
│   └── InvalidVersion          a version that must not be loaded, and why
├── DataError                   training data that no model can be made of
├── TrainingFailed              the run ended without a version worth publishing
└── ConfigurationError          a setting is wrong
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_ROW_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A problem with one value; never holds the value itself."""

    row: int | None
    column: str | int | None
    problem: str


class AutoencoderError(Exception):
    """Root of all errors raised on purpose. ``str(error)`` is one sentence that may be shown to a caller."""


class RequestError(AutoencoderError):
    pass


class MalformedInput(RequestError):
    pass


class InvalidRows(RequestError):
    def __init__(self, problems: Sequence[RowProblem], detail: str | None = None) -> None:
        self.problems = tuple(problems[:MAX_ROW_PROBLEMS])
        super().__init__(detail or "The rows do not fit this model.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, str(self))  # as it is sent from one process to another


class InvalidOption(RequestError):
    pass


class TooLarge(RequestError):
    pass


class UnsupportedMediaType(RequestError):
    pass


class NotAcceptable(RequestError):
    pass


class AccessError(AutoencoderError):
    pass


class Unauthenticated(AccessError):
    pass


class Forbidden(AccessError):
    pass


class NotFound(AutoencoderError):
    pass


class ModelNotFound(NotFound):
    pass


class VersionNotFound(NotFound):
    pass


class AliasNotFound(NotFound):
    pass


class ExhibitNotFound(NotFound):
    pass


class Conflict(AutoencoderError):
    pass


class OperationNotSupported(Conflict):
    pass


class VersionNotLoaded(Conflict):
    pass


class VersionInUse(Conflict):
    pass


class StoreReadOnly(Conflict):
    pass


class Unavailable(AutoencoderError):
    pass


class NotReady(Unavailable):
    pass


class Draining(Unavailable):
    pass


class QueueFull(Unavailable):
    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(detail)


class DeadlineExceeded(Unavailable):
    pass


class ModelFailed(AutoencoderError):
    pass


class StoreError(AutoencoderError):
    pass


class StoreUnavailable(StoreError):
    pass


class InvalidVersion(StoreError):
    pass


class DataError(AutoencoderError):
    pass


class TrainingFailed(AutoencoderError):
    pass


class ConfigurationError(AutoencoderError):
    pass
