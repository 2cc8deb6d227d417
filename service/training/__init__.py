"""The training job. Importing it, or ``service.training.config``, does not import TensorFlow; ``train`` does."""

from service.training.config import PRESETS, TrainingConfig, load_config
from service.training.progress import Reporter, terminal_reporter
from service.training.report import TrainingResult, summary
from service.training.train import train

__all__ = [
    "PRESETS",
    "Reporter",
    "TrainingConfig",
    "TrainingResult",
    "load_config",
    "summary",
    "terminal_reporter",
    "train",
]
