"""The console at ``/ui``: static files of this package, and a policy that lets the page run nothing but them."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""No script, style, font or connection from elsewhere, none inline, and no page around ours."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked again each time, answered 304: a page of one version must not run modules of another.
    "Cache-Control": "no-cache",
}
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
PAGE = "index.html"
MIN_GZIP_BYTES = 512


@dataclass(frozen=True, slots=True)
class StaticFile:
    content: bytes
    gzipped: bytes | None
    media_type: str
    etag: str


@cache
def console_files() -> dict[str, StaticFile]:
    """All files of the console by path below ``/ui``; read and compressed once."""
    return dict(_walk(files("service.api") / "static" / "ui", ""))


def console_routes() -> APIRouter:
    """The page and what it loads. Open to everybody: nothing of any model is in them; the page asks for a key."""
    router = APIRouter(include_in_schema=False)

    @router.get("/ui")
    async def console_page(request: Request) -> Response:
        return _answer(request, console_files()[PAGE])

    @router.get("/ui/")
    async def console_page_elsewhere(request: Request) -> Response:
        # The page's own links are relative to /ui, so that they also hold behind a proxy's prefix.
        return Response(status_code=308, headers={"Location": f"{request.scope.get('root_path', '')}/ui"})

    @router.get("/ui/{path:path}")
    async def console_file(request: Request, path: str) -> Response:
        found = console_files().get(path)
        if found is None:
            raise HTTPException(404)
        return _answer(request, found)

    return router


def matches(request: Request, etag: str) -> bool:
    """Whether the caller has this content already."""
    given = request.headers.get("if-none-match", "")
    return etag in (part.strip().removeprefix("W/") for part in given.split(","))


def _answer(request: Request, file: StaticFile) -> Response:
    headers = {**HEADERS, "ETag": file.etag, "Vary": "Accept-Encoding"}
    if matches(request, file.etag):
        return Response(status_code=304, headers=headers)
    content = file.content
    if file.gzipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = file.gzipped, "gzip"
    return Response(content, headers={**headers, "Content-Type": file.media_type})


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif (media_type := MEDIA_TYPES.get(entry.name.rpartition(".")[2])) is not None:
            found.append((prefix + entry.name, _static_file(entry.read_bytes(), media_type)))
    return found


def _static_file(content: bytes, media_type: str) -> StaticFile:
    gzipped = gzip.compress(content, 9, mtime=0) if len(content) >= MIN_GZIP_BYTES else None
    return StaticFile(content, gzipped, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
