"""Small pieces of Markdown that the generated pages are made of."""

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown. Columns in which no row says anything are left out."""
    lines = [tuple(cell(text) for text in row) for row in rows]
    kept = [at for at in range(len(head)) if any(line[at] for line in lines)]
    drawn = [[head[at] for at in kept], ["---"] * len(kept), *([line[at] for at in kept] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in drawn)


def cell(text: str) -> str:
    """Text on one line, with nothing that would end the cell."""
    return re.sub(r"\s+", " ", text.replace("|", "&#124;")).strip()


def code(text: object) -> str:
    """As code, also where it holds what ends a cell of a table; nothing for nothing."""
    shown = str(text)
    if "|" in shown:
        escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
        return f"<code>{escaped}</code>"
    return f"`{shown}`" if shown else ""


def codes(values: Iterable[object]) -> str:
    return ", ".join(code(value) for value in values)


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: ````x```` is `x` there, and lines are not broken."""
    paragraphs = re.split(r"\n\s*\n", (docstring or "").strip())
    return "\n\n".join(re.sub(r"\s+", " ", paragraph).replace("``", "`") for paragraph in paragraphs)


def page(title: str, *parts: str) -> str:
    note = "*Generated from the code each time this site is built.*"
    return "\n\n".join([f"# {title}", note, *(part for part in parts if part)]) + "\n"
