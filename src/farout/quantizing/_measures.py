"""What is measured around quantization: memory beforehand, the loss of a text, and what the model carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from farout.bench.perplexity import Perplexity
    from farout.inside import Recording
    from farout.io.models import OpenModel


@dataclass(frozen=True)
class Need:
    """Memory that quantizing needs, in bytes.

    Attributes
    ----------
    weights, block, states : int
        The model; its largest block, in float32, twice; the hidden states of the calibration data.
    """

    weights: int
    block: int
    states: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.block + self.states

    @property
    def sentence(self) -> str:
        """What a user is told."""
        sizes = ((self.weights, "of weights"), (self.block, "for two blocks"), (self.states, "of states of the text"))
        parts = ", ".join(f"{size / 1e9:.2f} GB {what}" for size, what in sizes)
        return f"about {self.total / 1e9:.1f} GB of memory are needed ({parts})"


def size_of(model: Any, batches: Sequence[Any], both: bool) -> Need:
    """Foretell the memory of a run."""
    from farout.inside._sites import tokens_of
    from farout.quantize._blocks import blocks_of

    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    blocks = blocks_of(model).values()
    largest = max(sum(weight.numel() for weight in block.parameters()) for block in blocks)
    shapes = (tokens_of(batch)[0] or (1, 1) for batch in batches)
    width = getattr(getattr(model, "config", None), "hidden_size", 0) or 1024
    size = next(model.parameters()).element_size()
    states = sum(B * T for B, T in shapes) * width * size * (3 if both else 1)
    return Need(weights, 8 * largest, states)


def loss_of(
    opened: OpenModel, text: Any, length: int, windows: int, tell: Callable[[str, float], None], what: str
) -> Perplexity | None:
    """Measure the perplexity of a causal model on as many windows as a text holds; None for other models."""
    from farout.bench.perplexity import perplexity
    from farout.data.calibration import token_windows

    if text is None or not opened.causal:
        return None
    length = min(length, 256 if text == "built-in" else length)  # the built-in texts are short
    held = len(token_windows(text, opened, length))
    return perplexity(
        opened, text, length=length, windows=min(windows, held) or None, progress=lambda done: tell(what, done)
    )


def recorded(opened: OpenModel, batches: Sequence[Any]) -> Recording:
    """Record what the inputs of linear maps carry."""
    from farout.inside import record

    return record(opened.model, batches, what=("linear",))
