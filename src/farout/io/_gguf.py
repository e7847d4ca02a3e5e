"""GGUF files: their metadata and weights, and the transformers model that they describe.

The readers of the gguf package and of transformers go through a vocabulary a field at a time, three times over, which
takes longer than the weights do. Here the metadata is read in one pass, and weights of the commonest architectures go
straight into a model. Every other architecture goes through transformers.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

# Architectures whose metadata and tensors map one to one, apart from what `_restored` does.
QUICK = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
_NUMBERS = dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<?", "", "", "<u8", "<i8", "<f8")))
_STRING, _ARRAY = 8, 9
_GROUP = 1 << 18  # weights that gguf's dequantize shall turn at a time: more are slower, and so are fewer


@dataclass
class GGUF:
    """What stands before the weights of a GGUF file.

    Attributes
    ----------
    path : Path
    fields : dict of str to Any
        Metadata by key; arrays are lists of words or arrays of numbers.
    tensors : dict of str to tuple
        Shape (rows first, as in torch), number of the format, and the place in the file in bytes.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]

    @property
    def architecture(self) -> str:
        """The word that llama.cpp has for it."""
        return str(self.fields.get("general.architecture", ""))

    def formats(self) -> list[str]:
        """Return the formats of the weights: the one with most weights first, vocabulary aside."""
        from gguf import GGMLQuantizationType

        size: dict[str, int] = {}
        for name, (shape, kind, _) in self.tensors.items():
            word = GGMLQuantizationType(kind).name
            size.setdefault(word, 0)
            size[word] += 0 if name.startswith(("token_embd", "output.")) else int(np.prod(shape))
        return sorted(size, key=lambda word: -size[word])

    def weight(self, name: str) -> torch.Tensor:
        """Return a tensor in float32."""
        import torch
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        shape, kind, start = self.tensors[name]
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        count = int(np.prod(shape)) // block * size
        data = np.fromfile(self.path, np.uint8, count, offset=start)
        if GGMLQuantizationType(kind).name in ("F32", "F16"):  # these gguf takes as numbers, not as bytes
            return torch.from_numpy(dequantize(data, GGMLQuantizationType(kind))).reshape(shape).float()
        # gguf takes 16 rows at a time. Blocks know nothing of rows, so that rows may be as long as is quick.
        blocks = len(data) // size
        rows = next(rows for rows in range(max(1, blocks * block // (_GROUP // 16)), blocks + 1) if blocks % rows == 0)
        try:
            values = dequantize(data.reshape(rows, -1), GGMLQuantizationType(kind))
        except NotImplementedError as error:
            raise BadInput(
                f"'{self.path.name}' holds weights as {GGMLQuantizationType(kind).name}, which the gguf package cannot "
                "turn into numbers; convert the file to another format, such as Q8_0, with llama.cpp"
            ) from error
        return torch.from_numpy(values).reshape(shape)


def read_gguf(path: Path) -> GGUF:
    """Read the metadata of a GGUF file.

    Raises
    ------
    BadInput
        It is no GGUF file, one of an old version or another byte order, one part of several, or it is cut off.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise BadInput(f"'{path.name}' is no GGUF file: it does not begin with 'GGUF'; was the download complete?")
        size = path.stat().st_size
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                found, end = _read(path, data)
            except BadInput:
                raise
            except (struct.error, IndexError, UnicodeDecodeError, ValueError, OverflowError, MemoryError) as error:
                raise BadInput(
                    f"'{path.name}' ({size} bytes) is damaged or cut off in its metadata; fetch the file again"
                ) from error
    if end > size:
        raise BadInput(f"'{path.name}' is cut off: it has {size} bytes, and its weights end at {end}; fetch it again")
    if int(found.fields.get("split.count", 1)) > 1:
        raise BadInput(
            f"'{path.name}' is one of {found.fields['split.count']} parts; join them first: llama-gguf-split --merge"
        )
    return found


def _read(path: Path, data: mmap.mmap) -> tuple[GGUF, int]:
    """Read fields and the list of tensors; return them, and where the last tensor ends."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    version, tensors, fields = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise BadInput(f"'{path.name}' is of GGUF version {version}, or big-endian; convert it to version 3 first")
    at = 24
    found = GGUF(path, {}, {})
    for _ in range(fields):
        key, at = _string(data, at)
        found.fields[key], at = _value(data, at + 4, *struct.unpack_from("<I", data, at))
    for _ in range(tensors):
        name, at = _string(data, at)
        (axes,) = struct.unpack_from("<I", data, at)
        *sizes, kind, offset = struct.unpack_from(f"<{axes}QIQ", data, at + 4)
        at += 16 + 8 * axes
        found.tensors[name] = tuple(reversed(sizes)), kind, offset
    align = int(found.fields.get("general.alignment", 32))
    base, end = -(-at // align) * align, 0
    for name, (shape, kind, offset) in found.tensors.items():
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        found.tensors[name] = shape, kind, base + offset
        end = max(end, base + offset + int(np.prod(shape)) // block * size)
    return found, end


def _string(data: mmap.mmap, at: int) -> tuple[str, int]:
    """Read a length and as many bytes."""
    (length,) = struct.unpack_from("<Q", data, at)
    at += 8
    if at + length > len(data):
        raise ValueError("a word ends behind the end of the file")
    return data[at : at + length].decode("utf-8", "surrogateescape"), at + length


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """Read a value of a kind."""
    if kind == _STRING:
        return _string(data, at)
    if kind == _ARRAY:
        of, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if of in (_STRING, _ARRAY):
            items = []
            for _ in range(count):
                item, at = _value(data, at, of)
                items.append(item)
            return items, at
        array = np.frombuffer(data[at : at + count * np.dtype(_NUMBERS[of]).itemsize], _NUMBERS[of])
        if len(array) != count:
            raise ValueError("an array ends behind the end of the file")
        return array, at + array.nbytes
    number = np.dtype(_NUMBERS[kind])
    return np.frombuffer(data[at : at + number.itemsize], number)[0].item(), at + number.itemsize


def build(gguf: GGUF, dtype: torch.dtype) -> nn.Module:
    """Make the transformers model of a GGUF file, with plain weights.

    Raises
    ------
    BadInput
        transformers does not know the architecture, or cannot read this file.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    model: Any = _quick(gguf, dtype)
    if model is not None:
        return model
    if gguf.architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise BadInput(
            f"'{gguf.path.name}' holds a model of architecture '{gguf.architecture}', which transformers does not read "
            f"from GGUF; {nearest(gguf.architecture, GGUF_SUPPORTED_ARCHITECTURES)}; "
            "give the folder of the original model instead"
        )
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.path.parent, gguf_file=gguf.path.name, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise BadInput(
            f"transformers cannot read '{gguf.path.name}' (architecture '{gguf.architecture}'): {error}; "
            "give the folder of the original model instead"
        ) from error
    # The weights are plain numbers now, but the model would still be taken for a quantized one.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.is_quantized = False
    return model


def _quick(gguf: GGUF, dtype: torch.dtype) -> nn.Module | None:
    """Make a model of one of the commonest architectures; None where the road through transformers must be taken."""
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import GGUF_CONFIG_MAPPING

    word = gguf.architecture
    if word not in QUICK or "rope_freqs.weight" in gguf.tensors or f"{word}.rope.scaling.type" in gguf.fields:
        return None
    kind = {"gemma3": "gemma3_text"}.get(word, word)
    tables: Any = GGUF_CONFIG_MAPPING
    known: dict[str, Any] = {"vocab_size": gguf.tensors["token_embd.weight"][0][0]}
    for key, value in gguf.fields.items():
        group, _, rest = key.partition(".")
        name = tables.get(group, {}).get(rest)
        if name is not None and name != "model_type":
            known[name] = value
    known["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    for name, stored in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        known[f"{name}_token_id"] = gguf.fields.get(f"tokenizer.ggml.{stored}_token_id")
    config = AutoConfig.for_model(kind, **known)
    (arch,) = (arch for arch, name in MODEL_ARCH_NAMES.items() if name == word)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    state = {}
    for name in bare.state_dict():
        stem, _, end = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{end}"
        if stored in gguf.tensors:
            state[name] = _restored(gguf.weight(stored), stored, config).to(dtype)
    return type(bare).from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def _restored(weight: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """Undo what llama.cpp does to weights when it writes them."""
    if config.model_type == "llama" and (".attn_q." in name or ".attn_k." in name):
        # it puts the two numbers that a rotation turns side by side; transformers keeps them half a head apart
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape).contiguous()
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return weight - 1  # it adds the 1 that these models add when they run
    return weight
