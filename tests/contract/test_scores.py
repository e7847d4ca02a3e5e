"""What every score of a model's inputs must do, over all cards of the room; and that no card lacks its claim."""

from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from farout.cards import list_cards  # noqa: E402
from farout.ood import Watch, extract  # noqa: E402
from farout.ood._score import stepped  # noqa: E402
from farout.ood.views import NEEDS, Viewer  # noqa: E402
from farout.ood.watch import score_named  # noqa: E402

SCORES = [card.slug for card in list_cards("ood", "score")]


@pytest.fixture(scope="module")
def trained():
    """Return a small network that knows three clusters, their rows, and rows far away from all."""
    rng = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(3, 6, generator=rng)
    labels = torch.arange(300) % 3
    x = centres[labels] + torch.randn(300, 6, generator=rng)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.ReLU())
    net.append(torch.nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net.eval(), x, labels


@pytest.mark.parametrize("slug", SCORES)
def test_scores_are_pointwise_finite_and_keep_their_state(slug, trained, tmp_path):
    net, x, labels = trained
    watch = Watch(net, slug).fit(x[:200], labels[:200])
    scores = watch.outlier_score(x[200:])
    assert scores.shape == (100,) and scores.dtype == np.float64 and np.isfinite(scores).all()
    some = np.concatenate([watch.outlier_score(x[place : place + 1]) for place in range(200, 210)])
    np.testing.assert_allclose(some, scores[:10], rtol=1e-4, atol=1e-4)
    watch.save(tmp_path / "watch")
    np.testing.assert_array_equal(Watch.load(tmp_path / "watch", net).outlier_score(x[200:]), scores)


@pytest.mark.parametrize("slug", SCORES)
def test_what_is_named_is_all_that_is_needed(slug, trained):
    net, x, labels = trained
    score = score_named(slug)
    assert set(score.needs) <= set(NEEDS)
    views = extract(net, x, needs=score.needs)
    score.fit(views, labels)
    with torch.no_grad():
        after = stepped(Viewer(net, x[:2], needs=tuple(score.needs)), x, score.steps())
        assert score.score(views, after).shape == (300,)


@pytest.mark.parametrize("slug", SCORES)
def test_rows_between_the_clusters_score_higher(slug, trained):
    """A score's sign: rows at which the network hesitates, between the clusters, are farther out than those within."""
    net, x, labels = trained
    watch = Watch(net, slug).fit(x[:200], labels[:200])
    means = torch.stack([x[labels == label].mean(0) for label in range(3)])
    between = (means[[0, 1, 2]] + means[[1, 2, 0]]) / 2 + 0.3 * torch.randn(
        3, 6, generator=torch.Generator().manual_seed(1)
    )
    assert watch.outlier_score(between).mean() > np.median(watch.outlier_score(x[200:]))


@pytest.mark.parametrize("card", list_cards("ood"), ids=lambda card: card.slug)
def test_every_card_has_a_claim_and_loads(card):
    assert find_spec(f"farout.claims.{card.slug}"), f"there is no farout/claims/{card.slug}.py"
    assert card.load().__paper__ == card.name
    assert card.kind in ("score", "training") and card.claim and card.extra in ("torch", "llm")


@pytest.mark.parametrize("card", list_cards("quantize"), ids=lambda card: card.slug)
def test_every_recipe_has_a_claim(card):
    assert find_spec(f"farout.claims.{card.slug}"), f"there is no farout/claims/{card.slug}.py"
