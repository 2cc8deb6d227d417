"""``report.html``: the model card as a page with pictures, one file that any browser shows and prints, also offline.

Names of models, columns and files come from strangers: what is not of the card goes through ``_text`` on its way in.
"""

import html
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from service.schemas import INSTANCES
from service.store import TABLE_END, TABLE_START, Manifest, card_html
from service.training import charts
from service.training.evidence import Evidence, FeatureError, cells, feature_errors
from service.training.report import LOSSES, RECONSTRUCTIONS, SCORES, model_card

if TYPE_CHECKING:
    from service.training.fit import History

COLUMNS_SHOWN = 100
CELLS_SHOWN = 8
LOSSES_TEXT = "Where the lines part, the network begins to learn by heart."


def report_page(manifest: Manifest, evidence: Evidence, history: "History") -> str:
    """The card as HTML, with charts and rows in place of its pictures.

    Args:
        manifest: the version's, complete but for its number and digests, which come last.
    """
    pictures = {
        LOSSES: [_chart(charts.losses(history), "Loss by epoch", LOSSES_TEXT)] if history.train_loss else [],
        RECONSTRUCTIONS: [*_reconstructions(evidence), *_feature_errors(evidence)],
        SCORES: [
            _chart(
                charts.score_histogram(manifest.calibrated, evidence.scores),
                "Scores of ordinary rows",
                "Neither sort of rows was fitted, so both should lie alike. Test rows farther right would be false "
                "alarms.",
            ),
            _chart(
                charts.calibration_curve(manifest.calibrated, evidence.p_values),
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
    texts = re.split(r"^!\[[^]]*\]\((.*)\)$", model_card(manifest), flags=re.MULTILINE)
    body = "".join("".join(pictures[part]) if at % 2 else card_html(part) for at, part in enumerate(texts))
    page = Template((files("service.training") / "report.html").read_text(encoding="utf-8"))
    return page.substitute(title=_text(f"Training report: {manifest.model}"), body=body)


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
    return f"{TABLE_START}{''.join(lines)}{TABLE_END}{more}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The first cell of a row is its head."""
    heads = "".join(f'<th scope="col">{_text(cell)}</th>' if cell else "<td></td>" for cell in head)
    lines = []
    for first, *rest in rows:
        others = "".join(f"<td>{_text(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{_text(first)}</th>{others}</tr>')
    return f"{TABLE_START}<tr>{heads}</tr>{''.join(lines)}{TABLE_END}"


def _chart(figure: Figure, title: str, explanation: str = "") -> str:
    caption = f"<b>{_text(title)}.</b> {_text(explanation)}"
    address = _address("image/svg+xml", charts.svg(figure).encode())
    return f'<figure><img src="{address}" alt="{_text(title)}"><figcaption>{caption}</figcaption></figure>'


def _address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{b64encode(content).decode()}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
