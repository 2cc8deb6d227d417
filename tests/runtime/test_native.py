"""Both ways to call a SavedModel do the same: TensorFlow's C API, and Python's TensorFlow where that is not there."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.runtime import native
from service.runtime.loaded_model import agree, sample_rows
from service.runtime.signature import (
    BYTES_OF_A_PIECE,
    ROWS_PER_THREAD,
    SignatureCall,
    in_parallel,
    python_signatures,
)
from service.schemas import INSTANCES, Results, Rows, row_count
from service.store import GOLDEN_OUTPUTS, read_manifest
from tests.api.samples import digits

pytestmark = pytest.mark.tf

ROOT = Path(__file__).parents[2]
Load = Callable[[Path], Mapping[str, SignatureCall]]
both = pytest.mark.parametrize("load", [native.load_signatures, python_signatures])


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel of strings, times and numbers, as those of named columns are."""
    from service.runtime.quiet import tf

    class Texts(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            words = tf.constant(["", "short", "a label of more than twenty-three bytes"])
            initializer = tf.lookup.KeyValueTensorInitializer(words, tf.range(3, dtype=tf.int64))
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(
            input_signature=[tf.TensorSpec((None, 2), tf.string, "texts"), tf.TensorSpec((None,), tf.int64, "at")]
        )
        def call(self, texts, at):  # type: ignore[no-untyped-def]
            joined = tf.strings.join([texts, texts])
            return {
                "same": texts,
                "joined": joined,
                "found": self.table.lookup(texts),
                "late": at + 1,
                "is_late": at > 3,
            }

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64, "at")])
        def fails(self, at):  # type: ignore[no-untyped-def]
            with tf.control_dependencies([tf.debugging.assert_less(at, tf.constant(5, tf.int64), "5 is too late")]):
                return {"at": tf.identity(at)}

    folder = tmp_path_factory.mktemp("texts")
    module = Texts()
    tf.saved_model.save(module, str(folder), {"call": module.call, "fails": module.fails})
    return folder


TEXTS = ["", "short", "just twenty-three bytes", "just twenty-two bytes.", "Käse", "x" * 100_000, "a\0b"]
LABEL = "a label of more than twenty-three bytes"


@both
@pytest.mark.parametrize("model", ["digits", "payments"])
def test_golden_outputs(load: Load, model: str, trained_store: Path) -> None:
    """Every signature of images and of named columns."""
    import orjson

    version = trained_store / model / "1"
    rows = sample_rows(version, read_manifest(version).input)
    signatures = load(version)
    golden = orjson.loads((version / GOLDEN_OUTPUTS).read_bytes())
    assert golden
    for name, outputs in golden.items():
        results = signatures[name](rows)
        assert set(outputs) <= set(results)
        for output, expected in outputs.items():
            assert agree(results[output], expected)
            assert len(results[output]) == row_count(rows)


@both
@pytest.mark.parametrize("count", [0, 1, 500])
def test_strings_of_any_length(load: Load, text_model: Path, count: int) -> None:
    """Empty ones, those that fit into 22 bytes and those that do not, with zeros and letters beyond ASCII."""
    texts = np.empty((count, 2), object)
    texts[:, 0] = [TEXTS[row % len(TEXTS)].encode() for row in range(count)]
    texts[:, 1] = LABEL.encode()
    at = np.arange(count)
    results = load(text_model)["call"]({"texts": texts, "at": at})
    assert results["same"].tolist() == texts.tolist()
    assert results["joined"].tolist() == (texts + texts).tolist()
    known = [{"": 0, "short": 1}.get(TEXTS[row % len(TEXTS)], -1) for row in range(count)]
    assert results["found"].tolist() == [[each, 2] for each in known]
    assert results["late"].tolist() == (at + 1).tolist()
    assert results["is_late"].tolist() == (at > 3).tolist()


@both
def test_what_the_model_raises_is_raised(load: Load, text_model: Path) -> None:
    """With TensorFlow's message, and the next call is answered."""
    call = load(text_model)["fails"]
    with pytest.raises(Exception, match="5 is too late"):
        call({"at": np.array([1, 5])})
    assert call({"at": np.array([1, 4])})["at"].tolist() == [1, 4]


@both
def test_rows_need_not_lie_together(load: Load, trained_store: Path) -> None:
    """Every second row and turned images are read as they stand."""
    encode = load(trained_store / "digits" / "1")["encode"]
    images = digits(20)
    for rows in (images[::2], images.transpose(0, 2, 1)):
        expected = encode({INSTANCES: np.ascontiguousarray(rows)})["latent"]
        np.testing.assert_allclose(encode({INSTANCES: rows})["latent"], expected, rtol=1e-6)


@both
def test_threads_get_their_own_rows(load: Load, trained_store: Path) -> None:
    call = load(trained_store / "digits" / "1")["anomaly_score"]
    rows = digits(800)
    alone = call({INSTANCES: rows})["score"]
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda at: call({INSTANCES: rows[at : at + 100]})["score"], range(0, 800, 100))
    np.testing.assert_allclose(np.concatenate(list(parts)), alone, rtol=1e-5)


@both
def test_results_outlive_the_model(load: Load, trained_store: Path) -> None:
    """A version may be unloaded while an answer is still being written."""
    rows = {INSTANCES: digits(64)}
    signatures = load(trained_store / "digits" / "1")
    results = signatures["reconstruct"](rows)
    copies = {name: values.copy() for name, values in results.items()}
    del signatures
    load(trained_store / "payments" / "1")["encode"]({INSTANCES: np.zeros((9, 6), np.float32)})
    for name, values in results.items():
        np.testing.assert_array_equal(values, copies[name])


@both
def test_no_savedmodel_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"garbage" * 100)
    with pytest.raises(Exception, match=r"."):
        load(tmp_path)


MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from service.runtime.native import load_signatures
def run(times):
    for _ in range(times):
        call = load_signatures(Path(sys.argv[1]))["reconstruct"]
        for _ in range(20):
            call({"instances": np.zeros((4096, 8, 8), np.float32)})
run(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_is_given_back(trained_store: Path) -> None:
    """Eight times loaded, and 160 results of 1 MiB: without deletion it would be 160 MiB more, or 400."""
    command = [sys.executable, "-c", MEMORY, str(trained_store / "digits" / "1")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert int(grown) < 100


LOADS = """
import sys
from pathlib import Path
from service.runtime.loaded_model import load_version
load_version(Path(sys.argv[1]))
print("tensorflow" in sys.modules)
"""
WITHOUT_LIBRARY = "from service.runtime import native\nnative.LIBRARY = 'libtensorflow_of_another_release.so'\n"


@pytest.mark.parametrize(("before", "python"), [("", "False"), (WITHOUT_LIBRARY, "True")])
def test_python_s_tensorflow_is_the_fall_back(trained_store: Path, before: str, python: str) -> None:
    """A version is loaded without importing it, unless the library is not there."""
    command = [sys.executable, "-c", before + LOADS, str(trained_store / "payments" / "1")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == python


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_large_batches_are_divided_among_threads(count: int) -> None:
    """In order, whatever the number of rows; small ones are one call in the caller's thread."""
    threads = set()

    def twice(rows: Rows) -> Results:
        threads.add(threading.get_ident())
        assert count < 2 * ROWS_PER_THREAD or len(rows[INSTANCES]) >= ROWS_PER_THREAD
        return {"twice": 2 * rows[INSTANCES]}

    rows = np.arange(2 * count).reshape(count, 2)
    np.testing.assert_array_equal(in_parallel(twice, {INSTANCES: rows}, threads=3)["twice"], 2 * rows)
    assert (len(threads) > 1) == (count >= 2 * ROWS_PER_THREAD)


def test_rows_of_many_bytes_go_in_pieces() -> None:
    """Whatever the number of threads: what a model needs in between grows with the rows of a call."""
    calls = []

    def first_value(rows: Rows) -> Results:
        calls.append(rows[INSTANCES].nbytes)
        return {"first": rows[INSTANCES][:, 0]}

    rows = np.arange(5000 * 1024, dtype=np.float32).reshape(5000, 1024)
    for threads in (1, 2):
        found = in_parallel(first_value, {INSTANCES: rows}, threads=threads)["first"]
        np.testing.assert_array_equal(found, rows[:, 0])
        assert max(calls) <= BYTES_OF_A_PIECE


def test_an_error_of_another_thread_is_raised() -> None:
    def fails_late(rows: Rows) -> Results:
        if rows[INSTANCES].max() > 500:
            raise ValueError("too large")
        return rows

    with pytest.raises(ValueError, match="too large"):
        in_parallel(fails_late, {INSTANCES: np.arange(1000)}, threads=2)
