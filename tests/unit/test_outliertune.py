"""OutlierTune: static scales of channels that are in the weights before these are rounded."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_outlier_suppression_plus import first_block, gap, opt, tokens  # noqa: E402

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.quantize import quantize  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.outliertune import OutlierTune, integers, mid_ranges  # noqa: E402


def test_mid_ranges_are_means_over_sequences():
    block = first_block(opt((3,), 10.0, 20.0))
    read = []
    block.watch(["fc1"], lambda name, x: read.append(x.reshape(4, 32, 48)))
    x = torch.cat(read)
    expected = ((x.amax(1) + x.amin(1)) / 2).mean(0)
    feed = block.feed_of("fc1")
    torch.testing.assert_close(mid_ranges(block, feed), expected, rtol=1e-5, atol=1e-6)


def test_integers_in_steps_of_one():
    x = torch.tensor([[-300.0, -1.4, 0.5, 1.5, 126.7, 128.2]])
    assert integers(8, True, torch.device("cpu"))(x).tolist() == [[-127, -1, 0, 2, 127, 127]]
    assert integers(8, False, torch.device("cpu"))(x).tolist() == [[-300, -1, 0, 2, 127, 128]]


def test_with_plain_weights_it_is_rounding_each_channel_in_its_own_steps():
    batches = tokens()
    model, plain = opt((3, 11), 20.0), opt((3, 11), 20.0)
    quantize(model, {"recipe": "outliertune", "symmetrize": False}, "w8a8", batches)
    block = first_block(plain)
    scale = block.facts(["fc1"])["fc1"].absmax / 127
    module, map_ = model.model.decoder.layers[0], plain.model.decoder.layers[0].fc1
    x = []
    block.watch(["fc1"], lambda name, rows: x.append(rows))
    x = torch.cat(x)
    codes = (x / scale).round().clamp(-127, 127)
    weight = Grid(8, rule="asymmetric").rounded(map_.weight * scale)
    expected = codes @ weight.T + map_.bias
    got = module.fc1(x / scale)  # what its norm gives now
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        module.final_layer_norm.weight,
        plain.model.decoder.layers[0].final_layer_norm.weight / scale,
        rtol=1e-4,
        atol=1e-6,
    )


def test_symmetrized_scales_are_smaller_and_maps_that_no_norm_feeds_are_rounded_a_token():
    batches = tokens()
    one, other = opt((3, 11), 20.0, 60.0), opt((3, 11), 20.0, 60.0)
    quantize(one, "outliertune", "w8a8", batches)
    quantize(other, {"recipe": "outliertune", "symmetrize": False}, "w8a8", batches)
    gains = [m.model.decoder.layers[0].final_layer_norm.weight.detach().abs() for m in (one, other)]
    assert bool((gains[0][[3, 11]] > 1.5 * gains[1][[3, 11]]).all())  # divided by less
    rounding = one.model.decoder.layers[0].fc2.rounding
    assert rounding.grid.per == "token" and rounding.grid.dynamic


def test_it_is_nearer_than_rounding_and_smoothing_on_planted_channels():
    batches = tokens()
    with torch.no_grad():
        reference = opt()(**batches[0]).logits
    planted = opt((3, 11, 20, 41), 30.0, 60.0)
    lost = {}
    for recipe in ("rtn", "smoothquant", "outliertune"):
        model = copy.deepcopy(planted)
        quantize(model, recipe, "w6a6-tensor" if recipe != "outliertune" else "w6a6", batches)
        lost[recipe] = gap(model, reference, batches[0])
    assert lost["outliertune"] < 0.5 * lost["smoothquant"] < 0.5 * lost["rtn"]


def test_gptq_for_the_weights_is_nearer():
    batches = tokens()
    with torch.no_grad():
        reference = opt()(**batches[0]).logits
    lost = {}
    for solver in ("rtn", "gptq"):
        model = opt()
        quantize(model, OutlierTune(solver=solver), "w3a8", batches)
        lost[solver] = gap(model, reference, batches[0])
    assert lost["gptq"] < 0.7 * lost["rtn"]


def test_what_it_cannot_do_is_refused():
    with pytest.raises(BadInput, match="'w8a8' or 'w6a6'"):
        quantize(opt(), "outliertune", "w4a16", tokens())
    with pytest.raises(UnknownName, match="gptq"):
        quantize(opt(), OutlierTune(solver="gptqq"), "w8a8", tokens())
