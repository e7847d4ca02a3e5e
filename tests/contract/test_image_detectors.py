"""What every detector of images keeps, over all cards of the room: a new file is tested by being there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

torch = pytest.importorskip("torch")

import farout  # noqa: E402
from farout import Alarm  # noqa: E402
from farout.cards import list_cards  # noqa: E402
from farout.data import DataMissing  # noqa: E402
from farout.errors import BadInput, MissingExtra, NotFitted  # noqa: E402
from farout.image import ImageDetector  # noqa: E402
from farout.io.image_batches import Batches  # noqa: E402

CARDS = [card for card in list_cards("image", "detector") if "image" in card.takes]
SMALL: dict[str, dict[str, Any]] = {  # what makes a fit short; words that a detector does not know are passed over
    "patchcore": {"coreset": 0.2},
    "padim": {"dimensions": 20},
    "fod": {"widths": (16, 32), "depth": 1, "heads": 2, "epochs": 2},
    "unicon_ha": {"size": 32, "width": 8, "epochs": 1},
    "efficientad": {"steps": 3, "distil_steps": 2},
    "fader": {"widths": (8, 16), "hidden": 8, "steps": 3},
}
TRAINED, NEW = 8, 7


def drawn(n, seed, size=72):
    """Images of one texture under noise."""
    rng = np.random.default_rng(seed)
    at = np.arange(size)
    waves = 40 * np.sin(at / 5)[:, None, None] + 30 * np.cos(at / 7)[None, :, None] + np.array([100, 120, 130])
    return np.clip(waves + rng.normal(0, 9, (n, size, size, 3)), 0, 255).astype(np.uint8)


def made(card):
    detector = card.load()()
    wanted = {"size": 64, "batch_size": 4, "random_state": 0} | SMALL.get(card.slug, {})
    return detector.set_params(**{name: value for name, value in wanted.items() if name in detector.get_params()})


@dataclass
class Fitted:
    detector: ImageDetector
    training: np.ndarray
    shares: list[float]
    images: np.ndarray
    scores: np.ndarray
    maps: np.ndarray | None


@cache
def fitted_once(card):
    detector, images, shares = made(card), drawn(TRAINED, 0), []
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    before = images.copy()
    training = detector.fit_score(images, progress=shares.append)
    assert torch.equal(torch.random.get_rng_state(), state[0]), "a fit moves torch's random numbers of the caller"
    assert (np.random.get_state()[1] == state[1]).all(), "a fit moves numpy's random numbers of the caller"
    assert (images == before).all()
    new = drawn(NEW, 1)
    new[3, 20:40, 30:50] = 255
    scores, maps = detector._passed(Batches(new, detector.size, detector.batch_size), maps=True)
    return Fitted(detector, training, shares, new, scores, maps)


@pytest.fixture(params=CARDS, ids=lambda card: card.slug)
def card(request):
    return request.param


@pytest.fixture
def fitted(card):
    try:
        return fitted_once(card)
    except (MissingExtra, DataMissing) as error:
        pytest.skip(str(error))


def test_a_score_each_with_the_signs_of_scikit_learn(fitted):
    detector, scores = fitted.detector, fitted.scores
    assert scores.dtype == np.float64 and scores.shape == (NEW,) and np.isfinite(scores).all()
    assert fitted.training.dtype == np.float64 and fitted.training.shape == (TRAINED,)
    np.testing.assert_array_equal(detector.score_samples(fitted.images), -detector.outlier_score(fitted.images))
    np.testing.assert_array_equal(detector.predict(fitted.images), np.where(-scores < detector.offset_, -1, 1))
    assert not detector.net_.training and not any(one.requires_grad for one in detector.net_.parameters())


def test_scores_and_maps_depend_on_their_own_image_alone(fitted):
    detector, images = fitted.detector, fitted.images
    spread = np.ptp(fitted.scores) + np.abs(fitted.scores).max()
    alone = np.concatenate([detector.outlier_score(images[place : place + 1]) for place in range(NEW)])
    np.testing.assert_allclose(alone, fitted.scores, rtol=1e-5, atol=1e-5 * spread)
    order = np.random.default_rng(2).permutation(NEW)
    np.testing.assert_allclose(detector.outlier_score(images[order]), fitted.scores[order], rtol=1e-5)
    if fitted.maps is not None:
        largest = np.abs(fitted.maps).max()
        np.testing.assert_allclose(detector.score_maps(images[2:3])[0], fitted.maps[2], rtol=1e-4, atol=1e-5 * largest)


def test_maps_have_the_size_of_the_detector(fitted):
    detector = fitted.detector
    if fitted.maps is None:
        with pytest.raises(BadInput, match="gives no maps"):
            detector.score_maps(fitted.images)
        return
    assert fitted.maps.shape == (NEW, detector.size, detector.size) and fitted.maps.dtype == np.float32
    assert np.isfinite(fitted.maps).all()
    scores, maps = detector.scores_and_maps(fitted.images)
    np.testing.assert_array_equal(scores, fitted.scores)
    np.testing.assert_array_equal(maps, fitted.maps)


def test_a_stream_gives_the_same(fitted):
    detector = fitted.detector
    parts = list(detector.stream(Batches(fitted.images, detector.size, detector.batch_size)))
    np.testing.assert_array_equal(np.concatenate([scores for scores, _ in parts]), fitted.scores)
    assert all((maps is None) == (fitted.maps is None) for _, maps in parts)


def test_images_of_any_size_are_taken(fitted):
    images = [fitted.images[0], fitted.images[1][:50], np.zeros((1, 1, 3), np.uint8), fitted.images[2][..., 0]]
    scores = fitted.detector.outlier_score(images)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[0], fitted.scores[0], rtol=1e-5)


def test_a_saved_detector_scores_the_same(fitted, tmp_path):
    detector = fitted.detector
    detector.save(tmp_path / "saved")
    again = farout.load(tmp_path / "saved")
    assert type(again) is type(detector) and again.offset_ == detector.offset_
    assert {k: _plain(v) for k, v in again.get_params().items()} == {
        k: _plain(v) for k, v in detector.get_params().items()
    }
    np.testing.assert_array_equal(again.outlier_score(fitted.images), fitted.scores)
    if fitted.maps is not None:
        np.testing.assert_array_equal(again.score_maps(fitted.images), fitted.maps)


def test_a_saved_alarm_rings_the_same(fitted, tmp_path):
    alarm = Alarm(fitted.detector, rate=0.2).calibrate_scores(fitted.scores[:4])
    alarm.detector = clone(fitted.detector)  # as it is after a fit: the detector that was fitted is in detector_
    alarm.save(tmp_path / "saved")
    again = farout.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.p_values(fitted.images), alarm.p_values_of(fitted.scores))
    assert not hasattr(again.detector, "net_") and hasattr(again.detector_, "net_")


def test_the_onnx_graph_gives_the_same(fitted, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    detector = fitted.detector
    detector.export(tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x_BCHW = np.concatenate(list(Batches(fitted.images, detector.size, NEW))).astype(np.float32) / 255
    found = dict(zip([one.name for one in session.get_outputs()], session.run(None, {"images": x_BCHW})))
    assert set(found) == ({"score", "map"} if fitted.maps is not None else {"score"})
    scale = np.abs(fitted.scores).max()
    np.testing.assert_allclose(found["score"], fitted.scores, rtol=2e-4, atol=2e-4 * scale)
    if fitted.maps is not None:
        np.testing.assert_allclose(found["map"], fitted.maps, rtol=2e-4, atol=2e-4 * np.abs(fitted.maps).max())
    one = session.run(None, {"images": x_BCHW[:1]})[0]
    np.testing.assert_allclose(one, found["score"][:1], rtol=2e-4, atol=2e-4 * scale)
    np.testing.assert_array_equal(detector.outlier_score(fitted.images), fitted.scores)  # as before the export


def test_a_fit_tells_how_far_it_is(fitted):
    assert all(0 <= share <= 1 for share in fitted.shares) and fitted.shares == sorted(fitted.shares)


def test_a_clone_is_not_fitted_and_says_so(card, fitted, tmp_path):
    fresh = clone(fitted.detector)
    assert fresh.get_params().keys() == fitted.detector.get_params().keys()
    calls = (
        lambda: fresh.outlier_score(fitted.images),
        lambda: fresh.score_maps(fitted.images),
        lambda: list(fresh.stream(Batches(fitted.images, 64, 4))),
        lambda: fresh.save(tmp_path / "saved"),
        lambda: fresh.export(tmp_path / "net.onnx"),
    )
    for call in calls:
        with pytest.raises(NotFitted, match=type(fresh).__name__):
            call()
    assert not list(tmp_path.iterdir())


def test_too_few_images_are_counted(card):
    detector = made(card)
    with pytest.raises(BadInput, match=rf"{detector.least} normal images at least, and there are 3"):
        detector.fit(drawn(3, 0))
    with pytest.raises(BadInput, match="there are no images"):
        detector.fit([])


def test_the_card_is_complete(card):
    for word in ("title", "authors", "claim", "differs"):
        assert len(getattr(card, word)) > 8, f"the card of '{card.slug}' lacks '{word}'"
    assert 1960 < card.year < 2100 and card.extra == "vision"
    assert card.link.startswith("https://")
    assert issubclass(card.load(), ImageDetector) and card.load().__paper__ == card.name
    assert all(
        f"{name} :" in card.load().__doc__ or f"{name}," in card.load().__doc__ or f", {name}" in card.load().__doc__
        for name in card.load()().get_params()
    )


def test_the_claim_is_run_again(card):
    assert find_spec(f"farout.claims.{card.slug}"), f"there is no farout/claims/{card.slug}.py"


def _plain(value):
    return list(value) if isinstance(value, tuple | list) else value
