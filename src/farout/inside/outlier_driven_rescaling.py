"""Outlier-driven rescaling: A Unified View of Attention and Residual Sinks.

Zihan Qiu, Zeyu Huang, Kaiyue Wen, Peng Jin, Bo Zheng and others, 2026 (arXiv 2601.22966).

A channel of the residual stream that is huge at nearly every token (a residual sink) seems to say nothing: its gain in
the norm behind it is nearly zero. But the norm divides by the length of the whole token. So the outlier shrinks all
other channels, by as much as it likes, token by token: it is a lever, not content. This is the analysis part of the
paper; the norms that make levers unnecessary are in :mod:`farout.kit.decoder`.

The paper claims that clipping the outliers while the norm stays does harm although their own contribution behind the
norm is far below that of other channels, and that a lever of its own (a learned vector before the norm, or a gate
behind it) trains models that are two points better on average and lose 1.2 points at W4A4.

Differences from the paper, of which no code was found:

- The sink of a norm is the channel with the largest mean absolute value that enters it; ``channels`` takes more.
- Clipped means limited to the largest of the token's other channels; zeroed is measured beside it.
- A gain is measured: the slope of what leaves the norm over the normalised input. So it holds for any norm.
- The same is done to the channel of median size, as a control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from farout.cards import paper
from farout.errors import BadInput
from farout.inside._rescaling import CONTROL, EVERY, GAINLESS, Lever, Rescaling
from farout.inside._rescaling_passes import Passes
from farout.inside._sites import first_tensor, tokens_of
from farout.kit.training import torch_or_say

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MUTE = 0.01  # of the median gain: a sink with no more says nothing

__all__ = ["Lever", "OutlierDrivenRescaling", "Rescaling", "next_token_loss"]


@paper(
    "Outlier-driven rescaling",
    title="A Unified View of Attention and Residual Sinks: Outlier-Driven Rescaling is Essential for Transformer "
    "Training",
    authors="Qiu, Huang, Wen, Jin, Zheng and others",
    arxiv="2601.22966",
    year=2026,
    claim="Outliers rescale rather than contribute: clipping them before the norm does harm, though their part of what "
    "leaves it is small; explicit gates give 2 points on average and lose 1.2 points at W4A4.",
    differs="The sink of a norm is its channel with the largest mean absolute value, clipped to the largest other "
    "channel of the token. Gains are measured. The channel of median size is the control.",
    kind="measure",
    extra="torch",
)
class OutlierDrivenRescaling:
    """Whether the largest channels before each norm are levers: what they do to the others, and what they say.

    With ``r = |x_o| / ||x||`` a norm gives the other channels ``sqrt(1 - r^2)`` times what it would give them without
    channel o. A lever has a large r that varies with the token, and a gain near zero.

    The batches are kept and passed again and again: to find the sinks, to measure them, and three times to change those
    of all norms, of those in the same place of a block, of those without a gain for their sink, and the control.

    Parameters
    ----------
    channels : int
        How many of the largest channels of each norm are its sink.

    Examples
    --------
    A model whose channel 0 is huge, and whose norm has no gain for it:

    >>> import torch
    >>> norm, head = torch.nn.RMSNorm(8), torch.nn.Linear(8, 3)
    >>> with torch.no_grad():
    ...     _ = norm.weight[0].zero_()
    >>> x = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))
    >>> x[..., 0] = 30 + 20 * x[..., 0]
    >>> found = OutlierDrivenRescaling().measure(
    ...     torch.nn.Sequential(norm, head), [x], loss=lambda out, batch: out.square().mean()
    ... )
    >>> lever = found.levers[0]
    >>> lever.channels, lever.gain, lever.contribution
    ((0,), 0.0, 0.0)
    >>> lever.share > 0.9 and lever.correlation < -0.9
    True
    >>> found.rise("zeroed after"), found.rise("zeroed before") != 0
    (0.0, True)
    """

    def __init__(self, channels: int = 1) -> None:
        self.channels = channels

    def measure(
        self, model: nn.Module, batches: Iterable[Any], *, loss: Callable[[Any, Any], torch.Tensor] | None = None
    ) -> Rescaling:
        """Measure the sinks of every norm of the residual stream, and change them.

        Parameters
        ----------
        model : torch.nn.Module
            In evaluation mode.
        batches : iterable
            As for :func:`farout.inside.record`; all batches count alike.
        loss : callable, optional
            ``loss(output, batch)``, a number; by default that of the next token.

        Returns
        -------
        Rescaling

        Raises
        ------
        BadInput
            There are no batches, the model has no norm with a gain, or norms have too few channels.
        """
        torch_or_say("measuring rescaling")
        work = Passes(model, list(batches), loss or next_token_loss)
        if self.channels < 1 or work.width < 2 * self.channels + 1:
            raise BadInput(f"{self.channels} channels cannot be the outliers of norms of {work.width}")
        sizes, unchanged = work.sizes()
        sinks = {name: size.topk(self.channels).indices for name, size in sizes.items()}
        middle = {name: size.argsort()[[len(size) // 2]] for name, size in sizes.items()}
        levers = work.levers(sinks, sizes)
        places = {place: {n: sinks[n] for n in sinks if like(n) == place} for place in dict.fromkeys(map(like, sinks))}
        mute = {lever.norm: sinks[lever.norm] for lever in levers if lever.gain <= MUTE * lever.median_gain}
        changes = {
            norms: {
                "clipped before": work.changed(own, _clipped, before=True),
                "zeroed before": work.changed(own, _zeroed, before=True),
                "zeroed after": work.changed(own, _zeroed, before=False),
            }
            for norms, own in {EVERY: sinks, **places, GAINLESS: mute, CONTROL: middle}.items()
            if own
        }
        return Rescaling(tuple(levers), unchanged, changes)


def like(name: str) -> str:
    """Return the name of a norm with its numbers left out, which norms of the same place in a block share.

    Examples
    --------
    >>> like("model.layers.11.input_layernorm")
    'model.layers.*.input_layernorm'
    """
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def next_token_loss(output: Any, batch: Any) -> torch.Tensor:
    """Return the mean loss of the next token, in nats.

    Parameters
    ----------
    output : tensor (B, T, V), or what holds one as ``logits``
    batch : mapping with ``input_ids`` (B, T), or that tensor
        Padding by its ``attention_mask`` is left out.
    """
    from torch.nn import functional as F

    logits = first_tensor(getattr(output, "logits", output))
    tokens = batch["input_ids"] if hasattr(batch, "keys") else first_of(batch)
    if logits is None or logits.shape[:2] != tokens.shape:
        raise BadInput("the loss of the next token needs logits (B, T, V) for tokens (B, T); give another loss")
    _, mask = tokens_of(batch)
    targets = tokens[:, 1:] if mask is None else tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.long().flatten())


def first_of(batch: Any) -> Any:
    """Return the tensor of a batch that is one, or begins with one."""
    return batch[0] if isinstance(batch, list | tuple) else batch


def _zeroed(x: Tensor, channels: Tensor) -> Tensor:
    """Set channels to zero."""
    return x.index_fill(-1, channels, 0.0)


def _clipped(x: Tensor, channels: Tensor) -> Tensor:
    """Limit channels to the largest absolute value of the token's other channels."""
    most = _zeroed(x, channels).abs().amax(-1, keepdim=True)
    return x.index_copy(-1, channels, x[..., channels].clamp(-most, most))
