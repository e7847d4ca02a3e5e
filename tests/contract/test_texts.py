"""What every detector of texts keeps, for all cards of the room: texts in, larger is less likely seen in training."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone

import farout
from farout.cards import list_cards
from farout.contract import Detector
from farout.errors import BadInput, NotFitted

torch = pytest.importorskip("torch")

CARDS = list_cards("text", "detector")
RUN = "".join(map(chr, range(48, 112)))
TEXTS = [RUN[i : i + n] for i, n in enumerate((20, 19, 33, 24, 20, 26, 15, 40))]


class Successor(torch.nn.Module):
    """Has learned that each byte is followed by the next one."""

    def forward(self, ids):
        return 9.0 * torch.nn.functional.one_hot((ids + 1) % 256, 256).double()


def made(card, **parameters):
    """An unfitted detector that reads bytes with a model that knows what follows what."""
    detector = card.load()(**parameters)
    return detector.set_params(model=Successor(), tokenizer="bytes")


@pytest.fixture(params=CARDS, ids=lambda card: card.slug)
def card(request):
    return request.param


@pytest.fixture
def detector(card):
    return made(card)


def test_a_text_that_the_model_does_not_expect_has_the_top_score(detector):
    odd = [*TEXTS[:4], "q2e9a0zx81mfj3hd7b5k", *TEXTS[4:]]
    assert detector.outlier_score(odd).argmax() == 4  # nothing needs to be fitted
    assert detector.fit(TEXTS).predict(odd)[4] == -1


def test_scores_are_float64_a_text_each_and_depend_on_it_alone(detector):
    scores = detector.outlier_score(TEXTS)
    assert scores.dtype == np.float64 and scores.shape == (len(TEXTS),)
    assert np.isfinite(scores).all()
    alone = [detector.outlier_score([text])[0] for text in TEXTS]
    np.testing.assert_allclose(alone, scores, rtol=1e-11)
    np.testing.assert_allclose(detector.outlier_score(TEXTS[::-1]), scores[::-1], rtol=1e-11)


def test_fitting_draws_a_line_and_changes_no_score(detector):
    scores = detector.outlier_score(TEXTS)
    assert detector.fit(TEXTS) is detector
    np.testing.assert_array_equal(detector.outlier_score(TEXTS), scores)
    np.testing.assert_array_equal(clone(detector).fit_score(TEXTS), scores)
    np.testing.assert_array_equal(detector.score_samples(TEXTS), -scores)
    np.testing.assert_array_equal(detector.decision_function(TEXTS), -scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(TEXTS), np.where(-scores < detector.offset_, -1, 1))


def test_what_needs_a_line_says_that_there_is_none(detector, tmp_path):
    for act in (detector.predict, detector.decision_function):
        with pytest.raises(NotFitted, match=type(detector).__name__):
            act(TEXTS)
    with pytest.raises(NotFitted):
        detector.set_params(model="folder").save(tmp_path / "saved")


def test_a_clone_shares_the_model(detector):
    other = clone(detector)
    assert other is not detector and other.get_params() == detector.get_params()
    assert other.model is detector.model


def test_a_saved_detector_has_its_parameters_and_its_line(detector, tmp_path):
    detector.fit(TEXTS).set_params(model="folder").save(tmp_path / "saved")
    again = farout.load(tmp_path / "saved")
    assert type(again) is type(detector)
    assert again.get_params() == detector.get_params() and again.offset_ == detector.offset_


@pytest.mark.parametrize("kind", ["tuple", "array", "objects", "polars", "pandas"])
def test_the_same_texts_score_the_same_in_any_column(detector, kind):
    column = {
        "tuple": tuple,
        "array": np.array,
        "objects": lambda texts: np.array(texts, dtype=object),
        "polars": lambda texts: pl.Series("text", texts),
        "pandas": lambda texts: pytest.importorskip("pandas").Series(texts),
    }[kind](TEXTS)
    np.testing.assert_array_equal(detector.outlier_score(column), detector.outlier_score(TEXTS))


def test_what_is_no_text_is_refused_by_its_place(detector):
    for texts, match in [
        (["ab", ""], "text 1 is empty"),
        (["ab", None], "text 1 is no text"),
        ("ab", "a list of texts"),
    ]:
        with pytest.raises(BadInput, match=match):
            detector.outlier_score(texts)
    assert detector.outlier_score([]).shape == (0,)


@pytest.mark.parametrize("text", ["a", " ", "\n", "é", "\U0001f600", "a\x00b", "x" * 5000])
def test_any_text_gets_a_finite_score(detector, text):
    assert np.isfinite(detector.outlier_score([text])).all()


def test_reasons_name_the_token_that_is_off(card, detector):
    if not card.explains:
        assert not hasattr(detector, "reasons")
        return
    texts = [RUN[:12] + "~" + RUN[13:30], *TEXTS]
    parts = detector.reasons(texts)
    assert parts.dtype == np.float64 and parts.shape == (len(texts), max(map(len, texts)))
    assert 12 in np.flatnonzero(parts[0]) and (parts[7, 15:] == 0).all()
    np.testing.assert_allclose(parts.sum(axis=1), detector.outlier_score(texts), rtol=1e-11)
    assert any(said.startswith(("'~' after", "'=' after")) for said in detector.words(texts)[0])


def test_the_card_is_complete(card):
    for word in ("title", "authors", "claim", "differs"):
        assert len(getattr(card, word)) > 8, f"the card of '{card.slug}' lacks '{word}'"
    assert 1960 < card.year < 2100 and card.link.startswith("https://") and card.takes == ("text",)
    assert card.inductive and not card.streams
    cls = card.load()
    assert issubclass(cls, Detector) and cls.__paper__ == card.name
    flat = " ".join(importlib.import_module(card.module).__doc__.split())
    assert card.title.split(":")[0] in flat and card.arxiv in flat
    assert ">>>" in cls.__doc__ and all(f"{name} :" in cls.__doc__ for name in made(card).get_params())
    assert find_spec(f"farout.claims.{card.slug}"), f"there is no farout/claims/{card.slug}.py"
