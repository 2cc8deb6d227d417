#!/bin/sh
# Delete from a virtual environment what the service never loads: slim.sh VENV. The Dockerfile runs it. The imports at the
# end make the build fail when a library has begun to need something that goes.
set -eu
venv=$1
cd "$venv"/lib/python3.*/site-packages

# libclang: TensorFlow's wheel names it, its Python code never loads it. Flight: Arrow's RPC server.
rm -rf clang tensorflow/include tensorflow/xla_aot_runtime_src tensorflow/compiler/mlir/stablehlo/*.so \
    pyarrow/include pyarrow/src pyarrow/libarrow_flight* pyarrow/libarrow_python_flight* pyarrow/_flight*
find h5py keras matplotlib numpy pyarrow scipy sklearn tensorflow -depth -type d \( -name tests -o -name include \) \
    -exec rm -rf {} +
find . \( -name '*.pyi' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.h' -o -name '*.a' \) -delete
find . -name __pycache__ -type d -prune -exec rm -rf {} +
# Names of local symbols, 200 MB of them; the dynamic ones stay.
strip --strip-unneeded tensorflow/libtensorflow_cc.so.2 tensorflow/libtensorflow_framework.so.2

"$venv/bin/python" -B - <<'PYTHON'
import keras
import matplotlib.pyplot
import pyarrow.compute
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet
import sklearn.datasets
import sklearn.decomposition
import sklearn.metrics
import sklearn.neighbors
import tensorflow as tf

assert tf.linalg.trace(tf.matmul(tf.eye(3), tf.eye(3))) == 3
PYTHON
