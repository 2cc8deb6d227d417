"""Object stores for tests: fsspec's memory, and an S3 server in a process of its own."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.store import Store
from service.store.buckets import Bucket
from service.store.objects import ObjectDirectory, VersionCache

ROOT = Path(__file__).parents[2]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A running server: its URL and its process."""
    pytest.importorskip("s3fs", reason="pip install s3fs")
    pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    command = [sys.executable, "-m", "tests.store.s3_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def use_server(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the environment at a server; the URL of a new bucket on it."""
    import botocore.session

    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    bucket = f"models-{secrets.token_hex(4)}"
    botocore.session.Session().create_client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/production"


def store_at(url: str, cache: Path, *, bucket: Bucket | None = None, abandoned_after_s: float = 3600) -> Store:
    """As another machine would open it: with a cache of its own."""
    directory = ObjectDirectory(
        bucket or Bucket(url), cache=VersionCache(url, cache), abandoned_after_s=abandoned_after_s
    )
    return Store(directory)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
