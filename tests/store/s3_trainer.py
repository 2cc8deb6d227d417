"""``python -m tests.store.s3_trainer URL CACHE TOKEN``: publish a version, telling each step before it.

The parent lets it go on with a line on its stdin, or kills it.
"""

import sys
from pathlib import Path

from service.store.buckets import Bucket, Tag
from tests.store.remote import store_at
from tests.store.trainer import publish


class HesitantBucket(Bucket):
    """Asks before every write."""

    def create(self, key: str, content: bytes) -> None:
        _ask("create", key)
        super().create(key, content)

    def replace(self, key: str, content: bytes, *, tag: Tag) -> None:
        _ask("replace", key)
        super().replace(key, content, tag=tag)

    def upload(self, source: Path, key: str) -> None:
        _ask("upload", key)
        super().upload(source, key)


def _ask(step: str, key: str) -> None:
    print(step, key, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    url, cache, token = sys.argv[1:]
    print("published", publish(store_at(url, Path(cache), bucket=HesitantBucket(url)), token), flush=True)
