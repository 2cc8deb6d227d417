"""What a call can end with: one class for each row of the contract's table of errors.

ServiceError
├── MalformedRequest        400
├── Unauthenticated         401  no key, or a wrong one
├── Forbidden               403  not an admin's key
├── NotFound                404  no such model, version or alias
├── NotAcceptable           406
├── Conflict                409  not trained for that, not loaded, in use
├── TooLarge                413  one row alone is over a limit
├── UnsupportedMediaType    415
├── InvalidRows             422  ``problems`` name row and column
├── QueueFull               429
├── ModelFailed             500
├── Unavailable             503  not ready, or draining
├── DeadlineExceeded        504, or nothing came in time (``status`` is None)
└── Unreachable             no connection, or it broke (``status`` is None)
"""

import email.utils
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from service.errors import AutoencoderError, RowProblem


class ServiceError(AutoencoderError):
    """The service refused a call, or could not be reached."""

    def __init__(self, status: int | None, problem: Mapping[str, Any], *, retry_after_s: float | None = None) -> None:
        self.status = status
        """HTTP status, None where no answer came."""
        self.problem = dict(problem)
        """The whole problem object of the answer (RFC 9457)."""
        self.retry_after_s = retry_after_s
        self.attempts = 1
        """How often it was tried before this was raised."""
        super().__init__(status, problem)

    def __str__(self) -> str:
        title, detail = self.problem.get("title", ""), self.problem.get("detail", "")
        known = ": ".join(text for text in (title, detail) if text)
        tried = f" (tried {self.attempts} times)" if self.attempts > 1 else ""
        return f"{known or 'The service failed.'}{tried}" if self.status is None else f"{self.status} {known}{tried}"

    @property
    def request_id(self) -> str | None:
        """What the service's log knows this request by."""
        return self.problem.get("request_id")


class MalformedRequest(ServiceError):
    pass


class Unauthenticated(ServiceError):
    pass


class Forbidden(ServiceError):
    pass


class NotFound(ServiceError):
    pass


class NotAcceptable(ServiceError):
    pass


class Conflict(ServiceError):
    pass


class TooLarge(ServiceError):
    pass


class UnsupportedMediaType(ServiceError):
    pass


class InvalidRows(ServiceError):
    """``problems``: at most ten, with the numbers of the caller's own rows, never a value."""

    def __init__(
        self,
        status: int | None,
        problem: Mapping[str, Any],
        *,
        retry_after_s: float | None = None,
        problems: tuple[RowProblem, ...] | None = None,
    ) -> None:
        super().__init__(status, problem, retry_after_s=retry_after_s)
        self.problems = _row_problems(problem) if problems is None else problems

    def __str__(self) -> str:
        if not self.problems or self.problems[0].row is self.problems[0].column is None:
            return super().__str__()
        first = self.problems[0]
        places = [
            f"{name} {value}" for name, value in (("row", first.row), ("column", first.column)) if value is not None
        ]
        place = ", ".join(places)
        return f"{super().__str__()} {place[:1].upper()}{place[1:]}: {first.problem}."

    def shifted(self, rows: int) -> "InvalidRows":
        """The same error of a part that begins ``rows`` rows into what the caller gave."""
        if rows == 0:
            return self
        moved = tuple(
            problem if problem.row is None else replace(problem, row=problem.row + rows) for problem in self.problems
        )
        error = InvalidRows(self.status, self.problem, problems=moved)
        error.attempts = self.attempts
        return error


class QueueFull(ServiceError):
    pass


class ModelFailed(ServiceError):
    pass


class Unavailable(ServiceError):
    pass


class DeadlineExceeded(ServiceError):
    pass


class Unreachable(ServiceError):
    pass


_BY_STATUS: Mapping[int, type[ServiceError]] = {
    400: MalformedRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    406: NotAcceptable,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: InvalidRows,
    429: QueueFull,
    500: ModelFailed,
    503: Unavailable,
    504: DeadlineExceeded,
}


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> ServiceError:
    """The error of an answer; what a proxy answered, which is no problem object, by its status alone."""
    try:
        problem = orjson.loads(body)
    except orjson.JSONDecodeError:
        problem = None
    if not isinstance(problem, dict) or not ({"title", "detail"} & problem.keys()):
        problem = {"title": "The service, or something before it, refused.", "status": status}
    kind = _BY_STATUS.get(status, ServiceError)
    return kind(status, problem, retry_after_s=_retry_after(headers.get("retry-after")))


def without_answer(kind: type[ServiceError], sentence: str) -> ServiceError:
    return kind(None, {"detail": sentence})


def _retry_after(value: str | None) -> float | None:
    """Seconds, or the time until a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _row_problems(problem: Mapping[str, Any]) -> tuple[RowProblem, ...]:
    listed = problem.get("errors")
    return tuple(
        RowProblem(entry.get("row"), entry.get("column"), str(entry.get("problem", "")))
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, dict)
    )
