"""Record a model while it runs: streaming facts about its residual stream, norms, linear maps, attention and weights.

Outliers inside a model are found in what it computes, so it has to be watched at work. :func:`record` puts hooks on the
modules that its structure shows, runs the batches, keeps sums, extremes and counts of what passes, and takes the hooks
away again, also after an error. Memory depends on the model and on the length of sequences, not on how many batches
there are. What is recorded is machinery and follows no paper; the choice of sites and statistics serves the measures
that papers on outliers define (kurtosis, ratios of channels, massive activations, attention sinks).

Sites and their names, for a module called ``M`` and a parameter called ``P``:

======== ============================================ =====================================================
kind      names                                        what
======== ============================================ =====================================================
residual  ``M.in`` ``M.out``                           what enters and leaves each of a row of like blocks
norm      ``M.in`` ``M.out``                           before and after a normalisation
linear    ``M.in``                                     what a linear map or convolution multiplies
output    ``M.out``                                    what it gives; recorded where ``what`` names it
attention ``M.q`` ``M.k`` ``M.v``                      operands of the product, heads side by side as channels
probs     ``M.probs``                                  where each head looks
weight    ``P``                                        rows are outputs, channels are inputs
gradient  ``S.grad`` of a site ``S``, ``P.grad``       with a loss
moment    ``P.exp_avg`` and whatever else it is called tensors that an optimizer keeps in the shape of ``P``
======== ============================================ =====================================================

A tensor that stands at several sites (the output of a norm is the input of three maps) is recorded once, and the other
names lead to it.

Two facts come from a part of what passes, chosen by place alone: of a sequence with more than 64 queries, the
probabilities of 64 that are spread evenly (``queries`` counts them), and of a call with many rows, the bins of
magnitudes of a fixed sixteenth. All others are about every value. On a GPU with Triton the sums stay there until the
last batch has run.

What is not seen: the inside of ``nn.MultiheadAttention`` and of kernels that are no calls to torch, products written as
``einsum``, and parameters or tensors that are not dense floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from farout.errors import UnknownName
from farout.inside._recorder import Recorder
from farout.inside._recording import STILL, Recording
from farout.kit.training import torch_or_say

__all__ = ["KINDS", "USUAL", "Recording", "record"]

if TYPE_CHECKING:
    import torch
    from torch import nn

KINDS = ("residual", "norm", "linear", "output", "attention", "probs", "weight", "gradient", "moment")
USUAL = ("residual", "norm", "linear", "attention", "probs", "weight", "gradient", "moment")


def record(
    model: nn.Module,
    batches: Iterable[Any],
    where: str | Sequence[str] = "*",
    what: Sequence[str] = USUAL,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
) -> Recording:
    """Run batches through a model and keep streaming facts about its numbers.

    The model computes what it would compute unwatched, to the last bit, in the mode, precision and place it is in; a
    compiled model runs uncompiled. (Only torch's own ``nn.TransformerEncoder`` has, in evaluation mode, a fused path
    that it leaves when it is watched.) Tokens that a batch's ``attention_mask`` marks as padding are left out.

    Parameters
    ----------
    model : torch.nn.Module
    batches : iterable
        Mappings (``model(**batch)``), tuples or lists (``model(*batch)``), or tensors (``model(batch)``); each is moved
        to the model's device.
    where : str or list of str
        Patterns, as of file names, for the names of sites.
    what : list of str
        Kinds of sites, see the table above.
    loss : callable, optional
        ``loss(output, batch)``, a number: its gradients are recorded. The model's own ``.grad`` is not touched.
    optimizer : torch.optim.Optimizer, optional
        Its moments are recorded as they are.
    forward : callable, optional
        ``forward(model, batch)`` in place of the calls above, such as where a batch holds targets too.

    Returns
    -------
    Recording
        Of this process; :meth:`Recording.gathered` joins those of many.

    Raises
    ------
    BadInput
        There are no batches although something is to be seen in them, or one sample alone does not fit in memory.
    NothingMatched
        No site has a name that ``where`` matches.
    UnknownName
        ``what`` names no kind of site.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    >>> recording = record(model, [torch.tensor([[1.0, 1.0, 1.0, -3.0]])])
    >>> recording.aliases  # the norm's output is the input of the linear map
    {'1.in': '0.out'}
    >>> recording["1.in"].absmax.round(2)
    array([0.58, 0.58, 0.58, 1.73])
    """
    torch_or_say("recording a model")
    for kind in what:
        if kind not in KINDS:
            raise UnknownName("kind of site", kind, KINDS)
    patterns = (where,) if isinstance(where, str) else tuple(where)
    work = Recorder(getattr(model, "_orig_mod", model), patterns, set(what), loss, forward)
    work.look_at_weights(optimizer)
    if set(what) - set(STILL):
        with work.watching():
            for batch in batches:
                work.run(batch)
    return work.finish(model.training)
