"""OmniQuant equals its formulas, folds what it trained, and learns; attention rounds what it multiplies."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest

from farout.errors import BadInput, NotIdentity
from naive import quantize_omniquant as naive

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from farout.quantize import omniquant, quantize  # noqa: E402
from farout.quantize._blocks import Block, Calls, blocks_of  # noqa: E402
from farout.quantize._learned import Clipping, Move, Moves  # noqa: E402
from farout.quantize._linear import QuantLinear  # noqa: E402
from farout.quantize._operands import Operands  # noqa: E402
from farout.quantize._training import inputs_rounded_through, originals, run_with, train  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.move.scores import scale_scores, scores_of  # noqa: E402
from farout.quantize.omniquant import OmniQuant  # noqa: E402
from farout.quantize.rtn import RTN  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402
from farout.quantize.smoothquant import smoothing  # noqa: E402

FREE = Grid(4, "token", rule="free")


def stirred(model: nn.Module) -> nn.Module:
    """A model whose norms, weights and biases are all different from their start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def llama(attention: str = "sdpa") -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=48,
        intermediate_size=64, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    return stirred(transformers.LlamaForCausalLM(config))


def opt() -> nn.Module:
    config = transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, vocab_size=48, word_embed_proj_dim=32,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return stirred(transformers.OPTForCausalLM(config))


def gemma() -> nn.Module:
    """Norms that multiply by one more than their weight."""
    config = transformers.GemmaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=48,
        intermediate_size=64, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    return stirred(transformers.GemmaForCausalLM(config))


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=48
    )
    torch.manual_seed(0)
    return stirred(transformers.BertModel(config))


def tokens(n: int = 4, length: int = 32) -> list[dict]:
    drawn = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 48, (2, length), generator=drawn)} for _ in range(n)]


def block_of(model: nn.Module, batches: list[dict] | None = None, noise: float = 0.0) -> Block:
    """The first block with both streams; the quantized one is the full one and some noise."""
    blocks = blocks_of(model)
    calls = Calls(model, blocks, batches or tokens())
    name, module = next(iter(blocks.items()))
    torch.manual_seed(2)
    plain = list(calls.states)
    states = [x + noise * torch.randn_like(x) for x in plain]
    block = Block(name, 0, module, calls, states, plain)
    block.targets = block.outputs(plain)
    return block


def drawn_moves(block: Block, pairs: bool = True) -> Moves:
    """Moves with random numbers at every place that OmniQuant knows."""
    with torch.no_grad():
        moves = omniquant._starts(block, 0.5, True)
        torch.manual_seed(3)
        for move in moves:
            move.s.copy_(0.5 + torch.rand_like(move.s))
            if move.d is not None:
                move.d.copy_(torch.randn_like(move.d))
        scores = scores_of(block, pairs)
        found = Moves(block, moves, scores, exact=pairs)
        found.s_scores.copy_(0.5 + torch.rand_like(found.s_scores))
    return found


@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 0), (4, 16)])
def test_clipping_equals_its_formulas_and_their_gradients(bits, group):
    torch.manual_seed(0)
    block = block_of(llama())
    grid = Grid(bits, "group" if group else "channel", group, "free")
    clipping = Clipping(block, grid)
    name = block.maps[0]
    weight = (block.weight(name) + 0.1).double().requires_grad_()
    low, high = (logit.double() + torch.randn_like(logit).double() for logit in clipping.ends[name])
    leaves = low.detach().requires_grad_(), high.detach().requires_grad_()
    clipping.ends[name] = leaves
    steps = clipping.steps(name, weight, grid)
    rounded = grid.rounded(weight, steps, through=True)
    c = torch.randn_like(rounded)
    (rounded * c).sum().backward()

    def table(logit):
        return logit.detach().reshape(len(weight), -1).numpy()

    expected, codes, gradients = naive.clipped(weight.detach().numpy(), table(high), table(low), bits, group)
    np.testing.assert_allclose(rounded.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(grid.codes(weight.detach(), steps).reshape(weight.shape).detach().numpy(), codes)
    of_high, of_low, of_weight = gradients(c.numpy())
    np.testing.assert_allclose(leaves[1].grad.reshape(of_high.shape).numpy(), of_high, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(leaves[0].grad.reshape(of_low.shape).numpy(), of_low, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(weight.grad.numpy(), of_weight, rtol=1e-7, atol=1e-10)


def test_an_open_range_is_that_of_the_weights_without_zero_and_the_start_has_0982_of_it():
    block = block_of(llama())
    grid = Grid(3, rule="free")
    name = block.maps[0]
    weight = block.weight(name) + 2.0  # all on one side of zero
    clipping = Clipping(block, grid)
    least, most = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    share = 1 / (1 + np.exp(-4.0))
    torch.testing.assert_close(clipping.steps(name, weight, grid).scale, share * (most - least) / 7)
    for logit in clipping.leaves:
        logit.data.fill_(torch.inf)
    steps = clipping.steps(name, weight, grid)
    torch.testing.assert_close(steps.scale, (most - least) / 7)
    assert torch.equal(grid.rounded(weight, steps), grid.rounded(weight))
    assert int(steps.zero.max()) < 0  # zero has a code that no weight takes


def test_the_symmetric_option_has_the_range_of_the_larger_end():
    block = block_of(llama())
    grid = Grid(4, rule="narrow")
    name = block.maps[0]
    clipping, weight = Clipping(block, grid), block.weight(name)
    clipping.ends[name][0].data.fill_(0.0)  # the lower end at half of its range
    expected = torch.maximum(0.5 * weight.amin(1).abs(), weight.amax(1) / (1 + np.exp(-4.0)))
    torch.testing.assert_close(clipping.steps(name, weight, grid).scale[:, 0], expected / 7, check_dtype=False)


@pytest.mark.parametrize("model", [llama, gemma, opt, bert])
def test_folds_leave_the_full_block_as_it_was_and_are_what_was_trained(model):
    block = block_of(model())
    base, moves = originals(block), drawn_moves(block)
    shifted = [move.feed.source for move in moves.moves if move.d is not None]
    assert (len(moves.moves), len(shifted)) == {llama: (3, 0), gemma: (3, 0), opt: (3, 3), bert: (3, 1)}[model]
    before = block.run(0)
    with torch.no_grad(), moves.dividing(block):
        made = moves.tensors(base)
        trained = run_with(block, 0, made)
    assert float((trained - before).abs().max() / before.abs().max()) < 1e-5
    changed = [name for name, tensor in made.items() if name in base and not torch.equal(tensor, base[name])]
    assert {f"{name}.weight" for feed in (move.feed for move in moves.moves) for name in feed.maps} <= set(changed)
    moves.fold(block)
    assert float((block.run(0) - before).abs().max() / before.abs().max()) < 1e-5
    shared = {"remove_duplicate": False}  # maps of a feed divide by the same numbers
    folded = dict([*block.module.named_parameters(**shared), *block.module.named_buffers(**shared)])
    for name, tensor in made.items():
        torch.testing.assert_close(folded[name].detach(), tensor.detach(), rtol=1e-5, atol=1e-5)


def test_moves_equal_their_formulas():
    block = block_of(opt())
    base, moves = originals(block), drawn_moves(block)
    moves.scores = None
    made = {name: tensor.detach().double().numpy() for name, tensor in moves.tensors(base).items()}
    base = {name: tensor.double().numpy() for name, tensor in base.items()}
    of = {
        move.feed.source: (move.s.detach().double().numpy(), move.d.detach().double().numpy()) for move in moves.moves
    }

    def map_of(name):
        return base[f"self_attn.{name}.weight"], base[f"self_attn.{name}.bias"]

    gain, offset, (q, k, v) = naive.after_norm(
        base["self_attn_layer_norm.weight"], base["self_attn_layer_norm.bias"],
        [map_of(name) for name in ("q_proj", "k_proj", "v_proj")], *of["self_attn_layer_norm"],
    )  # fmt: skip
    v, o = naive.values_to_output(v, map_of("out_proj"), *of["self_attn.v_proj"])
    expected = {"self_attn_layer_norm.weight": gain, "self_attn_layer_norm.bias": offset}
    for name, (weight, bias) in {"q_proj": q, "k_proj": k, "v_proj": v, "out_proj": o}.items():
        expected |= {f"self_attn.{name}.weight": weight, f"self_attn.{name}.bias": bias}
    for name, array in expected.items():
        np.testing.assert_allclose(made[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    assert np.array_equal(made["fc2.weight"], base["fc2.weight"])  # no scales behind an activation


def test_queries_and_keys_share_scales_by_rotated_pair_and_by_head_of_keys():
    scores = scores_of(block_of(llama()))  # 4 heads of 8 channels on 2 heads of keys; i is turned with i + 4
    head = [0, 1, 2, 3, 0, 1, 2, 3]
    assert scores.of_key.tolist() == head + [4 + i for i in head]
    assert scores.of_query.tolist() == head + head + [4 + i for i in head] * 2
    assert (scores.query, scores.key, scores.count) == ("self_attn.q_proj", "self_attn.k_proj", 8)
    free = scores_of(block_of(llama()), pairs=False)
    assert free.of_key.tolist() == list(range(16))
    assert free.of_query.tolist() == [*range(8), *range(8), *range(8, 16), *range(8, 16)]


def test_scales_of_queries_and_keys_change_nothing_only_if_rotated_pairs_share_them():
    torch.manual_seed(0)
    for model, pairs, exact in ((llama, True, True), (llama, False, False), (opt, True, True), (opt, False, True)):
        block = block_of(model())
        scores = scores_of(block, pairs)
        s = 0.5 + torch.rand(scores.count)
        before, weight = block.run(0), block.weight(scores.query).clone()
        if exact:
            scale_scores(block, scores, s)
            assert float((block.run(0) - before).abs().max() / before.abs().max()) < 1e-5
        else:
            with pytest.raises(NotIdentity, match="scaling queries and keys"):
                scale_scores(block, scores, s)
        assert not torch.equal(block.weight(scores.query), weight)


def test_queries_that_are_normalised_have_no_scales():
    config = transformers.Qwen3Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=48,
        intermediate_size=64, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    assert scores_of(block_of(stirred(transformers.Qwen3ForCausalLM(config)))) is None


def start(**changes) -> OmniQuant:
    return OmniQuant(**{"epochs": 0, "clip": False, "move": True, **changes})


def read(block: Block, name: str) -> torch.Tensor:
    parts = []
    block.watch([name], lambda _, x: parts.append(x), block.plain)
    return torch.cat(parts).double()


def test_without_training_it_is_smoothquant_at_norms_and_at_values_then_rounding_to_nearest():
    model = llama()
    block = block_of(copy.deepcopy(model))
    weights = {name: block.weight(name).double() for name in block.maps}
    q, k, v, o, gate, up, down = block.maps
    s_qkv, s_ffn, s_o = (
        torch.from_numpy(naive.smooth_start(read(block, name).numpy(), weights[of].numpy(), 0.5))
        for name, of in ((q, q), (gate, up), (o, o))
    )
    s_v = s_o.view(2, 2, 8).amax(1).flatten()  # two heads of queries read each head of values
    expected = {
        q: weights[q] * s_qkv,
        k: weights[k] * s_qkv,
        v: weights[v] * s_qkv / s_v[:, None],
        o: weights[o] * s_v.view(2, 1, 8).expand(2, 2, 8).flatten(),
        gate: weights[gate] * s_ffn,
        up: weights[up] * s_ffn,
        down: weights[down],
    }
    grid = Grid(3, "group", 8, "free")
    quantize(model, start(), "w3a16g8-free", tokens())
    for name, weight in expected.items():
        got = model.model.layers[0].get_submodule(name).weight.double()
        off = (got - grid.rounded(weight)).abs() > 1e-4 * weight.abs().max()
        assert float(off.double().mean()) < 2e-3, name  # float32 and float64 may round a tie apart
    norm = model.model.layers[0].input_layernorm.weight
    torch.testing.assert_close(norm.double(), block.module.input_layernorm.weight.double() / s_qkv, rtol=1e-5, atol=0)


def test_the_start_takes_the_whole_models_inputs_and_the_centres_of_channels():
    block = block_of(opt(), noise=5.0)
    moves = omniquant._starts(block, 0.75, True)
    by_batch = []
    block.watch(["fc1"], lambda _, x: by_batch.append((x.amin(0) + x.amax(0)) / 2), block.plain)
    centre = by_batch[0]
    for middle in by_batch[1:]:
        centre = 0.99 * centre + 0.01 * middle
    move = next(move for move in moves if move.feed.maps == ("fc1",))
    torch.testing.assert_close(move.d.detach(), centre)
    absmax = block.facts(["fc1"], block.plain)["fc1"].absmax
    torch.testing.assert_close(move.s.detach(), smoothing(absmax, [block.weight("fc1")], 0.75))
    assert all(move.d is None for move in omniquant._starts(block, 0.75, False))


def test_more_of_the_range_moves_at_w4a4():
    block = block_of(llama())
    absmax = block.facts(["mlp.gate_proj"], block.plain)["mlp.gate_proj"].absmax
    for scheme, recipe, alpha in (
        ("w4a4", OmniQuant(), 0.75), ("w4a8", OmniQuant(), 0.5), ("w4a4", OmniQuant(alpha=0.6), 0.6)
    ):  # fmt: skip
        with torch.no_grad():
            moves = recipe._moves(block, Scheme.parse(scheme)).moves
        expected = smoothing(absmax, [block.weight("mlp.up_proj")], alpha)  # what the gate multiplies
        torch.testing.assert_close(moves[-1].s.detach(), expected)


def learned(recipe: OmniQuant, scheme: str, model: nn.Module, monkeypatch, noise: float = 0.0):
    """Train one block; return it, its losses by epoch, and what was learned with its gradients of the last step."""
    block, kept = block_of(model, noise=noise), {}

    def watched(block, tensors, aims, groups, *rest, **settings):
        kept["start"] = [leaf.detach().clone() for leaves, _ in groups for leaf in leaves]
        kept["losses"] = train(block, tensors, aims, groups, *rest, **settings)
        kept["leaves"], kept["aims"] = groups, aims

    monkeypatch.setattr(omniquant, "train", watched)
    with torch.no_grad():
        recipe.block(block, Scheme.parse(scheme))
    return block, kept


def operands_on(model: nn.Module) -> nn.Module:
    Operands(next(iter(blocks_of(model).values())), FREE)
    return model


def test_gradients_reach_all_that_is_learned(monkeypatch):
    block, kept = learned(OmniQuant(epochs=1), "w4a4", operands_on(opt()), monkeypatch)
    (moves, move_rate), (logits, clip_rate) = kept["leaves"]
    assert (move_rate, clip_rate) == (5e-3, 1e-2)
    assert len(moves) == 3 * 2 + 1 and len(logits) == 2 * len(block.maps) == 12
    for leaf, began in zip((*moves, *logits), kept["start"]):
        assert bool((leaf.grad != 0).any()) and not torch.equal(leaf, began)
    assert all(float(logit) == 4.0 for logit in torch.cat([began.flatten() for began in kept["start"][7:]]).unique())


def spiked(model: nn.Module) -> nn.Module:
    """Weights of every map are far out where what they read is next to nothing, so that ranges are worth clipping."""
    block = next(iter(blocks_of(model).values()))
    with torch.no_grad():
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                module.weight[:, 3] *= 4 / module.weight[:, 3].abs() * module.weight.abs().amax(1)
            if "norm" in name:
                for parameter in module.parameters():
                    parameter[3] = 1e-3
    return model


@pytest.mark.parametrize("scheme", ["w2a16g8-free", "w3a16-free", "w4a4-free"])
@pytest.mark.parametrize("model", [llama, opt])
def test_losses_fall(model, scheme, monkeypatch):
    recipe = OmniQuant(epochs=12, clip_rate=0.1, operands=False)
    _, kept = learned(recipe, scheme, spiked(model()), monkeypatch)
    assert len(kept["losses"]) == 12
    smooth = np.convolve(kept["losses"], np.ones(4) / 4, "valid")
    assert smooth[-1] < 0.9 * smooth[0]
    assert (np.diff(smooth) < 0.06 * smooth[0]).all()


def test_the_loss_compares_the_quantized_stream_with_the_full_one(monkeypatch):
    """With learning rates of 0 it is that of the block that results; at 2 bits with that of the full block as well."""
    for scheme, bits in (("w3a4-free", 3), ("w2a4-free", 2)):
        model = llama()
        recipe = OmniQuant(epochs=1, clip_rate=0.0, move_rate=0.0, operands=False)
        whole = block_of(copy.deepcopy(model), noise=0.3)
        block, kept = learned(recipe, scheme, model, monkeypatch, noise=0.3)
        assert not torch.equal(block.states[0], block.plain[0])
        aims = [whole.outputs(whole.plain)] + ([whole.outputs(whole.states)] if bits == 2 else [])
        expected = [sum(F.mse_loss(out, aim[at]) for aim in aims) for at, out in enumerate(block.outputs())]
        assert kept["losses"] == [pytest.approx(float(torch.stack(expected).mean()), rel=2e-2)]
        again = OmniQuant(epochs=1, clip_rate=0.0, move_rate=0.0, operands=False, augmented=bits != 2)
        _, other = learned(again, scheme, llama(), monkeypatch, noise=0.3)
        assert len(other["aims"]) == (1 if bits == 2 else 2)


def test_padding_does_not_count():
    model, batch = llama(), tokens(1)[0]
    batch["attention_mask"] = torch.ones(2, 32, dtype=torch.long)
    batch["attention_mask"][1, 20:] = 0
    block = block_of(model, [batch])
    weight = originals(block)["mlp.down_proj.weight"].clone().requires_grad_()

    def loss() -> float:
        return train(block, lambda: {"mlp.down_proj.weight": weight}, [block.targets], [([weight], 0.0)], 1)[0]

    keep = batch["attention_mask"].bool()
    block.targets[0][keep] += 1.0
    assert loss() == pytest.approx(1.0, rel=1e-4)
    block.targets[0][~keep] += 100.0
    assert loss() == pytest.approx(1.0, rel=1e-4)


def test_a_loss_that_is_not_finite_is_said():
    block = block_of(llama())
    leaf = torch.ones(1, requires_grad=True)
    block.targets[1].fill_(torch.nan)
    with pytest.raises(BadInput, match=r"loss of nan in epoch 1; lower the learning rates"):
        base = originals(block)
        name = "mlp.down_proj.weight"
        train(block, lambda: {name: base[name] * leaf}, [block.targets], [([leaf], 0.1)], 2)


def test_scales_stay_away_from_zero():
    block = block_of(llama())
    feed = block.feeds[0]
    moves = Moves(block, [Move(feed, torch.full((32,), 1e-3).requires_grad_())])
    assert torch.equal(moves.moves[0].s.detach(), torch.full((32,), 0.01))
    moves.moves[0].s.data[3] = -5.0
    moves.settle()
    assert float(moves.moves[0].s.detach()[3]) == pytest.approx(0.01)


@pytest.mark.parametrize("scheme", ["w2a16g8-free", "w4a4", "w3a8-narrow"])
def test_weights_in_place_are_their_codes_and_have_the_learned_range(scheme, monkeypatch):
    block, kept = learned(OmniQuant(epochs=3, operands=False), scheme, llama(), monkeypatch)
    logits, original = kept["leaves"][1][0], block_of(llama())
    for i, name in enumerate(block.maps):
        module = block.own(name)
        grid, steps = module.grid, module.rounded.steps
        codes = grid.codes(module.weight.detach(), steps)
        low, high = grid.ends
        assert torch.equal(codes, codes.round()) and low <= float(codes.min()) and float(codes.max()) <= high
        packed = codes.to(torch.int8)
        assert torch.equal(grid.values(packed.float(), steps, tuple(module.weight.shape)), module.weight.detach())
        if scheme.startswith("w2"):  # where weights do not move
            v = grid.view(original.weight(name))
            low, high = (torch.sigmoid(logit).detach() for logit in logits[2 * i : 2 * i + 2])
            width = high * v.amax(-1, keepdim=True) - low * v.amin(-1, keepdim=True)
            torch.testing.assert_close(steps.scale, width / 3)
            assert not torch.equal(steps.scale, grid.steps(original.weight(name)).scale)


def test_where_moves_are_learned(monkeypatch):
    def count(recipe, scheme, model):
        _, kept = learned(recipe, scheme, model, monkeypatch)
        (moves, _), (logits, _) = kept["leaves"]
        return len(moves), len(logits)

    quick = {"epochs": 1}
    assert count(OmniQuant(**quick), "w3a16", llama()) == (0, 14)
    assert count(OmniQuant(**quick), "w3a16", opt()) == (3, 12)  # scales, and no shifts for weights alone
    assert count(OmniQuant(**quick), "w4a4", llama()) == (4, 14)  # with scales of queries and keys
    assert count(OmniQuant(**quick, operands=False), "w4a4", llama()) == (3, 14)
    assert count(OmniQuant(**quick, operands=False, pairs=False), "w4a4", llama()) == (4, 14)
    assert count(OmniQuant(**quick, operands=False), "w4a4", opt()) == (6, 12)
    assert count(OmniQuant(**quick, operands=False, shift=False, clip=False), "w4a4", opt()) == (3, 0)


def attended(model: nn.Module, monkeypatch, batch: dict) -> list[tuple[torch.Tensor, ...]]:
    """The operands of the fused product, block by block."""
    seen, fused = [], F.scaled_dot_product_attention

    def watched(q, k, v, *args, **settings):
        seen.append((q, k, v))
        return fused(q, k, v, *args, **settings)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    with torch.no_grad():
        model(**batch)
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_operands_are_rounded_by_head_and_token_once_inputs_are(attention):
    """The block with rounded operands equals attention by hand."""
    model = operands_on(llama(attention))
    block = block_of(model)
    x = block.states[0]
    plain = block.run(0)
    layer, heads = block.module, 4
    torch.testing.assert_close(plain, block_of(llama(attention)).run(0), rtol=0, atol=0)  # off in full precision

    def by_hand(rounded):
        h = layer.input_layernorm(x)
        attend = layer.self_attn
        q, k, v = (
            one(h).view(*h.shape[:2], -1, 8).transpose(1, 2) for one in (attend.q_proj, attend.k_proj, attend.v_proj)
        )
        cos, sin = block.calls.rest[block.name][0][1]["position_embeddings"]
        q, k = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
        q, k, v = (rounded(one) for one in (q, k, v))
        k, v = (one.repeat_interleave(heads // 2, 1) for one in (k, v))
        logits = (q @ k.mT / 8**0.5).masked_fill(torch.ones(32, 32).triu(1).bool(), -torch.inf)
        y = x + attend.o_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return y + layer.mlp(layer.post_attention_layernorm(y))

    with torch.no_grad():
        torch.testing.assert_close(plain, by_hand(lambda one: one), rtol=1e-4, atol=1e-5)
        with inputs_rounded_through(block, ["self_attn.q_proj"], Grid(8, "token", rule="free")):
            got = block.run(0)
            expected = by_hand(lambda one: torch.from_numpy(naive.of_token(one.reshape(-1, 8).numpy(), 4)).view_as(one))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert float((got - plain).abs().max()) > 20 * float((got - expected).abs().max())
    torch.testing.assert_close(block.run(0), plain, rtol=0, atol=0)  # and off again


def test_gradients_pass_the_rounding_of_operands():
    operands = Operands(llama().model.layers[0], FREE)
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    found, expected = (x.clone().requires_grad_() for _ in "ab")
    c = torch.randn_like(x)
    (operands.rounded(found) * c).sum().backward()
    (FREE.rounded(expected, through=True) * c).sum().backward()
    assert torch.equal(found.grad, expected.grad)
    inner = (x > x.amin(-1, keepdim=True)) & (x < x.amax(-1, keepdim=True))
    torch.testing.assert_close(found.grad[inner], c[inner])


def test_what_leaves_a_pass_early_leaves_no_rounding_behind():
    model, batch = operands_on(llama()), tokens(1)[0]

    def stop(module, args):
        raise KeyboardInterrupt

    hook = model.model.layers[0].mlp.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(**batch)
    hook.remove()
    assert torch.overrides._len_torch_function_stack() == 0
    with torch.no_grad():
        model(**batch)


def test_a_copy_rounds_its_own_operands():
    model, batch = operands_on(llama()), tokens(1)[0]
    twin = copy.deepcopy(model)
    layer, other = model.model.layers[0], twin.model.layers[0]
    assert other.forward.block is other and layer.forward.block is layer
    assert inspect.signature(other.forward) == inspect.signature(llama().model.layers[0].forward)
    with torch.no_grad():
        assert torch.equal(twin(**batch).logits, model(**batch).logits)
    assert other.forward.operands.places == layer.forward.operands.places


def test_a_run_that_was_stopped_goes_on_with_rounded_operands(tmp_path):
    class Stopped(Exception):
        pass

    def stop(what, share):
        if what == "quantizing" and share == 0.5:  # of two blocks
            raise Stopped

    batches, recipe = tokens(), OmniQuant(epochs=2)
    whole = llama()
    expected = quantize(whole, recipe, "w4a4", batches)
    with pytest.raises(Stopped):
        quantize(llama(), recipe, "w4a4", batches, keep=tmp_path, progress=stop)
    model = llama()
    found = quantize(model, recipe, "w4a4", batches, keep=tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**batches[0]).logits, whole(**batches[0]).logits)
    assert found.errors == expected.errors and "Queries, keys and values" in found.notes[0]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(**batches[0]).logits, whole(**batches[0]).logits)


def test_inputs_get_a_zero_point_unless_asked_not_to():
    for zero_points, rule in ((True, "free"), (False, "full")):
        model = llama()
        quantize(model, OmniQuant(epochs=0, zero_points=zero_points, operands=False), "w4a4", tokens())
        maps = [module for module in model.modules() if isinstance(module, QuantLinear)]
        assert {module.rounding.grid.rule for module in maps} == {rule} and len(maps) == 14


@pytest.mark.parametrize("scheme", ["w8a8-tensor", "fp8", "nvfp4", "mxfp4a16"])
def test_schemes_that_it_cannot_do_are_refused(scheme):
    with pytest.raises(BadInput, match="w2a16g64-free"):
        quantize(llama(), "omniquant", scheme, tokens())


@pytest.mark.parametrize("bits", [16, 4])
def test_it_loses_less_than_rounding_to_nearest_and_than_its_start(bits):
    inputs = Grid(bits, "token", rule="free") if bits < 16 else None
    scheme = Scheme(Grid(3, rule="free"), inputs)
    settings = {"operands": False, "move": True}
    recipes = RTN(), OmniQuant(epochs=0, **settings), OmniQuant(epochs=10, clip_rate=0.1, **settings)
    rounded, began, trained = (
        quantize(spiked(llama()), recipe, scheme, tokens()).block_errors["model.layers.0"] for recipe in recipes
    )
    assert trained < 0.7 * min(rounded, began)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = llama().to(dtype)
    found = quantize(model, OmniQuant(epochs=2), "w4a8g8-free", tokens())
    assert next(model.parameters()).dtype == dtype
    assert 0 < list(found.block_errors.values())[-1] < 0.2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_on_a_gpu():
    batches = tokens()
    cpu = quantize(llama(), OmniQuant(epochs=3), "w4a4", batches).block_errors
    gpu = quantize(llama().cuda(), OmniQuant(epochs=3), "w4a4", batches).block_errors
    fast = quantize(llama().cuda(), OmniQuant(epochs=3, amp=True), "w4a4", batches).block_errors
    for name, error in cpu.items():
        assert gpu[name] == pytest.approx(error, rel=0.1)
        assert fast[name] == pytest.approx(error, rel=0.2)
