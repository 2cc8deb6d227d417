"""``report.html``: the model card as a page with pictures, one file that any browser shows and prints, also offline.

Names of models, columns and files come from strangers: what is not of the card goes through ``_text`` on its way in.
"""

import html
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from service.runtime.loaded_model import LoadedModel
from service.schemas import INSTANCES, Rows
from service.store import Manifest
from service.training import charts
from service.training.evidence import Evidence, FeatureError, cells, feature_errors, gather
from service.training.report import LOSSES, RECONSTRUCTIONS, SCORES, model_card

if TYPE_CHECKING:
    from service.training.fit import History

COLUMNS_SHOWN = 100
CELLS_SHOWN = 8
LOSSES_TEXT = "Where the lines part, the network begins to learn by heart."

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1d2733; --soft: #566373; --line: #d5dce4; --paper: #fff; --card: #f5f7fa;
  --bar: #3b82c4; --warn: #8a4b00; --warn-paper: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ec; --soft: #9fadbc; --line: #35414e; --paper: #141a21;
  --card: #1c242d; --bar: #5b9bd5; --warn: #ffc06b; --warn-paper: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; font-size: .92rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
.scroll th, .scroll td { overflow-wrap: normal; } .row th, .row td { overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: .8rem 0; } figure > img { max-width: 100%; height: auto; }
.row { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .7rem; }
.row { break-inside: avoid; } .row table { width: 100%; margin: .3rem 0 0; }
.pixels { display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem; }
.pixels figure { margin: 0; } .pixels img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
pre { overflow-x: auto; } li { max-width: 46rem; }
li:has(> strong:first-child) { background: var(--warn-paper); color: var(--warn); padding: .5rem .8rem; }
.bar { display: block; width: 100%; min-width: 6rem; height: .8rem; } .bar rect { fill: var(--bar); }
.bar line { stroke: var(--ink); stroke-dasharray: 2; }
@media print { body { max-width: none; padding: 0; font-size: .85rem; } h2 { break-after: avoid; }
  figure { break-inside: avoid; } details > * { display: block; } }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def write_report(path: Path, version: LoadedModel, manifest: Manifest, rows: Rows, history: "History") -> None:
    """Write the report of an exported version.

    Args:
        manifest: the version's, complete but for its number and digests, which come last.
        rows: raw test rows.
    """
    page = report_page(manifest, gather(version, rows), history)
    path.write_text(page, encoding="utf-8")


def report_page(manifest: Manifest, evidence: Evidence, history: "History") -> str:
    """The card as HTML, with charts and rows in place of its pictures."""
    pictures = {
        LOSSES: [_chart(charts.losses(history), "Loss by epoch", LOSSES_TEXT)],
        RECONSTRUCTIONS: [*_reconstructions(evidence), *_feature_errors(evidence)],
        SCORES: [
            _chart(
                charts.score_histogram(manifest.calibration, evidence.scores),
                "Scores of ordinary rows",
                "Neither sort of rows was fitted, so both should lie alike. Test rows farther right would be false "
                "alarms.",
            ),
            _chart(
                charts.calibration_curve(manifest.calibration, evidence.p_values),
                "False-alarm rate asked for, against the one seen on test rows",
                "For whichever rate is chosen, the line should stay in the band or below: then the p-values hold. "
                "The band knows that there are only so many calibration and test rows.",
            ),
            "<h2>Latent space</h2>",
            _chart(
                charts.latent_map(evidence),
                "Test rows by their latents",
                f"The {manifest.latent_dim} values of a latent along the two directions in which they vary most (PCA). "
                "Red points are unusual rows.",
            ),
        ],
    }
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    texts = re.split(r"^!\[[^]]*\]\((.*)\)$", model_card(manifest), flags=re.MULTILINE)
    parts = ["".join(pictures[part]) if at % 2 else markdown.render(part) for at, part in enumerate(texts)]
    body = "".join(parts).replace("</table>", "</table></div>").replace("<pre>", '<pre tabindex="0">')
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>')  # what scrolls can be reached by keys
    return PAGE.substitute(title=_text(f"Training report: {manifest.model}"), body=body)


def _reconstructions(evidence: Evidence) -> Iterator[str]:
    yield "<h2>Rows and their reconstructions</h2>"
    for title, chosen in (("Best reconstructed", evidence.best), ("Worst reconstructed", evidence.worst)):
        yield f'<h3>{title} of {evidence.count:,} test rows</h3><div class="rows">'
        for row in map(int, chosen):
            yield (
                f'<div class="row"><span class="soft">error {evidence.rebuilt["error"][row]:.4g}, '
                f"score {evidence.scores[row]:.4g}, p-value {evidence.p_values[row]:.4g}</span>"
            )
            if evidence.schema.kind == "image":
                yield _image_row(evidence, row)
            elif evidence.schema.kind == "timeseries":
                drawn = charts.series(evidence.rows[INSTANCES][row], evidence.rebuilt["reconstruction"][row])
                yield _chart(drawn, "Blue is observed, orange reconstructed")
            else:
                shown = cells(evidence, row)
                lines = [(cell.column, cell.observed, cell.reconstructed) for cell in shown[:CELLS_SHOWN]]
                yield _table(("column", "observed", "reconstructed"), lines)
                if len(shown) > CELLS_SHOWN:
                    yield f'<span class="soft">and {len(shown) - CELLS_SHOWN} nearer ones</span>'
            yield "</div>"
        yield "</div>"


def _image_row(evidence: Evidence, row: int) -> str:
    observed, rebuilt = evidence.rows[INSTANCES][row], evidence.rebuilt["reconstruction"][row]
    low, high = evidence.schema.value_range or (float(np.nanmin(observed)), float(np.nanmax(observed)))
    missed = np.abs(rebuilt - observed)
    missed = missed if missed.ndim < 3 else missed.mean(axis=-1)
    pictures = {
        "observed": charts.picture(observed, low=low, high=high),
        "rebuilt": charts.picture(rebuilt, low=low, high=high),
        "error": charts.picture(missed, low=0, high=(high - low) / 2),
    }
    figures = (
        f'<figure><img src="{_address("image/png", png)}" alt="{name}"><figcaption>{name}</figcaption></figure>'
        for name, png in pictures.items()
    )
    return f'<div class="pixels">{"".join(figures)}</div>'


def _feature_errors(evidence: Evidence) -> Iterator[str]:
    features = feature_errors(evidence)
    numbers = [feature for feature in features if not feature.is_label]
    labels = [feature for feature in features if feature.is_label]
    if features:
        yield "<h2>Error by column</h2>"
    if numbers:
        yield """<p>Mean squared error over the column's variance: 0 comes back unchanged, 1 (the dashed line) is no
better than always saying the mean. What does not come back hardly takes part in the latent.</p>"""
        yield _bars(numbers, greatest=max(1.0, *(feature.error for feature in numbers)))
    if labels:
        yield "<p>Columns of labels: the share of rows that come back with another label.</p>"
        yield _bars(labels, greatest=1.0)


def _bars(features: list[FeatureError], *, greatest: float) -> str:
    lines = []
    for feature in features[:COLUMNS_SHOWN]:
        limit = "" if feature.is_label else f'<line x1="{100 / greatest:.1f}%" x2="{100 / greatest:.1f}%" y2="100%"/>'
        bar = f'<rect width="{100 * feature.error / greatest:.1f}%" height="100%"/>{limit}'
        value = f"{feature.error:.1%}" if feature.is_label else f"{feature.error:.3g}"
        lines.append(
            f'<tr><th scope="row">{_text(feature.name)}</th><td class="number">{value}</td>'
            f'<td><svg class="bar" aria-hidden="true">{bar}</svg></td></tr>'
        )
    left = len(features) - COLUMNS_SHOWN
    more = f'<p class="soft">and {left} with less error</p>' if left > 0 else ""
    return f"<table>{''.join(lines)}</table>{more}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The first cell of a row is its head."""
    heads = "".join(f'<th scope="col">{_text(cell)}</th>' if cell else "<td></td>" for cell in head)
    lines = []
    for first, *rest in rows:
        others = "".join(f"<td>{_text(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{_text(first)}</th>{others}</tr>')
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>"


def _chart(figure: Figure, title: str, explanation: str = "") -> str:
    caption = f"<b>{_text(title)}.</b> {_text(explanation)}"
    address = _address("image/svg+xml", charts.svg(figure).encode())
    return f'<figure><img src="{address}" alt="{_text(title)}"><figcaption>{caption}</figcaption></figure>'


def _address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{b64encode(content).decode()}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
