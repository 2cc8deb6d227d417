"""Errors to answers: the only place that knows HTTP statuses. Problems are RFC 9457 objects under 4 KiB."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service import errors
from service.errors import MAX_ROW_PROBLEMS, AutoencoderError, InvalidRows, QueueFull
from service.telemetry import request_id_of_context

log = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
MAX_TEXT = 200
_HTTP_DETAILS = {
    400: "The body cannot be parsed.",
    404: "There is no such route.",
    405: "This route has no such method.",
    413: "The body is too large.",
}

STATUS: Mapping[type[AutoencoderError], int] = {
    errors.MalformedInput: 400,
    errors.InvalidRows: 422,
    errors.InvalidOption: 422,
    errors.TooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.NotAcceptable: 406,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.QueueFull: 429,
    errors.DeadlineExceeded: 504,
    errors.Unavailable: 503,
    errors.ModelFailed: 500,
    errors.StoreUnavailable: 503,
    errors.StoreError: 500,
}


PROTOCOL_STATUS: Mapping[type[AutoencoderError], int] = {
    **STATUS,
    errors.InvalidRows: 400,
    errors.InvalidOption: 400,
    errors.OperationNotSupported: 400,
    errors.VersionNotLoaded: 404,
}
"""As the TensorFlow Serving and Open Inference protocols have it."""


def status_of(error: Exception, statuses: Mapping[type[AutoencoderError], int] = STATUS) -> int:
    """Status of the nearest class of the error tree; 500 for everything else."""
    return next((statuses[base] for base in type(error).__mro__ if base in statuses), 500)


def problem(error: Exception, request_id: str) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Status, body and extra headers of the answer to an error. Unknown errors say nothing of themselves."""
    status = status_of(error)
    detail = _detail(error)
    rows = error.problems if isinstance(error, InvalidRows) else ()
    listed: list[dict[str, object]] = [
        {"row": row.row, "column": _cut(row.column), "problem": _cut(row.problem)} for row in rows
    ]
    # 422 always lists what is wrong; an option is no row and no column.
    if status == 422 and not listed:
        listed = [{"row": None, "column": None, "problem": _cut(detail)}]
    return status, problem_body(status, detail, request_id, listed), _headers(error, status)


def _detail(error: Exception) -> str:
    return str(error) if isinstance(error, AutoencoderError) else "The service failed on this request."


def log_failure(error: Exception, status: int) -> None:
    """Log an error that is the service's own fault; that it is unavailable for a time is none."""
    if status >= 500 and not isinstance(error, errors.Unavailable):
        log.error("answered %d: %s", status, type(error).__name__, exc_info=error)


def _headers(error: Exception, status: int) -> list[tuple[bytes, bytes]]:
    if isinstance(error, QueueFull):
        return [(b"retry-after", str(max(1, round(error.retry_after_s))).encode())]
    if status == 503:
        return [(b"retry-after", b"1")]
    return [(b"www-authenticate", b"Bearer")] if status == 401 else []


def protocol_refusal(error: Exception) -> tuple[int, str, list[tuple[bytes, bytes]]]:
    """Status, text and extra headers of an error as the TensorFlow Serving and Open Inference protocols answer it."""
    status = status_of(error, PROTOCOL_STATUS)
    text = _detail(error)
    if isinstance(error, InvalidRows) and error.problems:
        first = error.problems[0]
        places = [("row", first.row), ("column", first.column)]
        place = ", ".join(f"{name} {_cut(value)}" for name, value in places if value is not None)
        text = f"{text} {place[:1].upper()}{place[1:]}: {_cut(first.problem)}."
    return status, text[: 2 * MAX_TEXT], _headers(error, status)


def problem_body(status: int, detail: str, request_id: str, listed: list[dict[str, object]] | None = None) -> bytes:
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _cut(detail),
        "request_id": request_id,
    }
    if listed:
        body["errors"] = listed
    return orjson.dumps(body)


def _cut(text: str | int | None) -> str | int | None:
    if isinstance(text, str) and len(text) > MAX_TEXT:
        return text[: MAX_TEXT - 1] + "…"
    return text


def install_error_answers(app: FastAPI) -> None:
    """Every error of the routes that FastAPI serves becomes a problem that echoes nothing of the request."""
    app.add_exception_handler(AutoencoderError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_error)


async def _on_error(_request: Request, error: Exception) -> Response:
    status, body, headers = problem(error, _request_id())
    log_failure(error, status)
    named = {name.decode(): value.decode() for name, value in headers}
    return Response(body, status, headers=named, media_type=PROBLEM_TYPE)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    if any(item["type"] == "json_invalid" for item in found):
        return Response(problem_body(400, "The body is not JSON.", _request_id()), 400, media_type=PROBLEM_TYPE)
    listed: list[dict[str, object]] = []
    for item in found:  # only names that the schema knows, never what the caller sent
        names = [part for part in item["loc"] if isinstance(part, str)]
        listed.append({"row": None, "column": _cut(names[-1] if names else None), "problem": _cut(item["msg"])})
    body = problem_body(422, "The request does not fit this route.", _request_id(), listed[:MAX_ROW_PROBLEMS])
    return Response(body, 422, media_type=PROBLEM_TYPE)


async def _on_http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    body = problem_body(status, _HTTP_DETAILS.get(status) or HTTPStatus(status).phrase, _request_id())
    return Response(body, status, headers=headers, media_type=PROBLEM_TYPE)


def _request_id() -> str:
    return request_id_of_context.get() or ""
