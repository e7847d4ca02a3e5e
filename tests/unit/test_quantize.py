"""The engine: blocks one by one, the streams that recipes see, runs that go on, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from farout.errors import BadInput, NothingMatched, NotIdentity, UnknownName  # noqa: E402
from farout.quantize import quantize  # noqa: E402
from farout.quantize._blocks import Block, Calls, blocks_of  # noqa: E402
from farout.quantize._linear import QuantLinear  # noqa: E402
from farout.quantize.gptq import GPTQ  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.recipe import Recipe, recipe_of, round_weights  # noqa: E402
from farout.quantize.round.rtn import rtn  # noqa: E402
from farout.quantize.rtn import RTN  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402


def llama(layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=48, num_hidden_layers=layers, num_attention_heads=6, num_key_value_heads=2, vocab_size=64,
        intermediate_size=96, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def tokens(n: int = 4, length: int = 40, seed: int = 0) -> list[dict]:
    drawn = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, 64, (2, length), generator=drawn)} for _ in range(n)]


def logits(model: nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def test_rounding_to_nearest_is_rounding_each_weight_of_the_blocks_and_nothing_else():
    model, batches = llama(), tokens()
    by_hand = copy.deepcopy(model)
    grid = Grid(4, "group", 16)
    for name, module in by_hand.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.weight.data = grid.rounded(module.weight.data)
    quantized = quantize(model, "rtn", "w4a16g16", batches)
    assert len(quantized.maps) == 3 * 7
    torch.testing.assert_close(logits(model, batches[0]), logits(by_hand, batches[0]), rtol=0, atol=0)


def test_inputs_are_rounded_for_each_token():
    model, batches = llama(), tokens()
    plain = copy.deepcopy(model)
    quantize(model, "rtn", "w8a8", batches)
    read = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda m, args, out: read.append((args[0], out)))
    logits(model, batches[0])
    x, out = read[0]
    weight = plain.model.layers[0].self_attn.q_proj.weight
    step_x = x.abs().amax(-1, keepdim=True) / 127.5
    step_w = weight.abs().amax(-1, keepdim=True) / 127.5
    x_int = (x / step_x).round().clamp(-128, 127)
    w_int = (weight / step_w).round().clamp(-128, 127)
    torch.testing.assert_close(out, (x_int @ w_int.T) * step_x * step_w.T, rtol=1e-5, atol=1e-6)


def test_the_next_block_sees_what_rounded_blocks_give():
    model, batches = llama(), tokens()
    seen = {}

    @dataclass(frozen=True)
    class Looks(RTN):
        def block(self, block, scheme):
            seen[block.index] = block.states[1].clone()
            super().block(block, scheme)

    quantize(model, Looks(), "w4a16", batches)
    hidden = []
    model.model.layers[2].register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
    logits(model, batches[1])
    torch.testing.assert_close(seen[2], hidden[0], rtol=1e-5, atol=1e-6)


def test_recipes_of_the_full_stream_see_the_full_model():
    model, batches = llama(), tokens()
    hidden, seen = [], {}
    hook = model.model.layers[2].register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
    logits(model, batches[1])
    hook.remove()

    @dataclass(frozen=True)
    class Looks(RTN):
        full = True

        def block(self, block, scheme):
            seen[block.index] = block.states[1].clone()
            super().block(block, scheme)

    quantize(model, Looks(), "w4a16", batches)
    torch.testing.assert_close(seen[2], hidden[0], rtol=1e-5, atol=1e-6)


def test_recipes_of_both_streams_get_what_the_full_block_makes_of_the_full_stream():
    model, batches = llama(), tokens()
    hidden, seen = [], {}
    hook = model.model.layers[2].register_forward_hook(lambda m, args, out: hidden.append(out))
    logits(model, batches[1])
    hook.remove()

    @dataclass(frozen=True)
    class Looks(RTN):
        both = True

        def block(self, block, scheme):
            seen[block.index] = block.targets[1].clone()
            super().block(block, scheme)

    quantize(model, Looks(), "w4a16", batches)
    expected = hidden[0][0] if isinstance(hidden[0], tuple) else hidden[0]
    torch.testing.assert_close(seen[2], expected, rtol=1e-5, atol=1e-6)


def test_errors_are_those_of_the_maps_in_the_two_models():
    model, batches = llama(), tokens()
    plain = copy.deepcopy(model)
    found = quantize(model, "rtn", "w3a16", batches)
    name = "model.layers.1.mlp.down_proj"
    outs = []
    for one in (plain, model):
        hook = one.get_submodule(name).register_forward_hook(lambda m, args, out: outs.append(out))
        logits(one, batches[0])
        hook.remove()
    expected = float((outs[1] - outs[0]).square().sum() / outs[0].square().sum())
    assert found.errors[name] == pytest.approx(expected, rel=1e-4)


def test_hessians_leave_padding_out_and_are_shared_by_maps_of_one_input():
    model = llama(2)
    batch = tokens(1)[0]
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 25:] = 0
    batch["attention_mask"] = mask
    blocks = blocks_of(model)
    calls = Calls(model, blocks, [batch])
    name, module = next(iter(blocks.items()))
    block = Block(name, 0, module, calls, calls.states)
    read = []
    hook = module.self_attn.q_proj.register_forward_hook(lambda m, args, out: read.append(args[0]))
    logits(model, batch)
    hook.remove()
    x = read[0][mask.bool()].double()
    found = block.hessians(block.feeds[0].maps)
    assert found["self_attn.q_proj"] is found["self_attn.v_proj"]
    torch.testing.assert_close(found["self_attn.q_proj"].double(), 2 / len(x) * x.T @ x, rtol=1e-5, atol=1e-6)
    facts = block.facts(["self_attn.q_proj"])["self_attn.q_proj"]
    torch.testing.assert_close(facts.mean_abs.double(), x.abs().mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(facts.low.double(), x.amin(0), rtol=1e-6, atol=0)


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("scheme", ["w4a8g16", "w8a8-tensor"])
@pytest.mark.parametrize("recipe", ["gptq", "smoothquant"])
def test_a_run_that_was_stopped_goes_on_to_the_same_model(recipe, scheme, tmp_path):
    batches = tokens()
    whole = llama()
    expected = quantize(whole, recipe, scheme, batches)

    def stop(what, share):
        if what == "quantizing" and share > 0.6:
            raise _Stopped

    with pytest.raises(_Stopped):
        quantize(llama(), recipe, scheme, batches, keep=tmp_path, progress=stop)
    assert sorted(path.name for path in tmp_path.glob("block-*")) == [
        "block-0000.safetensors",
        "block-0001.safetensors",
    ]
    told = []
    model = llama()
    found = quantize(model, recipe, scheme, batches, keep=tmp_path, progress=lambda what, share: told.append(what))
    torch.testing.assert_close(logits(model, batches[0]), logits(whole, batches[0]), rtol=0, atol=0)
    assert found.errors == expected.errors
    assert found.bits_per_weight == expected.bits_per_weight


def test_a_folder_belongs_to_one_run(tmp_path):
    quantize(llama(), "rtn", "w4a16", tokens(), keep=tmp_path)
    with pytest.raises(BadInput, match="scheme differ"):
        quantize(llama(), "rtn", "w3a16", tokens(), keep=tmp_path)
    other = llama()
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(BadInput, match="model differ"):
        quantize(other, "rtn", "w4a16", tokens(), keep=tmp_path)


def test_a_block_that_was_half_written_is_none(tmp_path, monkeypatch):
    import safetensors.torch

    model = llama()
    real = safetensors.torch.save_file

    def full_disk(tensors, path, metadata):
        if "0001" in json.dumps(metadata) or len(list(tmp_path.glob("block-*.safetensors"))) == 1:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(BadInput, match="No space left"):
        quantize(model, "rtn", "w4a16", tokens(), keep=tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["block-0000.safetensors", "run.json"]


def test_what_cannot_be_used_is_refused_and_the_model_is_as_it_was():
    batches = tokens()
    model = llama()
    before = logits(model, batches[0])
    for recipe, scheme, data, error, says in (
        ("gptqq", "w4a16", batches, UnknownName, "nearest: 'gptq'"),
        ({"recipe": "gptq", "dampning": 0.1}, "w4a16", batches, UnknownName, "'damping'"),
        ("gptq", "w4b16", batches, (BadInput, UnknownName), "w4b16"),
        ("gptq", "w4a16", [], BadInput, "there are no calibration data"),
        ("gptq", "w4a16", [{"input_ids": torch.ones(1, 20, dtype=torch.long)}], BadInput, "hold 20 tokens"),
    ):
        with pytest.raises(error, match=says):
            quantize(model, recipe, scheme, data)
    assert not any(isinstance(module, QuantLinear) for module in model.modules())
    torch.testing.assert_close(logits(model, batches[0]), before, rtol=0, atol=0)


def test_a_quantized_model_is_refused():
    model = llama()
    quantize(model, "rtn", "w4a16", tokens())
    with pytest.raises(BadInput, match="quantized already"):
        quantize(model, "rtn", "w4a16", tokens())


def test_numbers_that_are_not_finite_are_named():
    model = llama()
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = torch.inf
    with pytest.raises(BadInput, match=r"model\.layers\.1.*not finite"):
        quantize(model, "gptq", "w4a16", tokens())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(NothingMatched, match="row of blocks"):
        quantize(nn.Sequential(nn.Linear(8, 8)), "rtn", "w4a16", [torch.randn(4, 8)])


def test_a_group_that_does_not_divide_becomes_the_largest_divisor_below_it():
    model = llama()
    found = quantize(model, "rtn", "w4a16g40", tokens())
    assert {module.grid.group for module in found.maps.values()} == {24, 32}  # of 48 and of 96 inputs


def test_recipes_round_trip_as_plain_data():
    recipe = GPTQ(damping=0.1, order=False)
    assert recipe_of(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert recipe_of("GPTQ") == GPTQ()


def test_a_rewrite_that_changes_the_output_is_noticed():
    model = llama()

    @dataclass(frozen=True)
    class Wrong(RTN):
        def block(self, block: Block, scheme: Scheme) -> None:
            with block.unchanged("a wrong move"):
                block.module.mlp.up_proj.weight.data[0] *= 2

    with pytest.raises(NotIdentity, match=r"a wrong move in 'model\.layers\.0' changed the output"):
        quantize(model, Wrong(), "w4a16", tokens())


def test_recipes_must_say_what_they_do():
    with pytest.raises(NotImplementedError):
        Recipe().block(None, None)


def test_rounded_weights_stand_on_their_grid():
    model = llama()
    found = quantize(model, "gptq", "w3a16g16-asym", tokens())
    for module in found.maps.values():
        again = module.grid.rounded(module.weight, module.rounded.steps)
        torch.testing.assert_close(again, module.weight.data, rtol=0, atol=0)
        codes = module.grid.codes(module.weight, module.rounded.steps)
        assert int(codes.min()) >= 0 and int(codes.max()) <= 7


def test_less_error_with_gptq_than_with_rounding_to_nearest():
    batches = tokens(8)
    errors = {r: quantize(llama(), r, "w3a16g16", batches).block_errors for r in ("rtn", "gptq")}
    assert errors["gptq"]["model.layers.2"] < 0.6 * errors["rtn"]["model.layers.2"]


def test_rounding_with_another_solver_by_map():
    model, batches = llama(), tokens()

    @dataclass(frozen=True)
    class Mixed(RTN):
        def block(self, block, scheme):
            round_weights(block, block.maps[:1], scheme.weights, lambda name, weight, grid: rtn(weight, Grid(8)))

    found = quantize(model, Mixed(), "w4a16", batches)
    assert found.bits_per_weight == pytest.approx(8 + 16 / 48)
    assert len(found.maps) == 3
