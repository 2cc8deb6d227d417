"""How many threads TensorFlow takes for itself. It reads that once, before its first operation in a process."""

import os

_VARIABLES = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


def limit_threads(threads: int) -> None:
    """Bound the cores that a model call of this process uses. Has no effect once TensorFlow has run."""
    for variable in _VARIABLES:
        os.environ.setdefault(variable, str(threads))
