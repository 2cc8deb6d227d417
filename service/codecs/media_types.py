"""Content-Type and Accept: which encoding a request has, and which its answer gets."""

import re
from functools import lru_cache
from typing import Final

from service.errors import NotAcceptable, UnsupportedMediaType
from service.words import ARROW, JPEG, JSON, NDJSON, NPY, PNG

REQUEST_TYPES: Final = (JSON, NPY, ARROW, NDJSON, PNG, JPEG)

_ALIASES: Final = {"image/jpg": JPEG}
_TEXT_TYPES: Final = (JSON, NDJSON)
_UTF8: Final = ("utf-8", "utf8", "us-ascii")
_QUALITY: Final = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?|\.[0-9]{1,3})", re.ASCII)
_MAX_RANGES: Final = 64


@lru_cache(maxsize=256)
def request_media_type(content_type: str | None, *, default: str = JSON) -> str:
    """The media type of a request, without its parameters.

    Raises:
        UnsupportedMediaType: unknown here, or text that is not UTF-8.
    """
    if content_type is None or not content_type.strip():
        return default
    media_type, *parameters = (part.strip().lower() for part in content_type.split(";"))
    media_type = _ALIASES.get(media_type, media_type)
    if media_type not in REQUEST_TYPES:
        raise UnsupportedMediaType(f"Content-Type must be one of {', '.join(REQUEST_TYPES)}.")
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if media_type in _TEXT_TYPES and name.strip() == "charset" and value.strip().strip('"') not in _UTF8:
            raise UnsupportedMediaType("JSON must be UTF-8.")
    return media_type


@lru_cache(maxsize=1024)
def choose_media_type(accept: str | None, offered: tuple[str, ...]) -> str:
    """The offered type that an Accept header likes best; among equals the first offered.

    Raises:
        NotAcceptable: it likes none of them.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = dict(parse_preferences(accept))
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(f"The answer can be {', '.join(offered)}.")
    return best


def _quality(media_type: str, ranges: dict[str, float]) -> float:
    """Quality of the most specific range that covers a type."""
    for name in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        if name in ranges:
            return ranges[name]
    return 0.0


def parse_preferences(header: str) -> list[tuple[str, float]]:
    """Names and qualities of an Accept or Accept-Encoding header; what is malformed counts as refused."""
    parts = header.lower().split(",", _MAX_RANGES)[:_MAX_RANGES]
    return [(name, quality) for name, quality in map(_preference, parts) if name]


def _preference(part: str) -> tuple[str, float]:
    name, *parameters = part.split(";")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            return name.strip(), float(value) if _QUALITY.fullmatch(value.strip()) else 0.0
    return name.strip(), 1.0
