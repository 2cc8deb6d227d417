"""Statistics of live rows: counts, drift, alerts, and the candidate's shadow run."""

from collections.abc import Mapping

from service.runtime.alerts import Alerts
from service.runtime.drift import DriftMonitor, DriftReport
from service.runtime.loaded_model import LoadedModel
from service.runtime.manager import ModelManager, ModelStatus
from service.runtime.shadow import CANDIDATE, Shadow, ShadowReport
from service.schemas import Results, Rows
from service.telemetry import Telemetry


class LiveTraffic:
    """Receives every scored batch on the model's thread, and counts by batch, not by request."""

    def __init__(
        self,
        manager: ModelManager,
        telemetry: Telemetry,
        *,
        shadow_share: float,
        drift_window_rows: int,
        alert_values: bool = False,
    ) -> None:
        self._manager = manager
        self._telemetry = telemetry
        self._drift_window_rows = drift_window_rows
        self._monitors: Mapping[LoadedModel, DriftMonitor] = {}
        self._candidates: Mapping[str, LoadedModel] = {}
        """The candidate of each model that has one in memory."""
        self._shadow = Shadow(self._candidate, share=shadow_share, observe=telemetry.rows_shadowed)
        self.alerts = Alerts(keep_values=alert_values)

    def start(self) -> None:
        self._shadow.start()
        self.alerts.start()

    def stop(self) -> None:
        self._shadow.stop()
        self.alerts.stop()

    def models_changed(self, models: Mapping[str, ModelStatus]) -> None:
        """Watch the versions that are loaded now, and forget all others."""
        loaded = [version for model in models.values() for version in model.loaded.values()]
        self._monitors = {version: self._monitors.get(version) or self._monitor(version) for version in loaded}
        candidates = {name: model.loaded.get(model.serving.get(CANDIDATE, 0)) for name, model in models.items()}
        self._candidates = {name: candidate for name, candidate in candidates.items() if candidate is not None}

    def _monitor(self, loaded: LoadedModel) -> DriftMonitor:
        return DriftMonitor(loaded.manifest, window_rows=self._drift_window_rows)

    def _candidate(self, model: str) -> LoadedModel | None:
        return self._candidates.get(model)

    def scored(self, loaded: LoadedModel, rows: Rows, results: Results) -> None:
        """Count one scored batch."""
        self._telemetry.rows_scored(loaded.name, loaded.version, results["p_value"], results["is_anomaly"])
        monitor = self._monitors.get(loaded)
        if monitor is not None:
            monitor.observe(rows, results)
        if loaded.name in self._candidates:
            self._shadow.offer(loaded, rows, results)
        if results["is_anomaly"].any():
            self.alerts.scored(loaded, rows, results)

    def drift(self, loaded: LoadedModel) -> DriftReport | None:
        monitor = self._monitors.get(loaded)
        return monitor.report() if monitor else None

    def shadow(self, model: str) -> ShadowReport | None:
        return self._shadow.report(model)

    def publish_drift(self) -> None:
        """Bring the drift metrics up to date; called when they are read."""
        for loaded, monitor in self._monitors.items():
            report = monitor.report()
            if report.score.psi is not None:
                worst = max((feature.psi or 0.0 for feature in report.features), default=0.0)
                self._telemetry.drifted(loaded.name, loaded.version, score=report.score.psi, worst_feature=worst)
