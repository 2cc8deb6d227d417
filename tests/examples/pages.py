"""Finds the examples of a page, and compares what it shows with what was printed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose
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


def agrees(shown: str, printed: str, *, by_numbers: bool = False) -> bool:
    """Whether all of it was printed, or each of its lines.

    Flags and spaces may differ, and so may numbers; ``by_numbers`` asks for numbers that are close.
    """
    parts = [part for part in (shown, *shown.splitlines()) if part.strip()]
    found = [any(not by_numbers or _are_close(pairs) for pairs in _found(part, printed)) for part in parts]
    return found[0] or all(found[1:])


def renewed(shown: str, printed: str) -> str:
    """The same with the numbers, flags and spaces that were printed.

    Raises:
        ValueError: it was not printed.
    """
    if any(_found(shown, printed)):
        return _filled(shown, printed) + "\n"
    return "".join(f"{_filled(line, printed)}\n" if line.strip() else "\n" for line in shown.splitlines())


def _filled(shown: str, printed: str) -> str:
    """What is left out stays so, spaces where none were printed, and versions: a service follows within seconds."""
    pairs = next(iter(_found(shown, re.sub(r" +$", "", printed, flags=re.M))), None)
    if pairs is None:
        raise ValueError(f"Not printed: {shown}")
    shown, values = shown.strip("\n"), iter(pairs)

    def value(wildcard: re.Match[str]) -> str:
        old, new = next(values)
        stays = old in ("…", "...") or shown.endswith('"version":', 0, wildcard.start())
        return old if stays or not new else new

    return WILDCARD.sub(value, shown).strip("\n")


def _found(shown: str, printed: str) -> Iterator[list[tuple[str, str]]]:
    """For each place where it was printed: what stands for each wildcard, as shown and as printed."""
    shown = shown.strip("\n")
    wildcards = list(WILDCARD.finditer(shown))
    kinds = list(WILDCARDS.values())
    ends = [0, *(each.end() for each in wildcards)]
    starts = [*(each.start() for each in wildcards), len(shown)]
    literals = [re.escape(shown[end:start]) for end, start in zip(ends, starts, strict=True)]
    groups = [f"({kinds[(each.lastindex or 0) - 1]})" for each in wildcards]
    expression = "".join(part for pair in zip(literals, [*groups, ""], strict=True) for part in pair)
    for match in re.finditer(expression, printed, flags=re.S):
        yield [(each[0], value) for each, value in zip(wildcards, match.groups(), strict=True)]


def _are_close(pairs: list[tuple[str, str]]) -> bool:
    """Whether each number is that of another processor, perhaps, but of no other model."""
    numbers = [pair for pair in pairs if re.fullmatch(NUMBER, pair[0])]
    return all(isclose(float(shown), float(printed), rel_tol=0.5, abs_tol=0.02) for shown, printed in numbers)
