"""Hadamard matrices, the fast transform, and QuaRot: what is rotated, and what is rounded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import hadamard as sylvester

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.kit.hadamard import (  # noqa: E402
    _quadratic_character,
    factors,
    hadamard,
    has_order,
    largest_order,
    random_signs,
    transform,
)
from farout.quantize import quantize  # noqa: E402
from farout.quantize._linear import QuantLinear, Rotate  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.quarot import ClippedRounding, QuaRot  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402

STORED = 12, 20, 28, 36, 40, 52, 60, 108, 140  # orders that official code has tables for, beside 156 and 172
LARGE = 244, 252, 344, 576, 1536  # of 3^5, 5^3 and 7^3, and products


@pytest.mark.parametrize("n", [*(n for n in (1, 2, *range(4, 205, 4)) if has_order(n)), *LARGE])
def test_hadamard_matrices_have_orthogonal_rows_of_one_and_minus_one(n):
    matrix = hadamard(n).astype(float)
    assert set(np.unique(matrix)) <= {1, -1}
    np.testing.assert_array_equal(matrix @ matrix.T, n * np.eye(n))


def test_orders_of_models_can_be_had():
    assert all(has_order(n) for n in STORED)
    assert not has_order(156) and not has_order(172)
    assert not any(has_order(n) for n in range(3, 400) if n % 4)
    # widths of LLaMA 7B, 13B, 30B, 65B, SmolLM2 and MiniLM, and of what is between their maps
    widths = 4096, 11_008, 5120, 13_824, 6656, 17_920, 8192, 22_016, 576, 1536, 384
    assert all(largest_order(n) == n for n in widths)
    assert largest_order(172) == 4 and largest_order(9) == 1


def test_powers_of_two_are_sylvester_s():
    for n in (2, 8, 64, 512):
        np.testing.assert_array_equal(hadamard(n), sylvester(n))


@pytest.mark.parametrize(("p", "k"), [(7, 1), (3, 2), (5, 2), (3, 3), (7, 2), (3, 4), (5, 3)])
def test_squares_of_a_field_are_half_of_it_and_products_of_non_squares_are_squares(p, k):
    character = _quadratic_character(p, k)
    assert (character == 1).sum() == (character == -1).sum() == (p**k - 1) // 2
    if k == 1:  # Euler's criterion
        expected = [pow(a, (p - 1) // 2, p) for a in range(p)]
        np.testing.assert_array_equal(character % p, expected)
    assert character[1] == 1
    assert character[p - 1] == (1 if p**k % 4 == 1 else -1)  # -1 is a square just there


@pytest.mark.parametrize("n", [1, 2, 12, 24, 36, 64, 100, 252, 576, 640, 1536])
def test_the_transform_is_the_product_with_the_matrix_and_back_is_its_inverse(n):
    x = torch.randn(3, 2, n, dtype=torch.float64)
    matrix = torch.from_numpy(hadamard(n)).double() / math.sqrt(n)
    y = transform(x)
    torch.testing.assert_close(y, x @ matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform(y, back=True), x, rtol=0, atol=1e-12)
    assert math.prod(factors(n)) == n


def test_blocks_stand_side_by_side_or_across():
    x = torch.randn(5, 96, dtype=torch.float64)
    matrix = torch.from_numpy(hadamard(12)).double() / math.sqrt(12)
    side = torch.block_diag(*[matrix] * 8)
    across = torch.block_diag(*[torch.kron(matrix, torch.eye(4, dtype=torch.float64))] * 2)
    torch.testing.assert_close(transform(x, 12), x @ side, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform(x, 12, across=4), x @ across, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform(transform(x, 12, across=4), 12, across=4, back=True), x, rtol=0, atol=1e-12)
    # heads of 4 channels, each turned by itself and then all together: one matrix of all channels
    whole = torch.kron(matrix, torch.from_numpy(hadamard(4)).double() / 2)
    torch.testing.assert_close(transform(transform(x[:, :48], 4), 12, across=4), x[:, :48] @ whole, rtol=0, atol=1e-12)


def test_half_precision_is_rounded_once():
    x = torch.randn(64, 576)
    expected = transform(x.bfloat16().float()).bfloat16()
    assert torch.equal(transform(x.bfloat16()), expected)


def test_gradients_pass():
    x = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: transform(x, 12), x)


def test_one_channel_is_spread_evenly_and_lengths_stay():
    for n in (36, 576):
        turned = transform(torch.eye(n, dtype=torch.float64))
        torch.testing.assert_close(turned.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64))
        torch.testing.assert_close(turned.norm(dim=-1), torch.ones(n, dtype=torch.float64))


def test_signs_are_drawn_by_seed():
    signs = random_signs(1000, 3)
    assert set(signs.tolist()) == {1.0, -1.0} and abs(float(signs.sum())) < 150
    assert torch.equal(signs, random_signs(1000, 3)) and not torch.equal(signs, random_signs(1000, 4))


def test_what_cannot_be_is_refused():
    with pytest.raises(BadInput, match=r"order 172 .* blocks of order 4 divide"):
        hadamard(172)
    with pytest.raises(BadInput, match="blocks of 12 channels, 5 apart, do not divide 96"):
        transform(torch.zeros(96), 12, across=5)
    with pytest.raises(BadInput):
        largest_order(0)


def test_rotations_and_roundings_can_be_made_again():
    signs = random_signs(96, 0)
    for turn in (Rotate(12, 4), Rotate(96, signs=signs), Rotate(24, signs=signs, back=True)):
        again = Rotate.restored({}, dict(turn.state_dict()))
        x = torch.randn(3, 96)
        assert torch.equal(again(x), turn(x))
    x = torch.randn(3, 96, dtype=torch.float64)
    there, back = Rotate(48, signs=signs.double()), Rotate(48, signs=signs.double(), back=True)
    torch.testing.assert_close(back(there(x)), x, rtol=0, atol=1e-12)
    rounding = ClippedRounding(Grid(4, "token"), 0.9)
    assert torch.equal(ClippedRounding.restored(rounding.options(), {})(x), rounding(x))


def test_inputs_are_rounded_by_a_share_of_their_range():
    x = torch.randn(6, 40, dtype=torch.float64)
    x[3] = 0
    step = 0.9 * x.abs().amax(-1, keepdim=True) / 7
    step[3] = 1
    expected = (x / step).round().clamp(-8, 7) * step
    torch.testing.assert_close(ClippedRounding(Grid(4, "token"), 0.9)(x), expected)
    low, high = 0.8 * x.amin(-1, keepdim=True).clamp(max=0), 0.8 * x.amax(-1, keepdim=True).clamp(min=0)
    step = torch.where(high > low, (high - low) / 15, 1)
    zero = (-low / step).round()
    expected = ((x / step).round() + zero).clamp(0, 15) - zero
    found = ClippedRounding(Grid(4, "token", rule="asymmetric"), 0.8)(x)
    torch.testing.assert_close(found, expected * step)


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, vocab_size=64,
        intermediate_size=96, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def tokens(n: int = 4) -> list[dict]:
    drawn = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 64, (2, 40), generator=drawn)} for _ in range(n)]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokens(1)[0]).logits


def lost(model: nn.Module, full: torch.Tensor) -> float:
    return float((logits(model) - full).square().sum() / full.square().sum())


def planted() -> nn.Module:
    """A decoder in which four channels of the stream are 100 times as large as the others."""
    model = llama()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[:, ::16] *= 100
            elif type(module).__name__.endswith("RMSNorm"):
                module.weight[::16] *= 2
    return model


def test_eight_bits_of_everything_cost_a_rotated_model_little():
    model = llama()
    full = logits(model)
    quantized = quantize(model, "quarot", "w8a8", tokens())
    assert lost(model, full) < 1e-3
    assert len(quantized.maps) == 14
    online = {name.rpartition(".")[2]: [(t.order, t.across) for t in m.before] for name, m in quantized.maps.items()}
    assert online == {name: [] for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")} | {
        "o_proj": [(8, 8)],  # heads are turned by folding, and across heads as the model runs
        "down_proj": [(96, 1)],
    }
    assert all(module.rounding.clip == 1 for module in quantized.maps.values())
    assert quantized.notes == [
        "'lm_head.weight' no longer is the weight of the embeddings: 4,096 numbers more",
        "4 maps, called 'o_proj', 'down_proj', rotate what they read as the model runs",
    ]


def test_rotation_saves_what_large_channels_cost():
    errors = {}
    for recipe in ("rtn", {"recipe": "quarot", "solver": "rtn"}, "quarot"):
        model = planted()
        full = logits(model)
        quantize(model, recipe, "w8a4", tokens())
        errors[str(recipe)] = lost(model, full)
    plain, turned, solved = errors.values()
    assert turned < 0.5 * plain
    assert solved < 1.2 * turned  # weights of 8 bits leave nothing to solve


def test_gptq_is_better_than_rounding_on_rotated_weights():
    errors = []
    for solver in ("rtn", "gptq"):
        model = llama()
        full = logits(model)
        quantize(model, QuaRot(solver=solver), "w3a16", tokens(16))
        errors.append(lost(model, full))
    assert errors[1] < 0.8 * errors[0]


def test_weights_stand_on_their_grid_with_searched_ranges():
    model = llama()
    quantized = quantize(model, QuaRot(solver="rtn"), "w4a16", tokens())
    by_range = quantize(llama(), QuaRot(solver="rtn", clip_weights=False), "w4a16", tokens())
    for name, module in quantized.maps.items():
        codes = module.weight / module.weight_scale
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
        assert bool((module.weight_scale <= by_range.maps[name].weight_scale * 1.0001).all())
        assert bool((module.weight_scale < by_range.maps[name].weight_scale * 0.99).any())


def test_a_stopped_run_goes_on_to_the_same_model(tmp_path):
    done = llama()
    quantize(done, "quarot", "w4a4", tokens(), keep=tmp_path)
    (tmp_path / "block-0001.safetensors").unlink()
    again = llama()
    quantize(again, "quarot", "w4a4", tokens(), keep=tmp_path)
    assert torch.equal(logits(again), logits(done))
    assert [len(m.before) for m in again.modules() if isinstance(m, QuantLinear)] == [
        len(m.before) for m in done.modules() if isinstance(m, QuantLinear)
    ]


def test_the_seed_changes_the_signs_and_nothing_else():
    full = logits(llama())
    models = [llama() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1)):
        quantize(model, QuaRot(seed=seed), "w8a16", tokens())
    assert torch.equal(logits(models[0]), logits(models[1]))
    assert not torch.equal(logits(models[0]), logits(models[2]))
    assert max(lost(model, full) for model in models) < 1e-3


def test_schemes_and_options_that_it_cannot_do_are_refused():
    for scheme in ("w8a8-tensor", "fp8", "mxfp4", "nvfp4"):
        with pytest.raises(BadInput, match="w4a4"):
            QuaRot().check(Scheme.parse(scheme))
    for scheme in ("w4a4", "w4a8", "w4a16g128", "w3a16g128-asym", "fp8a16"):
        QuaRot().check(Scheme.parse(scheme))
    with pytest.raises(UnknownName, match="no solver is called 'gptqq'"):
        QuaRot(solver="gptqq").check(Scheme.parse("w4a4"))
    with pytest.raises(BadInput, match="'clip'"):
        QuaRot(clip=0.0).check(Scheme.parse("w4a4"))


def test_inputs_of_few_bits_are_clipped():
    for scheme, settings, clip in (("w8a4", {}, 0.9), ("w8a5", {}, 1.0), ("w8a8", {"clip": 0.7}, 0.7)):
        quantized = quantize(llama(), QuaRot(solver="rtn", **settings), scheme, tokens())
        assert {module.rounding.clip for module in quantized.maps.values()} == {clip}


def test_inputs_in_groups_are_rounded_too():
    scheme = Scheme(Grid(8), Grid(8, "group", 16))
    model = llama()
    full = logits(model)
    quantize(model, "quarot", scheme, tokens())
    assert lost(model, full) < 1e-3
