"""Moves on five architectures: what feeds are found, that outputs stay, and what folding leaves to do at run time.

Models compute in float32 and in float64; in float64 their norms do so too, which the classes of transformers do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402

from farout.errors import BadInput, NothingMatched, NotIdentity  # noqa: E402
from farout.inside._sites import first_tensor  # noqa: E402
from farout.kit.hadamard import hadamard, random_signs  # noqa: E402
from farout.quantize import quantize  # noqa: E402
from farout.quantize._blocks import Block, Calls, blocks_of  # noqa: E402
from farout.quantize._linear import QuantLinear, Rotate, Scale, Shift  # noqa: E402
from farout.quantize._norms import gain_of  # noqa: E402
from farout.quantize._structure import Feed, _apart, _ratios  # noqa: E402
from farout.quantize.move.permute import permute  # noqa: E402
from farout.quantize.move.rotate import head_size, rotate_heads, rotate_inputs, rotate_stream  # noqa: E402
from farout.quantize.move.scale import scale  # noqa: E402
from farout.quantize.move.shift import shift  # noqa: E402
from farout.quantize.recipe import Work, _structure  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402
from farout.quantize.smoothquant import norm_fed  # noqa: E402

FLOATS = torch.float32, torch.float64
LIMIT = {torch.float32: 1e-4, torch.float64: 1e-9}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SMALL, "vocab_size": 64}
GROUPED = {**TEXT, "num_key_value_heads": 2}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "gemma": lambda: transformers.Gemma3TextConfig(**GROUPED, head_dim=8, query_pre_attn_scalar=8),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=64, word_embed_proj_dim=32,
        max_position_embeddings=64,
    ),
    "bert": lambda: transformers.BertConfig(**TEXT),
    "vit": lambda: transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=7),
    "neox": lambda: transformers.GPTNeoXConfig(**TEXT),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64),
    "phi": lambda: transformers.PhiConfig(**TEXT, partial_rotary_factor=0.5),
    "qwen": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "olmo": lambda: transformers.OlmoConfig(**GROUPED),
    "granite": lambda: transformers.GraniteConfig(
        **GROUPED, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0
    ),
}  # fmt: skip
CLASSES = {
    "bert": transformers.AutoModelForMaskedLM,
    "vit": transformers.AutoModelForImageClassification,
}
FIVE = "llama", "gemma", "opt", "bert", "vit"


def made(config: Any, kind: Any) -> nn.Module:
    """Make a model whose gains and biases are all different, and whose attention is not even."""
    torch.manual_seed(0)
    model = kind.from_config(config, attn_implementation="eager" if config.model_type == "bloom" else "sdpa")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_((0.3 if weight.ndim < 2 else 0.15) * torch.randn_like(weight))
    return model.eval()


def model_and_batch(kind: str, dtype: torch.dtype) -> tuple[nn.Module, dict]:
    model = made(CONFIGS[kind](), CLASSES.get(kind, transformers.AutoModelForCausalLM)).to(dtype)
    drawn = torch.Generator().manual_seed(0)
    if kind == "vit":
        return model, {"pixel_values": torch.randn(2, 3, 16, 16, generator=drawn).to(dtype)}
    return model, {"input_ids": torch.randint(1, 64, (2, 24), generator=drawn)}


def work_on(model: nn.Module, batch: Any) -> Work:
    work = Work(model, blocks_of(model), [batch], Scheme.parse("w8a16"), {})
    with torch.no_grad():
        work.feeds = _structure(work)
    return work


def blocks_of_work(work: Work) -> Iterator[Block]:
    """Give one block after the other, on what those before it make of the batch."""
    calls = Calls(work.model, work.blocks, work.batches)
    states = calls.states
    for name in work.blocks:
        block = work.block(name, calls, list(states))
        yield block
        states[:] = block.outputs()


def output(model: nn.Module, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return first_tensor(model(**batch) if isinstance(batch, dict) else model(batch))


def apart(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).abs().max() / y.abs().max())


def online(model: nn.Module) -> dict[str, set[str]]:
    """Return by the last part of their names what maps still do to what they read."""
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            steps = {type(step).__name__ for step in module.before}
            found.setdefault(name.rpartition(".")[2], set()).update(steps)
    return {name: steps for name, steps in found.items() if steps}


@pytest.fixture(autouse=True)
def norms_of_full_precision(monkeypatch):
    def llama(self, x):
        return self.weight * F.rms_norm(x, (x.shape[-1],), eps=self.variance_epsilon)

    def gemma(self, x):
        return (1 + self.weight) * F.rms_norm(x, (x.shape[-1],), eps=self.eps)

    monkeypatch.setattr(LlamaRMSNorm, "forward", llama)
    monkeypatch.setattr(Gemma3RMSNorm, "forward", gemma)


# --- what is found -----------------------------------------------------------------------------------------------

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")
#        maps, source, and letters: n a norm gives it, h heads share values, s scales pass, + shifts pass, a nobody else
#        reads the source, e what enters the block
FEEDS = {
    "llama": [
        (QKV, "input_layernorm", "ns+a"),
        (("self_attn.o_proj",), "self_attn.v_proj", "hs+a"),
        (MLP, "post_attention_layernorm", "ns+a"),
        (("mlp.down_proj",), "mlp.up_proj", "sa"),
    ],
    "gemma": [
        (QKV, "input_layernorm", "ns+a"),
        (("self_attn.o_proj",), "self_attn.v_proj", "hs+a"),
        (MLP, "pre_feedforward_layernorm", "ns+a"),
        (("mlp.down_proj",), "mlp.up_proj", "sa"),
    ],
    "opt": [
        (QKV, "self_attn_layer_norm", "ns+a"),
        (("self_attn.out_proj",), "self_attn.v_proj", "s+a"),
        (("fc1",), "final_layer_norm", "ns+a"),
        (("fc2",), "fc1", "sa"),  # through ReLU
    ],
    "bert": [
        (("attention.self.query", "attention.self.key", "attention.self.value"), None, "e"),
        (("attention.output.dense",), "attention.self.value", "s+a"),
        (("intermediate.dense",), "attention.output.LayerNorm", "ns+"),  # the sum behind it reads it too
        (("output.dense",), None, ""),  # behind GELU
    ],
    "vit": [
        (("attention.q_proj", "attention.k_proj", "attention.v_proj"), "layernorm_before", "ns+a"),
        (("attention.o_proj",), "attention.v_proj", "s+a"),
        (("mlp.fc1",), "layernorm_after", "ns+a"),
        (("mlp.fc2",), None, ""),
    ],
    "neox": [  # queries, keys and values from one map: nothing is claimed of what attention gives
        (("attention.query_key_value",), "input_layernorm", "ns+a"),
        (("attention.dense",), None, ""),
        (("mlp.dense_h_to_4h",), "post_attention_layernorm", "ns+a"),
        (("mlp.dense_4h_to_h",), None, ""),
    ],
    "bloom": [
        (("self_attention.query_key_value",), "input_layernorm", "ns+a"),
        (("self_attention.dense",), None, ""),
        (("mlp.dense_h_to_4h",), "post_attention_layernorm", "ns+a"),
        (("mlp.dense_4h_to_h",), None, ""),
    ],
    "phi": [  # attention and feed-forward side by side, behind one norm
        ((*QKV, "mlp.fc1"), "input_layernorm", "ns+a"),
        (("self_attn.dense",), "self_attn.v_proj", "s+a"),
        (("mlp.fc2",), None, ""),
    ],
}


def told(feed: Feed) -> tuple:
    letters = {"n": feed.norm, "h": feed.index is not None, "s": feed.scales, "+": feed.shifts, "a": feed.alone}
    return feed.maps, feed.source, "".join(c for c, true in (letters | {"e": feed.entry}).items() if true)


@pytest.mark.parametrize("kind", FEEDS)
def test_feeds_are_found_as_they_are(kind):
    work = work_on(*model_and_batch(kind, torch.float32))
    for feeds in work.feeds.values():
        assert sorted(map(told, feeds)) == sorted(FEEDS[kind])


def test_heads_that_share_values_are_found():
    work = work_on(*model_and_batch("llama", torch.float32))
    feed = work.feeds["model.layers.0"][1]
    first, second = torch.arange(8), torch.arange(8, 16)
    assert torch.equal(feed.index, torch.cat([first, first, second, second]))  # 4 heads of 8 channels, 2 of values


# --- that outputs stay -------------------------------------------------------------------------------------------


def by_feed(work: Work, move: Callable[[Block, Feed, int], Any]) -> None:
    for block in blocks_of_work(work):
        for place, feed in enumerate(block.feeds):
            move(block, feed, place)


def drawn_for(block: Block, feed: Feed, seed: int) -> torch.Tensor:
    weight = block.weight(feed.maps[0])
    channels = weight.shape[1] if feed.index is None else int(feed.index.max()) + 1
    return torch.randn(channels, generator=torch.Generator().manual_seed(seed)).to(weight)


LEFT_OF_SCALES = {
    "llama": {},
    "gemma": {},
    "opt": {},
    "bert": {"query", "key", "value", "dense"},
    "vit": {"fc2"},
}
LEFT_OF_SHIFTS = {  # norms without a bias cannot take a shift over; the map of the values has got one by then
    "llama": {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"},
    "gemma": {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"},
    "opt": {"fc2"},
    "bert": {"query", "key", "value", "dense"},
    "vit": {"fc2"},
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", FIVE)
def test_scales_change_nothing_and_are_folded_where_they_can_be(kind, dtype):
    model, batch = model_and_batch(kind, dtype)
    before, work = output(model, batch), work_on(model, batch)
    by_feed(work, lambda block, feed, place: scale(block, feed, torch.exp2(2 * drawn_for(block, feed, place))))
    assert apart(output(model, batch), before) < LIMIT[dtype]
    assert online(model) == {name: {"Scale"} for name in LEFT_OF_SCALES[kind]}


@pytest.mark.parametrize("kind", FIVE)
def test_scaled_inputs_are_those_that_were_asked_for(kind):
    model, batch = model_and_batch(kind, torch.float64)
    work = work_on(model, batch)
    for block in blocks_of_work(work):
        for place, feed in enumerate(block.feeds):
            s = torch.exp2(drawn_for(block, feed, place))
            seen: list[torch.Tensor] = []
            block.watch(feed.maps, lambda name, x, seen=seen: seen.append(x))
            scale(block, feed, s)
            block.watch(feed.maps, lambda name, x, seen=seen: seen.append(x))
            plain, scaled = seen[: len(feed.maps)], seen[len(feed.maps) :]
            for x, y in zip(plain, scaled, strict=True):
                assert apart(y * feed.at_maps(s), x) < 1e-9


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", FIVE)
def test_shifts_change_nothing_and_are_folded_where_they_can_be(kind, dtype):
    model, batch = model_and_batch(kind, dtype)
    before, work = output(model, batch), work_on(model, batch)
    by_feed(work, lambda block, feed, place: shift(block, feed, drawn_for(block, feed, place)))
    assert apart(output(model, batch), before) < LIMIT[dtype]
    assert online(model) == {name: {"Shift"} for name in LEFT_OF_SHIFTS[kind]}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", FIVE)
def test_shift_then_scale_change_nothing_together(kind, dtype):
    model, batch = model_and_batch(kind, dtype)
    before, work = output(model, batch), work_on(model, batch)

    def both(block: Block, feed: Feed, place: int) -> None:
        shift(block, feed, drawn_for(block, feed, place))
        scale(block, feed, torch.exp2(drawn_for(block, feed, place + 9)))

    by_feed(work, both)
    assert apart(output(model, batch), before) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("kind", "reads"), [("llama", "mlp.down_proj"), ("gemma", "mlp.down_proj"), ("opt", "fc2")])
def test_the_middle_of_a_feed_forward_part_can_be_reordered(kind, reads, dtype):
    model, batch = model_and_batch(kind, dtype)
    before, work = output(model, batch), work_on(model, batch)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    for block in blocks_of_work(work):
        seen: list[torch.Tensor] = []
        block.watch([reads], lambda name, x, seen=seen: seen.append(x))
        permute(block, block.feed_of(reads), order)
        block.watch([reads], lambda name, x, seen=seen: seen.append(x))
        assert apart(seen[1], seen[0][:, order]) < LIMIT[dtype]
    assert apart(output(model, batch), before) < LIMIT[dtype]
    assert not online(model)


@pytest.mark.parametrize(
    ("kind", "reads"), [("opt", "self_attn.out_proj"), ("bert", "attention.output.dense"), ("vit", "attention.o_proj")]
)
def test_channels_of_a_head_can_be_reordered_within_it_only(kind, reads):
    model, batch = model_and_batch(kind, torch.float64)
    before, work = output(model, batch), work_on(model, batch)
    within = torch.cat([8 * head + torch.randperm(8) for head in range(4)])
    blocks = list(work.blocks)
    for block in blocks_of_work(work):
        permute(block, block.feed_of(reads), within)
        if block.name == blocks[-1]:
            with pytest.raises(NotIdentity):
                permute(block, block.feed_of(reads), torch.arange(32).roll(1))
            break
        assert apart(output(model, batch), before) < 1e-9


@pytest.mark.parametrize(
    ("kind", "reads"),
    [("llama", "self_attn.o_proj"), ("bert", "output.dense"), ("bert", "intermediate.dense"), ("llama", "mlp.up_proj")],
)
def test_what_cannot_be_reordered_is_refused_and_left_as_it_is(kind, reads):
    model, batch = model_and_batch(kind, torch.float32)
    before, work = output(model, batch), work_on(model, batch)
    block = next(blocks_of_work(work))
    with pytest.raises(BadInput):
        permute(block, block.feed_of(reads), torch.arange(block.weight(reads).shape[1]).roll(1))
    assert torch.equal(output(model, batch), before)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", FIVE)
def test_maps_can_rotate_what_they_read(kind, dtype):
    model, batch = model_and_batch(kind, dtype)
    before, work = output(model, batch), work_on(model, batch)
    by_feed(work, lambda block, feed, place: rotate_inputs(block, feed.maps, seed=place or None))
    assert apart(output(model, batch), before) < LIMIT[dtype]
    maps = [name.rpartition(".")[2] for block in work.blocks.values() for name, m in block.named_modules()
            if isinstance(m, QuantLinear)]  # fmt: skip
    assert online(model) == {name: {"Rotate"} for name in maps}


def test_a_rotated_input_is_that_times_signs_and_matrix():
    model, batch = model_and_batch("bert", torch.float64)
    block = next(blocks_of_work(work_on(model, batch)))
    seen: list[torch.Tensor] = []
    block.watch(["output.dense"], lambda name, x: seen.append(x))
    weight = block.weight("output.dense").clone()
    rotate_inputs(block, ["output.dense"], seed=5)
    block.watch(["output.dense"], lambda name, x: seen.append(x))
    matrix = random_signs(48, 5).double()[:, None] * torch.from_numpy(hadamard(48)).double() / 48**0.5
    torch.testing.assert_close(seen[1], seen[0] @ matrix)
    torch.testing.assert_close(block.weight("output.dense"), weight @ matrix)


HEADS = {  # the map that reads heads, and how many there are of queries and of values
    "llama": ("self_attn.o_proj", 4, 2),
    "gemma": ("self_attn.o_proj", 4, 2),
    "opt": ("self_attn.out_proj", 4, 4),
    "bert": ("attention.output.dense", 4, 4),
    "vit": ("attention.o_proj", 4, 4),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", FIVE)
def test_heads_are_rotated_by_folding(kind, dtype):
    model, batch = model_and_batch(kind, dtype)
    before, work = output(model, batch), work_on(model, batch)
    reads, queries, values = HEADS[kind]
    matrix = torch.from_numpy(hadamard(8)).to(dtype) / 8**0.5
    for block in blocks_of_work(work):
        sizes = {feed.maps[0]: head_size(block, feed) for feed in block.feeds}
        assert {name: size for name, size in sizes.items() if (size or 1) > 1} == {reads: 8}
        feed = block.feed_of(reads)
        v, o = block.weight(feed.source).clone(), block.weight(reads).clone()
        rotate_heads(block, feed, 8)
        blocks = torch.block_diag(*[matrix] * values), torch.block_diag(*[matrix] * queries)
        torch.testing.assert_close(block.weight(feed.source), blocks[0].T @ v)
        torch.testing.assert_close(block.weight(reads), o @ blocks[1])
    assert apart(output(model, batch), before) < LIMIT[dtype]
    assert not online(model)


TURNED = {  # norms of the stream are LayerNorms, and the map behind the last of them
    "llama": (False, "lm_head"),
    "opt": (True, "lm_head"),
    "vit": (True, "classifier"),
    "neox": (True, "embed_out"),
    "phi": (True, "lm_head"),
    "qwen": (False, "lm_head"),
    "olmo": (True, "lm_head"),
    "granite": (False, "lm_head"),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", TURNED)
def test_the_stream_is_rotated_by_folding(kind, dtype):
    model, batch = model_and_batch(kind, dtype)
    before, work = output(model, batch), work_on(model, batch)
    entering = Calls(model, work.blocks, [batch]).states[0]
    turned = rotate_stream(work, seed=7)
    limit = LIMIT[torch.float32] if kind in ("qwen", "granite", "olmo") else LIMIT[dtype]  # whose norms are float32's
    assert apart(output(model, batch), before) < limit
    assert not online(model) and not any(isinstance(module, Rotate | QuantLinear) for module in model.modules())
    assert turned == {f"{block}.{name}" for block, feeds in work.feeds.items() for feed in feeds
                      if feed.norm or (kind == "olmo" and feed.maps[0].endswith(("q_proj", "gate_proj")))
                      for name in feed.maps}  # fmt: skip
    matrix = random_signs(32, 7).to(dtype)[:, None] * torch.from_numpy(hadamard(32)).to(dtype) / 32**0.5
    centres, _ = TURNED[kind]
    expected = entering - entering.mean(-1, keepdim=True) if centres else entering
    assert apart(Calls(model, work.blocks, [batch]).states[0], expected @ matrix) < LIMIT[dtype]
    for block, feeds in work.feeds.items():
        for source in {feed.source for feed in feeds if feed.norm}:
            norm = model.get_submodule(f"{block}.{source}")
            assert bool((gain_of(norm) == 1).all())
            assert isinstance(norm, nn.RMSNorm) == centres


def test_a_rotation_that_is_none_is_found_out(monkeypatch):
    from farout.quantize.move import rotate

    kept = rotate._turned
    monkeypatch.setattr(rotate, "_turned", lambda tensor, axis, *rest: kept(tensor, axis, *rest) if axis else tensor)
    with pytest.raises(NotIdentity, match="rotating the residual stream changed"):
        rotate_stream(work_on(*model_and_batch("llama", torch.float32)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rotated_too(dtype):
    model, batch = model_and_batch("llama", dtype)
    before, work = output(model, batch), work_on(model, batch)
    assert rotate_stream(work)
    assert output(model, batch).dtype == dtype
    assert apart(output(model, batch).float(), before.float()) < 0.1


@pytest.mark.parametrize("kind", ["llama", "opt", "vit"])
def test_gains_are_in_the_maps_that_read(kind):
    model, batch = model_and_batch(kind, torch.float64)
    work = work_on(model, batch)
    kept = {name: weight.detach().clone() for name, weight in model.named_parameters(remove_duplicate=False)}
    rotate_stream(work, seed=7)
    matrix = random_signs(32, 7).double()[:, None] * torch.from_numpy(hadamard(32)).double() / 32**0.5
    block, feeds = next(iter(work.feeds.items()))
    for feed in feeds:
        if not feed.norm:
            continue
        gain = kept[f"{block}.{feed.source}.weight"]
        for name in feed.maps:
            old, new = kept[f"{block}.{name}.weight"], work.model.get_submodule(f"{block}.{name}")
            torch.testing.assert_close(new.weight.data, old * gain @ matrix)
            if TURNED[kind][0]:
                moved = kept[f"{block}.{name}.bias"] + old @ kept[f"{block}.{feed.source}.bias"]
                torch.testing.assert_close(new.bias.data, moved)
    centre = torch.eye(32, dtype=torch.float64) - (1 / 32 if TURNED[kind][0] else 0)
    writer = f"{block}.{feeds[-1].maps[0]}.weight"
    torch.testing.assert_close(model.get_parameter(writer).data, matrix.T @ centre @ kept[writer])


def test_a_tied_head_gets_a_weight_of_its_own(tmp_path):
    model, batch = model_and_batch("llama", torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before, work = output(model, batch), work_on(model, batch)
    rotate_stream(work)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert work.notes == ["'lm_head.weight' no longer is the weight of the embeddings: 2,048 numbers more"]
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert apart(output(again, batch), before) < 1e-4


def test_a_model_without_a_head_is_rotated_back_before_its_last_norm():
    for kind, config in (("llama", CONFIGS["llama"]()), ("opt", CONFIGS["opt"]())):
        model = made(config, transformers.AutoModel).double()
        _, batch = model_and_batch(kind, torch.float64)
        before, work = output(model, batch), work_on(model, batch)
        assert rotate_stream(work)
        assert apart(output(model, batch), before) < 1e-9
        assert [type(module).__name__ for module in model.modules() if isinstance(module, Rotate)] == ["Rotate"]
        assert any("is rotated back before it" in note for note in work.notes)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("gemma", "the norm 'model.layers.0.post_attention_layernorm' adds to the stream"),
        ("bert", "what enters 'bert.encoder.layer.0' is not handed on as it is, since norms stand behind its sums"),
        ("bloom", "what 'transformer.word_embeddings' gives does not reach the first block as it is"),
    ],
)
def test_a_stream_that_cannot_be_rotated_is_left_alone_and_why_is_said(kind, why):
    model, batch = model_and_batch(kind, torch.float32)
    before, work = output(model, batch), work_on(model, batch)
    assert not rotate_stream(work)
    assert len(work.notes) == 1 and why in work.notes[0]
    assert torch.equal(output(model, batch), before)
    # and QuaRot has maps rotate what they read
    model, batch = model_and_batch(kind, torch.float32)
    quantized = quantize(model, {"recipe": "quarot", "solver": "rtn"}, "w8a16", [batch] * 3)
    assert apart(output(model, batch), before) < 0.1
    online = {name.rpartition(".")[2]: module.before[0] for name, module in quantized.maps.items()}
    for name in {"gemma": ("q_proj", "down_proj"), "bert": ("query",), "bloom": ("query_key_value", "dense_4h_to_h")}[
        kind
    ]:
        assert isinstance(online[name], Rotate) and online[name].signs is not None


# --- what cannot be ----------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A block that calls one map for two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.shared, self.own = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.shared(self.first(x)).tanh() @ torch.eye(16).to(x)
        return x + self.own(self.shared(self.second(x)).tanh())


def toy(block: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), block(), block(), nn.LayerNorm(16), nn.Linear(16, 4))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval(), torch.randn(2, 80, 4)


def test_a_map_that_is_called_twice_is_scaled_shifted_and_rotated_as_it_runs():
    model, batch = toy(Twice)
    before, work = output(model, batch), work_on(model, batch)

    def all_moves(block: Block, feed: Feed, place: int) -> None:
        scale(block, feed, torch.exp2(drawn_for(block, feed, place)))
        shift(block, feed, drawn_for(block, feed, place))
        rotate_inputs(block, feed.maps, seed=0)

    by_feed(work, all_moves)
    assert apart(output(model, batch), before) < 1e-4
    assert online(model) == {"shared": {"Scale", "Shift", "Rotate"}, "own": {"Scale", "Shift", "Rotate"}}
    model, batch = toy(Twice)
    work = work_on(model, batch)
    assert not rotate_stream(work) and torch.equal(output(model, batch), before)


class Plain(nn.Module):
    """A block of one feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def test_a_map_that_writes_twice_is_rotated_with_the_stream():
    class Writes(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.up(self.norm(x)).relu()
            return x + self.down(a) + self.down(a.flip(-1))

    model, batch = toy(Writes)
    before, work = output(model, batch), work_on(model, batch)
    assert rotate_stream(work) == {"1.up", "2.up"}
    assert apart(output(model, batch), before) < 1e-4


def test_a_row_of_blocks_that_is_run_twice_is_rotated():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, *blocks, self.norm, self.head = toy(Plain)[0]
            self.blocks = nn.ModuleList(blocks)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.enter(x)
            for block in [*self.blocks, *self.blocks]:
                x = block(x)
            return self.head(self.norm(x))

    model, batch = Loop().eval(), torch.randn(2, 80, 4)
    before, work = output(model, batch), work_on(model, batch)
    assert rotate_stream(work) == {"blocks.0.up", "blocks.1.up"}
    assert apart(output(model, batch), before) < 1e-4
    by_feed(work, lambda block, feed, place: scale(block, feed, torch.exp2(drawn_for(block, feed, place))))
    assert apart(output(model, batch), before) < 1e-4


def test_weights_that_blocks_share_are_not_rotated_twice():
    model, batch = toy(Plain)
    model[2].down.weight = model[1].down.weight
    before, work = output(model, batch), work_on(model, batch)
    assert not rotate_stream(work) and "blocks share weights" in work.notes[0]
    assert torch.equal(output(model, batch), before)


def test_maps_that_no_norm_feeds_match_nothing():
    class Bare(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(self.up(2 * x).relu())

    model, batch = toy(Bare)
    work = work_on(model, batch)
    with pytest.raises(NothingMatched, match=r"map that reads a norm.*1\.up"):
        norm_fed(next(blocks_of_work(work)))
    with pytest.raises(NothingMatched):
        quantize(model, "smoothquant", "w8a8", [batch])


WRONG: dict[str, tuple[str, str, Callable[[Feed], Feed], Callable[[Block, Feed], None]]] = {
    "an index of values that is another": (
        "llama",
        "self_attn.o_proj",
        lambda feed: replace(feed, index=feed.index.flip(0)),
        lambda block, feed: scale(block, feed, torch.linspace(0.5, 2, 16)),
    ),
    "no index where heads share": (
        "bert",
        "attention.output.dense",
        lambda feed: replace(feed, index=torch.arange(32).roll(1)),
        lambda block, feed: scale(block, feed, torch.linspace(0.5, 2, 32)),
    ),
    "alone where a sum reads too": (
        "bert",
        "intermediate.dense",
        lambda feed: replace(feed, alone=True),
        lambda block, feed: scale(block, feed, torch.linspace(0.5, 2, 32)),
    ),
    "scales through GELU": (
        "bert",
        "output.dense",
        lambda feed: replace(feed, source="intermediate.dense", scales=True, alone=True),
        lambda block, feed: scale(block, feed, torch.linspace(0.5, 2, 48)),
    ),
    "shifts through ReLU": (
        "opt",
        "fc2",
        lambda feed: replace(feed, shifts=True),
        lambda block, feed: shift(block, feed, torch.linspace(-1, 1, 48)),
    ),
    "a norm that is another": (
        "opt",
        "fc1",
        lambda feed: replace(feed, source="self_attn_layer_norm"),
        lambda block, feed: shift(block, feed, torch.linspace(-1, 1, 32)),
    ),
    "heads twice as large": (
        "opt",
        "self_attn.out_proj",
        lambda feed: feed,
        lambda block, feed: rotate_heads(block, feed, 16),
    ),
    "a middle as if it were heads": (
        "opt",
        "fc2",
        lambda feed: feed,
        lambda block, feed: rotate_heads(block, feed, 8),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_claim_about_a_feed_is_no_identity(what):
    kind, reads, wronged, move = WRONG[what]
    model, batch = model_and_batch(kind, torch.float32)
    block = next(blocks_of_work(work_on(model, batch)))
    with pytest.raises(NotIdentity, match="changed the output by"):
        move(block, wronged(block.feed_of(reads)))


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_positive_numbers_are_refused(number):
    model, batch = model_and_batch("llama", torch.float32)
    before = output(model, batch)
    block = next(blocks_of_work(work_on(model, batch)))
    s = torch.ones(32)
    s[3] = number
    with pytest.raises(BadInput, match="positive and finite"):
        scale(block, block.feeds[0], s)
    assert torch.equal(output(model, batch), before)


def test_a_permutation_names_each_channel_once():
    model, batch = model_and_batch("llama", torch.float32)
    block = next(blocks_of_work(work_on(model, batch)))
    with pytest.raises(BadInput, match="each of them once"):
        permute(block, block.feed_of("mlp.down_proj"), torch.zeros(48, dtype=torch.long))


def test_transforms_stand_in_the_order_in_which_they_were_made():
    model, batch = model_and_batch("bert", torch.float64)
    before = output(model, batch)
    block = next(blocks_of_work(work_on(model, batch)))
    feed = block.feed_of("output.dense")
    shift(block, feed, torch.linspace(-1, 1, 48).double())
    scale(block, feed, torch.linspace(0.5, 2, 48).double())
    rotate_inputs(block, feed.maps, order=12, across=4)
    assert [type(step) for step in block.own("output.dense").before] == [Shift, Scale, Rotate]
    assert apart(output(model, batch), before) < 1e-9


@pytest.mark.parametrize("channels", [1536, 11008])
def test_channels_are_told_apart_though_their_ratios_are_rounded(channels):
    # sums on a GPU err by some 1e-6 of a ratio: with drawn numbers two channels changed places
    drawn = torch.Generator().manual_seed(1)
    s, x = _apart(channels, drawn), torch.randn(8, channels, generator=drawn)
    y = x * s * (1 + 2e-6 * (2 * torch.rand(channels, generator=drawn) - 1))
    assert torch.equal(_ratios(x, y, s), torch.arange(channels))
    assert len(s.unique()) == channels and float(s.min()) > 1.4 and float(s.max()) < 2.83
