"""Min-K% Prob, slowly and plainly: one text, one place and one forward pass at a time."""

from __future__ import annotations

import math

import torch


def distribution(model, before):
    """Probabilities of the next token, from the logits at the last place, in double precision."""
    given = model(torch.tensor([before]))
    logits = [float(x) for x in getattr(given, "logits", given)[0, -1]]
    top = max(logits)
    total = sum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits]


def logprobs(model, ids, bos=None, context=None, standardised=False):
    """log p of each token given those before it; of a long text given the window in which it counts."""
    found = []
    room = None if context is None else context - (bos is not None)
    for i, token in enumerate(ids):
        start = 0
        if room is not None and i >= room:
            half = max(1, room // 2)
            start = next(s for s in range(0, len(ids), half) if s + room > i)
            start = min(start, len(ids) - room)
        before = ([] if bos is None else [bos]) + list(ids[start:i])
        if not before:
            found.append(math.nan)
            continue
        p = distribution(model, before)
        value = math.log(p[token])
        if standardised:
            mean = sum(q * math.log(q) for q in p)
            value = (value - mean) / math.sqrt(sum(q * (math.log(q) - mean) ** 2 for q in p))
        found.append(value)
    return found


def score(values, k):
    """Minus the mean of the max(1, floor(k n)) smallest."""
    few = sorted(values)[: max(1, math.floor(k * len(values)))]
    return -sum(few) / len(few)
