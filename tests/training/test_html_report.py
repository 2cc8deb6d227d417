"""The training report: one file, safe, whatever the rows are."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from service.schemas import INSTANCES, Column, InputSchema
from service.store import REPORT, Store
from service.training.gate import false_alarms
from tests.fakes import fake_manifest
from tests.training.test_evidence import evidence_of

VOID = {"meta", "img", "br", "rect", "line"}


class Page(HTMLParser):
    """Elements and the addresses that they load; raises where the tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "data", "action"}]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag


@pytest.mark.tf
@pytest.mark.parametrize(
    ("model", "found"),
    [("digits", ("As a codec", "8 × 8 values", "Noise was put")), ("payments", ("Error by column", ">balance</th>"))],
)
def test_one_file_with_all_that_was_measured(trained_store: Path, model: str, found: tuple[str, ...]) -> None:
    """Every version has one; it loads nothing, runs nothing, and holds the manifest's own figures."""
    store = Store(trained_store)
    text = (store.path(model, 1) / REPORT).read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "iframe", "object", "link"} & set(page.tags)
    assert "://" not in re.sub(r"data:[^\"]+", "", text)
    manifest = store.manifest(model, 1)
    errors = manifest.metrics["reconstruction_error"]
    figures = [f"{errors[name]['test']:.5g}" for name in ("autoencoder", "pca")]
    expected = ("Scores and false alarms", "Latent space", "Worst reconstructed", manifest.source_sha256, *figures)
    assert [text_part for text_part in (*expected, *found) if text_part not in text] == []
    assert len(text) < 600_000


@pytest.mark.tf
def test_names_are_text() -> None:
    """Names of columns, files and settings, and warnings, are shown and never become part of the page."""
    from service.training.fit import History
    from service.training.html_report import report_page

    evil = "<script>alert('$x')</script>\"&amp;"
    random = np.random.default_rng(0)
    rows = random.normal(size=(30, 2)).astype(np.float32)
    schema = InputSchema(kind="tabular", row_shape=(2,), columns=(Column(name=evil), Column(name="b")))
    errors = {"train": 0.1, "validation": 0.1, "test": 0.1}
    manifest = fake_manifest(1, {}).model_copy(
        update={
            "input": schema,
            "source": evil,
            "training": {evil: evil},
            "warnings": (evil,),
            "metrics": {"reconstruction_error": {"autoencoder": errors, "pca": errors}, "test_alarm_rate": 0.0},
        }
    )
    history = History((1.0, 0.5), (1.0, 0.6), best_epoch=2, fit_s=0.1)
    text = report_page(manifest, evidence_of(schema, {INSTANCES: rows}, {"reconstruction": rows}), history)
    assert "script" not in Page(text).tags
    assert html.unescape(text).count(evil) >= 5


def test_false_alarms_in_the_band() -> None:
    """Conformal p-values of ordinary rows stay in the band at nearly all rates; those of odd rows leave it."""
    random = np.random.default_rng(3)
    calibration, test = random.normal(size=500), random.normal(size=400)
    at_least = 500 - np.searchsorted(np.sort(calibration), test)
    p_values = ((1 + at_least) / 501).astype(np.float32)
    found = false_alarms(500, p_values)
    low, high, empirical = (np.array(each) for each in (found.low, found.high, found.empirical))
    assert found.nominal[0] == pytest.approx(1 / 501)
    assert np.mean((low <= empirical) & (empirical <= high)) > 0.9
    odd = np.array(false_alarms(500, p_values**3).empirical)
    assert np.mean(odd > high) > 0.8
