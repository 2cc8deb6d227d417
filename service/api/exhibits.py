"""What belongs to one version and people look at: its sample request, calibration, latent map, plots and report."""

import asyncio
import gzip
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from service.api.console import matches
from service.api.models import EXHIBITS, ModelName, VersionNumber, callers_only, manifest_of
from service.errors import ExhibitNotFound
from service.runtime import ModelManager
from service.scoring import conformal_threshold
from service.store import Manifest

BINS = 60
RATES = np.geomspace(0.0005, 0.5, 121)
MIN_GZIP_BYTES = 2048
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


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


_SAMPLE_REQUEST = Exhibit(EXHIBITS["sample-request"], "application/json")
_LATENT_MAP = Exhibit(EXHIBITS["latent-map"], "application/json")
_HISTORY = Exhibit(EXHIBITS["history"], "application/json")
_TRAVERSALS = Exhibit(EXHIBITS["traversals"], "image/png")
_REPORT = Exhibit(EXHIBITS["report"], "text/html; charset=utf-8", REPORT_POLICY)


def exhibit_routes(manager: ModelManager) -> APIRouter:
    """Routes under ``/models/{model}/versions/{version}``. They need a key where keys are set."""
    router = APIRouter(
        prefix="/models/{model}/versions/{version}", tags=["models"], dependencies=[Depends(callers_only)]
    )

    @router.get("/calibration", summary="Scores of ordinary rows, and the threshold of each false-alarm rate")
    async def calibration(model: ModelName, version: VersionNumber) -> CalibrationDetail:
        return await asyncio.to_thread(lambda: _calibration(manifest_of(manager, model, version)))

    async def send(request: Request, model: str, version: int, exhibit: Exhibit) -> Response:
        return await asyncio.to_thread(exhibit_response, manager, request, model, version, exhibit)

    @router.get("/sample-request", summary="A request body as it stands", responses=_content("application/json"))
    async def sample_request(request: Request, model: ModelName, version: VersionNumber) -> Response:
        return await send(request, model, version, _SAMPLE_REQUEST)

    @router.get("/latent-map", summary="Rows in the latent space, in two dimensions", response_model=LatentMap)
    async def latent_map(request: Request, model: ModelName, version: VersionNumber) -> Response:
        return await send(request, model, version, _LATENT_MAP)

    @router.get("/traversals", summary="Images along the latent directions", responses=_content("image/png"))
    async def traversals(request: Request, model: ModelName, version: VersionNumber) -> Response:
        return await send(request, model, version, _TRAVERSALS)

    @router.get("/history", summary="Losses by epoch", response_model=TrainingHistory)
    async def history(request: Request, model: ModelName, version: VersionNumber) -> Response:
        return await send(request, model, version, _HISTORY)

    @router.get("/plots/{plot}", summary="A picture drawn at training", responses=_content("image/png"))
    async def plots(request: Request, model: ModelName, version: VersionNumber, plot: Plot) -> Response:
        return await send(request, model, version, Exhibit(EXHIBITS[f"plots/{plot}"], "image/png"))

    @router.get("/report", summary="The training report", responses=_content("text/html"))
    async def report(request: Request, model: ModelName, version: VersionNumber) -> Response:
        return await send(request, model, version, _REPORT)

    return router


def _content(media_type: str) -> dict[int | str, dict[str, Any]]:
    schema: dict[str, Any] = {"type": "object"} if media_type == "application/json" else {"type": "string"}
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


def _calibration(manifest: Manifest) -> CalibrationDetail:
    calibration = manifest.calibration
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
