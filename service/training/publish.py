"""From a trained model to a version in the store: staged, verified in a fresh process, renamed into place."""

import re
import subprocess
import sys
from pathlib import Path

from service.errors import ConfigurationError, TrainingFailed
from service.store import MODEL_NAME_PATTERN, Store

VERIFY_TIMEOUT_S = 600.0


def check_target(store: Store, model: str) -> None:
    """Find out before training, not after, that nothing can be published.

    Raises:
        ConfigurationError: this cannot be the name of a model.
        StoreUnavailable: the store's root is missing or unreadable.
    """
    if not re.fullmatch(MODEL_NAME_PATTERN, model, flags=re.ASCII):
        raise ConfigurationError(
            "A model's name is 1 to 63 characters of a-z, 0-9, - and _, and starts with a letter or a digit."
        )
    store.models()


def verify(folder: Path) -> None:
    """Load the staged version in a fresh process as the service will: digests, signatures, golden outputs.

    Raises:
        TrainingFailed: it does not load, or does not answer as the trained network did.
    """
    command = [sys.executable, "-m", "service.runtime.verify", str(folder)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TrainingFailed("The exported model took too long to load in a fresh process.") from error
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"the process ended with {ended.returncode}"
        raise TrainingFailed(f"The exported model does not answer as the trained one: {reason}")
