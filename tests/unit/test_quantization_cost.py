"""The cost of plain rounding: errors equal numpy's, predicted losses equal what rounding does, and the model stays."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from farout.errors import BadInput
from farout.inside import quantization_costs
from farout.inside.quantization_cost import SCHEMES
from naive import quantization_cost as naive

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


def spiky(n=60, d=48):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, d, generator=generator)
    x[:, 5] *= 20
    x[7, 9] = 150.0
    return x


def linear(d=48, outputs=30):
    torch.manual_seed(0)
    return nn.Linear(d, outputs)


def doubles(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


def test_errors_equal_numpy():
    module, x = linear(), spiky()
    (cost,) = quantization_costs(module, [x])
    x, weight = doubles(x, module.weight)
    assert cost.errors == pytest.approx(naive.plain(x, weight), rel=1e-4)
    tokens = naive.error(x, weight, naive.rows(x, 8), naive.rows(weight, 8))
    assert cost.remedies["per-token scales"]["w8a8"] == pytest.approx(tokens, rel=1e-4)
    assert cost.remedies["per-token scales"]["w4a16"] == cost.errors["w4a16"]  # has no place there
    x_s, weight_s = naive.smoothed(x, weight)
    smooth = ((naive.nearest(x_s, 8) @ naive.rows(weight_s, 8).T - x @ weight.T) ** 2).sum() / (
        (x @ weight.T) ** 2
    ).sum()
    assert cost.remedies["smoothquant"]["w8a8"] == pytest.approx(smooth, rel=1e-4)
    apart = ((naive.without_columns(x, weight, 8) - x @ weight.T) ** 2).sum() / ((x @ weight.T) ** 2).sum()
    assert cost.remedies["outlier columns in 16 bits"]["w8a8"] == pytest.approx(apart, rel=1e-4)


def test_the_first_token_apart_equals_rounding_the_others():
    module, x = linear(), spiky().view(4, 15, 48)
    x[:, 0, 3] = 500.0
    (cost,) = quantization_costs(module, [x])
    x_NC, weight = doubles(x.reshape(60, 48), module.weight)
    others = np.arange(60) % 15 > 0
    rounded = x_NC.copy()
    rounded[others] = naive.nearest(x_NC[others], 8)
    expected = naive.error(x_NC, weight, rounded, naive.rows(weight, 8))
    assert cost.remedies["first token in 16 bits"]["w8a8"] == pytest.approx(expected, rel=1e-4)
    assert cost.remedies["first token in 16 bits"]["w8a8"] < 0.2 * cost.errors["w8a8"]


def test_groups_of_weights_equal_numpy():
    module = linear(256, 20)
    module.weight.data[:, 3] *= 30
    x = torch.randn(50, 256)
    (cost,) = quantization_costs(module, [x])
    x, weight = doubles(x, module.weight)
    grouped = np.concatenate([naive.rows(weight[:, :128], 4), naive.rows(weight[:, 128:], 4)], axis=1)
    assert cost.remedies["groups of 128"]["w4a16"] == pytest.approx(naive.error(x, weight, x, grouped), rel=1e-4)


def test_a_rotation_spreads_a_column_and_changes_nothing_unrounded():
    from farout.inside._rounded_map import _turn

    x, weight = torch.randn(9, 48, dtype=torch.float64), torch.randn(7, 48, dtype=torch.float64)
    turn = _turn(48, 0, x)
    assert torch.allclose(turn(x) @ turn(weight).T, x @ weight.T, rtol=0, atol=1e-12)
    assert torch.allclose(turn(x).norm(dim=1), x.norm(dim=1))
    module, x = linear(64), torch.randn(40, 64)
    x[:, 5] *= 40
    (cost,) = quantization_costs(module, [x])
    assert cost.remedies["rotation"]["w8a8"] < 0.1 * cost.errors["w8a8"]


def test_padding_is_left_out():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.map = nn.Embedding(20, 48), nn.Linear(48, 30)
            self.embed.weight.data[19] = 300.0  # the padding

        def forward(self, input_ids, attention_mask=None):
            return self.map(self.embed(input_ids))

    model = Reader()
    ids = torch.randint(0, 19, (3, 10))
    (whole,) = quantization_costs(model, [{"input_ids": ids}])
    padded = torch.cat([ids, torch.full((3, 4), 19)], 1)
    (cost,) = quantization_costs(model, [{"input_ids": padded, "attention_mask": (padded != 19).long()}])
    assert cost.errors == pytest.approx(whole.errors, rel=1e-6)


def test_convolutions_equal_numpy_on_patches():
    torch.manual_seed(0)
    module, x = nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.randn(4, 3, 9, 9)
    (cost,) = quantization_costs(module, [x])
    weight = module.weight.detach().double()
    rounded_w = torch.from_numpy(naive.rows(weight.flatten(1).numpy(), 8)).view_as(weight)
    y = F.conv2d(x.double(), weight, stride=2, padding=1)
    rounded_x = torch.from_numpy(naive.nearest(x.double().numpy(), 8))
    change = F.conv2d(rounded_x, rounded_w, stride=2, padding=1) - y
    assert cost.errors["w8a8"] == pytest.approx(float(change.square().sum() / y.square().sum()), rel=1e-4)
    (grouped,) = quantization_costs(nn.Conv2d(6, 6, 3, groups=6), [torch.randn(2, 6, 8, 8)])
    assert grouped.remedies["smoothquant"] == grouped.errors  # has no place there


class Chain(nn.Module):
    """Two maps before a head; gives logits under their name."""

    def __init__(self, d=24):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 11)

    def forward(self, x):
        return SimpleNamespace(logits=self.head(torch.tanh(self.second(torch.tanh(self.first(x))))))


def test_predicted_losses_are_the_divergence_that_rounding_makes():
    model = Chain().eval()
    x = torch.randn(20_000, 24)
    x[:, 4] *= 8
    costs = quantization_costs(model, [x], tokens=20_000)
    assert [cost.layer for cost in costs] == ["first", "second"]  # recipes leave the head
    with torch.no_grad():
        before = model(x).logits.double().numpy()
        for cost in costs:
            module = getattr(model, cost.layer)
            weight = module.weight.data.clone()
            module.weight.data = torch.from_numpy(naive.rows(weight.double().numpy(), 4)).float()
            after = model(x).logits.double().numpy()
            module.weight.data = weight
            assert cost.loss["w4a16"] == pytest.approx(naive.divergence(before, after), rel=0.1)


def test_without_logits_the_loss_is_the_change_of_the_output():
    module, x = linear(), spiky(4_000)
    (cost,) = quantization_costs(module, [x], tokens=4_000)
    for scheme in SCHEMES:
        assert cost.loss[scheme] == pytest.approx(cost.errors[scheme], rel=0.1)
    assert cost.of("w8a8") == cost.loss["w8a8"]


def test_the_model_is_left_as_it_was():
    model = Chain()
    model.first.weight.requires_grad_(False)
    x = torch.randn(50, 24)
    before, flags = model(x).logits.clone(), [weight.requires_grad for weight in model.parameters()]
    quantization_costs(model, [x])
    assert torch.equal(model(x).logits, before)
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_also_when_the_model_fails():
    model = Chain()
    with pytest.raises(RuntimeError):
        quantization_costs(model, [torch.randn(5, 3)])
    assert not any(module._forward_hooks for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


def test_only_as_many_batches_as_are_asked_for():
    seen = []
    model = Chain()
    model.first.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    quantization_costs(model, (torch.randn(40, 24) for _ in range(9)), tokens=100)
    assert seen == [40, 40, 40]


def test_transposed_weights_of_transformers():
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    module, reference, x = Conv1D(30, 48), linear(), spiky()
    module.weight.data, module.bias.data = reference.weight.data.T.clone(), reference.bias.data
    (one,), (other,) = quantization_costs(module, [x]), quantization_costs(reference, [x])
    assert one.errors == pytest.approx(other.errors, rel=1e-5)
    assert one.shape == (48, 30)


def test_bad_input():
    with pytest.raises(BadInput, match="there are no batches"):
        quantization_costs(Chain(), [])
    with pytest.raises(BadInput, match="no parameters"):
        quantization_costs(nn.ReLU(), [torch.ones(2, 3)])
    zero = nn.Linear(4, 4)
    zero.weight.data[:] = 0
    (cost,) = quantization_costs(zero, [torch.zeros(5, 4)])
    assert set(cost.errors.values()) == {0.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_the_same():
    model, x = Chain().eval(), spiky(500, 24)
    here = quantization_costs(model, [x])
    there = quantization_costs(model.cuda(), [x])
    for one, other in zip(here, there):
        assert one.errors == pytest.approx(other.errors, rel=1e-3)
        assert one.loss == pytest.approx(other.loss, rel=0.5)  # a value on the edge between two steps goes either way
