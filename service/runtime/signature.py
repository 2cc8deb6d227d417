"""Calling models: a SavedModel's signature at the price of the call itself, and any function batch by batch."""

import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from itertools import pairwise
from operator import methodcaller
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from service.runtime import native
from service.schemas import Results, Rows, joined, row_count

ROWS_PER_BATCH = 1024
ROWS_PER_THREAD: Final = 128
"""Fewer rows are not worth another thread."""
BYTES_OF_A_PIECE: Final = 2 * 2**20
"""Of the rows of one call: what the operations of a model hand on is several times as much."""
_as_numpy = methodcaller("numpy")
SignatureCall: TypeAlias = Callable[[Rows], Results]
"""Arrays with the rows first in, arrays with the rows first out. Blocks; safe to call from several threads."""


def prepare() -> None:
    """Load what ``load_signatures`` will call, which takes a quarter of a second, or seconds of Python's TensorFlow."""
    if "tensorflow" not in sys.modules:
        with suppress(native.NotAvailable):
            native.library()
            return
    from service.runtime.quiet import tf  # noqa: F401


def load_signatures(folder: Path) -> Mapping[str, SignatureCall]:
    """The signatures of a SavedModel, called by TensorFlow's C API.

    In a process that has imported Python's TensorFlow, as training has, and where the C API is not there or the model
    has a tensor that ``native`` does not read, by Python's.

    Raises:
        Exception: whatever TensorFlow says of a folder that it cannot load.
    """
    if "tensorflow" not in sys.modules:
        with suppress(native.NotAvailable):
            calls, threads = native.load_signatures(folder), threads_of_a_call()
            return {name: partial(in_parallel, call, threads=threads) for name, call in calls.items()}
    return python_signatures(folder)


def threads_of_a_call() -> int:
    """Cores that one call may use: all, unless TensorFlow's variable says how many."""
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0) or os.cpu_count() or 1


@cache
def _other_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "model-part")


def in_parallel(call: SignatureCall, rows: Rows, *, threads: int) -> Results:
    """The results of ``call(rows)``; the rows of a large batch are divided among threads, and those into pieces."""
    count = row_count(rows)
    shares = max(1, min(threads, count // ROWS_PER_THREAD))
    size = max(ROWS_PER_THREAD, count * BYTES_OF_A_PIECE // max(1, sum(array.nbytes for array in rows.values())))
    if shares == 1 and count <= size:
        return call(rows)

    def called(start: int, end: int) -> list[Results]:
        cuts = [*range(start, end, size), end]
        return [call({name: array[at:to] for name, array in rows.items()}) for at, to in pairwise(cuts)]

    first, *others = pairwise(np.linspace(0, count, shares + 1).astype(int).tolist())
    under_way = [_other_threads().submit(called, *share) for share in others]
    found = called(*first)
    for share in under_way:
        found += share.result()
    return joined(found)


def python_signatures(folder: Path) -> Mapping[str, SignatureCall]:
    """The signatures of a SavedModel, called by Python's TensorFlow."""
    from service.runtime.quiet import tf

    saved_model = tf.saved_model.load(str(folder))
    return {name: PythonSignature(function, saved_model) for name, function in saved_model.signatures.items()}


class PythonSignature:
    """One signature of a SavedModel that Python's TensorFlow loaded.

    Calling the object that ``tf.saved_model.load`` gives binds arguments and structures outputs in Python each time,
    which takes longer than a small batch: 260 us a call, where running the same function as an operation takes 110.
    What that binding would find out is found out here, once. Arrays are handed over as they are: ``tf.constant`` would
    copy them.
    """

    def __init__(self, function: Any, owner: Any) -> None:
        from service.runtime.quiet import tf

        self._call = tf.raw_ops.StatefulPartitionedCall
        self._function = function
        self._owner = owner  # a signature works only while the object that it was loaded with is alive
        self._inputs = sorted(function.structured_input_signature[1])
        self._outputs = sorted(function.structured_outputs)
        self._captured = list(function.captured_inputs)
        self._dtypes = [output.dtype for output in function.outputs]

    def __call__(self, rows: Rows) -> Results:
        arrays = map(rows.__getitem__, self._inputs)
        outputs = self._call(args=[*arrays, *self._captured], Tout=self._dtypes, f=self._function)
        return dict(zip(self._outputs, map(_as_numpy, outputs), strict=True))


def in_batches(function: Callable[[slice], Any], rows: int, *, size: int = ROWS_PER_BATCH) -> Any:
    """The arrays that ``function`` returns for ``rows`` rows (at least one), called in batches and joined.

    Args:
        function: returns tensors or arrays with the rows of the slice first: one, several in a sequence, or a dict.
        size: rows of each part, the last one excepted.
    """
    whole = dict[Any, Any]()
    for start in range(0, rows, size):
        part = function(slice(start, min(start + size, rows)))
        named = part if isinstance(part, dict) else dict(enumerate(part if isinstance(part, (list, tuple)) else [part]))
        for name, values in named.items():
            array = np.asarray(values)
            if name not in whole:
                whole[name] = np.empty((rows, *array.shape[1:]), array.dtype)
            whole[name][start : start + size] = array
    return whole if isinstance(part, dict) else list(whole.values()) if isinstance(part, (list, tuple)) else whole[0]
