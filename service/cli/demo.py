"""``autoencoder demo``: a real service on real handwriting, and what it says of clean and damaged digits."""

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from service.client import Client
from service.errors import ConfigurationError

START_TIMEOUT_S = 120
ROWS = 60
MODEL = "digits"
HOST = "127.0.0.1"


def check_port(port: int) -> None:
    """Find out before training that something else listens there, which would answer in the demo's place.

    Raises:
        ConfigurationError: the port is taken.
    """
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the service does
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise ConfigurationError(f"Port {port} is in use: choose another one with --port.") from error


def run_demo(store: str, port: int) -> None:
    """Serve ``store``, show a first answer and the page to open, run until Ctrl-C, SIGTERM or SIGHUP."""
    console = Console()
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "service.cli", "serve", "--store", str(store), "--port", str(port)]
    environment = {**os.environ, "AUTOENCODER_LOG_LEVEL": "warning", "AUTOENCODER_DEFAULT_MODEL": MODEL}
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server ends with this process
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    with subprocess.Popen(command, env=environment, start_new_session=True) as server:
        try:
            with Client(url) as client, console.status("starting the service"):
                _wait(client, server, port)
            with Client(url) as client:
                _show(client, console)
            console.print(
                f"\nOpen [bold]{url}/ui[/bold] to see and try it, {url}/docs for all routes. Ctrl-C stops it."
            )
            server.wait()
        except KeyboardInterrupt:
            console.print("\nStopping.")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def _wait(client: Client, server: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None:
        if client.ready():
            return
        if time.monotonic() > deadline:
            raise ConfigurationError("The service was not ready in time.")
        time.sleep(0.1)
    raise ConfigurationError(f"The service did not start; is port {port} in use? Choose another with --port.")


def _show(client: Client, console: Console) -> None:
    from sklearn.datasets import load_digits

    images = load_digits().images[-ROWS:].astype(np.float32)
    random = np.random.default_rng(0)
    mixed = images.reshape(len(images), -1).copy()
    half = random.permutation(mixed.shape[1])[: mixed.shape[1] // 2]
    mixed[:, half] = mixed[:, random.permutation(half)]
    kinds = {
        "ordinary digits": images,
        "half of the pixels mixed up": mixed.reshape(images.shape),
        "light and dark swapped": 16 - images,
        "noise only": random.uniform(0, 16, images.shape).astype(np.float32),
    }
    table = Table("what was sent", "mean score", "median p-value", "called anomalies", title="POST /anomaly-score")
    for name, rows in kinds.items():
        answer = client.anomaly_score(rows)
        flags = answer.is_anomaly
        table.add_row(
            name,
            f"{answer.scores.mean():.4f}",
            f"{np.median(answer.p_values):.4f}",
            f"{flags.sum()} of {len(flags)}",
        )
    console.print(table)
    console.print(
        f"An anomaly is a score over {answer.threshold:.4f}, at most {answer.false_alarm_rate:.0%} "
        f"of ordinary digits by calibration. Model {answer.model}, version {answer.version}."
    )
    noisy = np.clip(images + random.normal(0, 3, images.shape), 0, 16).astype(np.float32)
    denoised = client.denoise(noisy).denoised
    reconstructed = client.reconstruct(images)
    latents = client.encode(images).latents
    console.print(f"/encode       {images[0].size} pixels become {latents.shape[1]} latents")
    console.print(f"/reconstruct  mean reconstruction error {reconstructed.errors.mean():.4f}")
    console.print(
        f"/denoise      mean squared error {_error(noisy, images):.2f} before, {_error(denoised, images):.2f} after"
    )
    pictures = {"sent": images[0], "reconstruction": reconstructed.reconstructions[0], "noisy": noisy[0]}
    _draw(console, {**pictures, "denoised": denoised[0]})


def _error(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.mean((one - other) ** 2))


def _draw(console: Console, pictures: dict[str, NDArray[Any]]) -> None:
    """Images of values 0..16 side by side, two characters a pixel."""
    shades = " ░▒▓█"
    console.print()
    console.print("   ".join(f"{name:16}" for name in pictures))
    for line in range(8):
        cells = [
            "".join(2 * shades[int(np.clip(value, 0, 15.99) / 16 * len(shades))] for value in image[line])
            for image in pictures.values()
        ]
        console.print("   ".join(cells))
