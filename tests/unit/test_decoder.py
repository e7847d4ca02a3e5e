"""The small decoder: each variant is what its formula says, and trains the same on CPU and GPU."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.inside import record  # noqa: E402
from farout.kit._attention_variants import MIXES  # noqa: E402
from farout.kit._norms import NORMS, GatedNorm, PreAffineNorm, RMSNorm  # noqa: E402
from farout.kit.decoder import G1, Decoder, DecoderConfig, turned  # noqa: E402
from farout.kit.language import (  # noqa: E402
    bytes_of,
    evaluate,
    evaluation_windows,
    train_language_model,
)
from farout.kit.training import seeded  # noqa: E402

B, H, T, D = 2, 4, 7, 8
SMALL = {"layers": 2, "width": 32, "heads": 4, "context": 16}
TEXT = bytes_of("the cat sat on the mat, and the dog sat on the cat. " * 40)


def small(seed=0, **changes):
    return Decoder(DecoderConfig(**{**SMALL, **changes}), seed)


def tokens(n=2, t=12, seed=0):
    return torch.randint(256, (n, t), generator=torch.Generator().manual_seed(seed))


def mixed(kind, seed=0, scale=1.0):
    """A way to mix with weights drawn, its operands, and what it gives; all in float64."""
    with seeded(seed):
        mix = MIXES[kind](DecoderConfig(**SMALL)).double()
        for weight in mix.parameters():
            torch.nn.init.normal_(weight, std=scale)
        q, k, v = torch.randn(3, B, H, T, D, dtype=torch.float64)
        x = torch.randn(B, T, 32, dtype=torch.float64)
    return mix, q, k, v, x, mix(q, k, v, x)


def plain(q, k, v):
    """Softmax attention, a query at a time."""
    out = torch.zeros_like(v)
    for t in range(T):
        logits = (k[:, :, : t + 1] @ q[:, :, t, :, None])[..., 0] / math.sqrt(D)
        out[:, :, t] = (logits.softmax(-1)[..., None] * v[:, :, : t + 1]).sum(2)
    return out


def test_the_default_is_softmax_attention_over_earlier_tokens():
    _, q, k, v, _, y = mixed("softmax")
    assert torch.allclose(y, plain(q, k, v), atol=1e-12)


def test_a_value_bias_is_the_same_everywhere():
    mix, q, k, v, _, y = mixed("value bias")
    assert torch.allclose(y - plain(q, k, v), mix.value.expand_as(y), atol=1e-12)


def with_extra(mix, q, k, v, extra_value):
    """The fused product with the learned key in front, which every query sees."""
    keys = torch.cat([mix.key.expand(B, -1, -1, -1), k], 2)
    values = torch.cat([extra_value.expand(B, -1, -1, -1), v], 2)
    seen = torch.cat([torch.ones(T, 1), torch.ones(T, T).tril()], 1).bool()
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)


def test_a_context_bias_is_the_second_product_of_the_paper_and_lies_along_its_value():
    mix, q, k, v, _, y = mixed("context bias")
    added = y - plain(q, k, v)
    assert torch.allclose(added, with_extra(mix, q, k, torch.zeros_like(v), mix.value), atol=1e-12)
    along = (added * mix.value).sum(-1, keepdim=True) / (mix.value**2).sum(-1, keepdim=True)
    assert torch.allclose(added, along * mix.value, atol=1e-12)
    assert 0 < along.min() < along.max() < 1 and along.std() > 0.05  # it does depend on the context


def test_an_attention_bias_is_a_scale_and_a_bias():
    mix, q, k, v, _, y = mixed("attention bias")
    assert torch.allclose(y, with_extra(mix, q, k, v, mix.value), atol=1e-12)
    logits = MIXES["softmax"](DecoderConfig(**SMALL)).logits(q, k)
    scale = torch.sigmoid(logits.logsumexp(-1) - (q * mix.key).sum(-1) / math.sqrt(D))[..., None]
    assert torch.allclose(y, scale * plain(q, k, v) + (1 - scale) * mix.value, atol=1e-12)
    with torch.no_grad():
        mix.value.zero_()
    assert torch.allclose(mix(q, k, v, None), scale * plain(q, k, v), atol=1e-12)


def test_a_context_scale_is_one_number_for_each_head_and_token_and_starts_at_one():
    mix, q, k, v, x, y = mixed("context scale")
    scale = 2 / (1 + torch.exp(-x @ mix.scale.weight.T))
    assert torch.allclose(y, scale.transpose(1, 2)[..., None] * plain(q, k, v), atol=1e-12)
    with torch.no_grad():
        mix.scale.weight.zero_()
    assert torch.equal(mix(q, k, v, x), MIXES["softmax"](DecoderConfig(**SMALL))(q, k, v, x))


def test_sigmoid_attention_starts_as_a_mean_over_the_context():
    mix, q, k, v, x, y = mixed("sigmoid")
    n = SMALL["context"]
    logits = q @ k.transpose(-1, -2) / math.sqrt(D)
    weights = (1 / (1 + n * torch.exp(-logits))).tril()
    assert torch.allclose(y, weights @ v, atol=1e-12)
    flat = mix(torch.zeros_like(q), k, v, x)  # every key is worth 1 / (n + 1)
    assert torch.allclose(flat, v.cumsum(2) / (n + 1), atol=1e-12)


@pytest.mark.parametrize("kind", MIXES)
def test_probabilities_are_the_weights_of_the_values(kind):
    mix, q, k, v, _, y = mixed(kind)
    values = torch.cat([v, mix.value.expand(B, -1, -1, -1)], 2) if kind == "attention bias" else v
    weighted = mix.probabilities(q, k) @ values
    added = {
        "value bias": lambda: mix.value,
        "context bias": lambda: y - plain(q, k, v),
    }.get(kind, lambda: 0.0)()
    if kind != "context scale":  # whose values are scaled after they are added up
        assert torch.allclose(weighted + added, y, atol=1e-12)


VARIANTS = [
    *({"attention": kind} for kind in MIXES),
    *({"norm": kind} for kind in NORMS),
    {"mlp": "swiglu", "positions": "rope", "norm": "rms", "kv_heads": 2, "tied": False},
    {"gate": "head"},
    {"gate": "element", "kv_heads": 1},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_gradients_reach_every_weight(changes):
    model = small(**changes)
    F.cross_entropy(model(tokens()).flatten(0, 1), tokens(seed=1).flatten()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_later_token_changes_nothing_before_it(changes):
    model = small(**changes).double()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    one = tokens()
    other = one.clone()
    other[:, 7] = (other[:, 7] + 1) % 256
    with torch.no_grad():
        a, b, short = model(one), model(other), model(one[:, :7])
    assert torch.allclose(a[:, :7], b[:, :7], atol=1e-12) and torch.allclose(a[:, :7], short, atol=1e-12)
    assert ((a[:, 7:] - b[:, 7:]).abs().amax((0, 2)) > 1e-6).all()  # and does change what comes after it


def test_what_variants_share_starts_alike():
    default = small().state_dict()
    for kind in MIXES:
        state = small(attention=kind).state_dict()
        assert all(torch.equal(state[name], weight) for name, weight in default.items())
    assert not torch.equal(small(seed=1).state_dict()["embedding.weight"], default["embedding.weight"])
    wide = Decoder(G1).state_dict()
    assert float(wide["blocks.0.mlp.up.weight"].std()) == pytest.approx(0.02, rel=0.01)
    assert float(wide["blocks.0.mlp.down.weight"].std()) == pytest.approx(0.02 / math.sqrt(12), rel=0.01)


def test_heads_that_share_keys_are_full_heads_with_equal_keys():
    shared, full = small(kv_heads=2), small()
    state = shared.state_dict()
    for name in list(state):
        if name.endswith(("attention.k.weight", "attention.v.weight")):
            state[name] = state[name].view(2, 1, D, -1).expand(2, 2, D, -1).reshape(32, 32)
    full.load_state_dict(state)
    assert torch.allclose(shared(tokens()), full(tokens()), atol=1e-6)


def test_rope_looks_at_distances_only():
    with seeded(0):
        q, k = torch.randn(2, 1, 1, 1, D, dtype=torch.float64)
    products = (turned(q.expand(-1, -1, T, -1)) @ turned(k.expand(-1, -1, T, -1)).transpose(-1, -2))[0, 0]
    for distance in range(T):
        along = products.diagonal(-distance)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-5)
    assert products[0, 0] == pytest.approx(float((q * k).sum()), abs=1e-5)
    assert products.std() > 0.01


def test_a_pre_affine_norm_is_a_norm_of_scaled_channels():
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm, plain_norm = PreAffineNorm(16).double(), RMSNorm(16).double()
    assert torch.equal(norm(x), plain_norm(x))
    with torch.no_grad():
        norm.lever[3] = 9.0
    before = norm(x)
    scaled = torch.where(torch.arange(16) == 3, 9 * x, x)
    assert torch.allclose(before, scaled / (scaled**2).mean(-1, keepdim=True).sqrt(), atol=1e-5)
    with torch.no_grad():
        norm.lever *= 7.0
    assert torch.allclose(norm(x), before, atol=1e-5)  # but for eps


def test_a_gated_norm_starts_at_half_and_never_exceeds_the_norm():
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    norm, plain_norm = GatedNorm(16), RMSNorm(16)
    assert torch.equal(norm(x), 0.5 * plain_norm(x))
    with seeded(0), torch.no_grad():
        norm.down.normal_()
        norm.up.normal_()
        assert (norm(x).abs() <= plain_norm(x).abs()).all() and (norm(x).abs() < 0.4 * plain_norm(x).abs()).any()


def test_a_gate_is_a_sigmoid_of_the_input_before_the_output_projection():
    model = small(gate="element")
    attention = model.blocks[0].attention
    x = torch.randn(B, T, 32, generator=torch.Generator().manual_seed(0))
    seen = []
    hook = attention.o.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attention(x)
    with torch.no_grad():
        attention.gate.weight.zero_()
    attention(x)
    hook.remove()
    bare = small().blocks[0].attention
    bare.o.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    bare(x)
    gate = torch.sigmoid(x @ small(gate="element").blocks[0].attention.gate.weight.T)
    assert torch.allclose(seen[0], gate * seen[2], atol=1e-7) and torch.allclose(seen[1], 0.5 * seen[2])


def test_the_recorder_sees_the_probabilities_of_a_decoder():
    model = small(attention="attention bias")
    recording = record(model, [tokens()])
    for layer, probs in enumerate(model.probabilities(tokens())):
        share = recording[f"blocks.{layer}.attention.mix.probs"].share
        np.testing.assert_allclose(share, probs.mean((0, 2)).detach().numpy(), atol=1e-6)
        assert share.shape == (4, 13)
    assert recording.kinds["blocks.1.attention.o.in"] == "linear"
    assert recording.aliases["blocks.0.attention.v.in"] == "blocks.0.norm1.out"


def test_wrong_configurations_are_refused():
    with pytest.raises(UnknownName, match="no 'attention' of a decoder is called 'softmaxx'; nearest: 'softmax'"):
        DecoderConfig(attention="softmaxx")
    with pytest.raises(BadInput, match="32 is no multiple of 5"):
        DecoderConfig(width=32, heads=5)
    with pytest.raises(BadInput, match="4 is no multiple of 3"):
        DecoderConfig(width=32, heads=4, kv_heads=3)
    with pytest.raises(BadInput, match="a head has 3"):
        DecoderConfig(width=12, heads=4, positions="rope")
    with pytest.raises(BadInput, match="sequences of 17 tokens do not fit in a context of 16"):
        small()(tokens(t=17))


def trained(device="cpu", steps=60, **changes):
    model = small(**changes).to(device)
    settings = {"context": 16, "steps": steps, "batch_size": 8, "learning_rate": 3e-3, "seed": 0}
    return model, train_language_model(model, TEXT, **settings)


def test_training_learns_a_text_by_heart():
    model, losses = trained(steps=150)
    windows = evaluation_windows(TEXT, 16, 20)
    assert losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert evaluate(model, windows) < 0.6 and not model.training
    with torch.no_grad():
        p = torch.from_numpy(windows).long()
        by_hand = [
            -float(model(row[None, :-1])[0].double().log_softmax(-1)[torch.arange(16), row[1:]].mean()) for row in p
        ]
    assert evaluate(model, windows, batch_size=7) == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_steps_are_those_of_adamw():
    """Four steps by hand: clipped gradients, moments of 0.9 and 0.95, decay on matrices only, warm-up and cosine."""
    settings = {"context": 16, "steps": 4, "batch_size": 4, "learning_rate": 0.01, "seed": 3, "warm_up": 0.25}
    model, by_hand = small(tied=False).double(), small(tied=False).double()
    losses = train_language_model(model, TEXT, weight_decay=0.5, clip=0.7, **settings)
    starts = torch.randint(len(TEXT) - 16, (4, 4), generator=torch.Generator().manual_seed(3))
    weights = list(by_hand.parameters())
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    rates = [0.01 * share for share in (1.0, 1.0, 0.1 + 0.45 * 1.5, 0.1 + 0.45 * 0.5)]
    for step, rate in enumerate(rates, start=1):
        windows = torch.from_numpy(TEXT[starts[step - 1][:, None] + np.arange(17)]).long()
        loss = F.cross_entropy(by_hand(windows[:, :-1]).flatten(0, 1).float(), windows[:, 1:].flatten())
        assert losses[step - 1] == pytest.approx(float(loss.detach()), rel=1e-6)
        gradients = torch.autograd.grad(loss, weights)
        length = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for weight, gradient, m, v in zip(weights, gradients, first, second):
            gradient = gradient * min(1.0, 0.7 / length)
            m.mul_(0.9).add_(0.1 * gradient)
            v.mul_(0.95).add_(0.05 * gradient**2)
            with torch.no_grad():
                weight *= 1 - rate * 0.5 * (weight.ndim > 1)
                weight -= rate * m / (1 - 0.9**step) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    for (name, weight), expected in zip(model.named_parameters(), weights):
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-4, msg=name)


def test_arms_of_a_seed_see_the_same_windows():
    one, other = trained(steps=5)[1], trained(steps=5, attention="value bias")[1]
    assert one == trained(steps=5)[1]
    assert one[0] == pytest.approx(other[0], abs=0.01) and one != other


def test_the_rate_rises_and_falls():
    from farout.kit.language import _schedule

    shares = [_schedule(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert shares[10] == 1 and shares[55] == pytest.approx(0.55) and shares[99] == pytest.approx(0.1, abs=1e-3)


def test_evaluation_windows_reach_from_the_first_byte_to_the_last():
    windows = evaluation_windows(np.arange(100, dtype=np.uint8), 9, 4)
    np.testing.assert_array_equal(windows, np.arange(4)[:, None] * 30 + np.arange(10))
    with pytest.raises(BadInput, match="a text of 9 bytes is too short for windows of 9"):
        evaluation_windows(np.zeros(9, np.uint8), 9, 4)
    with pytest.raises(BadInput, match="too short"):
        train_language_model(small(), TEXT[:16], context=16, steps=1, batch_size=1, learning_rate=1e-3, seed=0)


def test_a_loss_that_leaves_the_numbers_is_said():
    model = small()
    with torch.no_grad():
        model.norm.weight[0] = torch.inf
    with pytest.raises(BadInput, match=r"the loss is nan after step 1: lower the learning rate of 0\.001"):
        train_language_model(model, TEXT, context=16, steps=3, batch_size=2, learning_rate=1e-3, seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_gpu_computes_and_learns_what_the_cpu_does(changes):
    model, there = small(**changes), small(**changes).cuda()
    torch.testing.assert_close(there(tokens().cuda()).cpu(), model(tokens()), atol=1e-4, rtol=1e-3)
    losses = [trained(device, **changes)[1] for device in ("cpu", "cuda")]
    assert losses[1][0] == pytest.approx(losses[0][0], abs=5e-3)
    assert losses[1] == pytest.approx(losses[0], abs=0.15)  # products there are in bfloat16
