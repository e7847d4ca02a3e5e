"""How far the outputs of one model are from those of another: what changing its numbers has cost it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from farout.bench._logits import module_of, reading, said, stretch
from farout.errors import BadInput
from farout.kit.training import torch_or_say


def divergence(
    reference: Any, model: Any, batches: Iterable[Any], *, progress: Callable[[float], None] | None = None
) -> float:
    """Measure how far the outputs of a model are from those of another, on the same batches.

    For models with logits this is ``KL(p || q) = sum p (log p - log q)`` in nats, with p of ``reference``, averaged
    over tokens (or samples, where a sample has one answer). For encoders it is ``1 - cos(u, v)`` of the means over
    tokens of the last hidden state, averaged over sequences. Padding is left out.

    Parameters
    ----------
    reference, model : OpenModel or torch.nn.Module
        Bare tensors that they return are taken for logits.
    batches : iterable
        As for :func:`farout.inside.record`.
    progress : callable, optional
        Called with the share done; ``batches`` then has a length.

    Returns
    -------
    float

    Raises
    ------
    BadInput
        There are no batches, or one of the models has no output of these kinds.

    Examples
    --------
    >>> import torch
    >>> even = torch.nn.Embedding.from_pretrained(torch.zeros(2, 2))
    >>> sure = torch.nn.Embedding.from_pretrained(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    >>> round(divergence(even, sure, [torch.tensor([[0, 1]])]), 6)  # (log((1 + e) / 2) - 1 / 2) / 2
    0.060057
    """
    torch_or_say("comparing models")
    first, second = module_of(reference), module_of(model)
    total, count = 0.0, 0
    with reading(first, second):
        for done, batch in enumerate(batches, start=1):
            far = _far(first, second, batch)
            total, count = total + float(far.double().sum()), count + len(far)
            if progress is not None:
                progress(done / len(batches))  # type: ignore[arg-type]
    if not count:
        raise BadInput("there are no batches; give at least one, such as those of calibration()")
    return total / count


def _far(first: Any, second: Any, batch: Any) -> Any:
    """Return the divergence at each token, sample or sequence of a batch (n,)."""
    import torch
    from torch.nn import functional as F

    from farout.inside._sites import mapped, tokens_of

    shape, mask_BT = tokens_of(batch)
    step = stretch(first, second, sequences=shape[0]) if shape else 1
    sides = []
    for model in (first, second):
        device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        sides.append(said(model, mapped(batch, lambda tensor, device=device: tensor.to(device)), step))
    p, q = sides
    if p.at is None or q.at is None:
        u, v = (getattr(one.output, "last_hidden_state", None) for one in sides)
        if u is None or v is None:
            raise BadInput("only models with logits, or both with a last hidden state, can be compared")
        kept = torch.ones(u.shape[:2]) if mask_BT is None else mask_BT
        # sums in place of means: their angle is the same
        u, v = ((x.double() * kept.to(x)[..., None]).sum(1).cpu() for x in (u, v))
        return 1 - F.cosine_similarity(u, v, dim=-1)
    parts = []
    for start in range(0, p.tokens, step):
        part = slice(start, start + step)
        log_p, log_q = (_log_softmax(at(part)) for at in (p.at, q.at))
        log_q = log_q.to(log_p.device)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    far_BT = torch.cat(parts, dim=1)
    return far_BT.flatten() if mask_BT is None or far_BT.shape != mask_BT.shape else far_BT[mask_BT.to(far_BT.device)]


def _log_softmax(logits: Any) -> Any:
    """In single precision at least."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
