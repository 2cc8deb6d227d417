"""``python -m service.runtime.verify DIR``: check a version in a fresh process, as the service will load it."""

import sys
from pathlib import Path

from service.errors import AutoencoderError
from service.runtime.loaded_model import load_version


def main(arguments: list[str]) -> int:
    try:
        load_version(Path(arguments[0]))
    except AutoencoderError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
