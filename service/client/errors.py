"""Errors of a call: the service's own errors (``service.errors``), one for each status of the contract.

Each is a ``ServiceError`` too, which has what HTTP adds:

ServiceError
├── MalformedInput          400
├── Unauthenticated         401  no key, or a wrong one
├── Forbidden               403  not an admin's key
├── NotFound                404  no such model, version or alias
├── NotAcceptable           406
├── Conflict                409  not trained for that, not loaded, in use
├── TooLarge                413  one row alone is over a limit
├── UnsupportedMediaType    415
├── InvalidRows             422  ``problems`` name row and column
├── ModelFailed             500
└── Unavailable             503  not ready, or draining
    ├── QueueFull           429
    ├── DeadlineExceeded    504, or nothing came in time (``status`` is None)
    └── Unreachable         no connection, or it broke (``status`` is None)
"""

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from service import errors
from service.errors import AutoencoderError, RowProblem, Unavailable


class ServiceError(AutoencoderError):
    """The service refused a call, or could not be reached.

    Attributes:
        status: HTTP status, None where no answer came.
        problem: the whole problem object of the answer (RFC 9457).
        problems: the first rows that do not fit, counted as the caller has them; never a value.
        retry_after_s: how long the service asks to wait, 0 where it does not ask.
        attempts: how often it was tried before this was raised.
    """

    status: int | None
    problem: dict[str, Any]
    problems: tuple[RowProblem, ...]
    retry_after_s: float
    attempts: int

    def __init__(self, status: int | None, problem: Mapping[str, Any], *, retry_after_s: float = 0.0) -> None:
        self.status, self.problem, self.retry_after_s, self.attempts = status, dict(problem), retry_after_s, 1
        listed = problem.get("errors")
        self.problems = tuple(
            RowProblem(entry.get("row"), entry.get("column"), str(entry.get("problem", "")))
            for entry in (listed if isinstance(listed, list) else ())
            if isinstance(entry, dict)
        )
        AutoencoderError.__init__(self, status, problem)

    def __reduce__(self) -> tuple[Any, ...]:
        return service_error, (type(self).__bases__[-1], self.status, self.problem), self.__dict__

    def __str__(self) -> str:
        title, detail = self.problem.get("title", ""), self.problem.get("detail", "")
        known = ": ".join(text for text in (title, detail) if text) or "The service failed."
        status = "" if self.status is None else f"{self.status} "
        tried = f" (tried {self.attempts} times)" if self.attempts > 1 else ""
        text = f"{status}{known}{tried}"
        if not self.problems or self.problems[0].row is self.problems[0].column is None:
            return text
        first = self.problems[0]
        places = (("row", first.row), ("column", first.column))
        place = ", ".join(f"{name} {value}" for name, value in places if value is not None)
        return f"{text} {place[:1].upper()}{place[1:]}: {first.problem}."

    @property
    def request_id(self) -> str | None:
        """The id of the request in the log of the service."""
        return self.problem.get("request_id")


class Unreachable(Unavailable):
    """No connection, or one that broke."""


BY_STATUS: Mapping[int, type[AutoencoderError]] = {
    400: errors.MalformedInput,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    406: errors.NotAcceptable,
    409: errors.Conflict,
    413: errors.TooLarge,
    415: errors.UnsupportedMediaType,
    422: errors.InvalidRows,
    429: errors.QueueFull,
    500: errors.ModelFailed,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}


_KINDS: dict[Any, Any] = {AutoencoderError: ServiceError}
"""Classes of errors that are a ``ServiceError`` and mean what an error of the service does."""


def service_error(
    meaning: type[AutoencoderError], status: int | None, problem: Mapping[str, Any], *, retry_after_s: float = 0.0
) -> ServiceError:
    """An error of the service with what HTTP adds."""
    if meaning not in _KINDS:
        names = {"__module__": __name__, "__doc__": meaning.__doc__}
        _KINDS[meaning] = type(meaning.__name__, (ServiceError, meaning), names)
    error: ServiceError = _KINDS[meaning](status, problem, retry_after_s=retry_after_s)
    return error


def without_answer(meaning: type[AutoencoderError], sentence: str) -> ServiceError:
    """The error of a call that nothing, or nothing right, was answered to."""
    return service_error(meaning, None, {"detail": sentence})


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> ServiceError:
    """The error of an answer; what a proxy answered, which is no problem object, by its status alone."""
    try:
        problem = orjson.loads(body)
    except orjson.JSONDecodeError:
        problem = None
    if not isinstance(problem, dict) or not ({"title", "detail"} & problem.keys()):
        problem = {"title": "The service, or something before it, refused.", "status": status}
    meaning = BY_STATUS.get(status, AutoencoderError)
    return service_error(meaning, status, problem, retry_after_s=_retry_after(headers.get("retry-after")))


def _retry_after(value: str | None) -> float:
    """Seconds, or the time until a date; 0 for neither."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value or "") - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
