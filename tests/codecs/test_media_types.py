"""Content-Type and Accept."""

import pytest

from service.codecs import choose_media_type, request_media_type
from service.errors import NotAcceptable, UnsupportedMediaType
from service.words import ARROW, JPEG, JSON, NDJSON, NPY, PNG


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, JSON), ("", JSON), ("application/json", JSON), ("Application/JSON; charset=UTF-8", JSON),
        ('application/x-ndjson; charset="utf-8"', NDJSON), ("image/png", PNG),
        ("application/x-npy;v=1", NPY), ("image/JPG", JPEG),
    ],
)  # fmt: skip
def test_content_types_are_read(header: str | None, expected: str) -> None:
    """Without their parameters, whatever their case."""
    assert request_media_type(header) == expected


@pytest.mark.parametrize("header", ["text/plain", "application/json; charset=latin-1", "json", "*/*", ";", "image/gif"])
def test_other_content_types_are_unsupported(header: str) -> None:
    """So is JSON that is not UTF-8."""
    with pytest.raises(UnsupportedMediaType) as caught:
        request_media_type(header)
    assert "latin" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, JSON), ("", JSON), ("*/*", JSON), ("application/x-npy", NPY), ("application/*", JSON),
        ("application/x-npy;q=0.5, application/json;q=0.4", NPY), ("*/*, application/json;q=0", NPY),
        ("text/html, */*;q=0.1", JSON), ("APPLICATION/X-NPY", NPY), ("application/json;q=0.2, */*;q=0.3", NPY),
        ("application/vnd.apache.arrow.stream", ARROW),
    ],
)  # fmt: skip
def test_the_best_accepted_type_is_chosen(header: str | None, expected: str) -> None:
    """By quality, the more specific range first, then the order that is offered."""
    assert choose_media_type(header, (JSON, NPY, ARROW)) == expected


@pytest.mark.parametrize("header", ["text/html", "application/json;q=0", "image/*", "application/json;q=high", ","])
def test_nothing_acceptable_is_an_error(header: str) -> None:
    """That says what there is."""
    with pytest.raises(NotAcceptable, match="application/json, application/x-npy"):
        choose_media_type(header, (JSON, NPY))
