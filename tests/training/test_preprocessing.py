"""Labels and times inside the graph: there and back, never seen, missing, and each column counting as one."""

import numpy as np
import pytest

from service.schemas import MISSING_TIMESTAMP, Column, ColumnType, InputSchema
from service.training import load_config
from tests.training.mixed import DAY_MS, MIXED, START_MS, mixed_rows

pytestmark = pytest.mark.tf

ROWS = mixed_rows(2000, seed=0)
LABELS_ONLY = InputSchema(
    kind="tabular", row_shape=(0,), columns=(Column(name="code", type=ColumnType.CATEGORICAL, may_be_missing=True),)
)


def test_all_types_there_and_back() -> None:
    """Scaling and unscaling gives numbers, labels and times again; times to a millisecond."""
    from service.training.preprocessing import fit_preprocessing

    preprocessing = fit_preprocessing(ROWS, MIXED, load_config())
    scaled, observed, _ = preprocessing.scale(ROWS)
    back = {name: values.numpy() for name, values in preprocessing.unscale(scaled).items()}
    gaps = np.isnan(ROWS["instances"])
    np.testing.assert_allclose(back["instances"][~gaps], ROWS["instances"][~gaps], rtol=1e-4, atol=1e-4)
    seen = ROWS["categories"] != b""
    np.testing.assert_array_equal(back["categories"][seen], ROWS["categories"][seen])
    here = ROWS["timestamps"] != MISSING_TIMESTAMP
    assert np.abs(back["timestamps"][here] - ROWS["timestamps"][here]).max() < 100
    assert scaled.shape == observed.shape == (2000, *preprocessing.layout.shape)
    assert observed.numpy().mean(axis=0)[preprocessing.layout.owner == 2] == pytest.approx(0.9, abs=0.03)


def test_each_column_counts_as_one() -> None:
    """The variances of the scaled values of a column sum to 1, whatever its type."""
    from service.training.preprocessing import fit_preprocessing

    preprocessing = fit_preprocessing(ROWS, MIXED, load_config())
    targets = preprocessing.scale_all(ROWS).targets
    by_column = np.bincount(preprocessing.layout.owner, np.nanvar(targets, axis=0))
    np.testing.assert_allclose(by_column, 1, rtol=0.02)
    assert preprocessing.layout.features == len(MIXED.columns)


def test_a_label_never_seen_lies_far_from_all_others() -> None:
    """It has a place of its own, and decodes to a label that is known."""
    from service.training.preprocessing import fit_preprocessing

    preprocessing = fit_preprocessing(ROWS, MIXED, load_config())
    row = {name: array[:1].copy() for name, array in ROWS.items()}
    usual = preprocessing.scale(row).values
    row["categories"][0, 0] = "Zürich".encode()
    new, observed, _ = preprocessing.scale(row)
    country = preprocessing.layout.owner == 3
    assert np.square(new - usual)[0, country].sum() > 100
    assert observed.numpy()[0, country].all()
    assert preprocessing.unscale(new)["categories"].numpy()[0, 0] in {b"DE", b"FR", b"IT"}


def test_many_labels_share_values() -> None:
    """Of 500 labels the frequent ones keep a value of their own; none is taken for one never seen."""
    from service.training.preprocessing import OWN_LABELS, SHARED_VALUES, fit_preprocessing

    frequent = [b"label %d" % number for number in range(OWN_LABELS) for _ in range(5)]
    labels = np.array([*frequent, *(b"rare %d" % number for number in range(436)), b""], object)[:, None]
    preprocessing = fit_preprocessing({"categories": labels}, LABELS_ONLY, load_config())
    assert preprocessing.layout.shape == (OWN_LABELS + SHARED_VALUES + 2,)
    scaled, observed = (each.numpy() for each in preprocessing.scale({"categories": labels})[:2])
    place = scaled.argmax(axis=1)
    assert len(set(place[: len(frequent)])) == OWN_LABELS
    assert set(place[len(frequent) : -1]) == set(range(OWN_LABELS, OWN_LABELS + SHARED_VALUES))
    assert place[-1] == OWN_LABELS + SHARED_VALUES + 1
    assert not observed[-1].any()
    stranger = preprocessing.scale({"categories": np.array([[b"stranger"]], object)}).values
    assert stranger.numpy().argmax() == OWN_LABELS + SHARED_VALUES


def test_the_same_label_in_two_columns_is_two_labels() -> None:
    """One lookup serves all columns; what one has seen is new to another."""
    from service.training.preprocessing import LabelLookup, fit_vocabularies

    labels = np.array([[b"a", b"x"], [b"b", b"y"]], object)
    lookup = LabelLookup(fit_vocabularies(labels, [False, False]))
    values, _ = lookup.spread_out(np.array([[b"a", b"a"], [b"x", b"x"]], object))
    np.testing.assert_array_equal(values.numpy(), [[1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0]])


def test_cycles_count_where_the_rows_span_them() -> None:
    """Dates without times have no hour; an hour of rows has no cycle at all; later than training counts as latest."""
    from service.training.preprocessing import CYCLES_MS, fit_clock

    year, week, day = CYCLES_MS
    dates = START_MS + np.arange(30) * DAY_MS
    assert fit_clock(dates).cycles == (week,)
    assert fit_clock(dates + np.arange(30) * 3_600_000).cycles == (week, day)
    assert fit_clock(START_MS + np.arange(800) * DAY_MS).cycles == (year, week)
    hour = fit_clock(START_MS + np.arange(60) * 60_000)
    assert hour.cycles == ()
    assert hour.spread_out(np.array([hour.latest + 10 * DAY_MS])).numpy() == 0
    assert hour.spread_out(np.array([hour.latest - DAY_MS])).numpy() == -1


@pytest.mark.parametrize("loss", ["mean_squared_error", "binary_crossentropy"])
def test_guessing_the_shares_of_the_labels_costs_one(loss: str) -> None:
    """Cross-entropy over the entropy of the column: what a mean is to a squared error."""
    from service.training.fit import row_loss
    from service.training.preprocessing import fit_preprocessing

    labels = np.array([b"a"] * 60 + [b"b"] * 30 + [b"c"] * 10, object)[:, None]
    schema = LABELS_ONLY.model_copy(update={"columns": (Column(name="code", type=ColumnType.CATEGORICAL),)})
    config = load_config("dense", loss=loss)
    preprocessing = fit_preprocessing({"categories": labels}, schema, config)
    targets = preprocessing.scale_all({"categories": labels}).targets
    guess = np.array([[0.6, 0.3, 0.1, 0]] * 100, np.float32) * preprocessing.layout.labels[0].weights
    assert float(row_loss(config, preprocessing.layout)(targets, guess)) == pytest.approx(1, rel=1e-4)
    assert float(row_loss(config, preprocessing.layout)(targets, targets)) == pytest.approx(0, abs=1e-6)
