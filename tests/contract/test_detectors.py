"""What every detector of tables and events keeps, for all cards of the rooms: a new file is tested by being there."""

from __future__ import annotations

import datetime
import importlib
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import farout
from farout.cards import list_cards
from farout.contract import Detector
from farout.errors import BadInput, NotFitted
from farout.events._common import EventDetector
from farout.table._neighbours import NeighbourDetector
from farout.table.default import Default

CARDS = list_cards("table", "detector") + list_cards("events", "detector")
LEAVE_ONE_OUT = (NeighbourDetector, Default)  # a training row is scored without the part that it plays itself


def made(card, **parameters):
    """An unfitted detector with a fixed seed."""
    detector = card.load()(**parameters)
    return detector.set_params(random_state=0) if "random_state" in detector.get_params() else detector


@pytest.fixture(params=CARDS, ids=lambda card: card.slug)
def card(request):
    return request.param


@pytest.fixture
def detector(card):
    return made(card)


def numbers(n=200, d=5, seed=0):
    """Correlated numbers of different scales and shapes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    X[:, 0] = np.exp(X[:, 0] / 2)
    return X * 10.0 ** np.arange(d)


def mixed(n=200, seed=0):
    """Numbers, categories, booleans and dates, with holes in all but the booleans."""
    rng = np.random.default_rng(seed)
    start = datetime.datetime(2024, 1, 1)
    frame = pl.DataFrame(
        {
            "amount": rng.lognormal(size=n),
            "count": rng.integers(0, 9, n),
            "town": rng.choice(["Aa", "Bo", "Cu"], n, p=[0.7, 0.2, 0.1]),
            "member": rng.random(n) < 0.3,
            "when": [start + datetime.timedelta(hours=int(h)) for h in rng.integers(0, 5000, n)],
        }
    )
    hole = pl.Series(np.arange(n) % 17 == 3)
    holes = [
        pl.when(hole.shift(k, fill_value=False)).then(None).otherwise(pl.col(c)).alias(c)
        for k, c in enumerate(("amount", "count", "town", "when"))
    ]
    return frame.with_columns(holes)


@parametrize_with_checks([made(card) for card in CARDS])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_the_row_farthest_out_has_the_top_score(detector):
    X = np.random.default_rng(1).normal(size=(300, 5))
    X[17] = 15.0
    odd = X
    if isinstance(detector, EventDetector):  # these look for values that do not go together, and 15 goes with 15
        odd = np.sign(X[:, :1]) * np.ones(5)
        odd[17] *= [1, -1, 1, -1, 1]
    assert detector.fit_score(odd).argmax() == 17
    new = np.vstack((X[20:40], np.full((1, 5), 15.0)))
    assert detector.fit(np.delete(X, 17, axis=0)).outlier_score(new).argmax() == 20


def test_signs_of_scikit_learn(detector):
    X = numbers()
    detector.fit(X)
    scores = detector.outlier_score(X)
    np.testing.assert_array_equal(detector.score_samples(X), -scores)
    np.testing.assert_array_equal(detector.decision_function(X), -scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(X), np.where(-scores < detector.offset_, -1, 1))


def test_scores_are_float64_a_row_each(detector):
    X = numbers().astype(np.float32)
    for scores in (detector.fit_score(X), detector.outlier_score(X[:7])):
        assert scores.dtype == np.float64 and scores.ndim == 1
    assert len(scores) == 7


@pytest.mark.parametrize("d", [1, 5, 30])  # scikit-learn searches neighbours in another way from 16 columns on
def test_a_score_does_not_depend_on_the_other_rows(detector, d):
    X = numbers(300, d, seed=2)
    detector.fit(X[:250])
    scores = detector.outlier_score(X)
    alone = np.concatenate([detector.outlier_score(X[i : i + 1]) for i in range(200, 300)])
    shuffled = np.random.default_rng(3).permutation(300)
    np.testing.assert_allclose(alone, scores[200:], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(detector.outlier_score(X[shuffled]), scores[shuffled], rtol=1e-11, atol=1e-13)


def test_fit_score_is_fit_and_score(detector):
    X = numbers()
    scores = clone(detector).fit_score(X)
    other = clone(detector)
    assert other.fit(X) is other
    assert len(scores) == len(X)
    if not isinstance(detector, LEAVE_ONE_OUT):
        np.testing.assert_allclose(other.outlier_score(X), scores, rtol=1e-12)
    detector.fit_score(X)
    assert detector.offset_ == other.offset_
    # the threshold is that of the farthest 1 %, or of a sample's
    assert np.mean(-scores < other.offset_) == pytest.approx(0.01, abs=0.006)


def test_fitting_again_forgets_and_repeats(detector):
    X = numbers()
    first = clone(detector).fit(X).outlier_score(X)
    detector.fit(numbers(60, 3, seed=9))
    np.testing.assert_array_equal(detector.fit(X).outlier_score(X), first)


def test_training_rows_are_neither_changed_nor_shared(detector):
    X = numbers()
    before = X.copy()
    scores = detector.fit(X).outlier_score(X)
    np.testing.assert_array_equal(X, before)
    X[:] = 0
    np.testing.assert_array_equal(detector.outlier_score(before), scores)


@pytest.mark.parametrize("table", [numbers, mixed], ids=["array", "frame"])
def test_a_saved_detector_scores_the_same(detector, table, tmp_path):
    X = table()
    detector.fit(X).save(tmp_path / "saved")
    again = farout.load(tmp_path / "saved")
    assert type(again) is type(detector)
    assert again.get_params() == detector.get_params()
    np.testing.assert_array_equal(again.outlier_score(X), detector.outlier_score(X))
    np.testing.assert_array_equal(again.predict(X), detector.predict(X))
    if hasattr(detector, "reasons"):
        np.testing.assert_array_equal(again.reasons(X), detector.reasons(X))


def test_an_unfitted_detector_says_so(detector, tmp_path):
    with pytest.raises(NotFitted, match=type(detector).__name__):
        detector.outlier_score(numbers())
    with pytest.raises(NotFitted):
        detector.save(tmp_path / "saved")


def test_missing_values_get_finite_scores(detector):
    X = numbers()
    X[::7, 1] = np.nan
    X[5] = np.nan
    X[:, 4] = np.nan  # a column with nothing in it
    assert np.isfinite(detector.fit_score(X)).all()
    new = np.vstack((X[:20], np.full((1, 5), np.nan), X[20] + [[0, 0, 0, 0, 1.0]]))
    assert np.isfinite(detector.outlier_score(new)).all()


def test_a_missing_number_is_no_reason(detector):
    X = numbers()
    detector.fit(X)
    usual = np.median(X, axis=0)
    holed = usual.copy()
    holed[2] = np.nan
    far = np.quantile(detector.outlier_score(X), 0.9)
    assert detector.outlier_score(holed[None])[0] < far


def test_infinities_are_scored_or_refused(card, detector):
    X = numbers()
    detector.fit(X)
    for infinity in (np.inf, -np.inf):
        row = X[:1].copy()
        row[0, 2] = infinity
        if "infinite" in card.takes:
            assert np.isfinite(detector.outlier_score(row)).all()
            assert np.isfinite(clone(detector).fit_score(np.vstack((X, row)))).all()
        else:
            with pytest.raises(ValueError, match="infinity"):
                detector.outlier_score(row)
            with pytest.raises(BadInput, match="'x2' holds infinity in row 0"):
                clone(detector).fit(pl.DataFrame(row, schema=[f"x{j}" for j in range(5)]))


def test_huge_and_tiny_numbers_get_finite_scores(detector):
    X = numbers()
    X[3], X[4] = 1e200, -1e200
    assert np.isfinite(detector.fit_score(X)).all()
    detector.fit(numbers() * 1e-200)
    assert np.isfinite(detector.outlier_score(X)).all()


@pytest.mark.parametrize("kind", ["polars", "lazy", "pyarrow", "lists"])
def test_the_same_content_scores_the_same_in_any_table(detector, kind):
    X = numbers(100, 3)
    names = ["a", "b", "c"]
    table = {
        "polars": lambda: pl.DataFrame(X, schema=names),
        "lazy": lambda: pl.LazyFrame(X, schema=names),
        "pyarrow": lambda: pl.DataFrame(X, schema=names).to_arrow(),
        "lists": lambda: X.tolist(),
    }[kind]()
    expected = clone(detector).fit_score(X)
    np.testing.assert_allclose(detector.fit_score(table), expected, rtol=1e-12)
    np.testing.assert_array_equal(detector.outlier_score(table), clone(detector).fit(X).outlier_score(X))


def test_mixed_frames_of_three_libraries_score_the_same(detector):
    pandas = pytest.importorskip("pandas")
    frame = mixed()
    expected = clone(detector).fit_score(frame)
    assert np.isfinite(expected).all()
    assert len(np.unique(expected.round(9))) > (
        50 if isinstance(detector, EventDetector) else 100
    )  # few distinct counts
    as_pandas = pandas.DataFrame({name: frame[name].to_list() for name in frame.columns})
    as_pandas["town"] = as_pandas["town"].astype("category")
    as_pandas["when"] = pandas.to_datetime(as_pandas["when"])
    for table in (frame.to_arrow(), as_pandas):
        np.testing.assert_array_equal(clone(detector).fit_score(table), expected)
    fitted = clone(detector).fit(frame)
    np.testing.assert_array_equal(fitted.outlier_score(as_pandas), fitted.outlier_score(frame))
    np.testing.assert_array_equal(fitted.outlier_score(frame[::-1]), fitted.outlier_score(frame)[::-1])


def test_a_level_never_seen_scores_above_the_most_frequent(detector):
    frame = mixed().with_columns(pl.col("town").fill_null("Aa"), pl.col("amount").fill_null(1.0))
    detector.fit(frame)
    rows = frame.filter(pl.col("town") == "Aa").head(30)
    unseen = detector.outlier_score(rows.with_columns(pl.lit("Zz").alias("town")))
    assert np.isfinite(unseen).all()
    assert (unseen - detector.outlier_score(rows)).mean() > 0


@pytest.mark.filterwarnings("ignore:X has feature names")
def test_text_where_numbers_were_fitted_is_refused(detector):
    with pytest.raises(BadInput, match="'a'"):
        detector.fit(pl.DataFrame({"a": [1.0, 2.0, 3.0]})).outlier_score(pl.DataFrame({"a": ["x"]}))
    with pytest.raises(BadInput, match="'a'"):
        detector.fit(np.array([[1.0], [2.0], [3.0]])).outlier_score(pl.DataFrame({"a": ["x"]}))


@pytest.mark.parametrize("value", [0.0, 0.1, -7e9])
def test_a_table_without_variation_has_equal_finite_scores(detector, value):
    scores = detector.fit_score(np.full((50, 3), value))
    assert np.isfinite(scores).all()
    assert np.ptp(scores) < 1e-9
    assert np.isfinite(detector.outlier_score(np.full((2, 3), value + 1))).all()


def test_a_constant_column_changes_no_ranking_and_leaving_it_counts(detector):
    X = np.random.default_rng(4).normal(size=(200, 3))
    constant = np.column_stack((X, np.full(200, 0.1)))
    if "n_trees" in detector.get_params():
        detector.set_params(n_trees=100)  # 25 trees that are drawn blindly rank rows otherwise for every seed
    plain = clone(detector).fit_score(X)
    scores = detector.fit_score(constant)
    agreement = np.corrcoef(plain.argsort().argsort(), scores.argsort().argsort())[0, 1]
    assert agreement > 0.9  # trees draw the column too, and kernels are scaled by all columns
    row = np.array([[0.0, 0.0, 0.0, 0.1], [0.0, 0.0, 0.0, 5.0]])
    inside, outside = detector.outlier_score(row)
    # the trees of a forest cannot split what never varied
    assert outside > inside or (outside == inside and type(detector).__name__ == "IForest")


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (60, 1), (8, 30)])
def test_small_tables(detector, shape):
    X = np.random.default_rng(5).normal(size=shape)
    assert np.isfinite(detector.fit_score(X)).all()
    assert np.isfinite(detector.outlier_score(X[:1] + 1)).all()


def test_copies_of_rows_get_finite_scores(detector):
    X = np.repeat(np.random.default_rng(6).normal(size=(6, 3)), 40, axis=0)
    assert np.isfinite(detector.fit_score(X)).all()
    assert np.isfinite(detector.outlier_score(X + 0.5)).all()


def test_columns_that_depend_on_each_other_get_finite_scores(detector):
    X = np.random.default_rng(7).normal(size=(200, 2))
    X = np.column_stack((X, X.sum(axis=1), X[:, 0], np.arange(200) > 190))
    assert np.isfinite(detector.fit_score(X)).all()
    assert np.isfinite(detector.outlier_score(X + np.eye(5)[2])).all()


def test_reasons_name_the_feature_that_is_off(card, detector):
    if not card.explains:
        assert not hasattr(detector, "reasons")
        return
    X = np.random.default_rng(8).normal(size=(300, 4))
    detector.fit(X)
    rows = np.zeros((4, 4)) + 12 * np.eye(4)
    parts = detector.reasons(rows)
    assert parts.shape == (4, 4) and parts.dtype == np.float64
    np.testing.assert_array_equal(parts.argmax(axis=1), np.arange(4))


def test_reasons_are_by_feature_and_add_up_where_they_say_so(card, detector):
    if not card.explains:
        pytest.skip(f"'{card.slug}' gives no reasons")
    frame = mixed()
    detector.fit(frame)
    parts = detector.reasons(frame)
    assert parts.shape == (200, len(detector.feature_names_))
    assert np.isfinite(parts).all()
    if "add up" in type(detector).reasons.__doc__:
        np.testing.assert_allclose(parts.sum(axis=1), detector.outlier_score(frame), rtol=1e-9, atol=1e-9)


def test_streaming_is_what_the_card_says(card, detector):
    assert card.streams == hasattr(detector, "merge")
    assert hasattr(detector, "partial_fit") or not card.streams
    if not card.streams:
        return
    X = numbers(300)
    whole = clone(detector).fit(X).outlier_score(X)
    pieces = [clone(detector).partial_fit(part) for part in np.split(X, 3)]
    np.testing.assert_allclose(pieces[0].merge(pieces[1]).merge(pieces[2]).outlier_score(X), whole, rtol=1e-12)


def test_threads_change_no_score(card):
    if "n_jobs" not in card.load()().get_params():
        pytest.skip(f"'{card.slug}' has no threads")
    X = numbers(2000, 20)
    np.testing.assert_array_equal(made(card, n_jobs=2).fit_score(X), made(card).fit_score(X))


def test_the_card_is_complete(card):
    for word in ("title", "authors", "claim", "differs"):
        assert len(getattr(card, word)) > 8, f"the card of '{card.slug}' lacks '{word}'"
    assert 1960 < card.year < 2100
    assert card.link.startswith("https://") or card.differs.startswith("No paper")
    assert "numeric" in card.takes and "missing" in card.takes
    cls = card.load()
    assert issubclass(cls, Detector) and cls.__paper__ == card.name


def test_the_module_names_its_paper(card):
    doc = importlib.import_module(card.module).__doc__
    flat = " ".join(doc.split())
    assert card.title.split(":")[0].split(" (")[0] in flat
    assert str(card.year) in flat or card.arxiv in flat
    assert ">>>" in card.load().__doc__
    assert all(
        f"{name} :" in card.load().__doc__ or f", {name}" in card.load().__doc__ for name in made(card).get_params()
    )


def test_the_claim_is_run_again(card):
    assert find_spec(f"farout.claims.{card.slug}"), f"there is no farout/claims/{card.slug}.py"
