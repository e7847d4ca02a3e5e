"""Perplexity and divergence: equal to loops of one token, to the models' own losses, and to themselves in pieces."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from farout.data import sample_texts
from farout.errors import BadInput, MissingExtra

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from farout.bench import _logits  # noqa: E402
from farout.bench.divergence import divergence  # noqa: E402
from farout.bench.perplexity import main, perplexity  # noqa: E402
from farout.io._tokens import PieceTokenizer  # noqa: E402
from farout.io.models import open_model  # noqa: E402

VOCABULARY = 40


def tiny(kind="LlamaForCausalLM", **changes):
    """A causal model of transformers with random weights that are large enough to matter."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {
        "LlamaForCausalLM": ("LlamaConfig", {"intermediate_size": 48, "num_key_value_heads": 2}),
        "OPTForCausalLM": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
        "Gemma2ForCausalLM": (
            "Gemma2Config",
            {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 1.5},
        ),
        "GPT2LMHeadModel": ("GPT2Config", {}),
        "BloomForCausalLM": ("BloomConfig", {}),
        "MambaForCausalLM": ("MambaConfig", {"state_size": 4}),
    }[kind]
    names = {"GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4}}.get(kind, {})
    config = getattr(transformers, more[0])(**(sizes | {"max_position_embeddings": 64} | more[1] | names | changes))
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
        model.get_output_embeddings().weight.mul_(5)
    return model


def tokens(n=100, seed=0):
    return np.random.default_rng(seed).integers(VOCABULARY, size=n)


def naive_losses(model, window):
    """One token at a time: the prefix alone goes through the model."""
    losses = []
    with torch.no_grad():
        for i in range(1, len(window)):
            logits = model(torch.tensor(window[None, :i])).logits[0, -1].double().numpy()
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[window[i]])
    return losses


def test_equals_one_token_at_a_time_over_windows_without_the_tail():
    model, ids = tiny(), tokens(55)
    found = perplexity(model, ids, length=17)
    expected = [naive_losses(model, ids[start : start + 17]) for start in (0, 17, 34)]  # 4 tokens are left
    assert (found.windows, found.tokens, found.length) == (3, 48, 17)
    assert found.per_window == pytest.approx([np.mean(losses) for losses in expected], abs=1e-6)
    assert found.loss == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.value == pytest.approx(np.exp(np.mean(expected)), rel=1e-6)
    assert found.error == pytest.approx(np.std([np.mean(losses) for losses in expected], ddof=1) / 3**0.5, rel=1e-4)


def test_a_stride_scores_every_token_once_with_more_before_it():
    model, ids = tiny(), tokens(50)
    found = perplexity(model, ids, length=20, stride=8)
    expected = naive_losses(model, ids[:20])
    for start in (8, 16, 24):  # the next would end at token 52
        expected += naive_losses(model, ids[start : start + 20])[-8:]
    assert (found.windows, found.tokens) == (4, 19 + 3 * 8)
    assert found.loss == pytest.approx(np.mean(expected), abs=1e-6)


def test_windows_are_spread_over_the_text():
    model, ids = tiny(), tokens(70)
    every, some = perplexity(model, ids, length=10), perplexity(model, ids, length=10, windows=3, batch_size=2)
    assert some.per_window == pytest.approx(every.per_window[[0, 3, 6]], abs=1e-6)
    assert perplexity(model, ids[:70].reshape(7, 10)).loss == pytest.approx(every.loss, abs=1e-6)


def test_a_model_that_knows_nothing_has_its_vocabulary_as_perplexity():
    blind = nn.Embedding.from_pretrained(torch.zeros(256, 256))
    assert perplexity(blind, np.arange(300) % 256, length=64).value == pytest.approx(256, rel=1e-6)
    sure = nn.Embedding.from_pretrained(1e9 * torch.eye(256).roll(1, 1))
    assert perplexity(sure, np.arange(300) % 256, length=64).value == 1.0


KINDS = ["LlamaForCausalLM", "OPTForCausalLM", "Gemma2ForCausalLM", "GPT2LMHeadModel", "BloomForCausalLM"]


@pytest.mark.parametrize("kind", [*KINDS, "MambaForCausalLM"])
def test_equals_the_models_own_loss_whole_and_in_pieces(kind, monkeypatch):
    model, ids = tiny(kind), tokens(93)
    own = []
    with torch.no_grad():
        for window in torch.tensor(ids[:90].reshape(3, 30)):
            own.append(float(model(input_ids=window[None], labels=window[None]).loss))
    whole = perplexity(model, ids, length=30, batch_size=2)
    assert whole.per_window == pytest.approx(own, abs=2e-6)
    widest = []
    head = model.get_output_embeddings()
    watch = head.register_forward_hook(lambda module, args, out: widest.append(out.shape[0] * out.shape[1]))
    monkeypatch.setattr(_logits, "LOGITS", 14 * VOCABULARY)  # 7 tokens of 2 windows
    pieces = perplexity(model, ids, length=30, batch_size=2)
    watch.remove()
    assert pieces.per_window == pytest.approx(whole.per_window, abs=1e-6)
    assert sorted(widest) == [1, 1, 1, 2, *[14] * 6]  # one token each to find the trunk, then 29 by 7 and by 14
    assert all("forward" not in vars(module) for module in model.modules())


def test_windows_begin_with_what_the_tokenizer_puts_there():
    letters = [*map(chr, range(97, 97 + VOCABULARY - 2))]
    opened = open_model(tiny())
    opened.tokenizer = PieceTokenizer(["<s>", "?", *letters], [0.0] * VOCABULARY, [], {0}, bos=0, unknown=1)
    text = "".join(np.random.default_rng(1).choice(letters, 45))
    ids = np.array(opened.tokenizer.encode(text))
    expected = [naive_losses(opened.model, np.append(0, ids[start : start + 14])) for start in (0, 14, 28)]
    found = perplexity(opened, [text], length=15)
    assert (found.windows, found.tokens) == (3, 3 * 14)
    assert found.loss == pytest.approx(np.mean(expected), abs=1e-6)
    opened.tokenizer.bos = None
    bare = perplexity(opened, [text], length=15)
    assert bare.loss == pytest.approx(
        np.mean([naive_losses(opened.model, ids[i : i + 15]) for i in (0, 15, 30)]), abs=1e-6
    )


def test_a_window_is_no_longer_than_the_model_sees():
    assert perplexity(tiny(), tokens(200)).length == 64


def test_modes_are_left_as_they_were():
    model = tiny().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    perplexity(model, tokens(30), length=10)
    assert [module.training for module in model.modules()] == before


def test_divergence_equals_a_sum_in_doubles(monkeypatch):
    first, second = tiny(), tiny()
    with torch.no_grad():
        second.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    ids = torch.tensor(tokens(60).reshape(3, 20))
    mask = torch.ones_like(ids)
    mask[0, 12:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        logs = [model(**batch).logits.double().log_softmax(-1) for model in (first, second)]
    kl_BT = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    expected = float(kl_BT[mask != 0].mean())
    assert expected > 0.01
    assert divergence(first, second, [batch]) == pytest.approx(expected, rel=1e-5)
    assert divergence(first, first, [batch]) == 0
    halves = [{name: x[rows] for name, x in batch.items()} for rows in (slice(0, 1), slice(1, 3))]
    assert divergence(first, second, halves) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(_logits, "LOGITS", 4 * VOCABULARY)
    assert divergence(first, second, halves) == pytest.approx(expected, rel=1e-5)
    assert divergence(first, first, halves) == 0


def test_divergence_of_classifiers_is_over_samples():
    torch.manual_seed(0)
    first, second, x = nn.Linear(6, 4), nn.Linear(6, 4), torch.randn(9, 6)
    p, q = (model(x).detach().double().softmax(1).numpy() for model in (first, second))
    assert divergence(first, second, [x]) == pytest.approx(float((p * np.log(p / q)).sum(1).mean()), rel=1e-5)


class Encoder(nn.Module):
    def __init__(self, angle):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 2)
        turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float()
        self.turn = nn.Parameter(turn)

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(last_hidden_state=self.embed(input_ids) @ self.turn)


def test_divergence_of_encoders_is_the_cosine_distance_of_means_without_padding():
    ids = torch.tensor(tokens(40).reshape(4, 10))
    mask = (torch.arange(10) < torch.tensor([[10], [7], [3], [1]])).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    assert divergence(Encoder(0.0), Encoder(0.3), [batch]) == pytest.approx(1 - np.cos(0.3), abs=1e-6)
    first, second = Encoder(0.0), Encoder(0.0)
    with torch.no_grad():
        second.embed.weight.add_(0.7)
    pooled = [
        ((model.embed(ids) @ model.turn) * mask[..., None]).sum(1).detach().double().numpy() / mask.sum(1, True).numpy()
        for model in (first, second)
    ]
    cosine = (pooled[0] * pooled[1]).sum(1) / np.linalg.norm(pooled[0], axis=1) / np.linalg.norm(pooled[1], axis=1)
    assert divergence(first, second, [batch]) == pytest.approx(float((1 - cosine).mean()), rel=1e-5)


def test_bad_input():
    model = tiny()
    with pytest.raises(BadInput, match="holds 0 windows of 64 tokens"):
        perplexity(model, tokens(30))
    with pytest.raises(BadInput, match="holds 4 windows of 7 tokens, and 5 are asked for"):
        perplexity(model, tokens(30), length=7, windows=5)
    with pytest.raises(BadInput, match="'LlamaForCausalLM' has no tokenizer"):
        perplexity(model, "built-in")
    with pytest.raises(BadInput, match="a stride is from 1 to 9"):
        perplexity(model, tokens(30), length=10, stride=10)
    with pytest.raises(BadInput, match="no language model"):
        perplexity(Encoder(0.0), tokens(30), length=10)
    with pytest.raises(BadInput, match="there are no batches"):
        divergence(model, model, [])
    with pytest.raises(BadInput, match="only models with logits"):
        divergence(model, Encoder(0.0), [{"input_ids": torch.tensor([[1, 2]])}])


@pytest.fixture(scope="module")
def smollm2():
    try:
        pytest.importorskip("transformers")
        from farout.claims._passages import smollm2

        return smollm2()
    except (BadInput, MissingExtra) as error:
        pytest.skip(str(error))


def test_smollm2_has_the_loss_that_transformers_computes(smollm2, monkeypatch):
    found = perplexity(smollm2, "built-in", length=48, windows=2)
    ids = np.array(smollm2.tokenizer.encode("\n\n".join(sample_texts())))
    last = (len(ids) // 48 - 1) * 48
    with torch.no_grad():
        windows = torch.tensor(np.stack([ids[:48], ids[last : last + 48]]))
        own = [float(smollm2.model(input_ids=one[None], labels=one[None]).loss) for one in windows]
    assert found.per_window == pytest.approx(own, abs=1e-5)
    assert 5 < found.value < 100
    monkeypatch.setattr(_logits, "LOGITS", 10 * 49152)
    assert perplexity(smollm2, "built-in", length=48, windows=2).per_window == pytest.approx(own, abs=1e-5)


def test_the_suite_writes_its_folder(tmp_path, capsys):
    opened = open_model(tiny(vocab_size=130))
    opened.tokenizer = PieceTokenizer(["?", *map(chr, range(1, 130))], [0.0] * 130, [], set(), None)
    text = tmp_path / "some.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    table = main(opened, [text, "built-in"], length=20, windows=4, out=tmp_path / "out")
    expected = perplexity(opened, "built-in", length=20, windows=4)
    assert table["perplexity"][1] == expected.value and table["losses"][1].to_list() == expected.per_window.tolist()
    written = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert [row["text"] for row in written["results"]] == [str(text), "built-in"]
    assert written["results"][1]["loss"] == expected.loss and written["settings"]["facts"]["vocabulary"] == 130
    assert f"{expected.value:.3f}" in capsys.readouterr().out
    page = (tmp_path / "out" / "page.html").read_text()
    assert f"{expected.value:.3f}" in page and "has no token to begin with" in page


def test_the_command_line_says_what_a_suite_takes(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from farout.cli import app

    monkeypatch.chdir(tmp_path)
    for words, match in (
        (["perplexity"], "'perplexity' needs --model"),
        (["perplexity", "--model", "x", "--sets", "glass"], "takes no --sets; it takes --model"),
        (["adbench", "--length", "5"], "'adbench' takes no --length; it takes --methods"),
        (["adbench", "a.csv"], "'adbench' takes no files"),
        (["mad_bench", "--protocol", "both"], "'mad_bench' takes no --protocol"),
    ):
        assert match in str(CliRunner().invoke(app, ["bench", *words]).exception)
