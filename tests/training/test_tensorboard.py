"""TensorBoard's event files."""

from pathlib import Path

import pytest

from service.training import Reporter
from service.training.progress import Epoch, TensorBoardReporter

pytestmark = pytest.mark.tf


def test_losses_and_learning_rate_by_epoch(tmp_path: Path) -> None:
    """As scalars that TensorBoard shows; read back from the file."""
    from service.runtime.quiet import tf

    reporter = TensorBoardReporter(Reporter(), tmp_path / "run")
    reporter.stage("Fitting")
    for number in (1, 2):
        reporter.epoch(Epoch(number, 2, 0.5 / number, 0.75 / number, 1e-3))
    (file,) = (tmp_path / "run").iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    assert found == {
        ("loss/train", 1): 0.5,
        ("loss/train", 2): 0.25,
        ("loss/validation", 1): 0.75,
        ("loss/validation", 2): 0.375,
        ("learning_rate", 1): pytest.approx(1e-3),
        ("learning_rate", 2): pytest.approx(1e-3),
    }
