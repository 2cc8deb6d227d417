"""Finds the examples of a page, and compares what it shows with what was printed."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^\n`]*)\n(.*?)^\1\2 *$", flags=re.M | re.S)
STRAY = re.compile(r"^ *(?:```|~~~)", flags=re.M)
NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
WILDCARDS = {
    r"(?<=[\w\]],)…(?=\])": '[^"]*?',  # the rest of an array, and no key
    r"…|\.\.\.": ".*?",
    NUMBER: NUMBER,
    r"\b(?:[Tt]rue|[Ff]alse)\b": "(?:[Tt]rue|[Ff]alse)",
    "[─━]+": "[─━]+",
    r"\s+": r"\s*",
}
"""What differs from run to run, and the expression that stands for it."""
WILDCARD = re.compile("|".join(f"({found})" for found in WILDCARDS))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    section: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """The README and every page below docs/."""
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, text: str) -> list[Block]:
    """Every fenced block, in order."""
    blocks, section, end = [], "", 0
    for found in FENCE.finditer(text):
        between = text[end : found.start()]
        assert not STRAY.search(between), f"{page}: a fence without its end before {found[0]!r}"
        section = (re.findall(r"^##? (.+)$", between, flags=re.M) or [section])[-1]
        code = re.sub(rf"^{found[1]}", "", found[4], flags=re.M)
        blocks.append(Block(page, text.count("\n", 0, found.start()) + 1, section, found[3].strip(), code))
        end = found.end()
    assert not STRAY.search(text[end:]), f"{page}: a fence without its end"
    return blocks


def agrees(shown: str, printed: str) -> bool:
    """Whether it was printed: all of it, or each of its lines; numbers, flags and spaces may differ."""
    return _found(shown, printed) or all(_found(line, printed) for line in shown.splitlines())


def _found(shown: str, printed: str) -> bool:
    return re.search(_expression(shown.strip()), printed, flags=re.S) is not None


def _expression(shown: str) -> str:
    parts, end = [], 0
    for found in WILDCARD.finditer(shown):
        assert found.lastindex is not None
        parts += [re.escape(shown[end : found.start()]), list(WILDCARDS.values())[found.lastindex - 1]]
        end = found.end()
    return "".join([*parts, re.escape(shown[end:])])
