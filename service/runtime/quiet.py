"""TensorFlow and, for those who ask, Keras, imported without notices on the terminal. Takes seconds: import it late."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Point file descriptor 2 at nothing: native code writes there before it can be told to log less."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextmanager
def keras_unloaded() -> Iterator[None]:
    """Import TensorFlow without Keras, which brings pandas, scikit-learn and matplotlib where they are installed.

    A service calls SavedModels and needs none of it: 170 MB and two seconds less. Asked for the old Keras, which is
    hardly ever there, TensorFlow goes on without. ``tf.keras`` still is Keras 3, imported when it is first used.
    """
    name = "TF_USE_LEGACY_KERAS"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


def __getattr__(name: str) -> Any:
    """``tf`` and ``keras``, each imported when it is first asked for: a service needs neither as a rule."""
    if name not in ("tf", "keras"):
        raise AttributeError(name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if name == "keras":
        with silent_stderr():
            import keras as module
    else:
        with silent_stderr(), keras_unloaded():
            import tensorflow as module

        module.__path__ = [folder for folder in module.__path__ if folder]  # the old Keras left None there
        module.get_logger().setLevel("ERROR")
    globals()[name] = module
    return module
