"""What every estimator that is no detector keeps, for all cards of the kinds selector and regressor."""

from __future__ import annotations

import importlib
import pickle
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from farout import score
from farout.cards import find, list_cards
from farout.errors import FaroutError

CARDS = list_cards(kind="selector") + list_cards(kind="regressor")


def classes(card):
    """The card's class, and the other public estimators of its file, such as a classifier beside a regressor."""
    module = importlib.import_module(card.module)
    found = [value for name, value in vars(module).items() if not name.startswith("_") and isinstance(value, type)]
    return [cls for cls in found if issubclass(cls, BaseEstimator) and cls.__module__ == card.module]


CLASSES = [cls for card in CARDS for cls in classes(card)]


def made(cls):
    """An unfitted estimator with a fixed seed."""
    estimator = cls()
    return estimator.set_params(random_state=0) if "random_state" in estimator.get_params() else estimator


@pytest.fixture(params=CARDS, ids=lambda card: card.slug)
def card(request):
    return request.param


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def estimator(request):
    return made(request.param)


def answer(estimator, X):
    """What a fitted estimator says of rows."""
    return estimator.predict(X) if hasattr(estimator, "predict") else estimator.transform(X)


def numbers(n=120, d=6, seed=0):
    """Numbers of different scales, and two classes that the first columns decide."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    y = (X[:, 0] - X[:, 1] + 0.3 * rng.normal(size=n) > 0).astype(float)
    return X * 10.0 ** np.arange(d), y


@parametrize_with_checks([made(cls) for cls in CLASSES])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_fitting_again_forgets_and_repeats(estimator):
    X, y = numbers()
    first = answer(clone(estimator).fit(X, y), X)
    estimator.fit(*numbers(60, 3, seed=9))
    np.testing.assert_array_equal(answer(estimator.fit(X, y), X), first)


def test_training_rows_are_not_changed(estimator):
    X, y = numbers()
    before = X.copy(), y.copy()
    estimator.fit(X, y)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_frames_give_what_arrays_give_and_their_names_are_kept(estimator):
    X, y = numbers()
    frame = pl.DataFrame(X, schema=[f"x{j}" for j in range(X.shape[1])])
    again = clone(estimator).fit(frame, y)
    # sums run in another order where columns lie one after another in memory
    np.testing.assert_allclose(answer(again, frame), answer(estimator.fit(X, y), X), rtol=1e-6)
    assert list(again.feature_names_in_) == frame.columns


def test_a_pickled_estimator_answers_the_same(estimator):
    X, y = numbers()
    estimator.fit(X, y)
    np.testing.assert_array_equal(answer(pickle.loads(pickle.dumps(estimator)), X), answer(estimator, X))


def test_a_constant_column_harms_nothing(estimator):
    X, y = numbers()
    constant = np.column_stack((X, np.full(len(X), 0.1)))
    assert np.isfinite(answer(estimator.fit(constant, y), constant)).all()


def test_the_file_is_of_one_paper_and_its_card_is_complete(card):
    for word in ("title", "authors", "claim", "differs"):
        assert len(getattr(card, word)) > 3, f"the card of '{card.slug}' lacks '{word}'"
    assert 1960 < card.year < 2100 and card.link.startswith("https://")
    assert card.load().__paper__ == card.name and find(card.slug) == card
    flat = " ".join(importlib.import_module(card.module).__doc__.split())
    assert card.title.split(":")[0].split(" (")[0] in flat and str(card.year) in flat
    known = card.load().__doc__  # what stands beside it in the file may refer to it
    for cls in classes(card):
        assert ">>>" in cls.__doc__ and ("Parameters" in cls.__doc__)
        assert all(f"{name} :" in known or f"{name} :" in cls.__doc__ for name in cls().get_params())


def test_missing_values_are_taken_as_the_card_says(card):
    X, y = numbers()
    X[::7, 1] = np.nan
    for cls in classes(card):
        if "missing" in card.takes:
            assert np.isfinite(answer(made(cls).fit(X, y), numbers()[0])).all()
        else:
            with pytest.raises(ValueError, match="NaN"):
                made(cls).fit(X, y)


def test_it_is_no_detector(card):
    with pytest.raises(FaroutError, match=card.slug):
        score(pl.DataFrame(numbers()[0]), card.slug)


def test_the_claim_is_run_again(card):
    assert find_spec(f"farout.claims.{card.slug}"), f"there is no farout/claims/{card.slug}.py"
