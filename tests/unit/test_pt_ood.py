"""PT-OOD: the neighbour score, what it does not depend on, the probe and its facts, and the study."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from farout.errors import BadInput, NotFitted  # noqa: E402
from farout.ood._probe import linear_probe, separability, spread  # noqa: E402
from farout.ood.energy import Energy  # noqa: E402
from farout.ood.msp import MSP  # noqa: E402
from farout.ood.pt_ood import PTOOD, Group, check_overlap, familiarity_study, info_nce  # noqa: E402
from farout.ood.views import Views  # noqa: E402


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views(features, seed=0) -> Views:
    weight = drawn(3, features.shape[1], seed=seed)
    return Views(features @ weight.T, features, {}, weight, torch.zeros(3))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("k", [1, 4])
def test_the_score_is_the_distance_to_the_kth_neighbour_of_length_one(center, k):
    learned, new = drawn(20, 5) + 2, drawn(7, 5, seed=1)
    found = PTOOD(k=k, center=center).fit(views(learned)).score(views(new))
    mean = learned.mean(0) if center else 0
    bank, x = F.normalize(learned - mean, dim=1), F.normalize(new - mean, dim=1)
    for i in range(7):
        assert float(found[i]) == pytest.approx(sorted(float((x[i] - b).norm()) for b in bank)[k - 1], abs=1e-5)


def test_the_head_and_the_scale_of_features_do_not_matter():
    learned, new = drawn(20, 5), drawn(7, 5, seed=1)
    plain = PTOOD(k=3).fit(views(learned)).score(views(new))
    torch.testing.assert_close(PTOOD(k=3).fit(views(learned, seed=5)).score(views(new, seed=6)), plain)
    torch.testing.assert_close(PTOOD(k=3).fit(views(7 * learned)).score(views(0.1 * new)), plain)
    centred = PTOOD(k=3, center=True)
    before, after = (centred.fit(views(s * learned)).score(views(s * new)) for s in (1, 7))
    torch.testing.assert_close(before, after)
    assert not torch.allclose(before, plain, atol=1e-2)
    shifted = PTOOD(k=3, center=True).fit(views(learned + 3)).score(views(new + 3))
    torch.testing.assert_close(shifted, before, atol=1e-4, rtol=1e-4)


def test_a_fitted_input_finds_itself_unless_it_is_left_out():
    learned = drawn(600, 5)  # more than a block
    learned[1] = learned[0]
    assert float(PTOOD(k=1).fit(views(learned)).score(views(learned)).abs().max()) == 0
    left = PTOOD(k=2, leave_self_out=True).fit(views(learned)).score(views(learned))
    x = F.normalize(learned, dim=1)
    for i in (0, 1, 2, 300, 599):
        others = sorted(float((x[i] - x[j]).norm()) for j in range(600) if j != i)
        assert float(left[i]) == pytest.approx(others[1], abs=1e-5)
    twins = PTOOD(k=1, leave_self_out=True).fit(views(learned)).score(views(learned))
    assert float(twins[:2].max()) == 0 and float(twins[2:].min()) > 0


def test_the_probe_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    centres = 2 * drawn(4, 6, seed=3)
    labels = torch.arange(80) % 4
    x = (centres[labels] + drawn(80, 6)) * torch.tensor([1, 10, 0.1, 1, 1, 0.0])
    weight, bias = linear_probe(x, labels)
    scaled = ((x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-12)).numpy()
    scaled[:, 5] = 0
    expected = LogisticRegression(max_iter=1000).fit(scaled, labels.numpy())
    np.testing.assert_allclose(
        (x @ weight.T + bias).softmax(1).numpy(), expected.predict_proba(scaled), atol=1e-3, rtol=1e-3
    )
    two = labels < 2
    weight, bias = linear_probe(x[two], labels[two])
    assert weight.shape == (2, 6)
    scaled = ((x[two] - x[two].mean(0)) / x[two].std(0, correction=0).clamp_min(1e-12)).numpy()
    scaled[:, 5] = 0
    expected = LogisticRegression(max_iter=1000).fit(scaled, labels[two].numpy())
    np.testing.assert_allclose(
        (x[two] @ weight.T + bias).softmax(1).numpy(), expected.predict_proba(scaled), atol=1e-3, rtol=1e-3
    )


def test_separability_is_high_for_compact_classes_and_chance_for_none():
    labels = torch.arange(200) % 4
    centres = drawn(4, 8, seed=1)
    noise = drawn(200, 8, seed=2)
    compact, scattered = 5 * centres[labels] + noise, noise
    assert separability(compact, labels) > 0.97
    assert 0.1 < separability(scattered, labels) < 0.4
    assert separability(scattered, labels, folds=5) < 0.4
    # memory does not help: more features than rows are separable, and yet nothing is learned
    assert separability(drawn(200, 400, seed=3), labels) < 0.4
    # other numbers for the classes are the same classes
    assert separability(compact, 10 * labels + 3) == separability(compact, labels)


def test_spread_is_the_variance_within_over_all():
    x, labels = drawn(30, 3), torch.arange(30) % 3
    within = sum(float((x[labels == c] - x[labels == c].mean(0)).square().sum()) for c in range(3))
    assert spread(x, labels) == pytest.approx(within / float((x - x.mean(0)).square().sum()), rel=1e-5)
    assert spread(drawn(3, 3)[labels], labels) == pytest.approx(0, abs=1e-12)
    assert spread(torch.ones(4, 2), torch.arange(4) % 2) == 0


def test_overlaps_raise():
    check_overlap(["cat", "dog"], ["catfish"], drawn(3, 2), drawn(4, 2, seed=1))
    with pytest.raises(BadInput, match="2 classes of the task are among the outliers, such as 'dog'"):
        check_overlap(["cat", "dog", "sea-lion"], ["Dog", "sea lion"])
    x = drawn(5, 2)
    with pytest.raises(BadInput, match="1 of the outliers are inputs of the task too, the first in row 2"):
        check_overlap(["cat"], ["car"], x, torch.cat([drawn(2, 2, seed=1), x[3:4]]))
    check_overlap(["cat"], ["car"], x, drawn(3, 4))


def test_info_nce_is_that_of_loops_and_mirrors():
    a, b, T = drawn(4, 3), drawn(4, 3, seed=1), 0.5
    z = [F.normalize(row, dim=0) for row in (*a, *b)]
    total = 0.0
    for i in range(8):
        powers = {j: math.exp(float(z[i] @ z[j]) / T) for j in range(8) if j != i}
        total -= math.log(powers[(i + 4) % 8] / sum(powers.values()))
    assert float(info_nce(a, b, T)) == pytest.approx(total / 8, rel=1e-5)
    torch.testing.assert_close(info_nce(b, a, T), info_nce(a, b, T))
    torch.testing.assert_close(info_nce(3 * a, b, T), info_nce(a, b, T))
    a.requires_grad_()
    info_nce(a, b).backward()
    assert torch.isfinite(a.grad).all() and float(a.grad.abs().sum()) > 0


def group(names, places, n=60, seed=0) -> Group:
    labels = torch.arange(n) % len(names)
    x = 6 * torch.eye(6)[torch.tensor(places)[labels]] + drawn(n, 6, seed=seed)
    return Group(x, labels, names)


def test_the_study_measures_every_backbone_group_and_score():
    train, test = group(("cat", "dog"), [0, 1]), group(("cat", "dog"), [0, 1], seed=1)
    outliers = {"familiar": group(("car", "bus"), [2, 3], seed=2), "unfamiliar": group(("pen", "cup"), [4, 4], seed=3)}
    fold = torch.zeros(6, 4)
    fold[[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 3]] = 1  # what is familiar falls upon the task
    backbones = {"whole": lambda x: x, "folded": lambda x: x @ fold}
    scores = {"MSP": MSP(), "energy": Energy(), "kNN": PTOOD(k=3)}
    rows = familiarity_study(backbones, train, test, outliers, scores, batch_size=17)
    assert [(row["backbone"], row["outliers"], row["score"]) for row in rows] == [
        (b, o, s) for b in backbones for o in outliers for s in scores
    ]
    table = {(row["backbone"], row["outliers"], row["score"]): row for row in rows}
    assert table["whole", "familiar", "kNN"]["AUROC"] > 0.95
    assert table["folded", "familiar", "kNN"]["AUROC"] < 0.7
    assert table["folded", "unfamiliar", "kNN"]["AUROC"] > 0.95
    assert all(row["accuracy"] > 0.95 for row in rows)
    for name in backbones:
        assert table[name, "familiar", "MSP"]["separability"] > 0.95
        assert table[name, "unfamiliar", "MSP"]["separability"] < 0.75
        assert table[name, "familiar", "MSP"]["within"] < table[name, "unfamiliar", "MSP"]["within"]
    from sklearn.metrics import roc_auc_score

    weight, bias = linear_probe(train.inputs, train.labels)
    found = [-(part.inputs @ weight.T + bias).softmax(1).amax(1) for part in (test, outliers["familiar"])]
    expected = roc_auc_score(np.repeat([0, 1], 60), torch.cat(found).numpy())
    assert table["whole", "familiar", "MSP"]["AUROC"] == pytest.approx(expected)
    few = Group(drawn(3, 6, seed=4), torch.tensor([0, 0, 1]), ("pen", "cup"))
    assert familiarity_study(backbones, train, test, {"few": few}, scores)[0]["separability"] is None
    with pytest.raises(BadInput, match="such as 'cat'"):
        familiarity_study(backbones, train, test, {"near": group(("Cat", "cup"), [0, 4])}, scores)
    with pytest.raises(BadInput, match="inputs of the task too"):
        familiarity_study(backbones, train, test, {"near": Group(train.inputs, train.labels, ("a", "b"))}, scores)


def test_what_cannot_be_is_said():
    x = drawn(5, 2)
    for score in (PTOOD(k=0), PTOOD(k=6), PTOOD(k=5, leave_self_out=True)):
        with pytest.raises(BadInput, match="k lies between"):
            score.fit(views(x))
    with pytest.raises(BadInput, match="there are 5, and not 2 others"):
        PTOOD(k=1, leave_self_out=True).fit(views(x)).score(views(x[:2]))
    with pytest.raises(NotFitted):
        PTOOD().score(views(x))
    with pytest.raises(BadInput, match="no features"):
        PTOOD(k=1).fit(Views(x))
    for labels in (torch.zeros(5, dtype=torch.long), torch.tensor([0, 0, 2, 2, 2]), torch.tensor([1, 1, 2, 2, 2])):
        with pytest.raises(BadInput, match="numbered from 0 without gaps"):
            linear_probe(x, labels)
    with pytest.raises(BadInput, match="one has 1"):
        separability(x, torch.tensor([0, 0, 0, 0, 1]))
