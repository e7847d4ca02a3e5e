"""``farout quantize`` from beginning to end: a folder in, a checkpoint and its page out."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from farout.cli import app  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.quantizing import quantize_to  # noqa: E402

TEXT = [
    "The ferry left the pier at noon, and nobody saw it come back. " * 4,
    "Pack my box with five dozen jugs. " * 8,
] * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a tiny LLaMA-like model of bytes with a tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=256,
        intermediate_size=128, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(TEXT), encoding="utf-8")
    return path


def command(folder, out, text, *more):
    """The words of a small run."""
    sizes = ["--samples", "8", "--tokens", "32", "--data", str(text), "--test", str(text), "-q"]
    return ["quantize", str(folder), "-o", str(out), *sizes, *more]


def test_a_checkpoint_a_page_and_numbers_are_written_and_the_checkpoint_loads(folder, text, tmp_path, capsys):
    out = tmp_path / "four"
    app(command(folder, out, text, "--recipe", "gptq", "--scheme", "w4a16g32"), standalone_mode=False)
    said = capsys.readouterr().out
    assert "14 linear maps in w4a16g32 by gptq: 4.50 bits a weight." in said
    told = json.loads((tmp_path / "four.farout.json").read_text())
    assert told["recipe"] == "gptq" and told["perplexity"]["after"] > 0 and len(told["errors"]) == 14
    page = (tmp_path / "four.farout.html").read_text()
    for title in ("What blocks lost", "Channels before and after", "Maps that lost most", "Settings"):
        assert title in page
    assert not (tmp_path / "four.blocks").exists()

    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer("The ferry left", return_tensors="pt").input_ids
    found = quantize_to(None, folder, "gptq", "w4a16g32", text, samples=8, length=32, test=None)
    with torch.no_grad():
        ours, theirs = found.quantized.model(ids).logits, loaded(ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
    assert tokenizer.decode(ids[0]) == "The ferry left"


def test_the_perplexity_told_is_that_of_the_model(folder, text):
    from farout.bench.perplexity import perplexity
    from farout.inspecting._steps import open_named

    found = quantize_to(None, folder, "rtn", "w3a16", text, samples=8, length=32, test=text)
    opened = open_named(folder, {"device": "cpu", "tokenizer": None}, None)
    assert found.loss[0].value == pytest.approx(perplexity(opened, text, length=32, windows=8).value, rel=1e-6)
    opened.model = found.quantized.model
    assert found.loss[1].value == pytest.approx(perplexity(opened, text, length=32, windows=8).value, rel=1e-6)
    assert found.loss[1].value != found.loss[0].value


def test_a_run_that_was_stopped_goes_on_and_writes_the_same(folder, text, tmp_path):
    class Stopped(Exception):
        pass

    def stop(what, share):
        if what == "quantizing" and share > 0.4:
            raise Stopped

    sizes = {"samples": 8, "length": 32, "test": None}
    with pytest.raises(Stopped):
        quantize_to(tmp_path / "a", folder, "gptq", "w4a16g32", text, progress=stop, **sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.blocks"]
    quantize_to(tmp_path / "a", folder, "gptq", "w4a16g32", text, **sizes)
    quantize_to(tmp_path / "b", folder, "gptq", "w4a16g32", text, **sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_memory_is_foretold(folder, text):
    said = []
    found = quantize_to(None, folder, "rtn", "w4a16", text, samples=8, length=32, test=None, talk=said.append)
    weights = sum(weight.numel() for weight in found.quantized.model.parameters())
    block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert found.settings["memory foretold, bytes"] == 4 * weights + 8 * block + 8 * 32 * 64 * 4
    assert "of memory are needed" in said[0]


def test_what_cannot_be_done_is_refused_before_any_work(folder, text, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("x")
    for out, recipe, scheme, error, says in (
        (full, "rtn", "w4a16", BadInput, "not empty"),
        (None, "rtnn", "w4a16", UnknownName, "nearest: 'rtn'"),
        (None, "llm_int8", "w4a16", BadInput, "'w8a8'"),
        (None, {"recipe": "gptq", "dampin": 1}, "w4a16", UnknownName, "damping"),
    ):
        with pytest.raises(error, match=says):
            quantize_to(out, folder, recipe, scheme, text, samples=8, length=32)
    assert (full / "file").read_text() == "x"


def test_parameters_of_a_recipe_are_set_by_name(folder, text, tmp_path):
    app(command(folder, tmp_path / "x", text, "--set", "order=false", "--set", "damping=0.1"), standalone_mode=False)
    told = json.loads((tmp_path / "x" / "recipe.json").read_text())
    assert told["recipe"] == "gptq" and told["order"] is False and told["damping"] == 0.1
