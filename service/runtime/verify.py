"""``python -m service.runtime.verify [DIR]``: check a version in a fresh process, as the service will load it.

Without DIR its name is read from standard input, once TensorFlow's library is loaded.
"""

import sys
from pathlib import Path

from service.errors import AutoencoderError
from service.runtime.loaded_model import load_version
from service.runtime.signature import prepare


def main(arguments: list[str]) -> int:
    try:
        load_version(Path(arguments[0] if arguments else _asked()))
    except AutoencoderError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _asked() -> str:
    prepare()
    return sys.stdin.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
