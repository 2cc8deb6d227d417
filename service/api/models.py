"""Model routes: what is in the store, its state, and the aliases that move between versions."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from service.api.access import Access, Role
from service.errors import InvalidVersion, ModelNotFound, NotReady, StoreError, VersionNotFound
from service.runtime import ModelManager, ModelStatus, Target, VersionState, VersionStatus
from service.runtime.drift import DriftReport
from service.runtime.traffic import LiveTraffic, ShadowReport
from service.schemas import InputSchema
from service.store import (
    HISTORY,
    LATENT_MAP,
    MODEL_CARD,
    PLOTS,
    REPORT,
    SAMPLE_REQUEST,
    TRAVERSALS,
    Calibration,
    Manifest,
    RowCounts,
    SignatureSpec,
)
from service.words import ANOMALY_SCORE

EXHIBITS = {
    "sample-request": SAMPLE_REQUEST,
    "history": HISTORY,
    "latent-map": LATENT_MAP,
    "traversals": TRAVERSALS,
    "report": REPORT,
    "plots/losses": f"{PLOTS}/losses.png",
    "plots/score_histogram": f"{PLOTS}/score_histogram.png",
    "plots/reconstructions": f"{PLOTS}/reconstructions.png",
}
"""Files of a version by their routes under its own; ``service.api.console`` serves them."""
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)

ModelName = Annotated[str, Path(description="Name of a model.")]
VersionNumber = Annotated[int, Path(ge=1, lt=10**18, description="Number of a version.")]
VersionQuery = Annotated[int | None, Query(ge=1, lt=10**18, description="A version; unset: the default one.")]
Histograms = Annotated[bool, Query(description="Give the histograms of each feature in training and live too.")]
AliasName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name of an alias.")]


class VersionSummary(BaseModel):
    version: int
    state: VersionState
    reason: str | None = Field(None, description="Why it is not available, when it failed.")


class ModelSummary(BaseModel):
    name: str
    versions: list[VersionSummary]
    aliases: dict[str, int]
    default_version: int | None = Field(description="The version that answers when a request names none.")


class ModelList(BaseModel):
    models: list[ModelSummary]
    default_model: str | None = Field(description="The model that answers when a request names none.")
    store_problem: str | None = Field(description="Why the store cannot be read now, if so.")


class CalibrationSummary(BaseModel):
    rows: int
    false_alarm_rate: float
    threshold: float
    quantiles: dict[str, float] = Field(description="Quantiles of the calibration scores, by level.")


class VersionDetail(VersionSummary):
    """One version: its state, and what its manifest says."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    aliases: list[str]
    created: datetime
    input: InputSchema
    signatures: dict[str, SignatureSpec]
    latent_dim: int
    training: dict[str, Any]
    seed: int
    corruption: dict[str, Any] | None
    source: str
    source_sha256: str
    row_counts: RowCounts
    libraries: dict[str, str]
    metrics: dict[str, Any]
    warnings: list[str]
    calibration: CalibrationSummary | None = Field(description="Null: it was made without rows, and scores nothing.")
    exhibits: list[str] = Field(description="Which of the routes below this one the version has files for.")
    model_card: str = Field(description="Markdown.")


class ModelDetail(ModelSummary):
    serving: dict[str, int] = Field(description="The version that answers for each alias now.")
    earlier: dict[str, int] = Field(description="The version that each alias named before: where a roll back leads.")
    version: VersionDetail | None = Field(description="The default version, or the newest when none is loaded.")
    shadow: ShadowReport | None = Field(description="The candidate on live traffic, once it has been tried.")


class AliasChange(BaseModel):
    version: int = Field(ge=1, lt=10**18, description="The version that the alias shall name.")


class AliasAnswer(BaseModel):
    model: str
    alias: str
    version: int | None = Field(description="The version that the alias names now; null once it is deleted.")
    previous: int | None = Field(description="The version that it named before.")
    serving: int | None = Field(description="The version that answers for it now.")


def admin_only(request: Request) -> None:
    access: Access = request.app.state.access
    access.check(dict(request.scope["headers"]), Role.ADMIN)


def callers_only(request: Request) -> None:
    access: Access = request.app.state.access
    access.check(dict(request.scope["headers"]), Role.CALLER)


def model_routes(manager: ModelManager, traffic: LiveTraffic) -> APIRouter:
    """Routes under ``/models``. Reading needs a key where keys are set, changing an alias an admin key."""
    router = APIRouter(tags=["models"], dependencies=[Depends(callers_only)])

    @router.get("/models", summary="All models and their versions")
    async def list_models() -> ModelList:
        models = manager.models
        default = manager.default_model or (next(iter(models)) if len(models) == 1 else None)
        return ModelList(
            models=[ModelSummary(**_summary(model)) for model in models.values()],
            default_model=default,
            store_problem=manager.store_problem,
        )

    @router.get("/models/{model}", summary="One model, with its default version in full")
    async def show_model(model: ModelName) -> ModelDetail:
        status = manager.model(model)
        shown = status.default_version or (status.versions[-1].version if status.versions else None)

        def read() -> tuple[VersionDetail | None, dict[str, int]]:
            detail, earlier = None, dict[str, int]()
            with suppress(InvalidVersion, VersionNotFound):
                detail = None if shown is None else _detail(manager, status, shown)
            with suppress(StoreError, ModelNotFound):  # what is loaded goes on being shown
                earlier = manager.store.earlier(status.name)
            return detail, earlier

        detail, earlier = await asyncio.to_thread(read)
        return ModelDetail(
            **_summary(status),
            serving=dict(status.serving),
            earlier=earlier,
            version=detail,
            shadow=traffic.shadow(status.name),
        )

    @router.get("/models/{model}/drift", summary="Live rows against the rows of training")
    async def show_drift(model: ModelName, version: VersionQuery = None, histograms: Histograms = False) -> DriftReport:
        loaded = manager.acquire(Target(model, version))
        loaded.require(ANOMALY_SCORE)
        report = await asyncio.to_thread(traffic.drift, loaded, histograms=histograms)
        if report is None:
            raise NotReady("This version is not watched yet.")
        return report

    @router.get("/models/{model}/versions/{version}", summary="One version: schema, calibration, metrics, model card")
    async def show_version(model: ModelName, version: VersionNumber) -> VersionDetail:
        return await asyncio.to_thread(_detail, manager, manager.model(model), version)

    @router.put("/models/{model}/aliases/{alias}", summary="Promote or roll back", dependencies=[Depends(admin_only)])
    async def set_alias(model: ModelName, alias: AliasName, change: AliasChange) -> AliasAnswer:
        manager.model(model)
        previous = await asyncio.to_thread(manager.store.set_alias, model, alias, change.version)
        return await _alias_answer(manager, model, alias, change.version, previous)

    @router.post(
        "/models/{model}/aliases/{alias}/rollback",
        summary="Let an alias name the version that it named before",
        dependencies=[Depends(admin_only)],
    )
    async def roll_back(model: ModelName, alias: AliasName) -> AliasAnswer:
        manager.model(model)
        previous = (await asyncio.to_thread(manager.store.aliases, model)).get(alias)
        version = await asyncio.to_thread(manager.store.rollback, model, alias)
        return await _alias_answer(manager, model, alias, version, previous)

    @router.delete("/models/{model}/aliases/{alias}", summary="Remove an alias", dependencies=[Depends(admin_only)])
    async def delete_alias(model: ModelName, alias: AliasName) -> AliasAnswer:
        manager.model(model)
        previous = (await asyncio.to_thread(manager.store.aliases, model)).get(alias)
        await asyncio.to_thread(manager.store.delete_alias, model, alias)
        return await _alias_answer(manager, model, alias, None, previous)

    return router


async def _alias_answer(
    manager: ModelManager, model: str, alias: str, version: int | None, previous: int | None
) -> AliasAnswer:
    """The change has taken effect here when it is answered; other processes see it when they next look."""
    await asyncio.to_thread(manager.refresh)
    serving = manager.model(model).serving.get(alias)
    return AliasAnswer(model=model, alias=alias, version=version, previous=previous, serving=serving)


def service_routes(manager: ModelManager, *, draining: Any, exposition: Any, metrics_type: str) -> APIRouter:
    """Probes and metrics."""
    router = APIRouter(tags=["service"])

    @router.get("/livez", summary="The process runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/readyz", summary="A warmed version of the default model answers", responses={503: {}})
    async def ready(response: Response) -> dict[str, bool | str]:
        reason = "draining" if draining() else manager.not_ready_reason
        if reason is None:
            return {"ready": True}
        response.status_code = 503
        return {"ready": False, "reason": reason}

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        dependencies=[Depends(callers_only)],
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(exposition), headers={"Content-Type": metrics_type})

    return router


def _summary(model: ModelStatus) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": [VersionSummary(**_state(status)) for status in model.versions],
        "aliases": dict(model.aliases),
        "default_version": model.default_version,
    }


def _state(status: VersionStatus) -> Mapping[str, Any]:
    return {"version": status.version, "state": status.state, "reason": status.reason}


def manifest_of(manager: ModelManager, model: str, version: int) -> Manifest:
    """The manifest of a version; from memory when it is loaded. Blocks.

    Raises:
        ModelNotFound, VersionNotFound: there is no such thing.
        InvalidVersion: it cannot be read.
    """
    status = manager.model(model)
    _status_of(status, version)
    loaded = status.loaded.get(version)
    return loaded.manifest if loaded else manager.store.manifest(status.name, version)


def _status_of(model: ModelStatus, version: int) -> VersionStatus:
    status = next((status for status in model.versions if status.version == version), None)
    if status is None:
        raise VersionNotFound(f"Model '{model.name}' has no version {version}.")
    return status


def _calibration(calibration: Calibration) -> CalibrationSummary:
    values = np.quantile(np.asarray(calibration.scores), QUANTILES, method="inverted_cdf")
    quantiles = {f"{level:g}": float(value) for level, value in zip(QUANTILES, values, strict=True)}
    return CalibrationSummary(**calibration.model_dump(exclude={"scores"}), quantiles=quantiles)


def _detail(manager: ModelManager, model: ModelStatus, version: int) -> VersionDetail:
    """The state of a version and the content of its manifest. Blocks."""
    status = _status_of(model, version)
    manifest = manifest_of(manager, model.name, version)
    card = manager.store.read_file(model.name, version, MODEL_CARD)
    shown = manifest.model_dump(exclude={"schema_version", "calibration", "reference", "digests", "model", "version"})
    return VersionDetail(
        **_state(status),
        **shown,
        model=model.name,
        aliases=[alias for alias, named in model.aliases.items() if named == version],
        calibration=manifest.calibration and _calibration(manifest.calibration),
        exhibits=[route for route, path in EXHIBITS.items() if path in manifest.digests],
        model_card="" if card is None else card.decode(errors="replace"),
    )
