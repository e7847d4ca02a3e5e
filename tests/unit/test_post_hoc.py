"""Scores of views: closed forms, and agreement with pytorch-ood on the same features."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from farout.errors import BadInput, NotFitted, UnknownName  # noqa: E402
from farout.ood import Views  # noqa: E402
from farout.ood.ash import ASH  # noqa: E402
from farout.ood.deep_knn import DeepKNN, _kth_largest, kth_distance  # noqa: E402
from farout.ood.energy import Energy  # noqa: E402
from farout.ood.grad_norm import GradNorm  # noqa: E402
from farout.ood.mahalanobis import Mahalanobis  # noqa: E402
from farout.ood.max_logit import MaxLogit  # noqa: E402
from farout.ood.msp import MSP  # noqa: E402
from farout.ood.react import ReAct  # noqa: E402
from farout.ood.relative_mahalanobis import RelativeMahalanobis  # noqa: E402
from farout.ood.scale import SCALE  # noqa: E402
from farout.ood.temperature_scaling import TemperatureScaling  # noqa: E402
from farout.ood.vim import ViM  # noqa: E402
from referees import pytorch_ood  # noqa: E402

CLASSES, WIDTH = 5, 16


def made(n, seed, shift=0.0):
    """Draw views of a random head: non-negative features in clusters, as behind a ReLU."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(CLASSES, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(CLASSES, (n,), generator=rng)
    features = (weight[labels] + torch.randn(n, WIDTH, generator=rng) + shift).relu()
    return Views(features @ weight.T + bias, features, weight=weight, bias=bias), labels


TRAIN, LABELS = made(300, 0)
TEST, _ = made(40, 3, shift=0.7)


def head(features):
    features = features.flatten(1)
    return features @ TRAIN.weight.T + TRAIN.bias


def body(x):
    return x


@pytest.fixture(scope="module")
def referee():
    return pytorch_ood()


def near(found, expected, **more):
    np.testing.assert_allclose(found.numpy(), expected.numpy(), **{"rtol": 1e-5, "atol": 1e-5, **more})


def test_logit_scores_equal_pytorch_ood(referee):
    near(MSP().score(TEST), referee.MaxSoftmax(body).predict_logits(TEST.logits))
    near(MaxLogit().score(TEST), referee.MaxLogit(body).predict_logits(TEST.logits))
    near(Energy().score(TEST), referee.EnergyBased(body).predict_logits(TEST.logits))
    near(Energy(3.0).score(TEST), referee.EnergyBased(body, t=3.0).predict_logits(TEST.logits))


def test_react_equals_pytorch_ood(referee):
    ours = ReAct(percentile=80).fit(TRAIN)
    theirs = referee.ReAct(body, head, threshold=ours.height_, detector=lambda logits: -logits.logsumexp(1))
    near(ours.score(TEST), theirs.predict(TEST.features))
    assert ours.height_ == pytest.approx(np.percentile(TRAIN.features.numpy(), 80))


def test_vim_equals_pytorch_ood(referee):
    theirs = referee.ViM(body, d=6, w=TRAIN.weight, b=TRAIN.bias).fit_features(TRAIN.features, LABELS)
    ours = ViM(dimension=6).fit(TRAIN)
    near(ours.score(TEST), theirs.predict_features(TEST.features), rtol=1e-4, atol=1e-4)
    assert ours.alpha_ == pytest.approx(theirs.alpha, rel=1e-5)


def test_knn_equals_pytorch_ood(referee):
    theirs = referee.KNN(body, k=7).fit_features(TRAIN.features, LABELS)
    near(DeepKNN(k=7).fit(TRAIN).score(TEST), theirs.predict_features(TEST.features))


def test_relative_mahalanobis_equals_pytorch_ood_up_to_its_scatter(referee):
    """Theirs divides the scatter by nothing: distances are n times smaller."""
    theirs = referee.RMD(body).fit_features(TRAIN.features, LABELS)
    # theirs has scatters that are sums over the rows
    expected = len(TRAIN) * theirs.predict_features(TEST.features)
    near(RelativeMahalanobis().fit(TRAIN, LABELS).score(TEST), expected.double(), rtol=2e-3, atol=2e-2)


def test_mahalanobis_equals_pytorch_ood_up_to_its_scatter(referee):
    theirs = referee.Mahalanobis(body).fit_features(TRAIN.features, LABELS).predict_features(TEST.features)
    found = Mahalanobis("features").fit(TRAIN, LABELS).distances(TEST)["features"].amin(1)
    near(found, 2 * len(TRAIN) * theirs.double(), rtol=2e-3, atol=2e-2)


def test_ash_and_scale_equal_pytorch_ood(referee):
    for variant in ("b", "s", "p"):
        theirs = referee.ASH(body, head, variant=f"ash-{variant}", percentile=0.75, detector=lambda f: -f.logsumexp(1))
        expected = theirs.predict_feature_maps(TEST.features[:, :, None, None])
        near(ASH(percentile=75, variant=variant).score(TEST), expected, rtol=1e-4)
    theirs = referee.SCALE(body, head, percentile=0.75, detector=lambda f: -f.logsumexp(1))
    near(SCALE(percentile=75).score(TEST), theirs.predict_feature_maps(TEST.features[:, :, None, None]), rtol=1e-4)


def test_grad_norm_is_the_norm_of_the_gradient():
    for temperature in (1.0, 2.5):
        expected = []
        for h in TEST.features:
            weight = TRAIN.weight.clone().requires_grad_(True)
            log_p = ((weight @ h + TRAIN.bias) / temperature).log_softmax(0)
            (slope,) = torch.autograd.grad(-log_p.mean(), weight)
            expected.append(-slope.abs().sum())
        near(GradNorm(temperature).score(TEST), torch.stack(expected), rtol=1e-4)


def test_temperature_is_the_likeliest_and_keeps_order_within_a_row():
    found = TemperatureScaling().fit(TRAIN, LABELS)

    def loss(t):
        return float(torch.nn.functional.cross_entropy(TRAIN.logits.double() / t, LABELS))

    best = min(np.geomspace(0.2, 20, 4001), key=loss)
    assert found.temperature_ == pytest.approx(best, rel=2e-3)
    near(found.score(TEST), -(TEST.logits / found.temperature_).softmax(1).amax(1))
    with pytest.raises(BadInput, match="true labels"):
        TemperatureScaling().fit(TRAIN)


@pytest.mark.parametrize(("m", "k"), [(1, 1), (7, 7), (100, 3), (1003, 1), (1003, 9), (5000, 50)])
def test_the_kth_largest_is_found_in_few_groups(m, k):
    x = torch.randn(6, m, generator=torch.Generator().manual_seed(m + k))
    x[3:] = (4 * x[3:]).round()  # with ties
    x[5] = 0
    assert torch.equal(x.gather(1, _kth_largest(x, k)[:, None])[:, 0], x.sort(1, descending=True).values[:, k - 1])


def test_kth_distance_equals_brute_force_also_far_from_zero():
    rng = np.random.default_rng(0)
    bank, x = torch.tensor(rng.normal(size=(200, 8)) + 1000), torch.tensor(rng.normal(size=(9, 8)) + 1000)
    expected = np.sort(np.linalg.norm(x.numpy()[:, None] - bank.numpy()[None], axis=2), axis=1)[:, 4]
    np.testing.assert_allclose(kth_distance(x, bank, 5), expected, rtol=1e-9)
    single = kth_distance(x.float(), bank.float(), 5)
    assert (single > 0).all()


def test_knn_normalizes():
    longer = Views(TEST.logits, TEST.features * 7)
    near(DeepKNN(k=5).fit(TRAIN).score(longer), DeepKNN(k=5).fit(TRAIN).score(TEST))


def test_unfitted_and_wrong_parameters_are_refused():
    with pytest.raises(NotFitted, match="fit"):
        ReAct().score(TEST)
    with pytest.raises(BadInput, match="between 1 and"):
        DeepKNN(k=1000).fit(TRAIN)
    with pytest.raises(BadInput, match="1 to 15 dimensions"):
        ViM(dimension=16).fit(TRAIN)
    with pytest.raises(UnknownName, match="variant"):
        ASH(variant="x").score(TEST)
    with pytest.raises(BadInput, match="above 0"):
        Energy(0.0).score(TEST)
    with pytest.raises(BadInput, match="percentile"):
        SCALE(100).score(TEST)
    with pytest.raises(BadInput, match="no features"):
        GradNorm().score(Views(TEST.logits))
    with pytest.raises(BadInput, match="no linear head"):
        SCALE().score(Views(TEST.logits, TEST.features))


def test_scale_is_one_factor_for_a_row():
    found = SCALE(percentile=50)
    h = TEST.features[:1]
    large = h.sort(descending=True).values[:, : WIDTH // 2].sum()
    expected = -head(h * (h.sum() / large).exp()).logsumexp(1)
    near(found.score(Views(TEST.logits[:1], h, weight=TEST.weight, bias=TEST.bias)), expected)


@pytest.mark.parametrize("score", [MSP(), MaxLogit(), Energy(), SCALE(), ASH(), GradNorm(), DeepKNN(), ViM(), ReAct()])
def test_scores_are_pointwise_and_keep_their_state(score):
    fitted = score.fit(TRAIN, LABELS)
    whole = fitted.score(TEST)
    near(torch.cat([fitted.score(TEST[[row]]) for row in range(len(TEST))]), whole, rtol=1e-4, atol=1e-4)
    again = type(score)(**score.get_params()).restore(fitted.state())
    assert torch.equal(again.score(TEST), whole)
