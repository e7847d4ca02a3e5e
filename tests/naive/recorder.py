"""A recording the slow way: keep everything that passes, then compute in float64."""

from __future__ import annotations

import numpy as np


class Everything:
    """Hooks that keep whole tensors, by the name of the site; remove them with ``close``."""

    def __init__(self, model, places):
        self.kept = {name: [] for name in places}
        self.hooks = []
        modules = dict(model.named_modules())
        for name in places:
            path, end = name.rsplit(".", 1)
            if end == "in":
                hook = modules[path].register_forward_pre_hook(lambda _, args, name=name: self._keep(name, args[0]))
            else:
                hook = modules[path].register_forward_hook(lambda _, args, out, name=name: self._keep(name, out))
            self.hooks.append(hook)

    def _keep(self, name, tensor):
        tensor = tensor[0] if isinstance(tensor, tuple) else tensor
        self.kept[name].append(tensor.detach().double().numpy().copy())

    def close(self):
        for hook in self.hooks:
            hook.remove()


def laid_out(arrays, behind):
    """Rows and their positions: channels come last, or behind the batch; a matrix has no positions."""
    rows, positions = [], []
    for x in arrays:
        x = np.moveaxis(x, 1, -1) if behind else x
        for sample in x:
            sample = sample.reshape(-1, x.shape[-1])
            rows.append(sample)
            positions.append(np.arange(len(sample)))
    return np.concatenate(rows), np.concatenate(positions)


def facts(rows, positions):
    """The arrays of ChannelStats, and the moments of all values together."""
    out = {"count": [], "mean": [], "m2": [], "m3": [], "m4": [], "low": [], "high": [], "magnitude": []}
    for column in rows.T:
        column = column[np.isfinite(column)]
        d = column - column.mean()
        values = len(column), column.mean(), (d**2).sum(), (d**3).sum(), (d**4).sum()
        for word, value in zip(out, (*values, column.min(), column.max(), np.abs(column).sum())):
            out[word].append(value)
    out = {word: np.array(values) for word, values in out.items()}
    out["large"] = (np.where(np.isfinite(rows), np.abs(rows), 0.0) >= 6).sum(0)
    out["nan"], out["infinite"] = np.isnan(rows).sum(0), np.isinf(rows).sum(0)
    magnitude = np.where(np.isfinite(rows), np.abs(rows), 0.0)
    at = [magnitude[positions == p] for p in range(positions.max() + 1)]
    out["position_count"] = np.array([len(x) for x in at])
    out["position_peak"] = np.array([x.max() for x in at])
    out["position_magnitude"] = np.array([x.sum() for x in at])
    out["position_bad"] = np.array([(~np.isfinite(rows[positions == p])).sum() for p in range(len(at))])
    return out


def row_facts(rows):
    """What is said of tokens, one row at a time; and the scores of AdaHOP's detector as torch would give them."""
    rows = [row for row in rows if np.isfinite(row).all()]
    table = np.array(rows)
    r, c = table.shape
    out = {
        "tokens": r,
        "token_kurtosis": np.mean([kurtosis(row) for row in rows if row.max() > row.min()]),
        "token_ratio": np.mean([np.abs(row).max() / np.abs(row).mean() for row in rows if row.any()]),
    }
    if r > 1 and c > 1:
        rv, cv = table.var(1, ddof=1), table.var(0, ddof=1)
        s_row = rv.std(ddof=1) / (rv.mean() + 1e-8) / np.sqrt(2 / (c - 1))
        s_col = cv.std(ddof=1) / (cv.mean() + 1e-8) / np.sqrt(2 / (r - 1))
        out["pattern"] = (s_row, s_col)
    return out


def spread(column):
    """Share of rows that carry the fourth powers of a channel; 1 for zeros."""
    return (column**2).sum() ** 2 / (len(column) * (column**4).sum()) if column.any() else 1.0


def kurtosis(values):
    """Fourth moment over the squared second, of all values."""
    d = values - values.mean()
    return (d**4).mean() / (d**2).mean() ** 2


def attention(q, k, mask):
    """Probabilities (B, H, Q, K) in float64, one query at a time; True in the mask (Q, K) is seen."""
    B, H, Q, D = q.shape
    probs = np.zeros((B, H, Q, k.shape[2]))
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                logits = np.where(mask[i], k[b, h] @ q[b, h, i] / np.sqrt(D), -np.inf)
                weights = np.exp(logits - logits.max())
                probs[b, h, i] = weights / weights.sum()
    return probs
