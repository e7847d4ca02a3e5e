"""Outlier-driven rescaling: what a sink does to other channels has closed forms, and levers are told from content."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from farout import claims  # noqa: E402
from farout.cards import find as card_of  # noqa: E402
from farout.errors import BadInput, MissingExtra  # noqa: E402
from farout.inside.outlier_driven_rescaling import OutlierDrivenRescaling, like, next_token_loss  # noqa: E402
from farout.kit.decoder import Decoder, DecoderConfig  # noqa: E402
from farout.kit.training import seeded  # noqa: E402

squares = lambda out, batch: out.square().mean()  # noqa: E731


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stack(norm, seed=0):
    """A norm and a head behind it."""
    with seeded(seed):
        return nn.Sequential(norm, nn.Linear(norm.weight.numel(), 4))


def test_a_channel_of_500_among_512_shrinks_the_others_to_0_0453():
    rng = np.random.default_rng(0)
    with_outlier = rng.normal(size=512)
    without = with_outlier.copy()
    with_outlier[7], without[7] = 500.0, 0.0
    x = torch.from_numpy(with_outlier).float()[None, None]
    lever = OutlierDrivenRescaling().measure(stack(nn.RMSNorm(512, eps=0.0)), [x], loss=squares).levers[0]
    shrunk = np.linalg.norm(without) / np.linalg.norm(with_outlier)  # rms without the outlier over rms with it
    assert lever.channels == (7,) and lever.shrink == pytest.approx(shrunk, rel=1e-4) == pytest.approx(0.0453, abs=2e-3)
    assert lever.share == pytest.approx(500 / np.linalg.norm(with_outlier), rel=1e-6)
    bare, full = (F.rms_norm(torch.from_numpy(one), (512,)).numpy() for one in (without, with_outlier))
    np.testing.assert_allclose(full[:7] / bare[:7], lever.shrink, rtol=1e-4)


def test_gains_contributions_and_correlations_are_those_of_whole_arrays():
    norm = nn.RMSNorm(16, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.1 * normal(16, seed=1))
        norm.weight[3] = -0.004
    x = normal(4, 50, 16)
    x[..., 3] = 40 + 30 * x[..., 3]
    found = OutlierDrivenRescaling().measure(stack(norm), list(x.split(2)), loss=squares)
    (lever,) = found.levers
    h, gain = x.double().numpy().reshape(-1, 16), norm.weight.detach().double().numpy()
    y = gain * h / np.sqrt((h**2).mean(axis=1, keepdims=True))
    r = np.abs(h[:, 3]) / np.linalg.norm(h, axis=1)
    rest = np.linalg.norm(np.delete(y, 3, axis=1), axis=1)
    assert lever.gain == pytest.approx(0.004, rel=1e-4)
    assert lever.median_gain == pytest.approx(np.sort(np.abs(gain))[7], rel=1e-4)
    assert lever.contribution == pytest.approx((y[:, 3] ** 2 / (y**2).sum(axis=1)).mean(), rel=1e-4)
    assert lever.correlation == pytest.approx(np.corrcoef(r, rest)[0, 1], abs=1e-5)
    assert lever.correlation < -0.8
    sizes = np.abs(h).mean(axis=0)
    assert lever.ratio == pytest.approx(sizes[3] / np.sort(sizes)[7], rel=1e-5)  # torch's median is the lower one


def test_a_gain_is_measured_behind_a_centred_norm_too():
    norm = nn.LayerNorm(16)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 16))
        norm.weight[3] = 0.01
    x = normal(2, 400, 16)
    x[..., 3] *= 30
    (lever,) = OutlierDrivenRescaling().measure(stack(norm), [x], loss=squares).levers
    assert lever.channels == (3,) and lever.gain == pytest.approx(0.01, rel=1e-3)
    assert lever.median_gain == pytest.approx(norm.weight.detach().sort().values[7].item(), rel=1e-3)


def changed_by_hand(x, channel, how):
    """Change a channel of each token."""
    y = x.clone()
    for token in y.reshape(-1, y.shape[-1]):
        others = [abs(float(v)) for i, v in enumerate(token) if i != channel]
        token[channel] = 0.0 if how == "zeroed" else min(max(float(token[channel]), -max(others)), max(others))
    return y


def test_changes_are_made_before_and_after_the_norm():
    norm = nn.RMSNorm(8)
    with torch.no_grad():
        norm.weight.copy_(normal(8, seed=3))
    model, x = stack(norm), normal(2, 20, 8)
    x[..., 5] = 10 - 20 * x[..., 5]
    found = OutlierDrivenRescaling().measure(model, [x], loss=squares)
    with torch.no_grad():
        assert found.loss == pytest.approx(float(model(x).square().mean()), rel=1e-6)
        for how in ("clipped", "zeroed"):
            expected = float(model(changed_by_hand(x, 5, how)).square().mean())
            assert found.changes["every norm"][f"{how} before"] == pytest.approx(expected, rel=1e-5)
        expected = float(model[1](changed_by_hand(norm(x), 5, "zeroed")).square().mean())
    assert found.changes["every norm"]["zeroed after"] == pytest.approx(expected, rel=1e-5)
    assert found.rise("zeroed after") == pytest.approx(expected - found.loss)
    risen = found.rise("clipped before")
    assert found.ratio() == pytest.approx(risen / abs(found.rise("zeroed after")))


def test_a_lever_is_told_from_content():
    """The same outlier, once behind a gain of zero and once behind one."""
    x = normal(2, 100, 16)
    x[..., 0] = 60 + 40 * x[..., 0]
    ratios = {}
    for gain in (0.0, 1.0):
        norm = nn.RMSNorm(16)
        with torch.no_grad():
            norm.weight[0] = gain
        model = stack(norm)
        target = model(x).detach()
        found = OutlierDrivenRescaling().measure(
            model, [x], loss=lambda out, batch, target=target: (out - target).square().mean()
        )
        ratios[gain] = found.ratio()
        assert found.loss == 0 and found.rise("clipped before") > 0.01
    assert ratios[0.0] == math.inf and ratios[1.0] < 10


def test_norms_of_one_place_are_changed_together():
    config = DecoderConfig(layers=3, width=32, heads=4, context=16, norm="rms")
    model = Decoder(config)
    with torch.no_grad():
        model.embedding.weight[:, 4] = 2.0
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    found = OutlierDrivenRescaling().measure(model, [tokens])
    assert list(found.changes) == ["every norm", "blocks.*.norm1", "blocks.*.norm2", "norm", "median channel"]
    assert [lever.norm for lever in found.levers] == [f"blocks.{i}.norm{j}" for i in range(3) for j in (1, 2)] + [
        "norm"
    ]
    assert all(lever.channels == (4,) and lever.share > 0.9 for lever in found.levers)
    hook = model.norm.register_forward_hook(lambda _, args, out: out.index_fill(-1, torch.tensor([4]), 0.0))
    with torch.no_grad():
        expected = float(next_token_loss(model(tokens), tokens))
    hook.remove()
    assert found.changes["norm"]["zeroed after"] == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        assert float(next_token_loss(model(tokens), tokens)) == found.loss  # all hooks are gone
    frame = found.frame()
    assert frame["norm"].to_list() == [lever.norm for lever in found.levers]


def test_norms_without_a_gain_for_their_sink_are_changed_together():
    config = DecoderConfig(layers=3, width=32, heads=4, context=16, norm="rms")
    model = Decoder(config)
    with torch.no_grad():
        model.embedding.weight[:, 4] = 2.0
        model.blocks[1].norm2.weight[4] = 0.009
        model.blocks[2].norm1.weight[4] = 0.011
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    found = OutlierDrivenRescaling().measure(model, [tokens])
    hook = model.blocks[1].norm2.register_forward_pre_hook(
        lambda _, args: (args[0].index_fill(-1, torch.tensor([4]), 0.0),)
    )
    with torch.no_grad():
        expected = float(next_token_loss(model(tokens), tokens))
    hook.remove()
    assert found.changes["gain near zero"]["zeroed before"] == pytest.approx(expected, rel=1e-6)
    assert expected != found.loss


def test_two_channels_may_be_the_sink():
    x = normal(2, 30, 8)
    x[..., 2] *= 50
    x[..., 6] *= 20
    (lever,) = OutlierDrivenRescaling(channels=2).measure(stack(nn.RMSNorm(8)), [x], loss=squares).levers
    h = x.numpy().reshape(-1, 8)
    share = np.linalg.norm(h[:, [2, 6]], axis=1) / np.linalg.norm(h, axis=1)
    assert lever.channels == (2, 6) and lever.share == pytest.approx(share.mean(), rel=1e-5)


def test_padding_counts_for_nothing():
    model = Decoder(DecoderConfig(layers=1, width=16, heads=2, context=8, norm="rms"))

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids)

    ids = torch.randint(1, 256, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[:, 6:] = 0
    padded = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
    whole = {"input_ids": ids[:, :6], "attention_mask": mask[:, :6]}
    found, expected = (OutlierDrivenRescaling().measure(Named(), [batch]) for batch in (padded, whole))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    for one, other in zip(found.levers, expected.levers):
        assert one.channels == other.channels and one.share == pytest.approx(other.share, rel=1e-6)


def test_a_sink_key_gates_what_attention_gives():
    """softmax([s, z]) [v_s; V] = (1 - sigma) softmax(z) V + sigma v_s, with the fused product."""
    q, k, v = normal(3, 1, 2, 9, 8, seed=4).double()
    whole = F.scaled_dot_product_attention(q, k, v)
    rest = F.scaled_dot_product_attention(q, k[..., 1:, :], v[..., 1:, :])
    logits = q @ k.transpose(-1, -2) / math.sqrt(8)
    sigma = torch.sigmoid(logits[..., 0] - logits[..., 1:].logsumexp(-1))[..., None]
    assert torch.allclose(whole, (1 - sigma) * rest + sigma * v[..., :1, :], atol=2e-7)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(BadInput, match="there are no batches"):
        OutlierDrivenRescaling().measure(stack(nn.RMSNorm(8)), [])
    with pytest.raises(BadInput, match="has no norm with a gain"):
        OutlierDrivenRescaling().measure(nn.Linear(3, 3), [torch.ones(2, 3)])
    with pytest.raises(BadInput, match="4 channels cannot be the outliers of norms of 8"):
        OutlierDrivenRescaling(channels=4).measure(stack(nn.RMSNorm(8)), [torch.ones(1, 2, 8)])
    with pytest.raises(BadInput, match="needs logits"):
        OutlierDrivenRescaling().measure(stack(nn.RMSNorm(8)), [torch.ones(1, 2, 8)])


def test_norms_of_one_place_are_named_alike():
    assert like("model.layers.3.norm.1") == "model.layers.*.norm.*" and like("norm") == "norm"


def test_the_card_says_that_it_measures():
    card = card_of("outlier_driven_rescaling")
    assert (card.kind, card.room, card.load()) == ("measure", "inside", OutlierDrivenRescaling)


def test_the_claim_runs_in_small():
    try:
        found = claims.run("outlier_driven_rescaling")
    except (BadInput, MissingExtra) as error:
        pytest.skip(str(error))
    rows = found.numbers["Decoders after training"]
    assert [row["arm"] for row in rows] == ["RMSNorm", "GatedNorm"]
    assert all(0 < row["loss"] < 5.6 and row["peak"] > 0 for row in rows)
