"""SmoothQuant and SmoothQuant+: maxima after folding, exact rewrites, and the search of one strength for a model."""

from __future__ import annotations

import copy
import re

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from farout.errors import BadInput, NothingMatched  # noqa: E402
from farout.quantize import quantize  # noqa: E402
from farout.quantize._blocks import Block, Calls, blocks_of  # noqa: E402
from farout.quantize._norms import gain_of  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.move.scale import scale  # noqa: E402
from farout.quantize.recipe import recipe_of  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402
from farout.quantize.smoothquant import SmoothQuant, norm_fed, smoothing  # noqa: E402
from farout.quantize.smoothquant_plus import GRID, NONE, SmoothQuantPlus, _smoothed  # noqa: E402

KINDS = ("llama", "opt", "bert", "gemma")  # RMSNorm and shared values, LayerNorm and biases, norms last, 1 + weight
NORMS = {
    "llama": {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"},
    "opt": {"q_proj", "k_proj", "v_proj", "fc1"},
    "bert": {"query", "key", "value", "intermediate.dense"},
    "gemma": {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"},
}


def model_of(kind: str, layers: int = 2) -> nn.Module:
    """A model with random weights and norms that make some channels large."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    gated = {**sizes, "intermediate_size": 64, "num_key_value_heads": 2}
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**gated))
    elif kind == "gemma":
        model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**gated, head_dim=8))
    elif kind == "opt":
        config = transformers.OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0, pad_token_id=0)
        model = transformers.OPTForCausalLM(config)
    else:
        model = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=64))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.1 * torch.randn_like(weight))
            if weight.ndim == 1 and "norm" in name.lower() and name.endswith("weight"):
                weight[[3, 17]] = 8 * (weight[[3, 17]] + 1)
    return model.eval()


def tokens(n: int = 3, length: int = 40) -> list[dict]:
    """Batches of which one has padding."""
    drawn = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(1, 64, (2, length), generator=drawn)} for _ in range(n)]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batches[1]["attention_mask"][1, 30:] = 0
    return batches


def first_block(model: nn.Module, batches: list[dict]) -> Block:
    blocks = blocks_of(model)
    calls = Calls(model, blocks, batches)
    name, module = next(iter(blocks.items()))
    return Block(name, 0, module, calls, calls.states)


def output(model: nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch)[0]


def smooth(block: Block, alpha: float) -> dict:
    """Smooth what norms give; return the maxima of inputs and weights before, by feed."""
    facts, before = block.facts(block.maps), {}
    for feed in norm_fed(block):
        a, w = facts[feed.maps[0]].absmax, reach(block, feed)
        before[feed.maps] = a, w
        scale(block, feed, smoothing(a, [block.weight(name) for name in feed.maps], alpha))
    return before


def reach(block: Block, feed) -> torch.Tensor:
    """The largest weight that reads each channel, over all maps."""
    return torch.cat([block.weight(name) for name in feed.maps]).abs().amax(0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_scale_is_that_of_the_formula_over_all_weights_that_read_the_channel(alpha):
    absmax = torch.tensor([16.0, 0.25, 3.0])
    weights = [torch.tensor([[1.0, -4.0, 0.1], [0.5, 2.0, 0.2]]), torch.tensor([[-2.0, 1.0, 0.3]])]
    expected = [a**alpha / w ** (1 - alpha) for a, w in zip(absmax.tolist(), (2.0, 4.0, 0.3))]
    assert smoothing(absmax, weights, alpha).tolist() == pytest.approx(expected, rel=1e-6)


def test_silent_channels_and_columns_keep_a_scale():
    s = smoothing(torch.tensor([0.0, 1.0]), [torch.tensor([[1.0, 0.0]])], 0.5)
    assert s.tolist() == pytest.approx([1e-5**0.5, 1e-5**-0.5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_maxima_after_folding(kind, alpha):
    batches = tokens()
    block = first_block(model_of(kind), batches)
    feeds = norm_fed(block)
    assert {name for feed in feeds for name in NORMS[kind] if any(m.endswith(name) for m in feed.maps)} == NORMS[kind]
    assert sum(len(feed.maps) for feed in feeds) == len(NORMS[kind])
    before = smooth(block, alpha)
    facts = block.facts(block.maps)
    for feed in feeds:
        a, w = before[feed.maps]
        torch.testing.assert_close(facts[feed.maps[0]].absmax, (a * w) ** (1 - alpha), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(reach(block, feed), (a * w) ** alpha, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_leaves_the_model_as_it_was_and_twice_is_once_at_a_half(kind):
    model, batches = model_of(kind), tokens()
    before = output(model, batches[0])
    block = first_block(model, batches)
    smooth(block, 0.5)
    after = output(model, batches[0])
    assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())
    facts = block.facts(block.maps)
    for feed in norm_fed(block):
        again = smoothing(facts[feed.maps[0]].absmax, [block.weight(name) for name in feed.maps], 0.5)
        torch.testing.assert_close(again, torch.ones_like(again), rtol=1e-4, atol=0)


def test_norms_of_one_plus_weight_take_scales_into_their_gain():
    block = first_block(model_of("gemma"), tokens())
    norm = block.module.input_layernorm
    gain = 1 + norm.weight.detach().clone()
    feed = next(feed for feed in norm_fed(block) if feed.source == "input_layernorm")
    s = torch.linspace(0.5, 8, 32)
    scale(block, feed, s)
    torch.testing.assert_close(norm.weight, gain / s - 1)
    torch.testing.assert_close(gain_of(norm), gain / s)


def test_only_what_norms_give_is_smoothed():
    model, batches = model_of("llama"), tokens()
    plain = copy.deepcopy(model)
    found = quantize(model, "smoothquant", "w8a8", batches)
    for name, module in found.maps.items():
        weight = plain.get_submodule(name).weight
        same = torch.equal(module.weight, module.grid.rounded(weight))
        assert same == name.endswith(("o_proj", "down_proj")), name


def test_static_steps_are_those_of_the_smoothed_model():
    model, batches = model_of("llama"), tokens()
    smoothed = copy.deepcopy(model)
    found = quantize(model, "smoothquant", "w8a8-tensor", batches)
    block = first_block(smoothed, batches)
    smooth(block, 0.5)
    facts = block.facts(block.maps)
    for name in block.maps:
        steps = found.maps[f"{block.name}.{name}"].rounding.steps
        assert float(steps.scale) == pytest.approx(float(facts[name].absmax.max()) / 127.5, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "opt", "bert"])
def test_static_steps_lose_less_after_smoothing(kind):
    batches = tokens(6)
    full = model_of(kind)
    expected = output(full, batches[0])
    lost = {}
    for recipe in ("rtn", "smoothquant"):
        model = copy.deepcopy(full)
        quantize(model, recipe, "w8a8-tensor", batches)
        lost[recipe] = float((output(model, batches[0]) - expected).square().mean())
    assert lost["smoothquant"] < 0.7 * lost["rtn"]


def test_a_block_without_norms_is_refused():
    block = lambda: nn.Sequential(nn.Tanh(), nn.Linear(16, 16))  # noqa: E731
    with pytest.raises(NothingMatched, match="reads a norm"):
        quantize(nn.Sequential(block(), block()), "smoothquant", "w8a8", [torch.randn(4, 64, 16)])


def test_shares_are_from_0_to_1():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInput, match="from 0 to 1"):
            SmoothQuant(alpha)
        with pytest.raises(BadInput, match="from 0 to 1"):
            SmoothQuantPlus(alpha)
    with pytest.raises(BadInput, match="'states' or 'output'"):
        SmoothQuantPlus(error="logits")


# ---- SmoothQuant+

SCHEME = "w3a16g16"
QUICK = (0.0, 0.25, 0.5, 1.0)


def curve(found) -> dict[float, float]:
    """Read what each strength loses out of the note."""
    note = found.notes[0]
    pairs = re.findall(r"([\d.]+): ([\d.e+-]+)", note)
    none = re.search(r"no smoothing does by ([\d.e+-]+),", note).group(1)
    return {NONE: float(none)} | {float(alpha): float(loss.rstrip(",.")) for alpha, loss in pairs}


def last_states(model: nn.Module, batches: list[dict]) -> list[torch.Tensor]:
    """What the last block gives, without padding."""
    states = []
    *_, last = blocks_of(model).values()
    hook = last.register_forward_hook(lambda m, args, out: states.append(out[0] if isinstance(out, tuple) else out))
    for batch in batches:
        output(model, batch)
    hook.remove()
    return [x[batch["attention_mask"].bool()] for x, batch in zip(states, batches)]


def apart(model: nn.Module, full: nn.Module, batches: list[dict]) -> float:
    pairs = zip(last_states(model, batches), last_states(full, batches))
    squares = torch.cat([(x - y).square() for x, y in pairs])
    return float(squares.double().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_tries_what_folding_does_and_returns_the_least(kind, monkeypatch):
    monkeypatch.setattr("farout.quantize.smoothquant_plus.GRID", QUICK)
    full, batches = model_of(kind), tokens()
    model = copy.deepcopy(full)
    found = quantize(model, "smoothquant_plus", SCHEME, batches)
    losses = curve(found)
    assert set(losses) == {NONE, *QUICK} and len(set(losses.values())) == 5
    best = found.recipe["alpha"]
    assert losses[best] == min(losses.values()) and "of 5 candidates" in found.notes[0]
    for alpha in losses:  # folded for real and rounded, the model loses what the search said
        real = copy.deepcopy(full)
        quantize(real, SmoothQuantPlus(alpha), SCHEME, batches)
        # with 0 all columns reach from about -1 to 1, so that zero points are at ties and the last bit decides
        assert apart(real, full, batches) == pytest.approx(losses[alpha], rel=2e-3 if alpha else 5e-2)
    assert apart(model, full, batches) == pytest.approx(losses[best], rel=2e-3)


def test_the_grid_is_that_of_the_paper():
    assert GRID[:3] == (0.0, 0.05, 0.1) and GRID[-1] == 1.0 and len(GRID) == 21


def test_without_smoothing_it_is_rounding_on_its_grid():
    ours, nearest, batches = model_of("llama"), model_of("llama"), tokens()
    quantize(ours, SmoothQuantPlus(NONE), SCHEME, batches)
    quantize(nearest, "rtn", f"{SCHEME}-clamped", batches)
    assert torch.equal(output(ours, batches[0]), output(nearest, batches[0]))


def test_values_and_units_are_smoothed_too_and_heads_that_share_values_share_scales():
    batches = tokens()
    model = model_of("llama")
    before = output(model, batches[0])
    block = first_block(model, batches)
    feeds = {feed.maps[0].rpartition(".")[2]: feed for feed in _smoothed(block)}
    assert set(feeds) == {"q_proj", "o_proj", "gate_proj", "down_proj"}
    feed = feeds["o_proj"]
    absmax = block.facts(["self_attn.o_proj"])["self_attn.o_proj"].absmax
    s_I = smoothing(absmax, [block.weight("self_attn.o_proj")], 0.5)
    s_C = feed.at_source(s_I)
    heads = s_I.reshape(2, 2, 8).amax(1).flatten()  # two heads of 8 read each of two heads of values
    torch.testing.assert_close(s_C, heads)
    scale(block, feed, s_C)
    torch.testing.assert_close(output(model, batches[0]), before, rtol=1e-4, atol=1e-5)


def test_the_error_may_be_that_of_what_the_model_gives(monkeypatch):
    monkeypatch.setattr("farout.quantize.smoothquant_plus.GRID", QUICK)
    full, batches = model_of("opt"), tokens()
    found = quantize(copy.deepcopy(full), SmoothQuantPlus(error="output"), SCHEME, batches)
    losses = curve(found)
    for alpha in (NONE, 0.5):
        real = copy.deepcopy(full)
        quantize(real, SmoothQuantPlus(alpha), SCHEME, batches)
        keep = torch.cat([batch["attention_mask"].bool() for batch in batches])
        change = torch.cat([output(real, batch) - output(full, batch) for batch in batches])[keep]
        assert losses[alpha] == pytest.approx(float(change.double().square().mean()), rel=2e-3)
    assert found.recipe["error"] == "output" and losses[found.recipe["alpha"]] == min(losses.values())


def test_a_run_that_was_stopped_goes_on_to_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setattr("farout.quantize.smoothquant_plus.GRID", QUICK)
    full, batches = model_of("llama"), tokens()
    whole, stopped, on = (copy.deepcopy(full) for _ in range(3))
    expected = quantize(whole, "smoothquant_plus", SCHEME, batches)

    def stop(what: str, share: float) -> None:
        if what == "quantizing" and share > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(stopped, "smoothquant_plus", SCHEME, batches, keep=tmp_path, progress=stop)
    assert (tmp_path / "block-0000.safetensors").exists() and not (tmp_path / "block-0001.safetensors").exists()
    found = quantize(on, "smoothquant_plus", SCHEME, batches, keep=tmp_path)
    assert found.recipe == expected.recipe and found.notes == expected.notes
    assert torch.equal(output(on, batches[0]), output(whole, batches[0]))


def test_weights_are_as_they_were_when_the_search_is_stopped():
    model, batches = model_of("llama"), tokens()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def stop(what: str, share: float) -> None:
        if what == "strength" and share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(model, "smoothquant_plus", SCHEME, batches, progress=stop)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("scheme", ["w4a8g16", "w8a8", "fp8", "mxfp4a16"])
def test_what_it_cannot_do_is_said(scheme):
    with pytest.raises(BadInput, match="It can do 'w4a16g128-clamped'"):
        recipe_of("smoothquant_plus").check(Scheme.parse(scheme))
    with pytest.raises(BadInput, match="It can do"):
        SmoothQuantPlus().check(Scheme(Grid(4, "input", 16)))
