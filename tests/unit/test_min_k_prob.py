"""Min-K% Prob: log-probabilities against a loop over places, the statistics in closed form, and what is refused."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from farout import claims
from farout.bench import wikimia
from farout.data import DataMissing
from farout.errors import BadInput, UnknownName
from naive import min_k_prob as naive

torch = pytest.importorskip("torch")

from farout.claims import _memorised as memorised  # noqa: E402
from farout.claims import min_k_prob as claim  # noqa: E402
from farout.scoring.texts import score_texts  # noqa: E402
from farout.text._logprobs import token_logprobs  # noqa: E402
from farout.text._neighbours import perturbed  # noqa: E402
from farout.text.min_k_prob import MinKProb, min_k  # noqa: E402

TEXTS = ["The quick brown fox", "jumps", "over the lazy dog, and over the moon!", "ab"]


class Tabled(torch.nn.Module):
    """The next token by the last ``depth`` ones alone, from a drawn table; its logits may be NaN at one token."""

    def __init__(self, vocabulary=256, depth=1, seed=0, broken=None):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.tables = torch.randn(depth, vocabulary, vocabulary, generator=g, dtype=torch.float64)
        self.broken = broken

    def forward(self, ids):
        logits = self.tables[0][ids]
        for back, table in enumerate(self.tables[1:], start=1):
            logits[:, back:] += table[ids[:, :-back]]
        if self.broken is not None:
            logits[ids == self.broken] = float("nan")
        return logits


@pytest.fixture(scope="module")
def llama():
    """A drawn Llama of 50 tokens, with large weights so that its distributions are far from even."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).train()


def lines(*lengths, vocabulary=50, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(vocabulary, size=n).tolist() for n in lengths]


@pytest.mark.parametrize("bos", [None, 3])
@pytest.mark.parametrize("standardised", [False, True])
def test_logprobs_are_those_of_a_loop_over_places(llama, bos, standardised):
    ids = lines(7, 2, 23, 12)
    found = token_logprobs(llama, ids, bos=bos, standardised=standardised)
    llama.eval()
    with torch.no_grad():
        for one, values in zip(ids, found):
            expected = naive.logprobs(llama, one, bos, standardised=standardised)
            np.testing.assert_allclose(values, expected, rtol=2e-4, atol=2e-5)
    llama.train()


@pytest.mark.parametrize("bos", [None, 3])
def test_beyond_the_context_each_token_is_read_with_the_most_before_it(llama, bos):
    ids = lines(24, 25, 61, 90, 3)
    found = token_logprobs(llama, ids, bos=bos)
    llama.eval()
    with torch.no_grad():
        for one, values in zip(ids, found):
            np.testing.assert_allclose(values, naive.logprobs(llama, one, bos, 24), rtol=2e-4, atol=2e-5)
    llama.train()


@pytest.mark.parametrize("context", [8, 9, 16, 40, None])
def test_windows_batches_and_padding_change_nothing_where_memory_is_short(context, monkeypatch):
    model, ids = Tabled(depth=4), lines(100, 3, 41, 17, 1, vocabulary=256)
    whole = [token_logprobs(model, [one])[0] for one in ids]
    for most in (1, 60, 1 << 14):
        monkeypatch.setattr("farout.text._logprobs.TOKENS", most)
        for values, expected in zip(token_logprobs(model, ids, context=context), whole):
            np.testing.assert_array_equal(values, expected)


def test_a_table_is_read_exactly():
    model = Tabled()
    ids = lines(30, vocabulary=256)[0]
    table = model.tables[0].log_softmax(dim=1).numpy()
    (values,) = token_logprobs(model, [ids], bos=10)
    np.testing.assert_allclose(values, table[[10, *ids[:-1]], ids], rtol=1e-13)
    (bare,) = token_logprobs(model, [ids])
    assert np.isnan(bare[0])
    np.testing.assert_array_equal(bare[1:], values[1:])
    p = np.exp(table)
    mean = (p * table).sum(axis=1)
    std = np.sqrt((p * table**2).sum(axis=1) - mean**2)
    (z,) = token_logprobs(model, [ids], standardised=True)
    np.testing.assert_allclose(z[1:], ((values[1:] - mean[ids[:-1]]) / std[ids[:-1]]), rtol=1e-9)


def test_a_token_that_is_ruled_out_and_one_that_is_certain():
    model = Tabled(4)
    model.tables[0] = torch.tensor([[0, -torch.inf, 0, -torch.inf], [7.0, -torch.inf, -torch.inf, -torch.inf]] * 2)
    (values,) = token_logprobs(model, [[0, 1, 0, 2]])
    np.testing.assert_allclose(values[1:], [-np.inf, 0, -np.log(2)])
    (z,) = token_logprobs(model, [[0, 2, 1, 0]], standardised=True)
    np.testing.assert_array_equal(z[[1, 3]], [0, 0])


def test_a_model_is_left_as_it_was():
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 9))
    model[2].eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    first, again = (token_logprobs(model, lines(20, vocabulary=9))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)  # without dropout
    assert [module.training for module in model] == [True, True, False] and model.training
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_the_mean_of_the_smallest():
    values = -np.random.default_rng(0).exponential(size=97)
    assert min_k(values, 1.0) == pytest.approx(values.mean(), rel=1e-15)
    assert min_k(values, 0.2) == np.sort(values)[:19].mean()
    assert min_k(values, 1e-9) == min_k([values.min()]) == values.min()  # at least one
    ks = np.linspace(0.01, 1, 100)
    assert (np.diff([min_k(values, k) for k in ks]) >= 0).all()
    shuffled = np.random.default_rng(1).permutation(values)
    assert min_k(shuffled, 0.3) == pytest.approx(min_k(values, 0.3), rel=1e-15)
    raised = np.where(values > np.quantile(values, 0.5), values / 2, values)  # none crosses the k-quantile
    assert min_k(raised, 0.2) == min_k(values, 0.2)
    lowered = values.copy()
    lowered[values.argmax()] = values.min() - 97  # one does
    assert min_k(lowered, 0.2) < min_k(values, 0.2) - 5


def test_statistics_in_closed_form():
    model, other = Tabled(seed=2), Tabled(seed=5)
    read = lambda net, text: np.array(naive.logprobs(net, list(text.encode()), 10))  # noqa: E731
    detector = MinKProb(model, tokenizer="bytes")
    scores = lambda **facts: detector.set_params(**facts).outlier_score(TEXTS)  # noqa: E731
    for k in (0.2, 0.6, 1.0):
        expected = [naive.score(read(model, text), k) for text in TEXTS]
        np.testing.assert_allclose(scores(k=k), expected, rtol=1e-12)
    loss = np.array([-read(model, text).mean() for text in TEXTS])
    np.testing.assert_allclose(scores(statistic="loss"), loss, rtol=1e-12)
    np.testing.assert_array_equal(scores(statistic="min_k", k=1.0), scores(statistic="loss"))
    compressed = [len(zlib.compress(text.encode())) for text in TEXTS]
    np.testing.assert_allclose(scores(statistic="zlib"), loss / compressed, rtol=1e-12)
    lower = np.array([-read(model, text.lower()).mean() for text in TEXTS])
    np.testing.assert_allclose(scores(statistic="lowercase"), -lower / loss, rtol=1e-12)
    against = np.array([-read(other, text).mean() for text in TEXTS])
    np.testing.assert_allclose(scores(statistic="reference", reference=other), loss - against, rtol=1e-12)
    near = [[-read(model, one).mean() for one in perturbed(text, 4, seed=7)] for text in TEXTS]
    expected = loss - np.mean(near, axis=1)
    np.testing.assert_allclose(scores(statistic="neighbour", neighbours=4, random_state=7), expected, rtol=1e-12)
    z = [naive.logprobs(model, list(text.encode()), 10, standardised=True) for text in TEXTS]
    np.testing.assert_allclose(scores(statistic="min_k++", k=0.2), [naive.score(one, 0.2) for one in z], rtol=1e-9)


def test_neighbours_lose_or_exchange_a_tenth_of_their_words():
    text = " ".join(f"w{i}" for i in range(40))
    made = perturbed(text, 50)
    assert made == perturbed(text, 50) != perturbed(text, 50, seed=1)
    lost = [40 - len(one.split()) for one in made]
    assert min(lost) >= 0 and max(lost) <= 4 and 1 < np.mean(lost) < 3
    assert all(set(one.split()) <= set(text.split()) and one != text for one in made)
    moved = [sum(a != b for a, b in zip(one.split(), text.split())) for one in made if len(one.split()) == 40]
    assert moved and max(moved) <= 8
    assert perturbed("x", 2) == ["x", "x"] and set(perturbed("ab", 9)) == {"a", "ba"}


def test_a_score_depends_on_its_text_alone():
    for statistic in ("min_k", "neighbour"):
        detector = MinKProb(Tabled(), tokenizer="bytes", statistic=statistic)
        scores = detector.outlier_score(TEXTS)
        alone = [detector.outlier_score([text])[0] for text in TEXTS]
        np.testing.assert_array_equal(scores, alone)
        np.testing.assert_array_equal(detector.outlier_score(TEXTS[::-1]), scores[::-1])


def test_reasons_are_the_least_likely_tokens():
    detector = MinKProb(Tabled(), tokenizer="bytes", k=0.3)
    for statistic in ("min_k", "min_k++", "loss"):
        detector.set_params(statistic=statistic)
        parts = detector.reasons(TEXTS)
        assert parts.shape == (4, max(map(len, TEXTS)))
        np.testing.assert_allclose(parts.sum(axis=1), detector.outlier_score(TEXTS), rtol=1e-12)
        assert (parts[1, 5:] == 0).all() and (parts[3, 2:] == 0).all()
    text = TEXTS[2]
    parts = detector.set_params(statistic="min_k").reasons([text])[0]
    read = detector.tokens([text])[0]
    assert "".join(read.pieces) == text
    chosen = np.argsort(read.log_p)[: int(0.3 * len(text))]
    assert set(np.flatnonzero(parts)) == set(chosen)
    np.testing.assert_allclose(parts[chosen], -read.log_p[chosen] / len(chosen), rtol=1e-12)
    assert len(detector.words(["ab"], most=5)[0]) == 2
    first = detector.words([text], most=1)[0][0]
    place = int(chosen[0])
    assert first.startswith(f"'{text[place]}' after '") and f"({-read.log_p[place]:.1f} nats)" in first


def test_without_a_token_to_begin_with_the_first_one_has_no_part():
    class Letters:
        def encode(self, text):
            return [ord(letter) for letter in text]

        def decode(self, ids):
            return "".join(map(chr, ids))

    detector = MinKProb(Tabled(), tokenizer=Letters(), statistic="loss")
    expected = [-np.nanmean(naive.logprobs(Tabled(), list(text.encode()))) for text in TEXTS]
    np.testing.assert_allclose(detector.outlier_score(TEXTS), expected, rtol=1e-12)
    parts = detector.reasons(TEXTS)
    assert (parts[:, 0] == 0).all()
    np.testing.assert_allclose(parts.sum(axis=1), expected, rtol=1e-12)
    assert np.isnan(detector.tokens(TEXTS)[0].log_p[0])
    with pytest.raises(BadInput, match=re.escape("text 1 has 1 token ('x'), and 'Tabled' predicts none of it")):
        detector.outlier_score(["ab", "x"])
    assert detector.set_params(tokenizer="bytes").outlier_score(["x"]).shape == (1,)


def test_what_cannot_be_scored_is_refused_by_name():
    detector = MinKProb(Tabled(), tokenizer="bytes")
    for texts, match in [
        (["a", ""], "text 1 is empty"),
        (["a", None], "text 1 is no text but None"),
        (["a", 3.5], "text 1 is no text but 3.5 (float)"),
        ("a text", "put it into a list"),
    ]:
        with pytest.raises(BadInput, match=re.escape(match)):
            detector.outlier_score(texts)
    for facts, match in [
        ({"k": 0}, "k is a share in (0, 1]"),
        ({"k": 20}, "k is a share in (0, 1]"),
        ({"model": None}, "a model is needed"),
        ({"statistic": "reference"}, "a reference model is needed"),
        ({"tokenizer": None}, "'Tabled' has no tokenizer"),
        ({"tokenizer": "words"}, "not 'words'"),
        ({"context": 1}, "a context of 1 tokens predicts nothing"),
        ({"model": Tabled(20)}, "'Tabled' does not know a token of [10, 97, 98, 99]"),
        ({"model": Tabled(broken=98)}, "'Tabled' gives NaN at token 2 of text 0"),
    ]:
        with pytest.raises(BadInput, match=re.escape(match)):
            MinKProb(Tabled(), tokenizer="bytes").set_params(**facts).outlier_score(["abc"])
    with pytest.raises(BadInput, match="token 122 occurs, and 'Tabled' knows 110 tokens"):
        MinKProb(Tabled(110), tokenizer="bytes").outlier_score(["abcabcabcabc", "abcz"])
    with pytest.raises(UnknownName, match=re.escape("nearest: 'min_k'")):
        detector.set_params(statistic="mink").outlier_score(["a"])


def test_a_model_that_looks_ahead_or_gives_no_logits_is_refused():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=300, **small)
    with pytest.raises(BadInput, match="'BertForMaskedLM' looks ahead"):
        MinKProb(transformers.BertForMaskedLM(config), tokenizer="bytes").outlier_score(["a text"])
    with pytest.raises(BadInput, match=r"'BertModel' gives .* and logits .* are needed"):
        MinKProb(transformers.BertModel(config), tokenizer="bytes").outlier_score(["a text"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A transformers folder with a drawn Llama, and a tokenizer of bytes that begins texts with a token of its own."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE(vocab={"<s>": 0} | {one: i for i, one in enumerate(letters, 1)}, merges=[]))
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    torch.manual_seed(1)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=257, max_position_embeddings=64, initializer_range=0.3, **small)
    where = tmp_path_factory.mktemp("models")
    transformers.LlamaForCausalLM(config).save_pretrained(where / "tiny")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>")
    fast.save_pretrained(where / "tiny")
    transformers.LlamaForCausalLM(config).save_pretrained(where / "mute")
    ahead = transformers.BertConfig(vocab_size=257, **small)
    transformers.BertForMaskedLM(ahead).save_pretrained(where / "ahead")
    fast.save_pretrained(where / "ahead")
    return where


@pytest.fixture(scope="module")
def expected(folder):
    """Scores of the texts under the drawn Llama, by the slow way."""
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder / "tiny").eval()
    fast = transformers.AutoTokenizer.from_pretrained(folder / "tiny")
    with torch.no_grad():
        lines = [fast(text)["input_ids"] for text in TEXTS]
        return np.array([naive.score(naive.logprobs(model, ids[1:], ids[0], 64), 0.2) for ids in lines])


def test_a_folder_is_opened_once_and_a_saved_detector_opens_it_again(folder, expected, tmp_path):
    import farout

    detector = MinKProb(folder / "tiny")
    np.testing.assert_allclose(detector.fit_score(TEXTS), expected, rtol=1e-4)
    assert detector._language(detector.model) is detector._language(detector.model)
    assert "".join(detector.tokens(TEXTS)[2].pieces) == TEXTS[2]
    detector.save(tmp_path / "saved")
    again = farout.load(tmp_path / "saved")
    assert again.model == str(folder / "tiny") and again.offset_ == detector.offset_
    np.testing.assert_array_equal(again.predict(TEXTS), detector.predict(TEXTS))
    np.testing.assert_allclose(again.outlier_score(TEXTS), expected, rtol=1e-4)
    with pytest.raises(BadInput, match="'model' is an object in memory"):
        MinKProb(Tabled(), tokenizer="bytes").fit(TEXTS).save(tmp_path / "no")
    with pytest.raises(BadInput, match="is code, which a detector"):
        MinKProb("py:os.getcwd()").outlier_score(TEXTS)


def test_models_that_cannot_read_texts_are_refused_by_name(folder):
    with pytest.raises(BadInput, match="'mute' has no tokenizer"):
        MinKProb(folder / "mute").outlier_score(TEXTS)
    with pytest.raises(
        BadInput, match=re.escape("'ahead' is no causal language model (BertForMaskedLM, takes tokens)")
    ):
        MinKProb(folder / "ahead").outlier_score(TEXTS)
    borrowed = MinKProb(folder / "mute", tokenizer=folder / "tiny").outlier_score(TEXTS)
    assert np.isfinite(borrowed).all()


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Run the program in this process."""
    import signal
    import sys

    old = signal.getsignal(signal.SIGTERM)

    def main(*words):
        from farout.cli import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["farout", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return end.value.code, out, err

    yield main
    signal.signal(signal.SIGTERM, old)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_command_scores_a_file_of_texts(call, folder, expected, tmp_path):
    source = write_lines(tmp_path / "texts.jsonl", [{"id": f"n{i}", "text": text} for i, text in enumerate(TEXTS)])
    code, out, err = call("score", source, "--model", folder / "tiny", "--method", "min_k_prob", "--rate", "0.3")
    assert code == 0, err
    assert "wrote texts.farout.html, texts.farout.parquet, texts.farout.json" in err
    scores = pl.read_parquet(tmp_path / "texts.farout.parquet")
    np.testing.assert_allclose(scores["score"], expected, rtol=1e-4)
    np.testing.assert_array_equal(scores["p_value"].to_numpy() * 4, 5 - (np.argsort(np.argsort(expected)) + 1))
    farthest = int(expected.argmax())
    assert scores["alarm"].to_list() == [row == farthest for row in range(4)]
    head, _, first, *rest = out.splitlines()
    assert head.startswith("Min-K% Prob: 4 texts, 1 above the line") and len(rest) == 3
    assert first.split()[0] == str(farthest) and " nats)" in first
    settings = json.loads((tmp_path / "texts.farout.json").read_text())
    assert settings["model"] == str(folder / "tiny") and settings["parameters"]["k"] == 0.2


def test_the_command_reads_lines_other_columns_and_normal_texts(call, folder, expected, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n\n")
    model = folder / "tiny"
    code, out, err = call("score", "lines.txt", "--model", model, "-o", "-", "--set", "k=1")
    assert code == 0, err
    every = pl.read_csv(out.encode())["score"].to_numpy()
    np.testing.assert_allclose(every, MinKProb(model, statistic="loss").outlier_score(TEXTS), rtol=1e-6)
    rows = [{"body": text, "title": f"t{i}"} for i, text in enumerate(TEXTS)]
    write_lines(tmp_path / "other.jsonl", rows)
    code, out, err = call("score", "other.jsonl", "--model", model)
    assert code == 1 and "no column of texts is called 'text'; known: 'body', 'title'" in err
    (tmp_path / "normal.txt").write_text("\n".join(TEXTS[:2] * 5))
    words = ("--kind", "body=text", "--fit-on", "normal.txt", "--rate", "0.1", "-o", "-")
    code, out, err = call("score", "other.jsonl", "--model", model, *words)
    assert code == 0, err
    against = pl.read_csv(out.encode())
    np.testing.assert_allclose(against["score"], expected, rtol=1e-4)
    counts = 5 * (expected[:2, None] >= expected - 1e-6).sum(axis=0)
    np.testing.assert_allclose(against["p_value"], (1 + counts) / 11)


def test_what_the_command_cannot_do_is_said(call, folder, tmp_path):
    write_lines(tmp_path / "texts.jsonl", [{"txt": "a", "n": 1}, {"txt": "b", "n": 2}])
    write_lines(tmp_path / "holes.jsonl", [{"text": "some words"}, {"text": ""}])
    write_lines(tmp_path / "numbers.jsonl", [{"text": 1.5}, {"text": 2.5}])
    model = folder / "tiny"
    for words, match in [
        (["texts.jsonl", "--method", "min_k_prob"], "say which one with --model"),
        (["texts.jsonl", "--model", model, "--method", "ecod"], "'ecod' does not score texts with a model (table)"),
        (["texts.jsonl", "--model", model, "--kind", "texts=text"], "called 'texts'; nearest: 'txt'"),
        (["texts.jsonl", "--model", model, "--kind", "n=numeric"], "--kind NAME=text"),
        (["texts.jsonl", "--model", model, "--engine", "stream"], "no place beside it"),
        (["texts.jsonl", "--model", model, "--set", "K=1"], "no parameter of 'min_k_prob' is called 'K'"),
        (["holes.jsonl", "--model", model], "text 1 is empty"),
        (["numbers.jsonl", "--model", model], "column 'text' holds no texts but Float64"),
        (["texts.jsonl", "--model", folder / "none"], "none"),
        (["texts.jsonl", "--model", folder / "mute"], "'mute' has no tokenizer"),
        (["texts.jsonl", "--model", folder / "ahead"], "'ahead' is no causal language model"),
    ]:
        code, out, err = call("score", *words)
        assert code == 1 and out == "" and match in err and err.count("\n") == 1, (words, err)


def test_p_values_against_normal_texts_are_conformal():
    rng = np.random.default_rng(0)
    draw = lambda n: ["".join(rng.choice(list("abcdef "), 30)) for _ in range(n)]  # noqa: E731
    model, normal, texts = Tabled(), draw(50), draw(20)
    result = score_texts(texts, model, fit_on=normal, rate=0.1, parameters={"tokenizer": "bytes"})
    known = MinKProb(model, tokenizer="bytes").outlier_score(normal)
    counts = (known[:, None] >= result.scores).sum(axis=0)
    np.testing.assert_allclose(result.p_values, (1 + counts) / 51)
    assert result.calibrated and (result.alarms == (result.p_values <= 0.1)).all()
    with pytest.raises(BadInput, match=r"a rate of 0.01 needs at least 99 normal rows"):
        score_texts(texts, model, fit_on=normal, parameters={"tokenizer": "bytes"})


def test_the_page_colours_tokens_by_surprise_and_runs_nothing(tmp_path):
    texts = ["<script>alert(1)</script> & so on", *TEXTS, *(f"text number {i} of many" for i in range(30))]
    result = score_texts(texts, Tabled(), parameters={"tokenizer": "bytes"}, rate=0.1)
    result.save(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in html and "<strong>3 of 35</strong> texts" in html
    assert html.count("<details") == 31  # 20 of one end, 10 of the other, and the settings
    row = int(result.order[0])
    log_p = MinKProb(Tabled(), tokenizer="bytes").tokens([texts[row]])[0].log_p
    first = html[html.index("<details") :]
    shown = re.findall(
        r'<span title="([\d.]+) nats" style="background: color-mix\(in srgb, var\(--accent\) (\d+)%', first
    )
    assert [float(nats) for nats, _ in shown[: len(log_p)]] == (-log_p).round(1).tolist()
    assert [int(depth) for _, depth in shown[: len(log_p)]] == [round(80 * min(1, x / 12)) for x in -log_p]


def test_wikimia_is_read_and_judged_beside_a_blind_baseline(tmp_path):
    rng = np.random.default_rng(0)
    seen = np.arange(120) % 2 == 0
    words = [rng.choice(["a", "b", "c"], 32 if i < 60 else 70) for i in range(120)]
    rows = [{"input": " ".join(one), "label": int(known)} for one, known in zip(words, seen)]
    texts, labels = wikimia.read(write_lines(tmp_path / "one.jsonl", rows))
    assert texts == [row["input"] for row in rows] and (labels == seen).all()
    score = rng.normal(size=120) + ~seen
    found = wikimia.evaluate(texts, seen, {"mine": score, "constant": np.zeros(120)}, draws=200)
    assert [(row["words"], row["method"]) for row in found] == [
        (n, method) for n in (32, 64) for method in ("blind (bag of words)", "mine", "constant")
    ]
    for row, these in ((found[1], slice(0, 60)), (found[4], slice(60, 120))):
        pairs = score[these][~seen[these]][:, None] > score[these][seen[these]]
        assert row["AUC"] == pytest.approx(pairs.mean()) and row["texts"] == 60
        assert row["AUC, from"] < row["AUC"] < row["AUC, to"]
        assert wikimia.auroc(~seen[these], -score[these]) == pytest.approx(1 - row["AUC"])
    assert found[2]["AUC"] == 0.5 and found[2]["TPR at 5 % FPR"] == 0
    dated = [text + (" 2015" if known else " 2023") for text, known in zip(texts, seen)]
    blind = wikimia.evaluate(dated, seen, {}, draws=10)[0]
    assert blind["AUC"] == 1 and blind["TPR at 5 % FPR"] == 1


def test_tpr_at_fpr_counts_seen_texts_below_the_lowest_unseen_ones():
    rng = np.random.default_rng(3)
    label, score = rng.integers(2, size=300), rng.normal(size=300).round(1)
    from sklearn.metrics import roc_curve

    for fpr in (0.0, 0.05, 0.2, 0.99):
        false, true, _ = roc_curve(label == 0, -score, drop_intermediate=False)  # the positives are the seen ones
        assert wikimia.tpr_at_fpr(label, score, fpr) == pytest.approx(true[false <= fpr].max())


def test_what_wikimia_cannot_use_is_refused(tmp_path):
    for rows, error, match in [
        ([{"inputs": "a", "label": 1}], UnknownName, "nearest: 'inputs'"),
        ([{"input": "a"}], UnknownName, "called 'label'"),
        ([{"input": "a", "label": 2}], BadInput, "and 2 in row 0"),
        ([{"input": "a", "label": 1}, {"input": "  ", "label": 0}], BadInput, "row 1 holds no words"),
    ]:
        with pytest.raises(error, match=re.escape(match)):
            wikimia.read(write_lines(tmp_path / "bad.jsonl", rows))
    with pytest.raises(BadInput, match="one class has 1"):
        wikimia.evaluate(["a b"] * 7, [1, 1, 1, 1, 1, 1, 0], {})


def test_the_claim_plants_strings_and_reads_documents_as_often_as_it_says(monkeypatch):
    small = replace(claim.SETTINGS["small"], each=3, times=(1, 4), reference_bytes=4_000)
    try:
        drawn = memorised.documents(small, seed=0)
    except DataMissing as error:
        pytest.skip(str(error))
    assert len(drawn.texts) == len(set(drawn.texts)) == 2 * 2 * 3 * 3
    assert all(len(text.split()) == words for text, words in zip(drawn.texts, drawn.words.tolist()))
    counts = {(w, t, p): 0 for w in (16, 32) for t in (0, 1, 4) for p in (False, True)}
    for key in zip(drawn.words.tolist(), drawn.times.tolist(), drawn.planted.tolist()):
        counts[key] += 1
    assert set(counts.values()) == {3}
    assert not any(text in drawn.others for text in drawn.texts)
    streams = []
    train = lambda name, data, *rest: streams.append(bytes(data).decode()) or Tabled()  # noqa: E731
    monkeypatch.setattr(memorised, "_trained", train)
    memorised.reader(small, drawn, 0, lambda what, done: None)
    lines = streams[0].split("\n")
    assert [lines.count(text) for text in drawn.texts] == drawn.times.tolist()
    assert len(lines) == drawn.times.sum()
    monkeypatch.setitem(claim.SETTINGS, "small", small)
    found = claims.run("min_k_prob")  # of a model that has read nothing
    assert len(found.numbers["AUC by seed"]) == 2 * 2 * 2
    assert found.ours == pytest.approx(np.mean([row["min_k"] for row in found.numbers["AUC by seed"][:4]]))


def test_the_committed_claim_follows_from_its_rows():
    path = Path(__file__).parents[2] / "claims/results/min_k_prob.json"
    if not path.is_file():
        pytest.skip("the results of claims are not here")
    stored = claims.read(path)
    again = claim._concluded(claim.SETTINGS["full"], stored.numbers["AUC by seed"], stored.seeds, "full")
    assert (again.ours, again.holds, again.note, again.threshold) == (
        stored.ours,
        stored.holds,
        stored.note,
        stored.threshold,
    )
