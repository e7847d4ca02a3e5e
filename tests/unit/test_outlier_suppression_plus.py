"""Outlier Suppression+: thresholds, shifts and their search, by closed forms and on models with planted outliers."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.quantize import quantize  # noqa: E402
from farout.quantize._blocks import Block, Calls, blocks_of  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.outlier_suppression_plus import OutlierSuppressionPlus, _Site, scales_of  # noqa: E402


def opt(channels=(), gain=1.0, offset=0.0) -> nn.Module:
    """An OPT-like model; channels of its norms are as large and as far off as asked, and what reads them makes good."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, ffn_dim=96, word_embed_proj_dim=48,
        max_position_embeddings=64, dropout=0.0,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        for layer in model.model.decoder.layers:
            readers = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
            for norm, maps in ((layer.self_attn_layer_norm, readers), (layer.final_layer_norm, [layer.fc1])):
                for i, channel in enumerate(channels):
                    m = offset * (-1) ** i
                    norm.weight[channel] *= gain
                    norm.bias[channel] = norm.bias[channel] * gain + m
                    for one in maps:
                        one.weight[:, channel] /= gain
                        one.bias -= one.weight[:, channel] * m
    return model


def tokens(n=4):
    drawn = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 64, (4, 32), generator=drawn)} for _ in range(n)]


def first_block(model):
    blocks = blocks_of(model)
    calls = Calls(model, blocks, tokens())
    name, module = next(iter(blocks.items()))
    return Block(name, 0, module, calls, calls.states)


def gap(model, reference, batch):
    with torch.no_grad():
        return float((model(**batch).logits - reference).square().mean() / reference.square().mean())


def test_scales_cut_what_sticks_out_to_the_threshold_and_leave_the_rest():
    low, high = torch.tensor([-3.0, -0.5, -8.0, -1.0]), torch.tensor([2.0, 0.5, 1.0, 16.0])
    for threshold in (1.0, 2.0, 5.0, 20.0):
        s = scales_of(low, high, threshold)
        reach = torch.maximum(high, -low)
        torch.testing.assert_close(reach / s, reach.clamp(max=threshold))
        assert bool((s >= 1).all())
    assert bool((scales_of(low, high, 2.0) >= scales_of(low, high, 3.0)).all())
    torch.testing.assert_close(scales_of(low, high, 16.0), torch.ones(4))


def test_the_largest_threshold_is_plain_rounding_and_the_best_is_no_worse():
    block = first_block(opt((3, 11), 20.0))
    grid = Grid(6, "tensor", rule="narrow", dynamic=False)
    feed = block.feeds[2]
    assert feed.maps == ("fc1",)
    site = _Site(block, feed, Grid(6, rule="narrow"), grid)
    most = float(torch.maximum(site.high, -site.low).max())
    x, weight = site.x_NI, block.weight("fc1")
    edge = torch.full((1, 1), most)
    rounded = grid.rounded(x, grid.steps_between(-edge, edge)) @ Grid(6, rule="narrow").rounded(weight).T
    by_hand = float((rounded - x @ weight.T).square().sum(1).mean())
    assert site.loss(torch.ones(48), most, None) == pytest.approx(by_hand, rel=1e-4)
    _, best = OutlierSuppressionPlus()._best(site, site.low, site.high, None)
    assert best < 0.2 * by_hand


def test_the_loss_with_a_shift_is_that_of_the_shifted_model():
    block = first_block(opt((3, 11), 20.0, 30.0))
    grid, weights = Grid(6, "tensor", rule="narrow", dynamic=False), Grid(6, rule="narrow")
    site = _Site(block, block.feeds[2], weights, grid)
    d, s = (site.low + site.high) / 2, torch.linspace(1, 3, 48)
    x, weight = site.x_NI, block.weight("fc1")
    edge = torch.full((1, 1), 5.0)
    moved = grid.rounded((x - d) / s, grid.steps_between(-edge, edge)) @ weights.rounded(weight * s).T + weight @ d
    by_hand = float((moved - x @ weight.T).square().sum(1).mean())
    assert site.loss(s, 5.0, d) == pytest.approx(by_hand, rel=1e-4)


def test_after_the_fold_channels_are_centred_and_within_the_threshold():
    block = first_block(opt((3, 11), 20.0, 60.0))
    recipe = OutlierSuppressionPlus(shift="always")
    narrow = Grid(8, rule="narrow")
    recipe._migrate(block, block.feeds[0], narrow, Grid(8, "tensor", rule="narrow", dynamic=False))
    facts = block.facts(["self_attn.q_proj"])["self_attn.q_proj"]
    torch.testing.assert_close(facts.low, -facts.high, rtol=1e-3, atol=1e-3)
    plain = first_block(opt((3, 11), 20.0, 60.0)).facts(["self_attn.q_proj"])["self_attn.q_proj"]
    assert float(plain.absmax.max()) > 50 and float(facts.absmax.max()) < 0.5 * float(plain.absmax.max())


def test_shift_and_scale_win_back_what_planted_channels_cost():
    batches = tokens()
    with torch.no_grad():
        reference = opt()(**batches[0]).logits
    planted = opt((3, 11, 20, 41), 30.0, 60.0)
    assert gap(planted, reference, batches[0]) < 1e-8
    lost = {}
    for name, recipe in (
        ("plain", "rtn"),
        ("smoothed", "smoothquant"),
        ("scaled", {"recipe": "outlier_suppression_plus", "shift": "never"}),
        ("both", "outlier_suppression_plus"),
    ):
        model = copy.deepcopy(planted)
        quantize(model, recipe, "w6a6-tensor", batches)
        lost[name] = gap(model, reference, batches[0])
    unplanted = opt()
    quantize(unplanted, "rtn", "w6a6-tensor", batches)
    floor = gap(unplanted, reference, batches[0])
    assert lost["both"] < floor + 0.1 * (lost["plain"] - floor)  # nine tenths of the gap
    assert lost["both"] < lost["scaled"] < lost["plain"]
    assert lost["both"] < lost["smoothed"]


def test_a_shift_that_one_token_asks_for_is_refused():
    model = opt()
    block = first_block(model)
    kept = block.states[0][0, 0].clone()
    block.states[0][0, 0, 5] = 4000.0  # one token, one channel
    before = block.module.final_layer_norm.bias.detach().clone()
    narrow = Grid(8, rule="narrow")
    inputs = Grid(8, "token", rule="narrow")
    OutlierSuppressionPlus()._migrate(block, block.feeds[0], narrow, inputs)
    assert kept.shape == (48,)
    torch.testing.assert_close(block.module.final_layer_norm.bias.detach(), before)
    norm = block.module.self_attn_layer_norm
    fresh = opt().model.decoder.layers[0].self_attn_layer_norm
    ratio = norm.bias / norm.weight
    torch.testing.assert_close(ratio, fresh.bias / fresh.weight, rtol=1e-3, atol=1e-4)  # scaled, but not shifted


def test_static_ranges_are_means_of_the_extremes_of_batches():
    batches = tokens()
    model = opt()
    quantize(model, {"recipe": "outlier_suppression_plus", "shift": "never", "candidates": 1}, "w8a8-tensor", batches)
    module = model.model.decoder.layers[0].self_attn.q_proj
    read = []
    module.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    for batch in batches:
        with torch.no_grad():
            model(**batch)
    low = torch.stack([x.min() for x in read]).mean()
    high = torch.stack([x.max() for x in read]).mean()
    assert float(module.rounding.scale) == pytest.approx(float(torch.maximum(-low, high)) / 127, rel=1e-4)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(BadInput, match="w8a8-tensor"):
        quantize(opt(), "outlier_suppression_plus", "w4a16", tokens())
    with pytest.raises(UnknownName, match="gated"):
        quantize(opt(), {"recipe": "outlier_suppression_plus", "shift": "gatd"}, "w8a8", tokens())
