"""TensorFlow and Keras, imported without their notices on the terminal. Takes seconds: import this one late."""

import os

from service.runtime.quiet import silent_stderr, tf

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
with silent_stderr():
    import keras

__all__ = ["keras", "tf"]
