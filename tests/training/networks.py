"""Autoencoders as their users write them, in plain Keras and TensorFlow. No weight is fitted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import keras, tf

L = keras.layers
WIDTH, LATENT = 6, 2
WINDOW, CHANNELS = 12, 3
SIDE = 8


def rows_of(shape: tuple[int, ...], count: int = 40, *, seed: int = 0) -> NDArray[np.float32]:
    """Rows of few hidden causes, in [0, 1]."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(3, int(np.prod(shape))))
    values = 1 / (1 + np.exp(-random.normal(size=(count, 3)) @ mix))
    return values.reshape(count, *shape).astype(np.float32)


def classic(width: int = 784, latent: int = 32) -> Any:
    """The first autoencoder of "Building Autoencoders in Keras" (F. Chollet, Keras blog, 2016)."""
    image = keras.Input(shape=(width,))
    encoded = L.Dense(latent, activation="relu")(image)
    decoded = L.Dense(width, activation="sigmoid")(encoded)
    autoencoder = keras.Model(image, decoded)
    autoencoder.compile(optimizer="adam", loss="binary_crossentropy")
    return autoencoder


def sequential() -> Any:
    """With everything that behaves otherwise in training."""
    layers = [L.Dense(5), L.BatchNormalization(), L.LeakyReLU(), L.Dropout(0.5), L.GaussianNoise(1.0)]
    return keras.Sequential([L.Input((WIDTH,)), *layers, L.Dense(LATENT), L.Dense(5, activation="elu"), L.Dense(WIDTH)])


def nested() -> Any:
    encoder = keras.Sequential([L.Input((WIDTH,)), L.Dense(4, activation="tanh"), L.Dense(LATENT)], name="decoder")
    decoder = keras.Sequential([L.Input((LATENT,)), L.Dense(4, activation="tanh"), L.Dense(WIDTH)], name="Encoder.x")
    return keras.Sequential([L.Input((WIDTH,)), encoder, decoder], name="latent")


class Subclassed(keras.Model):  # type: ignore[misc]
    """As in TensorFlow's tutorial "Intro to Autoencoders"."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential([L.Dense(5, activation="relu"), L.Dense(LATENT)])
        self.decoder = keras.Sequential([L.Dense(5, activation="relu"), L.Dense(WIDTH)])

    def call(self, rows: Any) -> Any:
        return self.decoder(self.encoder(rows))


def subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((1, WIDTH), np.float32))
    return model


def mixed_precision() -> Any:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        hidden = [L.Dense(16, activation="relu"), L.Dense(LATENT), L.Dense(16, activation="relu")]
        return keras.Sequential([L.Input((WIDTH,)), *hidden, L.Dense(WIDTH, dtype="float32")])
    finally:
        keras.mixed_precision.set_global_policy("float32")


def with_normalization() -> Any:
    normalization = L.Normalization()
    normalization.adapt(rows_of((WIDTH,)))
    return keras.Sequential([L.Input((WIDTH,)), normalization, L.Dense(LATENT), L.Dense(WIDTH)])


def convolutional() -> Any:
    down = [
        L.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
        L.MaxPooling2D(2),
        L.Flatten(),
        L.Dense(LATENT),
    ]
    up = [L.Dense(4 * 4 * 4), L.Reshape((4, 4, 4)), L.Conv2DTranspose(4, 3, strides=2, padding="same")]
    return keras.Sequential(
        [L.Input((SIDE, SIDE, 1)), *down, *up, L.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )


def convolutional_through() -> Any:
    """Without a dense layer: the latent is a small picture."""
    down = [L.Conv2D(4, 3, strides=2, padding="same", activation="relu"), L.Conv2D(2, 3, strides=2, padding="same")]
    up = [L.Conv2DTranspose(4, 3, strides=2, padding="same"), L.UpSampling2D(), L.Conv2D(1, 3, padding="same")]
    return keras.Sequential([L.Input((SIDE, SIDE, 1)), *down, *up])


def channels_first() -> Any:
    flat = [L.Permute((2, 3, 1)), L.Conv2D(2, 3, strides=2, padding="same"), L.Flatten(), L.Dense(LATENT)]
    return keras.Sequential([L.Input((3, SIDE, SIDE)), *flat, L.Dense(3 * SIDE * SIDE), L.Reshape((3, SIDE, SIDE))])


def lstm() -> Any:
    layers = [L.LSTM(4), L.RepeatVector(WINDOW), L.LSTM(4, return_sequences=True), L.TimeDistributed(L.Dense(CHANNELS))]
    return keras.Sequential([L.Input((WINDOW, CHANNELS)), *layers])


def gru() -> Any:
    layers = [L.Bidirectional(L.GRU(2)), L.RepeatVector(WINDOW), L.GRU(4, return_sequences=True), L.Dense(CHANNELS)]
    return keras.Sequential([L.Input((WINDOW, CHANNELS)), *layers])


def conv1d() -> Any:
    down = [L.Conv1D(4, 3, strides=2, padding="same", activation="relu"), L.Conv1D(2, 3, strides=2, padding="same")]
    up = [L.Conv1DTranspose(4, 3, strides=2, padding="same"), L.Conv1DTranspose(CHANNELS, 3, strides=2, padding="same")]
    return keras.Sequential([L.Input((WINDOW, CHANNELS)), *down, *up])


class Sampling(keras.layers.Layer):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs: Any) -> Any:
        mean, log_variance = inputs
        epsilon = keras.random.normal(keras.ops.shape(mean), seed=self.seed_generator)
        return mean + keras.ops.exp(0.5 * log_variance) * epsilon


def variational_parts() -> tuple[Any, Any]:
    rows = keras.Input((WIDTH,))
    hidden = L.Dense(5, activation="relu")(rows)
    mean, log_variance = L.Dense(LATENT, name="z_mean")(hidden), L.Dense(LATENT, name="z_log_var")(hidden)
    encoder = keras.Model(rows, [mean, log_variance, Sampling()([mean, log_variance])], name="encoder")
    latent = keras.Input((LATENT,))
    return encoder, keras.Model(latent, L.Dense(WIDTH)(L.Dense(5, activation="relu")(latent)), name="decoder")


def variational() -> Any:
    """One that samples whenever it is called."""
    encoder, decoder = variational_parts()
    return keras.Model(encoder.input, decoder(encoder(encoder.input)[2]))


class OwnTraining(keras.Model):  # type: ignore[misc]
    """As in the example "Variational AutoEncoder" of keras.io: no forward pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = variational_parts()

    def train_step(self, data: Any) -> Any:
        raise NotImplementedError


class Plain(tf.Module):  # type: ignore[misc]
    """No Keras at all."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        self.down = tf.Variable(random.normal(size=(WIDTH, LATENT)).astype(np.float32))
        self.up = tf.Variable(random.normal(size=(LATENT, WIDTH)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, WIDTH), tf.float32)])  # type: ignore[untyped-decorator]
    def encode(self, x: Any) -> Any:
        return {"code": tf.tanh(x @ self.down)}

    @tf.function(input_signature=[tf.TensorSpec((None, LATENT), tf.float32)])  # type: ignore[untyped-decorator]
    def decode(self, code: Any) -> Any:
        return {"rebuilt": code @ self.up}

    @tf.function(input_signature=[tf.TensorSpec((None, WIDTH), tf.float32)])  # type: ignore[untyped-decorator]
    def reconstruct(self, x: Any) -> Any:
        return {"rebuilt": tf.tanh(x @ self.down) @ self.up}
