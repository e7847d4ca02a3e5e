from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sklearn.covariance import EmpiricalCovariance  # noqa: E402

from farout.errors import BadInput, NotFitted  # noqa: E402
from farout.kit.fitting import fit, predict  # noqa: E402
from farout.kit.nets import mlp  # noqa: E402
from farout.ood.palm import PalmHead, SSDPlus, log_sinkhorn  # noqa: E402
from farout.ood.views import Views  # noqa: E402


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_sphere(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def bare(classes, dimensions=4, seed=0, **settings):
    """A head whose embedding is the direction of the features, with prototypes on the whole sphere."""
    head = PalmHead(dimensions, classes, dimensions=dimensions, **settings)
    head.projection = torch.nn.Identity()
    head.prototypes.copy_(on_sphere(drawn(*head.prototypes.shape, seed=seed + 100)))
    return head


def naive_sinkhorn(similarity, softness, rounds):
    """As the paper writes it: prototypes by samples, with exponentials."""
    Q = np.exp(similarity.T / softness)
    K, B = Q.shape
    Q = Q / Q.sum()
    for _ in range(rounds):
        Q = Q / Q.sum(1, keepdims=True) / K
        Q = Q / Q.sum(0, keepdims=True) / B
    return (Q * B).T


def naive_weights(Z, P, labels, classes, k, softness, rounds):
    Q = naive_sinkhorn(Z @ P.T, softness, rounds)
    weights = np.zeros_like(Q)
    for i, row in enumerate(Q):
        own = [j for j in range(len(P)) if j % classes == labels[i]]
        for j in sorted(own, key=lambda j: -row[j])[:k]:
            weights[i, j] = row[j]
    return weights / weights.sum(1, keepdims=True)


def naive_step(Z, P, labels, classes, k, momentum, temperature=0.1, softness=0.05, rounds=3):
    """Prototypes after a step, and both losses, by loops in float64."""
    w = naive_weights(Z, P, labels, classes, k, softness, rounds)
    moved = P.copy()
    for j in range(len(P)):
        if w[:, j].sum() > 0:
            moved[j] = momentum * P[j] + (1 - momentum) * (w[:, j] @ Z) / w[:, j].sum()
            moved[j] /= np.linalg.norm(moved[j])
    w = naive_weights(Z, moved, labels, classes, k, softness, rounds)
    likelihood = 0
    for i in range(len(Z)):
        logits = moved @ Z[i] / temperature
        likelihood -= w[i] @ logits - np.log(np.exp(logits).sum())
    contrast = 0
    for j in range(len(P)):
        others = [q for q in range(len(P)) if q != j]
        kin = [q for q in others if q % classes == j % classes]
        near = np.mean([moved[j] @ moved[q] / 0.5 for q in kin]) if kin else 0
        contrast += np.log(sum(np.exp(moved[j] @ moved[q] / 0.5) for q in others)) - near
    return moved, likelihood / len(Z), contrast / len(P)


def test_sinkhorn_brings_rows_and_columns_to_equal_sums():
    scores = on_sphere(drawn(24, 4)) @ on_sphere(drawn(6, 4, seed=1)).T / 0.05
    for rounds in (1, 3):
        torch.testing.assert_close(log_sinkhorn(scores, rounds).exp().sum(1), torch.ones(24))
    assert float((log_sinkhorn(scores, 3).exp().sum(0) - 4).abs().max()) > 0.01
    torch.testing.assert_close(log_sinkhorn(scores, 300).exp().sum(0), torch.full((6,), 4.0), rtol=0, atol=1e-3)


def test_sinkhorn_is_that_of_exponentials_and_does_not_overflow():
    similarity = on_sphere(drawn(24, 4)) @ on_sphere(drawn(6, 4, seed=1)).T
    expected = naive_sinkhorn(similarity.double().numpy(), 0.05, 3)
    found = log_sinkhorn(similarity / 0.05, 3).exp()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(log_sinkhorn(similarity / 0.05 + 7.0, 3).exp(), found, rtol=1e-4, atol=1e-6)
    huge = log_sinkhorn(1e4 * similarity, 3)
    assert torch.isfinite(huge).all()
    torch.testing.assert_close(huge.exp().sum(1), torch.ones(24), rtol=1e-2, atol=0)


@pytest.mark.parametrize(("classes", "K", "k"), [(3, 4, 2), (3, 4, None), (2, 1, 5), (1, 5, 2)])
def test_a_step_is_that_of_a_loop(classes, K, k):
    head = bare(classes, prototypes=K, neighbours=k, momentum=0.6, contrast=1.0)
    before = head.prototypes.clone()
    rows = 3 * drawn(30, 4, seed=2)
    labels = torch.randint(classes, (30,), generator=torch.Generator().manual_seed(3))
    losses = head.losses(rows, labels)
    Z = on_sphere(rows).double().numpy()
    moved, likelihood, contrast = naive_step(Z, before.double().numpy(), labels.tolist(), classes, k or K, 0.6)
    np.testing.assert_allclose(head.prototypes.numpy(), moved, rtol=1e-4, atol=1e-5)
    assert float(losses["likelihood"]) == pytest.approx(likelihood, rel=1e-4)
    assert float(losses["contrast"]) == pytest.approx(contrast, rel=1e-4)
    doubled = bare(classes, prototypes=K, neighbours=k, momentum=0.6, contrast=2.5)
    assert float(doubled.losses(rows, labels)["contrast"]) == pytest.approx(2.5 * contrast, rel=1e-4)


def test_settings_are_those_of_the_loop():
    settings = {"temperature": 0.3, "softness": 0.2, "rounds": 1}
    head = bare(2, prototypes=3, neighbours=2, momentum=0.9, **settings)
    before, rows, labels = head.prototypes.double().numpy(), drawn(20, 4, seed=4), torch.arange(20) % 2
    losses = head.losses(rows, labels)
    Z = on_sphere(rows).double().numpy()
    moved, likelihood, _ = naive_step(Z, before, labels.tolist(), 2, 2, 0.9, **settings)
    np.testing.assert_allclose(head.prototypes.numpy(), moved, rtol=1e-4, atol=1e-5)
    assert float(losses["likelihood"]) == pytest.approx(likelihood, rel=1e-4)


def test_one_prototype_without_memory_is_the_mean_of_its_class():
    head = bare(3, prototypes=1, neighbours=1, momentum=0.0)
    before, rows = head.prototypes.clone(), drawn(12, 4, seed=5)
    labels = torch.arange(12) % 2  # nothing of class 2
    head.losses(rows, labels)
    for c in (0, 1):
        mean = on_sphere(rows)[labels == c].mean(0)
        torch.testing.assert_close(head.prototypes[c], mean / mean.norm())
    other = bare(3, prototypes=1, neighbours=1, momentum=0.9)
    other.losses(rows, labels)
    torch.testing.assert_close(other.prototypes[2], before[2])  # stays where it was


def test_a_rotation_changes_no_loss():
    turn, _ = torch.linalg.qr(drawn(4, 4, seed=6))
    rows, labels = drawn(16, 4, seed=7), torch.arange(16) % 2
    plain, turned = bare(2, prototypes=3), bare(2, prototypes=3)
    turned.prototypes.copy_(plain.prototypes @ turn)
    a, b = plain.losses(rows, labels), turned.losses(rows @ turn, labels)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned.prototypes, plain.prototypes @ turn, rtol=1e-5, atol=1e-5)


def test_classes_take_turns_among_prototypes():
    head = PalmHead(width=8, classes=3, prototypes=2)
    assert head.class_of_prototype.tolist() == [0, 1, 2, 0, 1, 2]
    assert head.prototypes.shape == (6, 128) and float(head.prototypes.min()) >= 0
    torch.testing.assert_close(head.prototypes.norm(dim=1), torch.ones(6))
    assert head.neighbours == 2  # of the 5 asked for
    assert [tuple(part.weight.shape) for part in head.projection[::2]] == [(8, 8), (128, 8)]
    assert {name for name, _ in head.named_parameters()} == {
        f"projection.{place}.{what}" for place in (0, 2) for what in ("weight", "bias")
    }
    assert set(head.state_dict()) == {*dict(head.named_parameters()), "prototypes"}


def test_rows_are_assigned_to_a_few_prototypes_of_their_class():
    head = bare(2, prototypes=6, neighbours=4)
    labels = torch.arange(20) % 2
    weights = head._assigned(on_sphere(drawn(20, 4)), head.prototypes, head._own(labels, labels))
    torch.testing.assert_close(weights.sum(1), torch.ones(20))
    assert torch.equal((weights > 0).sum(1), torch.full((20,), 4))
    assert float(weights[labels == 0][:, 1::2].max()) == 0 == float(weights[labels == 1][:, ::2].max())


def test_gradients_reach_the_encoder_by_both_losses_and_no_step_holds_on_to_the_last():
    torch.manual_seed(0)
    head = PalmHead(5, 2, prototypes=3, neighbours=2, dimensions=8, momentum=0.9)
    labels = torch.arange(10) % 2
    slopes = {}
    for name in ("likelihood", "contrast"):
        features = drawn(10, 5).requires_grad_(True)
        head.losses(features, labels)[name].backward()
        slopes[name] = features.grad
        assert float(features.grad.abs().max(1).values.min()) > 0
    assert not head.prototypes.requires_grad
    assert all(float(weight.grad.abs().max()) > 0 for weight in head.projection.parameters())
    slow = PalmHead(5, 2, prototypes=3, neighbours=2, dimensions=8, momentum=0.9999)
    slow.load_state_dict(head.state_dict())
    features = drawn(10, 5).requires_grad_(True)
    slow.losses(features, labels)["contrast"].backward()
    assert float(features.grad.abs().max()) < 0.01 * float(slopes["contrast"].abs().max())  # by 1 - momentum


def test_the_likelihood_moves_embeddings_and_no_prototypes():
    head, labels = bare(2, prototypes=3, neighbours=2, momentum=0.5), torch.arange(10) % 2
    features = drawn(10, 4).requires_grad_(True)
    (slope,) = torch.autograd.grad(head.losses(features, labels)["likelihood"], features)
    embeddings = on_sphere(features)
    weights = head._assigned(embeddings, head.prototypes, head._own(labels, features))
    logits = embeddings @ head.prototypes.T / 0.1
    fixed = (logits.logsumexp(1) - (weights * logits).sum(1)).mean()
    torch.testing.assert_close(slope, torch.autograd.grad(fixed, features)[0])


def test_prototypes_move_in_training_alone():
    head = bare(2, prototypes=3).eval()
    before = head.prototypes.clone()
    evaluated = head.losses(drawn(10, 4), torch.arange(10) % 2)
    assert torch.equal(head.prototypes, before)
    trained = head.train().losses(drawn(10, 4), torch.arange(10) % 2)
    assert not torch.equal(head.prototypes, before)
    assert torch.equal(evaluated["likelihood"], trained["likelihood"])


def test_without_labels_every_prototype_is_its_own_class():
    head = bare(None, prototypes=7, neighbours=3, momentum=0.7)
    before, rows = head.prototypes.double().numpy(), drawn(30, 4, seed=8)
    losses = head.losses(rows)
    Z = on_sphere(rows).double().numpy()
    moved, likelihood, _ = naive_step(Z, before, [0] * 30, 1, 3, 0.7)
    np.testing.assert_allclose(head.prototypes.numpy(), moved, rtol=1e-4, atol=1e-5)
    assert float(losses["likelihood"]) == pytest.approx(likelihood, rel=1e-4)
    each = [np.log(sum(np.exp(2 * moved[j] @ moved[q]) for q in range(7) if q != j)) for j in range(7)]
    assert float(losses["contrast"]) == pytest.approx(np.mean(each), rel=1e-4)


def test_half_precision_is_raised():
    head = bare(2, prototypes=3)
    rows, labels = drawn(10, 4).bfloat16(), torch.arange(10) % 2
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.losses(rows, labels)
    expected = bare(2, prototypes=3).losses(rows.float(), labels)
    for name in losses:
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], expected[name])


def test_clusters_within_classes_are_found():
    """Four clusters of which opposite ones make a class: each of its two prototypes takes one."""
    centres = 3 * torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    cluster = torch.arange(800) % 4
    x = centres[cluster] + 0.3 * drawn(800, 2)
    net = mlp([2, 32, 2], seed=0)
    torch.manual_seed(0)
    net.linear = PalmHead(32, 2, prototypes=2, neighbours=1, dimensions=16, momentum=0.9)
    history = fit(
        net,
        lambda net, x, y: net.linear.losses(net.features(x), y),
        (x, cluster % 2),
        epochs=15,
        batch_size=64,
        learning_rate=0.05,
    )
    nearest = (predict(net, x) @ net.linear.prototypes.T).argmax(1)
    assert float((nearest % 2 == cluster % 2).float().mean()) > 0.99
    assert len({int(nearest[cluster == c].mode().values) for c in range(4)}) == 4
    assert history[-1]["likelihood"] < history[0]["likelihood"]


def test_the_score_is_the_distance_to_one_gaussian_over_directions():
    usual, rows = drawn(300, 6) + 2, 2 * drawn(40, 6, seed=1)
    score = SSDPlus().fit(Views(usual, usual))
    directions, others = on_sphere(usual.double()).numpy(), on_sphere(rows.double()).numpy()
    expected = EmpiricalCovariance().fit(directions).mahalanobis(others)
    np.testing.assert_allclose(score.score(Views(rows, rows)).numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(score.score(Views(rows, 7 * rows)), score.score(Views(rows, rows)), rtol=1e-6, atol=0)
    assert float(score.score(Views(usual, usual)).mean()) == pytest.approx(6, rel=1e-6)  # as many as dimensions
    with pytest.raises(NotFitted):
        SSDPlus().score(Views(rows, rows))


def test_the_mean_can_be_taken_off_twice_as_in_the_code():
    usual, rows = drawn(300, 6) + 2, 2 * drawn(40, 6, seed=1)
    directions, others = on_sphere(usual.double()).numpy(), on_sphere(rows.double()).numpy()
    mean, deviation = directions.mean(0), directions.std(0)
    inverse = np.linalg.pinv(np.cov(((directions - mean) / deviation).T, bias=True))
    off = (others - mean) / deviation - mean
    found = SSDPlus(mean_twice=True).fit(Views(usual, usual)).score(Views(rows, rows))
    np.testing.assert_allclose(found.numpy(), np.einsum("ni,ij,nj->n", off, inverse, off), rtol=1e-6)
    assert not np.allclose(
        found.numpy(), SSDPlus().fit(Views(usual, usual)).score(Views(rows, rows)).numpy(), rtol=0.01
    )


def test_units_that_never_fire_count_for_nothing():
    usual, rows = drawn(300, 6) + 2, 2 * drawn(40, 6, seed=1)
    dead = torch.cat([usual, torch.zeros(300, 2)], 1)
    expected = SSDPlus().fit(Views(usual, usual)).score(Views(rows, rows))
    score = SSDPlus().fit(Views(dead, dead))
    torch.testing.assert_close(score.score(Views(rows, torch.cat([rows, torch.zeros(40, 2)], 1))), expected)
    assert torch.isfinite(score.score(Views(rows, torch.cat([rows, torch.ones(40, 2)], 1)))).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": 0}, "'classes' must be at least 1, not 0"),
        ({"prototypes": 0}, "'prototypes' must be at least 1"),
        ({"neighbours": -1}, "'neighbours' must be at least 1"),
        ({"rounds": 0}, "'rounds' must be at least 1"),
        ({"momentum": 1.0}, "below 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"softness": 0.0}, "above 0"),
        ({"contrast": -1.0}, "not below"),
        ({"classes": 1, "prototypes": 1}, "nothing to be told from"),
        ({"classes": None, "prototypes": 1}, "nothing to be told from"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        PalmHead(**{"width": 4, "classes": 2} | settings)


def test_labels_that_do_not_fit_are_refused():
    head = bare(2, prototypes=3)
    with pytest.raises(BadInput, match="has 2 classes and needs labels"):
        head.losses(drawn(4, 4))
    for labels in (torch.tensor([0, 1, 2, 0]), torch.tensor([0, -1, 1, 0]), torch.tensor([0, 1])):
        with pytest.raises(BadInput, match="4 rows need a label each, from 0 to 1"):
            head.losses(drawn(4, 4), labels)
    with pytest.raises(BadInput, match="made for data without labels"):
        bare(None, prototypes=3).losses(drawn(4, 4), torch.zeros(4, dtype=torch.int64))
