"""MultiOOD: A2D and NP-Mix against closed forms and loops, where gradients go, queues; for two and three modalities."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy, softmax  # noqa: E402

from farout.errors import BadInput, NotFitted, UnknownName  # noqa: E402
from farout.ood.multiood import (  # noqa: E402
    ClassQueues,
    JointHead,
    ModalityReAct,
    MultiOOD,
    disagreement,
    without_label,
)
from farout.ood.views import Views  # noqa: E402

WIDTHS = {2: (5, 3), 3: (5, 3, 4)}
CLASSES = 4


def batch(modalities: int = 2, n: int = 24, seed: int = 0):
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    features = []
    for width in WIDTHS[modalities]:
        centres = 4 * torch.randn(CLASSES, width, generator=drawn)
        features.append(centres[labels] + 0.3 * torch.randn(n, width, generator=drawn))
    return [part.requires_grad_() for part in features], labels


def method(modalities: int = 2, **options) -> MultiOOD:
    torch.manual_seed(0)
    return MultiOOD(JointHead(WIDTHS[modalities], CLASSES), **({"queue": 3, "start_epoch": 0} | options))


def distance(p, q) -> float:
    """Hellinger's distance of two lists."""
    return math.sqrt(sum((math.sqrt(max(a, 1e-6)) - math.sqrt(max(b, 1e-6))) ** 2 for a, b in zip(p, q))) / math.sqrt(2)


def test_disagreement_of_equal_and_of_opposed_predictions():
    logits = torch.tensor([[100.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 100.0], [0.0, 100.0]])
    torch.testing.assert_close(disagreement([logits, logits]), torch.zeros(2))
    halves = math.sqrt(1 - math.sqrt(0.5))  # of (1/2, 1/2) and (0, 1): 0.5412
    torch.testing.assert_close(disagreement([logits, other]), torch.tensor([1.0, halves]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("modalities", [2, 3])
def test_losses_are_those_of_loops(modalities):
    features, labels = batch(modalities)
    ours = method(modalities, agree_to_disagree=0.7, outlier_disagreement=0, outlier_entropy=0)
    losses = ours.losses(features, labels)
    joint, single = ours.head([part.detach() for part in features])
    torch.testing.assert_close(joint, ours.head.linear(torch.cat(features, 1)))
    single = [logits.detach() for logits in single]
    total = 0.0
    for i, label in enumerate(labels.tolist()):
        rests = []
        for logits in single:
            kept = [float(value) for c, value in enumerate(logits[i]) if c != label]
            largest = max(kept)
            powers = [math.exp(value - largest) for value in kept]
            rests.append([power / sum(powers) for power in powers])
        pairs = [(a, b) for a in range(modalities) for b in range(a)]
        total += sum(distance(rests[a], rests[b]) for a, b in pairs) / len(pairs)
    assert losses["agree_to_disagree"].item() == pytest.approx(-0.7 * total / len(labels), rel=1e-4)
    parts = [cross_entropy(logits, labels).item() for logits in (joint, *single)]
    assert losses["classes"].item() == pytest.approx(sum(parts) / (modalities + 1), rel=1e-5)
    assert losses["outlier_disagreement"].item() == losses["outlier_entropy"].item() == 0


def test_a2d_does_not_hear_of_the_true_class():
    logits = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    raised = logits.clone()
    raised[torch.arange(6), labels] += 5
    assert torch.equal(without_label(logits, labels), without_label(raised, labels))
    assert without_label(logits, labels)[1].tolist() == logits[1, [0, 2, 3]].tolist()


def test_a2d_moves_the_features_of_both_modalities_and_is_finite_where_they_agree():
    features, labels = batch()
    method(agree_to_disagree=1.0).losses(features, labels)["agree_to_disagree"].backward()
    assert all(float(part.grad.abs().sum()) > 0 for part in features)
    ours = method()
    for head in ours.head.single:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    ours.losses(features, labels)["agree_to_disagree"].backward()
    assert all(torch.isfinite(head.weight.grad).all() for head in ours.head.single)


def test_training_with_a2d_agrees_on_the_class_and_disagrees_on_the_rest():
    features, labels = batch()
    features = [part.detach() for part in features]
    apart = {}
    for weight in (0.0, 1.0):
        ours = method(agree_to_disagree=weight, outlier_disagreement=0, outlier_entropy=0)
        optimizer = torch.optim.Adam(ours.head.parameters(), 0.1)
        for _ in range(60):
            optimizer.zero_grad()
            sum(ours.losses(features, labels).values()).backward()
            optimizer.step()
        joint, single = ours.head(features)
        assert all((logits.argmax(1) == labels).all() for logits in (joint, *single))
        apart[weight] = float(disagreement([without_label(one, labels) for one in single]).mean().detach())
    assert apart[1.0] > apart[0.0] + 0.2


def test_outliers_lie_between_features_of_neighbouring_classes():
    ours = method(neighbors=2, queue=4)
    centres = torch.tensor([0.0, 1.0, 10.0, 11.5])  # each has one near class: 0 with 1, 2 with 3
    drawn = torch.Generator().manual_seed(0)
    rows = centres[:, None, None] + 0.01 * torch.randn(4, 4, 8, generator=drawn)
    for c in range(4):
        ours.queues.push(rows[c], torch.full((4,), c))
    near = {0: 1, 1: 0, 2: 3, 3: 2}
    used = set()
    for _ in range(20):
        made = ours.outliers()
        assert made.shape == (4, 8)
        for i, outlier in enumerate(made):
            gaps = {}
            for a, f in enumerate(rows[i]):
                for b, g in enumerate(rows[near[i]]):
                    share = float((outlier - g) @ (f - g) / ((f - g) @ (f - g)))
                    assert 0 < share < 1
                    gaps[a, b] = float((outlier - (share * f + (1 - share) * g)).norm())
            assert min(gaps.values()) < 1e-4  # on the segment between one feature of each
            used.add(min(gaps, key=gaps.get))
    assert len(used) == 16  # any feature of the one class with any of the other


def test_mixing_weights_are_those_of_the_beta_distribution():
    ours = method(queue=1, neighbors=2)
    rows = torch.tensor([0.0, 1.0, 50.0, 51.0])[:, None].expand(4, 8)
    ours.queues.push(rows, torch.arange(4))
    shares = torch.stack([1 - ours.outliers()[0, 0] for _ in range(1000)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.015)
    assert float(shares.var()) == pytest.approx(1 / (4 * 21), rel=0.2)  # Beta(10, 10)


def test_a_random_neighbour_of_two_is_taken():
    ours = method(queue=1, neighbors=3)
    ours.queues.push(torch.tensor([0.0, 1.0, -1.5, 90.0])[:, None].expand(4, 8), torch.arange(4))
    signs = torch.stack([ours.outliers()[0, 0].sign() for _ in range(200)])
    assert 0.35 < float((signs > 0).float().mean()) < 0.65


@pytest.mark.parametrize("modalities", [2, 3])
def test_losses_on_outliers_go_to_the_heads_alone(modalities):
    features, labels = batch(modalities)
    ours = method(modalities, agree_to_disagree=0, outlier_disagreement=0.3, outlier_entropy=0.2)
    made = []
    mix = ours.outliers
    ours.outliers = lambda: made.append(mix()) or made[-1]
    losses = ours.losses(features, labels)
    (losses["outlier_disagreement"] + losses["outlier_entropy"]).backward()
    assert all(part.grad is None for part in features)
    assert ours.head.linear.weight.grad is None
    assert all(float(head.weight.grad.abs().sum()) > 0 for head in ours.head.single)
    p = [softmax(head(x), 1) for head, x in zip(ours.head.single, made[0].split(WIDTHS[modalities], 1))]
    pairs = [(a, b) for a in range(modalities) for b in range(a)]
    apart = [distance(p[a][i].tolist(), p[b][i].tolist()) for a, b in pairs for i in range(CLASSES)]
    unsure = [-sum(v * math.log(v) for v in row.tolist()) / math.log(CLASSES) for one in p for row in one]
    assert losses["outlier_disagreement"].item() == pytest.approx(-0.3 * sum(apart) / len(apart), rel=1e-4)
    assert losses["outlier_entropy"].item() == pytest.approx(-0.2 * sum(unsure) / len(unsure), rel=1e-4)


def test_entropy_is_one_where_the_heads_know_nothing():
    features, labels = batch()
    ours = method(outlier_entropy=0.2)
    for head in ours.head.single:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    assert ours.losses(features, labels)["outlier_entropy"].item() == pytest.approx(-0.2)


def test_outliers_wait_for_full_queues_and_for_their_epoch():
    features, labels = batch(n=8)
    ours = method(queue=3, start_epoch=2)
    started = []
    for epoch in (2, 2, 1, 2):  # two of each class at a time: the second time the queues are full
        started.append(ours.losses(features, labels, epoch)["outlier_entropy"].item() != 0)
    assert started == [False, True, False, True]


def test_queues_keep_the_last_of_each_class():
    queues = ClassQueues(classes=2, length=3, width=1)
    for step in range(4):
        assert not queues.full
        queues.push(torch.tensor([[10.0 + step], [20.0 + step], [30.0 + step]]), torch.tensor([0, 0, step // 3]))
    queues.push(torch.zeros(2, 1, requires_grad=True), torch.tensor([1, 1]))
    assert queues.rows_CND[0].flatten().tolist() == [32.0, 13.0, 23.0]
    assert queues.rows_CND[1].flatten().tolist() == [33.0, 0.0, 0.0]
    assert queues.full and not queues.rows_CND.requires_grad


def test_the_same_seed_mixes_the_same():
    made = []
    for seed in (3, 3, 4):
        ours = method(seed=seed)
        ours.losses(*batch())
        made.append(ours.outliers())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def views(features, weight=None) -> Views:
    weight = torch.eye(features.shape[1]) if weight is None else weight
    return Views(features @ weight.T, features, {}, weight, torch.zeros(len(weight)))


def test_react_cuts_each_modality_by_its_own_scale():
    drawn = torch.Generator().manual_seed(0)
    features = torch.cat([torch.rand(500, 2, generator=drawn), 100 * torch.rand(500, 3, generator=drawn)], 1)
    score = ModalityReAct((2, 3)).fit(views(features))
    assert score.cuts_[:2].tolist() == pytest.approx([0.9, 0.9], abs=0.02)
    assert score.cuts_[2:].tolist() == pytest.approx([90, 90, 90], abs=2)
    weight = torch.randn(4, 5, generator=drawn)
    by_hand = torch.minimum(features, score.cuts_) @ weight.T
    torch.testing.assert_close(score.score(views(features, weight)), -by_hand.logsumexp(1))
    for by, expected in (("max_logit", -by_hand.amax(1)), ("msp", -softmax(by_hand, 1).amax(1))):
        other = ModalityReAct((2, 3), by=by).fit(views(features, weight))
        torch.testing.assert_close(other.score(views(features, weight)), expected)
    uncut = ModalityReAct((2, 3), percentile=100).fit(views(features)).score(views(features, weight))
    torch.testing.assert_close(uncut, -(features @ weight.T).logsumexp(1))


def test_what_cannot_be_is_said():
    with pytest.raises(BadInput, match="two modalities"):
        JointHead((4,), 3)
    with pytest.raises(BadInput, match="widths \\(5, 3\\), and were given \\(5, 4\\)"):
        JointHead((5, 3), 3)([torch.zeros(1, 5), torch.zeros(1, 4)])
    with pytest.raises(BadInput, match="nothing is left to disagree on"):
        MultiOOD(JointHead((2, 2), 2))
    MultiOOD(JointHead((2, 2), 2), agree_to_disagree=0, neighbors=2)
    plain = MultiOOD(JointHead((2, 2), 2), agree_to_disagree=0, outlier_disagreement=0, outlier_entropy=0, neighbors=9)
    plain.losses([torch.zeros(2, 2), torch.zeros(2, 2)], torch.tensor([0, 1]))
    assert int(plain.queues.counts.sum()) == 0  # nothing is kept for nothing
    for neighbors in (1, 5):
        with pytest.raises(BadInput, match="'neighbors'"):
            MultiOOD(JointHead((2, 2), 4), neighbors=neighbors)
    with pytest.raises(BadInput, match="'queue'"):
        MultiOOD(JointHead((2, 2), 4), queue=0)
    with pytest.raises(BadInput, match="there is 1"):
        disagreement([torch.zeros(1, 2)])
    with pytest.raises(UnknownName):
        ModalityReAct((1, 1), by="odds").fit(views(torch.zeros(2, 2)))
    with pytest.raises(BadInput, match="percentile"):
        ModalityReAct((1, 1), percentile=0).fit(views(torch.zeros(2, 2)))
    with pytest.raises(BadInput, match="2 features together, and the views have 3"):
        ModalityReAct((1, 1)).fit(views(torch.zeros(2, 3)))
    with pytest.raises(NotFitted):
        ModalityReAct((1, 1)).score(views(torch.zeros(2, 2)))
