"""What a module takes and gives, by its structure."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farout.io._pixels import Pixels, folder_pixels

if TYPE_CHECKING:
    import torch
    from torch import nn


def takes_of(model: nn.Module) -> str:
    """Tell tokens, pixels and features apart: by a name of transformers, else by the first part with weights."""
    from torch import nn

    main = getattr(model, "main_input_name", None)
    if main is not None:
        return {"input_ids": "tokens", "pixel_values": "pixels"}.get(main, "features")
    for part in model.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            return "tokens"
        if isinstance(part, nn.Conv2d):
            return "pixels"
        bare = next(part.children(), None) is None  # what a model of parts holds itself, its input does not meet first
        if bare and not isinstance(part, nn.LayerNorm) and next(part.parameters(), None) is not None:
            return "features"
    return "features"


def wants_names(model: nn.Module, takes: str) -> bool:
    """Whether tokens go in as ``input_ids``, or images as ``pixel_values``."""
    name = {"tokens": "input_ids", "pixels": "pixel_values"}.get(takes)
    return name is not None and name in inspect.signature(model.forward).parameters


def facts_of(model: nn.Module) -> dict[str, Any]:
    """Return size and shape of a model; tied weights count once."""
    from torch import nn

    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    said = {
        word: next((value for name in names if isinstance(value := getattr(text, name, None), int)), None)
        for word, names in {
            "layers": ("num_hidden_layers", "n_layer", "num_layers", "depth"),
            "width": ("hidden_size", "n_embd", "d_model", "embed_dim"),
            "vocabulary": ("vocab_size",),
            "positions": ("max_position_embeddings", "n_positions"),
        }.items()
    }
    parts = list(model.modules())
    tables = [part.num_embeddings for part in parts if isinstance(part, nn.Embedding)]
    if said["vocabulary"] is None and tables:
        said["vocabulary"] = tables[0]
    for part in parts:  # some count positions from behind the one of padding
        if isinstance(part, nn.Embedding) and part.num_embeddings == said["positions"] and part.padding_idx is not None:
            said["positions"] -= part.padding_idx + 1
            break
    if said["layers"] is None:
        rows = [list(part) for part in parts if isinstance(part, nn.ModuleList | nn.Sequential)]
        blocks = [row for row in rows if len({type(block) for block in row if list(block.children())}) == 1]
        said["layers"] = max(map(len, blocks), default=None)
    if said["width"] is None:
        said["width"] = next((w for w in (getattr(model, "num_features", None),) if isinstance(w, int)), None)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "architecture": type(model).__name__,
        **said,
    }


def looks_causal(model: nn.Module, vocabulary: int | None, keywords: bool) -> bool:
    """Whether a model gives a logit for each token, and none that depends on later tokens.

    It is tried: the last of some tokens is changed, and before it nothing may move but by rounding.
    """
    import torch

    config = getattr(model, "config", None)
    if not vocabulary or vocabulary < 2 or getattr(config, "is_encoder_decoder", False):
        return False
    weight = next(model.parameters(), None)
    ids = torch.arange(6, device=None if weight is None else weight.device).repeat(2, 1) % vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = _logits(model(input_ids=ids) if keywords else model(ids))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return False
    finally:
        model.train(mode)
    if logits is None or logits.ndim != 3 or logits.shape[:2] != ids.shape or logits.shape[2] < vocabulary:
        return False
    moved = (logits[0].float() - logits[1].float()).abs().amax(1)
    rounding = 8 * torch.finfo(logits.dtype).eps * float(logits.float().abs().max())
    return bool(moved[-1] > 0) and bool(moved[:-1].max() <= rounding)


def _logits(output: Any) -> torch.Tensor | None:
    """Find the logits in what a model returns."""
    import torch

    found = output
    if isinstance(output, dict) or hasattr(output, "logits"):
        found = output.get("logits") if isinstance(output, dict) else output.logits
    elif isinstance(output, list | tuple) and output:
        found = output[0]
    return found if isinstance(found, torch.Tensor) else None


def pixels_of(model: nn.Module, folder: Path | None) -> Pixels:
    """Return how images are prepared: as the folder says, or from 0 to 1 in any size."""
    from torch import nn

    config = getattr(model, "config", None)
    if config is not None:
        return folder_pixels(folder, config)
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    return Pixels(channels=first.in_channels if first.in_channels in (1, 3) else 3)
