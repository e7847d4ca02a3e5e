"""Min-K% Prob: log-probabilities against a loop over places, the statistics in closed form, and what is refused."""

from __future__ import annotations

import re
import zlib

import numpy as np
import pytest

from farout.errors import BadInput, UnknownName
from naive import min_k_prob as naive

torch = pytest.importorskip("torch")

from farout.text._logprobs import token_logprobs  # noqa: E402
from farout.text.min_k_prob import MinKProb, min_k, perturbed  # noqa: E402

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
