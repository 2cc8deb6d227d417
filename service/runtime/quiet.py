"""TensorFlow, imported without its notices on the terminal. Takes seconds and 500 MB: import this one late."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with silent_stderr():
    import tensorflow as tf

tf.get_logger().setLevel("ERROR")

__all__ = ["silent_stderr", "tf"]
