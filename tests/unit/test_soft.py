"""Losses with distributions as targets: closed forms, torch's own losses, gradients, and the corners of the simplex."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

torch = pytest.importorskip("torch")

from farout.errors import BadInput  # noqa: E402
from farout.ood._soft import hellinger, kl_from_uniform, normalized_entropy, soft_cross_entropy  # noqa: E402


def logits(n=7, classes=5, seed=0):
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_soft_cross_entropy_is_that_of_torch_for_labels_and_for_distributions():
    a, labels = logits(), torch.tensor([0, 1, 2, 3, 4, 0, 2])
    hard = torch.nn.functional.one_hot(labels, 5).double()
    torch.testing.assert_close(soft_cross_entropy(a, hard), torch.nn.functional.cross_entropy(a, labels))
    soft = logits(seed=1).softmax(-1)
    torch.testing.assert_close(soft_cross_entropy(a, soft), torch.nn.functional.cross_entropy(a, soft))


def test_cross_entropy_to_uniform_is_the_divergence_plus_log_c():
    a = logits()
    uniform = torch.full_like(a, 1 / 5)
    torch.testing.assert_close(kl_from_uniform(a) + math.log(5), soft_cross_entropy(a, uniform))


def test_kl_from_uniform_is_that_of_scipy_and_zero_for_equal_logits():
    a = logits()
    expected = np.mean([entropy(np.full(5, 0.2), row) for row in a.softmax(-1).numpy()])
    assert float(kl_from_uniform(a)) == pytest.approx(expected, rel=1e-12)
    assert float(kl_from_uniform(torch.full((3, 6), 2.5))) == pytest.approx(0, abs=1e-6)
    assert float(kl_from_uniform(torch.tensor([[0.9, 0.1]]).log())) == pytest.approx(0.5108, abs=5e-5)
    assert float(kl_from_uniform(torch.tensor([[200.0, 0.0]]))) == pytest.approx(100 - math.log(2), rel=1e-6)


def test_the_mean_is_over_rows():
    a, b = logits(1, seed=1), logits(1, seed=2)
    both = torch.cat([a, b])
    uniform = torch.full_like(a, 1 / 5)
    for loss in (kl_from_uniform, lambda x: soft_cross_entropy(x, uniform.expand(len(x), 5))):
        torch.testing.assert_close(loss(both), (loss(a) + loss(b)) / 2)


def test_hellinger_has_its_closed_forms_and_is_a_distance():
    p, q, r = (logits(seed=s).softmax(-1) for s in range(3))
    one, other = torch.eye(2, dtype=torch.float64)
    assert float(hellinger(one, other, least=0)) == 1
    assert float(hellinger(one, other)) == pytest.approx(1 - 1e-3, abs=1e-6)
    assert float(hellinger(torch.tensor([0.5, 0.5]), one.float(), least=0)) == pytest.approx(0.5412, abs=5e-5)
    assert torch.equal(hellinger(p, p), torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(hellinger(p, q, 0), (1 - (p * q).sqrt().sum(-1)).sqrt())  # by Bhattacharyya's sum
    torch.testing.assert_close(hellinger(p, q), hellinger(q, p))
    assert bool((hellinger(p, r) <= hellinger(p, q) + hellinger(q, r)).all())


def test_normalized_entropy_is_that_of_scipy():
    p = logits().softmax(-1)
    torch.testing.assert_close(normalized_entropy(p), torch.tensor(entropy(p.numpy(), axis=1) / np.log(5)))
    assert float(normalized_entropy(torch.full((9,), 1 / 9))) == pytest.approx(1, rel=1e-6)
    assert torch.equal(normalized_entropy(torch.eye(4)), torch.zeros(4))


def test_gradients_are_those_of_differences():
    a, b = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: soft_cross_entropy(x, y.softmax(-1)), (a, b))
    assert torch.autograd.gradcheck(kl_from_uniform, (a,))
    assert torch.autograd.gradcheck(lambda x, y: hellinger(x.softmax(-1), y.softmax(-1)), (a, b))
    assert torch.autograd.gradcheck(lambda x: normalized_entropy(x.softmax(-1)), (a,))


def test_gradients_are_finite_at_the_corners():
    sure = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    p = sure.softmax(-1)
    losses = [kl_from_uniform(sure), hellinger(p, p.detach()).sum(), normalized_entropy(p).sum()]
    losses.append(hellinger(p, p.detach().flip(-1)).sum())
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, sure, retain_graph=True)
        assert bool(gradient.isfinite().all())


def test_what_cannot_be_is_said():
    with pytest.raises(BadInput, match=r"\(3, 4\) need targets of that shape, not \(3,\)"):
        soft_cross_entropy(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(BadInput, match="two classes or more, not 1"):
        normalized_entropy(torch.ones(3, 1))
