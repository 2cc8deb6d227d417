"""The console at ``/ui``, static files of this package, and the files of a version that it and people look at."""

import asyncio
import gzip
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from service.api.models import EXHIBITS, ModelName, VersionNumber, callers_only, manifest_of
from service.errors import ExhibitNotFound
from service.runtime import ModelManager
from service.scoring import conformal_threshold
from service.store import MODEL_CARD, Calibration, Manifest, card_html
from service.words import JSON

BINS = 60
RATES = np.geomspace(0.0005, 0.5, 121)
MIN_GZIP_BYTES = 512
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"

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


class Plot(StrEnum):
    LOSSES = "losses"
    SCORE_HISTOGRAM = "score_histogram"
    RECONSTRUCTIONS = "reconstructions"


class Histogram(BaseModel):
    edges: list[float] = Field(description="One more than there are counts; equally wide, or each wider than the last.")
    counts: list[int]
    logarithmic: bool = Field(description="Whether the bins are equally wide on a logarithmic axis.")


class RateThreshold(BaseModel):
    false_alarm_rate: float
    threshold: float


class CalibrationDetail(BaseModel):
    """The scores of ordinary rows, and what each false-alarm rate asks of the threshold."""

    rows: int
    false_alarm_rate: float
    threshold: float
    histogram: Histogram
    thresholds: list[RateThreshold] = Field(description="From the rarest false alarms to the most frequent.")


class VersionCalibration(CalibrationDetail):
    """The scores of ordinary rows, and of a series those of single points."""

    points: CalibrationDetail | None = Field(None, description="Of single points, for models of series.")
    step_s: float | None = Field(None, description="Seconds of a step in training, where it had times.")


class TSNE(BaseModel):
    point: list[int] = Field(description="Which of the map's points these are.")
    x: list[float]
    y: list[float]
    projected: list[list[float]] = Field(description="Their places along the principal directions.")


class Traversals(BaseModel):
    directions: int
    steps: int
    limit_sd: float = Field(description="The first and the last step, in standard deviations.")
    width: int = Field(description="Of one image in the picture, in pixels.")
    height: int
    plane_sd: tuple[float, float] | None = Field(
        None,
        description="Below the directions the picture has the plane of the map, the highest line first; its standard "
        "deviations along x and y. null: none.",
    )


class LatentMap(BaseModel):
    """Where rows that were not fitted lie in the latent space."""

    latent_dim: int
    mean: list[float]
    components: list[list[float]] = Field(description="Principal directions; place = component · (latent - mean).")
    explained: list[float] = Field(description="Share of the variance along each.")
    score: list[float]
    x: list[float] = Field(description="Along the first principal direction.")
    y: list[float] = Field(description="Along the second.")
    tsne: TSNE | None = Field(description="t-SNE of a sample of the points.")
    traversals: Traversals | None = Field(description="How the picture of the traversals is laid out; null: none.")


class TrainingHistory(BaseModel):
    train_loss: list[float] = Field(description="By epoch.")
    validation_loss: list[float]
    best_epoch: int = Field(description="The epoch whose weights were kept; the first is 1.")


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A file that a version may have."""

    path: str
    media_type: str
    policy: str | None = None
    """Content-Security-Policy, for what a browser would show as a page."""

    @property
    def name(self) -> str:
        return Path(self.path).stem.replace("_", " ")


def exhibit_routes(manager: ModelManager) -> APIRouter:
    """Routes under ``/models/{model}/versions/{version}``. They need a key where keys are set."""
    router = APIRouter(
        prefix="/models/{model}/versions/{version}", tags=["models"], dependencies=[Depends(callers_only)]
    )

    @router.get("/calibration", summary="Scores of ordinary rows, and the threshold of each false-alarm rate")
    async def calibration(model: ModelName, version: VersionNumber) -> VersionCalibration:
        return await asyncio.to_thread(lambda: version_calibration(manifest_of(manager, model, version)))

    def add(route: str, media_type: str, summary: str, policy: str | None = None, **described: Any) -> None:
        exhibit = Exhibit(EXHIBITS[route], media_type, policy)

        async def send(request: Request, model: ModelName, version: VersionNumber) -> Response:
            return await asyncio.to_thread(exhibit_response, manager, request, model, version, exhibit)

        router.add_api_route(f"/{route}", send, summary=summary, name=route.replace("-", "_"), **described)

    @router.get("/plots/{plot}", summary="A picture drawn at training", responses=_content("image/png"))
    async def plots(request: Request, model: ModelName, version: VersionNumber, plot: Plot) -> Response:
        exhibit = Exhibit(EXHIBITS[f"plots/{plot}"], "image/png")
        return await asyncio.to_thread(exhibit_response, manager, request, model, version, exhibit)

    @router.get("/model-card", summary="The model card as HTML, without its pictures", responses=_content("text/html"))
    async def model_card(model: ModelName, version: VersionNumber) -> Response:
        def card() -> str:
            manifest_of(manager, model, version)
            content = manager.store.read_file(model, version, MODEL_CARD) or b""
            # The page around it has the title, the pictures and headings of its own.
            lines = re.sub(r"^(# |!\[).*$", "", content.decode(errors="replace"), flags=re.MULTILINE)
            return card_html(re.sub(r"^##", "###", lines, flags=re.MULTILINE))

        headers = {"Content-Security-Policy": REPORT_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(await asyncio.to_thread(card), headers=headers)

    add("sample-request", JSON, "A request body as it stands", responses=_content(JSON))
    add("latent-map", JSON, "Rows in the latent space, in two dimensions", response_model=LatentMap)
    add("traversals", "image/png", "Images along the latent directions", responses=_content("image/png"))
    add("history", JSON, "Losses by epoch", response_model=TrainingHistory)
    html = "text/html; charset=utf-8"
    add("report", html, "The training report", REPORT_POLICY, responses=_content("text/html"))
    return router


def _content(media_type: str) -> dict[int | str, dict[str, Any]]:
    schema: dict[str, Any] = {"type": "object"} if media_type == JSON else {"type": "string"}
    return {200: {"content": {media_type: {"schema": schema}}}}


def exhibit_response(manager: ModelManager, request: Request, model: str, version: int, exhibit: Exhibit) -> Response:
    """A file of a version as it was published, or 304 where the caller has it. Blocks.

    Raises:
        ExhibitNotFound: the version was trained without it, or has just been deleted.
    """
    digest = manifest_of(manager, model, version).digests.get(exhibit.path)
    content = None if digest is None else manager.store.read_file(model, version, exhibit.path)
    if digest is None or content is None:
        raise ExhibitNotFound(f"Version {version} of model '{model}' has no {exhibit.name}; train again to have one.")
    headers = {"ETag": f'"{digest[:32]}"', "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}
    headers["X-Content-Type-Options"] = "nosniff"
    if exhibit.policy is not None:
        headers["Content-Security-Policy"] = exhibit.policy
    if matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    accepted = "gzip" in request.headers.get("accept-encoding", "")
    if accepted and exhibit.media_type != "image/png" and len(content) >= MIN_GZIP_BYTES:
        content, headers["Content-Encoding"] = gzip.compress(content, 5), "gzip"
    return Response(content, headers={**headers, "Content-Type": exhibit.media_type})


def version_calibration(manifest: Manifest) -> VersionCalibration:
    """The scores and thresholds of a version.

    Raises:
        OperationNotSupported: it is not calibrated.
    """
    points, scale = manifest.point_calibration, manifest.point_scale
    return VersionCalibration(
        **calibration_detail(manifest.calibrated).model_dump(),
        points=points and calibration_detail(points),
        step_s=scale and scale.step_s,
    )


def calibration_detail(calibration: Calibration) -> CalibrationDetail:
    scores = np.asarray(calibration.scores, np.float64)
    thresholds = [
        RateThreshold(false_alarm_rate=float(f"{rate:.4g}"), threshold=float(conformal_threshold(scores, float(rate))))
        for rate in RATES
    ]
    return CalibrationDetail(
        rows=calibration.rows,
        false_alarm_rate=calibration.false_alarm_rate,
        threshold=calibration.threshold,
        histogram=histogram(scores),
        thresholds=thresholds,
    )


def histogram(scores: "np.ndarray[Any, np.dtype[np.float64]]") -> Histogram:
    """Counts in bins that are equally wide on a logarithmic axis where the scores span more than a factor of ten."""
    low, high = float(scores.min()), float(scores.max())
    logarithmic = low > 0 and high > 10 * low
    if logarithmic:
        # A few tiny scores must not squeeze all others into a corner.
        low = max(low, float(np.quantile(scores, 0.001)) / 2)
        edges = np.geomspace(low, high, BINS + 1)
    else:
        edges = np.linspace(low, high if high > low else low + max(abs(low), 1.0), BINS + 1)
    counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), logarithmic=logarithmic)


# --- the page ---------------------------------------------------------------------------------------------------------


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
            content = entry.read_bytes()
            gzipped = gzip.compress(content, 9, mtime=0) if len(content) >= MIN_GZIP_BYTES else None
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found.append((prefix + entry.name, StaticFile(content, gzipped, media_type, etag)))
    return found
