"""Follows pages as a reader does and writes what is printed into them: ``python -m tests.examples.outputs``."""

import sys
import tempfile
from pathlib import Path

from tests.examples.elsewhere import tried
from tests.examples.given import given
from tests.examples.pages import ROOT, blocks_of, read_page, renewed
from tests.examples.reader import Reader, free_address
from tests.examples.warm import warm_commands

PAGES = ("README.md", "docs/tutorial.md")
"""Pages that begin with nothing: models that they show come from their own commands."""


def main(pages: list[str]) -> None:
    with warm_commands() as commands:
        for page in pages:
            with tempfile.TemporaryDirectory() as folder:
                text = renewed_page(page, Path(folder), commands)
            (ROOT / page).write_text(text, encoding="utf-8")


def renewed_page(page: str, folder: Path, commands: Path) -> str:
    """The page with what its commands print in ``folder``, where there are only the files that it takes for granted."""
    there = given(page)
    for write in there.files:
        write(folder)
    text = read_page(page)
    reader = Reader(folder, commands, free_address(), names=dict(there.names(folder)), brief=False)
    try:
        for block in tried(blocks_of(page, text)):
            if block.language:
                reader.follow(block)
            else:
                fence = "```\n{}```"
                text = text.replace(fence.format(block.text), fence.format(renewed(block.text, reader.printed)), 1)
    finally:
        reader.leave()
    return text


if __name__ == "__main__":
    main(sys.argv[1:] or list(PAGES))
