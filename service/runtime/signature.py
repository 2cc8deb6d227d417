"""Calling a SavedModel's signature at the price of the call itself."""

from typing import Any

from service.schemas import Results, Rows


class Signature:
    """One signature of a loaded SavedModel.

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
        """Arrays with the rows first in, arrays with the rows first out. Blocks."""
        arrays = [rows[name] for name in self._inputs]
        outputs = self._call(args=arrays + self._captured, Tout=self._dtypes, f=self._function)
        return {name: output.numpy() for name, output in zip(self._outputs, outputs, strict=True)}
