"""Causal paths, slowly and plainly: one path at a time, each by running the child's layer again."""

from __future__ import annotations

import torch


def without(x, u, reference, width=1):
    """What a layer reads, with what unit u sends replaced."""
    changed = x.clone()
    changed[:, u * width : (u + 1) * width] = reference[u * width : (u + 1) * width]
    return changed


def shown(value, v):
    """Mean activation of unit v, a number for each sample."""
    return torch.stack([row[v].double().mean() for row in value])


def path_effect(linear, x, u, v, reference, after, rest=0.0, width=1):
    """Effect on unit v for each sample; ``rest`` is what else enters the layer, ``after`` its non-linearity."""
    whole = linear(x) + rest
    cut = whole.clone()
    cut[:, v] = (linear(without(x, u, reference, width)) + rest)[:, v]
    return shown(after(whole), v) - shown(after(cut), v)


def odds(logits, c):
    """Log-odds of class c, a number for each sample."""
    p = logits.double().softmax(1)[:, c]
    return torch.log(p / (1 - p))


def kept(effects, share, t_critical, fdr):
    """Which parents of each child stay: effects (n, parents, children) as nested lists of one layer."""
    n, parents, children = effects.shape
    from scipy.stats import t as student

    facts = {}
    for u in range(parents):
        for v in range(children):
            column = effects[:, u, v]
            mean = column.mean()
            t = 0.0 if mean == 0 else mean / column.std(ddof=1) * n**0.5
            facts[u, v] = mean, t, student.sf(t, n - 1)
    by_p = sorted(facts, key=lambda pair: facts[pair][2])
    last = max((k for k, pair in enumerate(by_p) if facts[pair][2] <= fdr * (k + 1) / len(by_p)), default=-1)
    real = set(by_p[: last + 1])
    found = set()
    for v in range(children):
        total = sum(max(facts[u, v][0], 0) for u in range(parents))
        so_far = 0.0
        for u in sorted(range(parents), key=lambda u: -facts[u, v][0]):
            if facts[u, v][0] <= 0 or so_far >= share * total:
                break
            so_far += facts[u, v][0]
            if (u, v) in real and facts[u, v][1] > t_critical:
                found.add((u, v))
    return found
