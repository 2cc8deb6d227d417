"""Losses and learning rate as TensorBoard reads them. To write them needs TensorFlow alone; to look, TensorBoard."""

import math
from pathlib import Path
from typing import Any

from service.training.progress import Epoch, Reporter


class TensorBoardReporter:
    """Passes all on to another reporter and writes each epoch to an event file in a folder."""

    def __init__(self, inner: Reporter, folder: Path) -> None:
        self._inner, self._folder = inner, folder
        self._writer: Any = None

    def stage(self, name: str) -> None:
        self._inner.stage(name)

    def epoch(self, epoch: Epoch) -> None:
        self._inner.epoch(epoch)
        self._write("loss/train", epoch.train_loss, epoch.number)
        self._write("loss/validation", epoch.validation_loss, epoch.number)
        if not math.isnan(epoch.learning_rate):
            self._write("learning_rate", epoch.learning_rate, epoch.number)
        self._writer.flush()

    def rows(self, read: int, of: int | None) -> None:
        self._inner.rows(read, of)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def _write(self, tag: str, value: float, step: int) -> None:
        """What ``tf.summary.scalar`` writes; that one wants the package tensorboard to be there."""
        from service.training.quiet import tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._folder))
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class=1
        )
        with self._writer.as_default():
            tf.summary.write(tag, tf.constant(value, tf.float32), step, metadata)
