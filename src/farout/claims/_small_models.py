"""Small language models for claims about rounding: decoders of bytes, trained for a minute or so, kept in the cache.

``llama`` has RMSNorm, SwiGLU, RoPE, and two query heads for each of keys and values; ``opt`` has LayerNorm before each
part, learned positions, biases and ReLU. Both have tied embeddings and are classes of transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from farout import __version__
from farout.data.calibration import token_windows
from farout.data.texts import text as text_named
from farout.errors import BadInput, MissingExtra, UnknownName
from farout.io.files import writing
from farout.io.models import OpenModel, open_model
from farout.kit.language import bytes_of, train_language_model
from farout.kit.training import device_named, seeded, torch_or_say

KINDS = ("llama", "opt")
TEXT = "tinyshakespeare"
TRAINED = 0.9  # of a text, from its beginning; the rest is held out
LENGTH = 128  # bytes that a model sees at once, in training and when it is measured


@dataclass(frozen=True)
class Scale:
    """How large a model is and how long it is trained."""

    width: int
    layers: int
    heads: int
    steps: int
    batch_size: int = 16
    learning_rate: float = 3e-3


SCALES = {"small": Scale(128, 4, 4, steps=40), "full": Scale(128, 4, 4, steps=600)}


class Bytes:
    """Tokens are bytes, and nothing stands around a text."""

    bos: int | None = None

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text in UTF-8."""
        return list(text.encode())

    def framed(self, text: str, most: int | None = None) -> list[int]:
        """Return its first bytes."""
        return self.encode(text)[:most]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of bytes."""
        return bytes(ids).decode("utf-8", "replace")

    def piece(self, id: int) -> str:
        """Return what one byte looks like."""
        return self.decode([id])


def small_language_model(
    kind: str,
    budget: str = "small",
    seed: int = 0,
    text: str = TEXT,
    progress: Callable[[float], None] | None = None,
) -> OpenModel:
    """Train a small language model of bytes, or take it from the cache.

    Parameters
    ----------
    kind : {"llama", "opt"}
    budget : {"small", "full"}
        Some seconds of training, or a minute or two of one core.
    seed : int
        For the weights and the order of the text.
    text : str
        What :func:`farout.data.texts.text` takes; its first 90 % are read.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    OpenModel
        On the CPU, with bytes as tokens.
    """
    if kind not in KINDS:
        raise UnknownName("kind of small language model", kind, KINDS)
    if budget not in SCALES:
        raise UnknownName("budget", budget, SCALES)
    torch_or_say("training a language model")
    scale = SCALES[budget]
    model, data = _made(kind, scale, seed), bytes_of(parts(text)[0])
    what = json.dumps([kind, asdict(scale), LENGTH, seed, hashlib.sha256(data.tobytes()).hexdigest(), __version__])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farout" / "planted"
    kept = cache / f"{kind}-{budget}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
    from safetensors.torch import load_model, save_model

    if kept.is_file():
        load_model(model, kept)
    else:
        _train(model, data, scale, seed, progress)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with writing(kept) as temporary:
            save_model(model, str(temporary))
    opened = replace(open_model(model), name=f"small {kind}", tokenizer=Bytes())
    opened.notes.clear()  # of which one says that there is no tokenizer
    return opened


def parts(text: str = TEXT) -> tuple[str, str]:
    """Return what a model is trained on, and what is held out."""
    whole = text_named(text)
    at = int(TRAINED * len(whole))
    return whole[:at], whole[at:]


def held_out(text: str = TEXT, windows: int = 64) -> np.ndarray:
    """Return windows (windows, 128) of what is held out, evenly spread over it."""
    found = token_windows([parts(text)[1]], Bytes(), LENGTH)
    if len(found) < windows:
        raise BadInput(f"'{text}' holds out {len(found)} windows of {LENGTH} bytes, and {windows} are asked for")
    return found[np.linspace(0, len(found) - 1, windows).round().astype(int)]


def _made(kind: str, scale: Scale, seed: int) -> Any:
    """Make a model with random weights."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("training a language model of transformers", "llm") from error
    sizes: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": scale.width,
        "num_hidden_layers": scale.layers,
        "num_attention_heads": scale.heads,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": True,
    }
    if kind == "llama":
        more: dict[str, Any] = {"intermediate_size": 3 * scale.width, "num_key_value_heads": scale.heads // 2}
        config: Any = transformers.LlamaConfig(**sizes, **more)
    else:
        more = {"ffn_dim": 4 * scale.width, "word_embed_proj_dim": scale.width, "dropout": 0.0, "pad_token_id": None}
        config = transformers.OPTConfig(**sizes, **more, do_layer_norm_before=True)
    with seeded(seed):
        return {"llama": transformers.LlamaForCausalLM, "opt": transformers.OPTForCausalLM}[kind](config)


def _train(
    model: Any, data: np.ndarray, scale: Scale, seed: int, progress: Callable[[float], None] | None = None
) -> None:
    """Train a model in place, on a GPU where there is one."""
    from torch import nn

    class Logits(nn.Module):
        """The training loop wants bare logits."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids_BT: Any) -> Any:
            return self.inner(input_ids=ids_BT, use_cache=False).logits

    train_language_model(
        Logits().to(device_named("auto")),
        data,
        context=LENGTH,
        steps=scale.steps,
        batch_size=scale.batch_size,
        learning_rate=scale.learning_rate,
        seed=seed,
        progress=progress,
    )
    model.to("cpu")
