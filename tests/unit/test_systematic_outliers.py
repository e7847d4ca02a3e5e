"""Systematic outliers: planted ones are found where they are and nowhere else, and those of a real model are known."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from farout import claims  # noqa: E402
from farout.cards import find as card_of  # noqa: E402
from farout.claims._measured_decoders import measured, rounded  # noqa: E402
from farout.data import find  # noqa: E402
from farout.data.pretrained import pretrained  # noqa: E402
from farout.errors import BadInput, MissingExtra, UnknownName  # noqa: E402
from farout.inside import record  # noqa: E402
from farout.inside._accumulators import ChannelStats  # noqa: E402
from farout.inside.systematic_outliers import SystematicOutliers, weight_ratio  # noqa: E402
from farout.kit.decoder import Decoder, DecoderConfig  # noqa: E402
from farout.kit.language import evaluate  # noqa: E402
from farout.kit.training import seeded  # noqa: E402
from naive import systematic_outliers as naive  # noqa: E402

MARK, NEURON, PEAK = 5, 9, 4000.0
CONFIG = DecoderConfig(layers=5, width=64, heads=4, context=40, norm="rms")


def tokens(n=6, t=40, seed=0):
    return torch.randint(256, (n, t), generator=torch.Generator().manual_seed(seed))


def planted(channel, position, writes=1, takes=3, part="mlp", seed=0):
    """A random decoder in which a block writes a huge value at one position, and a later one takes it out.

    Channel 5 is kept free for a mark that position alone carries: nothing else embeds into it or writes to it. The
    writing block has a neuron that reads the mark.
    """
    model = Decoder(CONFIG, seed)
    with torch.no_grad():
        model.embedding.weight[:, MARK] = model.places.weight[:, MARK] = 0
        model.places.weight[position, MARK] = 3.0
        for block in model.blocks:
            block.mlp.down.weight[MARK] = block.attention.o.weight[MARK] = 0
        for at, goal in ((writes, PEAK), (takes, 0.0)):
            if at is None:
                continue
            block, seen = model.blocks[at], {}
            block.mlp.up.weight[NEURON] = 0
            block.mlp.up.weight[NEURON, MARK] = 100.0
            block.mlp.down.weight[:, NEURON] = 0
            hook = block.register_forward_hook(lambda _, args, out, seen=seen: seen.update(out=out))
            inner = block.mlp.down.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(wide=args[0]))
            model(tokens())
            hook.remove()
            inner.remove()
            now, fires = seen["out"][:, position, channel].mean(), seen["wide"][:, position, NEURON].mean()
            block.mlp.down.weight[channel, NEURON] = (goal - now) / fires
    return model


@pytest.mark.parametrize(("channel", "position", "seed"), [(17, 0, 0), (40, 23, 1), (63, 39, 2)])
def test_a_planted_outlier_is_found_where_it_is_and_no_other(channel, position, seed):
    found = SystematicOutliers().measure(record(planted(channel, position, seed=seed), [tokens()]))
    (life,) = found.lives
    assert (life.channel, life.created, life.removed, life.positions) == (channel, 1, 3, (position,))
    assert life.kind == "position" and life.peak == pytest.approx(PEAK, rel=0.02)
    (writer,), (canceller,) = life.writers, life.cancellers
    assert (writer.parameter, writer.row, writer.column) == ("blocks.1.mlp.down.weight", channel, NEURON)
    assert (canceller.parameter, canceller.column) == ("blocks.3.mlp.down.weight", NEURON)
    assert writer.largest and canceller.largest and found.shared_channels == 1.0
    assert (found.channels, found.positions) == ((channel,), (position,))
    frame = found.frame()
    assert frame["massive"].to_list() == [0, 1, 1, 0, 0] == frame["systematic"].to_list()
    assert frame.filter(frame["massive"] > 0).select("channel", "position").unique().rows() == [(channel, position)]


def test_an_outlier_that_attention_writes_is_laid_to_attention():
    model = planted(17, 0, writes=None, takes=None)
    block = model.blocks[2]
    with torch.no_grad():  # the first token sees itself only, so attention gives it its own value
        block.attention.v.weight.zero_()
        block.attention.v.weight[7, MARK] = 100.0
        block.attention.o.weight[:, 7] = 0
        block.attention.o.weight[30, 7] = 50.0
    found = SystematicOutliers().measure(record(model, [tokens()]))
    first = found.lives[0]
    assert (first.channel, first.created, first.removed, first.positions[0]) == (30, 2, None, 0)
    (writer,) = first.writers
    assert (writer.parameter, writer.row, writer.column, writer.largest) == ("blocks.2.attention.o.weight", 30, 7, True)


class Sandwich(nn.Module):
    """A block with a norm before its matrices and one behind them."""

    def __init__(self):
        super().__init__()
        self.before, self.behind = nn.RMSNorm(32), nn.RMSNorm(32)
        self.up, self.down = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)

    def forward(self, x):
        return x + self.behind(self.down(self.up(self.before(x)).relu()))


def test_an_outlier_that_a_gain_writes_is_laid_to_the_norm():
    with seeded(0):
        model, x = nn.Sequential(*(Sandwich() for _ in range(3))), torch.randn(2, 50, 32)
    with torch.no_grad():
        model[1].behind.weight[20] = 5000.0
    found = SystematicOutliers().measure(record(model, [x]))
    (life,) = found.lives
    assert (life.channel, life.created, life.kind) == (20, 1, "channel")
    writers = [(write.parameter, write.gain) for write in life.writers]
    assert writers == [("1.down.weight", False), ("1.behind.weight", True)]
    assert life.writers[1].size == pytest.approx(5000.0) and life.writers[1].largest
    assert found.shared_channels == 1.0


def test_without_outliers_nothing_is_found():
    found = SystematicOutliers().measure(record(Decoder(CONFIG), [tokens()]))
    assert found.lives == () == found.channels == found.positions == found.writers
    assert found.created is None and np.isnan(found.shared_channels) and np.isnan(found.shared_positions)
    assert found.systematic == 0 and found.frame()["massive"].sum() == 0


def test_a_channel_that_is_large_at_every_token_is_a_channel():
    model = Decoder(CONFIG)
    with torch.no_grad():
        model.embedding.weight[:, 11] = 300.0
    (life,) = SystematicOutliers().measure(record(model, [tokens()])).lives
    assert (life.channel, life.kind, life.created, life.removed) == (11, "channel", -1, None)
    assert life.writers == () and len(life.positions) == 32


def test_tokens_that_are_large_wherever_they_stand():
    model = Decoder(CONFIG)
    with torch.no_grad():
        model.embedding.weight[ord("."), 11] = 900.0
    x = tokens(n=12)
    x[x == ord(".")] = ord("a")
    x[torch.arange(12), torch.arange(12) * 3] = ord(".")
    (life,) = SystematicOutliers().measure(record(model, [x])).lives
    assert (life.channel, life.kind) == (11, "tokens")
    assert sorted(life.positions) == list(range(0, 36, 3))


def test_an_outlier_lives_until_less_than_half_is_left():
    """The peaks of a channel over the streams of eight blocks, and the lives in them."""
    from farout.inside._lives import spans

    def lives(*peaks, bound=1000.0):
        return spans(np.array(peaks, float), np.full(len(peaks), bound))

    assert lives(1, 1, 3000, 2900, 1600, 1400, 1, 1) == [(2, 4)]  # 1400 is above the bound, but what is left
    assert lives(1, 1200, 3000, 1400, 1300, 1, 2000, 1) == [(1, 2), (6, 6)]
    assert lives(2000, 1, 1, 1500, 1500) == [(0, 0), (3, 4)]
    assert lives(1, 1, 1100, 700, 600, 500) == [(2, 4)]  # below the bound, and still more than half
    assert lives(1, 1, 1) == []


def test_one_value_of_a_thousand_means_is_the_one_that_is_counted():
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    mean = float(x.abs().mean())
    for factor, count in ((1020, 1), (980, 0)):
        y = x.clone()
        y[123, 7] = factor * mean * 400 * 64 / (400 * 64 - factor)  # the mean holds it too
        model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64)) for _ in range(2)))
        with torch.no_grad():
            for block in model:
                block[0].weight.copy_(torch.eye(64))
                block[0].bias.zero_()
        found = SystematicOutliers(rule="mean").measure(record(model, [y[None]]))
        assert [(life.channel, life.positions) for life in found.lives] == [(7, (123,))] * count
        assert found.systematic == count


def test_rules_give_other_bounds():
    recording = record(planted(17, 4), [tokens()])
    assert len(SystematicOutliers(rule="mean").measure(recording).lives) == 1
    assert SystematicOutliers(rule="mean", factor=1e5).measure(recording).lives == ()
    assert SystematicOutliers(factor=1e7).measure(recording).lives == ()
    assert len(SystematicOutliers(factor=10).measure(recording).lives) == 1  # 100 must be passed whatever the factor


def test_shared_positions_are_those_where_attention_has_outliers():
    model = planted(17, 10, takes=None)
    apart = SystematicOutliers().measure(record(model, [tokens()]))
    assert apart.shared_positions == 0.0
    mean = model.blocks[2].norm1(stream_into(model, 2)).mean((0, 1))
    with torch.no_grad():  # whatever a query reads, it has a part along the mean; and channel 17 makes a key like that
        for block in list(model.blocks)[2:4]:
            block.attention.q.weight[:] = 20 * mean / mean.norm() ** 2 / 8
            block.attention.k.weight[:, 17] = 3.0
    found = SystematicOutliers().measure(record(model, [tokens()]))
    shares = [probs.mean((0, 1, 2))[10].item() for probs in model.probabilities(tokens())]
    assert [share >= 0.1 for share in shares] == [False, False, True, True, False]
    assert found.shared_positions == pytest.approx(2 / 3)  # it enters blocks 2, 3 and 4
    assert found.frame()["sink"].to_list()[2:4] == [10, 10]
    assert SystematicOutliers(sink=0.9).measure(record(model, [tokens()])).shared_positions == 0.0


def stream_into(model, block):
    """The stream that enters a block."""
    seen = []
    hook = model.blocks[block].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(tokens())
    hook.remove()
    return seen[0]


def test_a_learned_key_is_no_position():
    from dataclasses import replace

    model = Decoder(replace(CONFIG, attention="attention bias"))
    with torch.no_grad():
        for block in model.blocks:
            block.attention.mix.key.fill_(5.0)
            block.attention.q.weight.fill_(0.1)
            block.attention.k.weight.zero_()
    frame = SystematicOutliers().measure(record(model, [tokens()])).frame()
    whole = [probs.mean((0, 1, 2)) for probs in model.probabilities(tokens())]
    assert all(len(probs) == 41 for probs in whole)
    assert frame["attention"].to_list() == pytest.approx([probs[:40].max().item() for probs in whole], abs=1e-6)


def test_the_ratio_of_weights_is_that_of_rows_and_columns():
    rng = np.random.default_rng(0)
    for shape in ((30, 20), (20, 50)):
        weight = rng.normal(size=shape)
        weight[3, 4] = 40.0
        recording = record(nn.Linear(*shape[::-1]), [], what=("weight",))
        stats = ChannelStats.of(torch.from_numpy(weight), period=shape[0])
        assert weight_ratio(stats) == pytest.approx(naive.weight_ratio(weight), rel=1e-9)
        assert recording.kinds["weight"] == "weight"


def test_the_table_is_what_a_slow_version_finds():
    model = planted(17, 23)
    frame = SystematicOutliers().measure(record(model, list(tokens().split(2)))).frame()
    for row, expected in zip(frame.rows(named=True), naive.table(model, tokens())):
        for name, value in expected.items():
            tolerance = 1 / 16 if name == "median" else 1e-5  # medians come from bins of a sixteenth of an octave
            assert row[name] == pytest.approx(value, rel=tolerance), name


def test_a_recording_that_holds_too_little_is_refused():
    with pytest.raises(BadInput, match="holds no residual stream"):
        SystematicOutliers().measure(record(nn.Linear(3, 3), [torch.ones(2, 3)]))
    with pytest.raises(UnknownName, match="no rule is called 'media'; nearest: 'median'"):
        SystematicOutliers(rule="media").measure(record(Decoder(CONFIG), [tokens()]))
    bare = SystematicOutliers().measure(record(planted(17, 0), [tokens()], what=("residual",)))
    assert bare.lives[0].channel == 17 and bare.lives[0].writers == () and np.isnan(bare.shared_positions)
    assert bare.frame()["attention"].null_count() == 5


def test_a_stream_without_finite_values_has_no_outliers():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4)) for _ in range(3)))
    with torch.no_grad():
        model[1][0].weight.fill_(torch.nan)
    found = SystematicOutliers().measure(record(model, [torch.ones(2, 5, 4)]))
    assert found.lives == () and found.frame()["massive"].to_list() == [0, 0, 0]
    assert np.isfinite(found.frame()["peak"][0]) and not found.frame()["peak"][2] > 0


@pytest.fixture(scope="module")
def smollm2():
    """A few passages, and what SmolLM2 does with them."""
    try:
        pytest.importorskip("transformers")
        from farout.claims._passages import passages, smollm2

        find("text/wikitext2/test.txt.xz"), pretrained("smollm2-135m")
        opened = smollm2()
        batches = passages(opened, "text/wikitext2/test.txt.xz", 4, 64, 0)
    except (BadInput, MissingExtra) as error:
        pytest.skip(str(error))
    return opened.model, batches


def test_the_massive_activation_of_smollm2(smollm2):
    model, batches = smollm2
    with torch.no_grad():
        states = model(**batches[0], output_hidden_states=True).hidden_states
    largest = states[12].abs()  # of the embedding's output, hidden state 12 is what block 11 leaves
    found = SystematicOutliers().measure(record(model, batches))
    assert found.lives[0].peak == pytest.approx(float(max(s.abs().max() for s in states[:-1])), rel=1e-5)
    assert int(largest.argmax()) % 576 == 507 and int(largest.flatten(1)[0].argmax()) // 576 == 0
    first, second = (next(life for life in found.lives if life.channel == channel) for channel in (507, 247))
    for life in (first, second):
        assert (life.created, life.kind, life.positions) == (11, "position", (0,))
        assert [write.parameter for write in life.writers] == ["model.layers.11.mlp.down_proj.weight"]
    assert first.removed == 28 and second.removed in (28, 29)
    assert [write.parameter for write in first.cancellers] == ["model.layers.28.mlp.down_proj.weight"]
    assert first.cancellers[0].largest and first.writers[0].largest
    weight = model.model.layers[11].mlp.down_proj.weight.detach().numpy()
    row, column = np.unravel_index(np.abs(weight).argmax(), weight.shape)
    assert (row, column) == (507, first.writers[0].column)
    assert found.shared_positions == 1.0


def test_channel_507_of_smollm2_at_ordinary_tokens(smollm2):
    model, batches = smollm2
    found = SystematicOutliers(factor=500).measure(record(model, batches))
    early = next(life for life in found.lives if life.channel == 507 and life.created < 11)
    assert (early.created, early.removed, early.kind) == (2, 9, "channel") and len(early.positions) > 3


def test_the_card_says_that_it_measures():
    card = card_of("systematic_outliers")
    assert (card.kind, card.room, card.load()) == ("measure", "inside", SystematicOutliers)


@pytest.mark.parametrize(("bits", "inputs"), [(8, None), (4, None), (8, 8), (4, 4)])
def test_rounding_in_the_claim_is_that_of_integers_and_is_taken_back(bits, inputs):
    model, x = Decoder(CONFIG), torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    linear = model.blocks[0].mlp.up
    before = linear.weight.detach().clone()

    def integers(values, each_row):
        most = np.abs(values).max(axis=-1, keepdims=True) if each_row else np.abs(values).max()
        scale = most / (2 ** (bits - 1) - 1)
        return np.round(values / scale) * scale

    weight = integers(before.numpy(), each_row=inputs == 4)
    fed = integers(x.numpy(), each_row=inputs == 4) if inputs else x.numpy()
    with torch.no_grad(), rounded(model, bits, inputs):
        np.testing.assert_allclose(linear(x).numpy(), fed @ weight.T, atol=1e-5)
        assert len(linear.weight.unique()) <= (2**bits - 1) * (256 if inputs == 4 else 1)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), x @ before.T)
    assert torch.equal(linear.weight, before)


def test_what_the_claim_measures_of_a_decoder():
    model = planted(17, 0, takes=None)
    windows = tokens(t=41).numpy()
    facts = measured(model, windows)
    probs = torch.stack(model.probabilities(tokens(t=41)[:, :40])).detach()
    assert facts["sink heads"] == int((probs[..., 0].mean((1, 3)) > 0.3).sum())
    assert facts["first token"] == pytest.approx(float(probs[..., 0].mean()), rel=1e-5)
    assert facts["peak"] == pytest.approx(PEAK, rel=0.1) and facts["systematic"] == 1
    assert facts["wcol"] == pytest.approx(
        max(naive.weight_ratio(w.detach().numpy()) for b in model.blocks for w in b.parameters() if w.ndim == 2),
        rel=1e-5,
    )
    with torch.no_grad(), rounded(model, 4, 4):
        assert facts["W4A4"] == pytest.approx(evaluate(model, windows) - facts["loss"], abs=1e-6)


def test_the_claim_runs_in_small():
    try:
        found = claims.run("systematic_outliers")
    except (BadInput, MissingExtra) as error:
        pytest.skip(str(error))
    rows = found.numbers["By seed and step"]
    assert [row["arm"] for row in rows if row["step"] == rows[-1]["step"]] == ["default", "context scale", "head gate"]
    assert all(0 < row["loss"] < 5.6 for row in rows)
