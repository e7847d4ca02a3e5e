"""LLM.int8(): thresholds, invariances and bounds; against a loop over integers, and against bitsandbytes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from farout.errors import BadInput  # noqa: E402
from farout.quantize import quantize  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.llm_int8 import LLMInt8, Split  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402
from naive import quantize_llm_int8 as naive  # noqa: E402

NARROW = Grid(8, rule="narrow")


def drawn(n: int = 7, width: int = 24, outputs: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs with two outlying columns, one of which reaches the threshold in a single token, weights and a bias."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    x[:, 5] *= 20
    x[3, 11] = -6.0  # reaches 6 and is not above it
    x[4, 12] = 5.999
    x[6] = 0
    weight = torch.randn(outputs, width, generator=generator, dtype=torch.float64)
    weight[2] = 0
    return x, weight, torch.randn(outputs, generator=generator, dtype=torch.float64)


class Branch(nn.Module):
    """A map beside the stream, which is what makes a block."""

    def __init__(self, norm: nn.Module, linear: nn.Module) -> None:
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x):
        return x + self.linear(self.norm(x))


def two_maps(width: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Branch(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(2)))


def linear(x, weight, bias, threshold):
    return functional.linear(Split(threshold)(x), NARROW.rounded(weight), bias)


@pytest.mark.parametrize("threshold", [0.0, 2.5, 6.0, math.inf])
def test_it_is_the_product_of_a_loop_over_integers(threshold):
    x, weight, bias = drawn()
    expected, tokens, weights, columns = naive.linear(x.numpy(), weight.numpy(), bias.numpy(), threshold)
    if threshold == 6.0:
        assert columns == [5, 11]
    np.testing.assert_allclose(linear(x, weight, bias, threshold).numpy(), expected, rtol=1e-12, atol=1e-12)
    steps = NARROW.steps(weight)
    for row, ((codes, scale), found) in enumerate(zip(weights, NARROW.codes(weight, steps))):
        assert found.tolist() == codes
        if scale:
            assert float(steps.scale[row]) == pytest.approx(scale / 127)
    split, rounded = Split(threshold), Split(threshold)(x)
    assert split.columns(x).nonzero().flatten().tolist() == columns
    assert torch.equal(rounded[:, columns], x[:, columns])
    for (codes, scale), row in zip(tokens, rounded):
        rest = [float(value) for j, value in enumerate(row) if j not in columns]
        assert rest == pytest.approx([c * scale / 127 for j, c in enumerate(codes) if j not in columns])


def test_the_ordinary_values_of_an_outlying_column_count_for_the_scale_of_their_token():
    x = torch.tensor([[5.0, 0.3, 0.1], [7.0, 0.3, 0.1]])
    expected = torch.tensor([[5.0, 8 * 5 / 127, 3 * 5 / 127], [7.0, 0.3, 42 * 0.3 / 127]])
    torch.testing.assert_close(Split(6.0)(x), expected)


def test_columns_depend_on_all_tokens_of_a_call():
    x = drawn()[0]
    assert int(Split(6.0).columns(x).sum()) == 2 and int(Split(6.0).columns(x[:1]).sum()) == 1
    assert torch.equal(Split(6.0)(x[None]), Split(6.0)(x)[None])


@pytest.mark.parametrize("threshold", [0.0, math.inf])
def test_no_threshold_is_rounding_by_rows_and_tokens(threshold):
    x = drawn()[0]
    assert torch.equal(Split(threshold)(x), Grid(8, "token", rule="narrow").rounded(x))


def test_a_threshold_below_everything_leaves_inputs_as_they_are():
    x, weight, bias = drawn()
    assert torch.equal(linear(x, weight, bias, 1e-12), functional.linear(x, NARROW.rounded(weight), bias))


@pytest.mark.parametrize("threshold", [0.0, 2.5, 6.0])
def test_the_product_splits_and_does_not_depend_on_the_order_of_columns(threshold):
    x, weight, bias = drawn()
    y, dense = linear(x, weight, bias, threshold), NARROW.rounded(weight)
    columns = Split(threshold).columns(x)
    eight = Split(threshold)(x).masked_fill(columns, 0)
    torch.testing.assert_close(y, eight @ dense.T + bias + x[:, columns] @ dense[:, columns].T)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(linear(x[:, order], weight[:, order], bias, threshold), y)


def test_weights_are_within_half_a_step_and_tokens_scale():
    x, weight, _ = drawn()
    reach = weight.abs().amax(1, keepdim=True)
    assert bool(((NARROW.rounded(weight) - weight).abs() <= reach / 254 * (1 + 1e-12)).all())
    assert bool(((Split(0.0)(x) - x).abs() <= x.abs().amax(1, keepdim=True) / 254 * (1 + 1e-12)).all())
    a = torch.logspace(-3, 3, len(x), dtype=x.dtype)[:, None]
    torch.testing.assert_close(linear(a * x, weight, None, 0.0), a * linear(x, weight, None, 0.0), rtol=1e-9, atol=0)


def test_half_precision_is_rounded_in_single():
    x = torch.tensor([[1000.0, -437.5, 3.0, 0.5]], dtype=torch.float16)  # 127 * 1000 is above the largest float16
    torch.testing.assert_close(Split(0.0)(x), Split(0.0)(x.float()).half(), rtol=0, atol=0)
    assert Split(6.0)(x.bfloat16()).dtype == torch.bfloat16


def test_the_recipe_puts_both_into_every_map_whatever_the_rule_of_the_scheme(tmp_path):
    model, batches = two_maps(), [20 * torch.randn(8, 32, 24, generator=torch.Generator().manual_seed(0))]
    plain = copy.deepcopy(model)
    found = quantize(model, "llm_int8", "w8a8", batches, keep=tmp_path)
    assert sorted(found.maps) == ["0.linear", "1.linear"]
    x = plain[0].norm(batches[0])
    expected = linear(x, plain[0].linear.weight, plain[0].linear.bias, 6.0)
    torch.testing.assert_close(model[0].linear(x), expected)
    again = copy.deepcopy(plain)
    quantize(again, "llm_int8", "w8a8", batches, keep=tmp_path)  # blocks come from the folder
    assert torch.equal(again(batches[0]), model(batches[0])) and again[1].linear.rounding.threshold == 6.0


def test_data_are_needed_only_to_find_columns():
    few = [torch.randn(2, 8, 24)]
    assert len(quantize(two_maps(), "llm_int8", "w8a8", few).maps) == 2
    assert LLMInt8(columns="full").calibrated and not LLMInt8().calibrated


def planted(factor: float, small: bool) -> nn.Module:
    """A channel that a norm makes large, and a column of weights that is as much smaller, or is not."""
    model = two_maps()
    model[0].norm.weight.data[3] *= factor
    if small:
        model[0].linear.weight.data[:, 3] /= factor
    return model


def test_a_column_of_outliers_costs_nothing_where_it_is_split_off():
    batches = [torch.randn(8, 32, 24, generator=torch.Generator().manual_seed(0))]

    def error(model, *settings):
        return quantize(model, LLMInt8(*settings), "w8a8", batches).errors["0.linear"]

    plain = error(two_maps())
    assert error(planted(200, False)) < plain < 0.05 * error(planted(200, True), 0.0)
    assert error(planted(200, True), 6.0, "full") < 1.1 * plain
    assert error(planted(200, True), 6.0, "int8") > 100 * plain  # 8 bits of a row do not hold so small a column


def test_columns_in_which_calibration_saw_outliers_stay_as_they_are():
    model, batches = planted(200, True), [torch.randn(8, 32, 24, generator=torch.Generator().manual_seed(0))]
    weight = model[0].linear.weight.detach().clone()
    weight[:, 3] *= 1e4  # larger than all others, so it would set the steps
    model[0].linear.weight.data = weight.clone()
    found = quantize(model, LLMInt8(columns="full"), "w8a8", batches).maps["0.linear"]
    others = [j for j in range(24) if j != 3]
    assert torch.equal(found.weight[:, 3], weight[:, 3]) and torch.equal(found.kept[:, 3], weight[:, 3])
    assert torch.equal(found.weight[:, others], NARROW.rounded(weight[:, others])) and not found.kept[:, others].any()


@pytest.mark.parametrize("scheme", ["w8a16", "w4a8", "w8a8-tensor", "w8a8g16", "fp8", "w8a8-asym"])
def test_what_it_cannot_do_is_said(scheme):
    with pytest.raises(BadInput, match="It can do 'w8a8'"):
        LLMInt8().check(Scheme.parse(scheme))
    with pytest.raises(BadInput, match="It can do 'w8a8'"):
        LLMInt8().check(Scheme(Grid(8), Grid(8, "token", kind="float")))
    with pytest.raises(BadInput, match="no outliers"):
        LLMInt8(-1.0)
    with pytest.raises(BadInput, match="'int8' or 'full'"):
        LLMInt8(columns="half")


@pytest.mark.parametrize("threshold", [0.0, 2.5, 6.0])
def test_bitsandbytes_gives_the_same(threshold):
    pytest.importorskip("bitsandbytes")
    ops = torch.ops.bitsandbytes
    x, weight, bias = (tensor.half() for tensor in drawn(n=9, width=64, outputs=16))
    x = x[x.abs().amax(1) > 0]  # its scale of a row of zeros is 0
    weight = weight[weight.abs().amax(1) > 0]
    bias = bias[: len(weight)]
    theirs, reach, columns = ops.int8_vectorwise_quant(x.clone(), threshold)
    split = Split(threshold)
    assert split.columns(x).nonzero().flatten().tolist() == ([] if columns is None else columns.tolist())
    ordinary = x.float().masked_fill(split.outliers(x), 0)
    assert torch.equal(ordinary.abs().amax(1), reach)
    codes = (split(x.float()) * 127 / reach[:, None]).round().masked_fill(split.columns(x), 0)
    assert int((codes - theirs).abs().max()) <= 1 and float((codes != theirs).float().mean()) < 5e-3  # theirs in half
    of_weight, of_rows, _ = ops.int8_vectorwise_quant(weight.clone(), 0.0)
    steps = NARROW.steps(weight)
    torch.testing.assert_close(steps.scale.flatten() * 127, of_rows)
    apart = NARROW.codes(weight, steps) - of_weight
    assert int(apart.abs().max()) <= 1 and float((apart != 0).float().mean()) < 5e-3
    ours_of_weight = NARROW.codes(weight, steps).to(torch.int8)
    expected, _ = ops.int8_mixed_scaled_mm(x, codes.to(torch.int8), ours_of_weight, reach, of_rows, columns, bias)
    found = functional.linear(split(x.float()), NARROW.rounded(weight.float()), bias.float())
    torch.testing.assert_close(found, expected.float(), rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
