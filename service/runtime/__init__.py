"""Versions in memory: load, check, warm up, swap, unload. TensorFlow is imported when the first version loads."""

from service.runtime.manager import ModelManager, ModelStatus, Target, VersionState, VersionStatus

__all__ = ["ModelManager", "ModelStatus", "Target", "VersionState", "VersionStatus"]
