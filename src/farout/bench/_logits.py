"""What a model says at each token, a stretch of tokens at a time: logits of all at once may not fit in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

LOGITS = 1 << 25  # numbers that are held at once: 128 MB in single precision


def module_of(model: Any) -> nn.Module:
    """Return the module of something that was opened, or a module as it is."""
    from torch import nn

    return model if isinstance(model, nn.Module) else model.model


def batch_of(model: nn.Module, ids_BT: torch.Tensor) -> Any:
    """Return token ids, all of them of text, in the way a model is called with them."""
    return {"input_ids": ids_BT} if "input_ids" in inspect.signature(model.forward).parameters else ids_BT


def known(model: nn.Module, name: str) -> int | None:
    """Return what the configuration of a model says of its text; None where it has none."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(config, name, None)


def stretch(*models: nn.Module, sequences: int) -> int:
    """Return how many tokens of so many sequences may be looked at together."""
    return max(1, LOGITS // (sequences * max(known(model, "vocab_size") or 1 for model in models)))


@dataclass(frozen=True)
class Said:
    """What a model says of a batch.

    Attributes
    ----------
    at : callable or None
        Gives the logits (B, t, V) of a slice of the tokens; None where the model has none.
    tokens : int
        T; 1 for a model with one answer for a sample.
    output
        Of the model, or of its trunk.
    """

    at: Callable[[slice], torch.Tensor] | None
    tokens: int
    output: Any


def said(model: nn.Module, batch: Any, step: int) -> Said:
    """Run a model on a batch, which lies on its device.

    A causal model of transformers whose sequences are longer than ``step`` runs its trunk once; the rest of its own
    forward then runs on the tokens that are asked for, with the trunk's output in its place.
    """
    import torch

    from farout.inside._running import call

    more = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    long = isinstance(batch, Mapping) and "input_ids" in batch and batch["input_ids"].shape[1] > step
    trunk = _trunk(model, batch["input_ids"]) if long else None
    if trunk is not None:
        states = trunk(**batch, **more)

        def rest(part: slice) -> torch.Tensor:
            with _answering(trunk, type(states)(last_hidden_state=states.last_hidden_state[:, part])):
                return model(input_ids=batch["input_ids"][:, part], **more).logits

        return Said(rest, batch["input_ids"].shape[1], states)
    output = call(model, {**batch, **more} if isinstance(batch, Mapping) else batch)
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if logits is None:
        return Said(None, 0, output)
    logits_BTV = logits[:, None] if logits.ndim == 2 else logits
    return Said(lambda part: logits_BTV[:, part], logits_BTV.shape[1], output)


def _trunk(model: nn.Module, ids_BT: torch.Tensor) -> Any:
    """Return the part of a model of transformers that its forward puts the head on, found by running it on a token."""
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        return None
    found: list[nn.Module] = []
    with ExitStack() as stack:
        for module in model.modules():
            hook = module.register_forward_hook(
                lambda one, _, output: found.append(one) if hasattr(output, "last_hidden_state") else None
            )
            stack.callback(hook.remove)
        model(input_ids=ids_BT[:1, :1])
    return found[-1] if found else None  # the outermost is done last


@contextmanager
def _answering(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return this, whatever it is called with."""
    before = vars(module).get("forward")
    module.forward = lambda *args, **more: output
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def reading(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode without gradients, and each of their parts back into its own mode."""
    import torch

    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
