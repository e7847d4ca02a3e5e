"""What each unit sends along a path, and what a layer shows where that is taken away.

What a layer reads is linear in what each unit sends to it. So the parts of all units in it are one convolution with as
many groups as there are units, which costs the products of the layer's own one; an intervention on a path takes a part
away and runs the layer's non-linearity again, and nothing else.

Shape legend: N samples, U units of a parent, V units of a child, G sets of units that are intervened on together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.inside._causal_structure import Path
from farout.inside._causal_trace import Trace

if TYPE_CHECKING:
    import torch

__all__ = ["interventions", "shares"]

NUMBERS = 1 << 22  # numbers of an intermediate result at most: it is written and read a few times


def interventions(
    run: Trace,
    path: Path,
    reference: torch.Tensor,
    value: torch.Tensor,
    index: list[int],
    groups: list[list[int]],
    shown: Callable[[torch.Tensor], torch.Tensor],
    last: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Take parts away, a chunk of samples at a time.

    Returns
    -------
    float64 array (n, G, V)
        How much lower each child is.
    float64 array (U, V), or (V,) of a skip connection
        Sums over samples of the mean absolute part of each unit in each child.
    """
    import torch

    reach = list(range(value.shape[1])) if last else index  # the parts of a unit in all logits are taken away
    straight = path.op is None and not last  # a skip connection: one intervention reaches all children
    away = run.values[path.source] - reference
    many = 2 if straight else len(groups) + 1
    step = max(1, NUMBERS // (many * value[0].numel()))
    found = []
    size: Any = 0.0
    for rows in torch.arange(len(value)).split(step):
        before = value[rows]
        if straight:
            parts_NV = _then(path, away[rows], reach)
            size = size + _absolute(parts_NV[:, None])[0]
            changed = before.clone()
            changed[:, reach] -= parts_NV
            kept, without = shown(torch.cat([before, changed])).reshape(2, len(rows), -1)
            lower = torch.diag_embed(kept - without)
        else:
            parts_NUV = _parts(path, away[rows], reach)
            sizes = _absolute(parts_NUV)
            size = size + (sizes.mean(axis=1, keepdims=True).repeat(len(index), axis=1) if last else sizes)
            joined_NGV = torch.stack([parts_NUV[:, units].sum(1) for units in groups], dim=1)
            changed = before[:, None].repeat(1, many, *[1] * (before.ndim - 1))  # the first stays as it is
            changed[:, 1:, reach] -= joined_NGV
            all_NGV = shown(changed.flatten(0, 1)).reshape(len(rows), many, -1)
            lower = all_NGV[:, :1] - all_NGV[:, 1:]
        found.append(lower.cpu().numpy())
    return np.concatenate(found), size


def _parts(path: Path, away: torch.Tensor, children: list[int]) -> torch.Tensor:
    """Return each unit's part (n, U, V, ...) in what children read, given what it sends beyond its reference."""
    import torch
    from torch.nn import functional

    if path.op is None:  # into the logits
        return torch.diag_embed(_then(path, away, children))
    if path.op.name == "linear":
        weight = path.op.bound("input", "weight")["weight"].detach()[children]
        U = away.shape[1] // path.width
        weight_VUw = weight.reshape(len(children), U, path.width)
        parts = (away.reshape(len(away), U, path.width).transpose(0, 1) @ weight_VUw.permute(1, 2, 0)).transpose(0, 1)
    else:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | path.op.bound(*names)
        weight = _dense(given["weight"].detach(), given["groups"])[children]
        V, U = weight.shape[:2]
        kernel = weight.transpose(0, 1).reshape(U * V, 1, *weight.shape[2:])
        run = getattr(functional, path.op.name)
        parts = run(away, kernel, None, given["stride"], given["padding"], given["dilation"], U)
        parts = parts.reshape(len(away), U, V, *parts.shape[2:])
    n, U = parts.shape[:2]
    return _then(path, parts.flatten(0, 1), children).reshape(n, U, *parts.shape[2:])


def _then(path: Path, parts: torch.Tensor, children: list[int]) -> torch.Tensor:
    """Scale parts (m, V, ...) by the batch normalisations that stand between them and the sum."""
    import torch

    if path.op is None:
        parts = parts[:, children]
    for op in path.then:
        given = op.bound("input", "mean", "var", "weight", "bias", "training", "momentum", "eps")
        scale = torch.rsqrt(given["var"] + given.get("eps", 1e-5))
        scale = scale if given.get("weight") is None else scale * given["weight"].detach()
        parts = parts * scale[children].reshape(-1, *[1] * (parts.ndim - 2))
    return parts


def _dense(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Write the weight of a convolution in groups as that of one over all channels, 0 where it does not reach."""
    if groups == 1:
        return weight
    V, each = weight.shape[:2]
    full = weight.new_zeros(V, each * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * V // groups, (g + 1) * V // groups)
        full[rows, g * each : (g + 1) * each] = weight[rows]
    return full


def _absolute(parts_NUV: torch.Tensor) -> np.ndarray:
    """Sum over samples the mean over places of absolute parts: (U, V)."""
    flat = parts_NUV.abs().double()
    return (flat.flatten(3).mean(3) if flat.ndim > 3 else flat).sum(0).cpu().numpy()


def shares(size_UV: np.ndarray, groups: list[list[int]]) -> list[np.ndarray]:
    """Return what share of a group's part in each child is each member's: (members, V) for each group."""
    if size_UV.ndim == 1:  # a skip connection
        return [np.eye(len(size_UV))[[g]] * (size_UV[g] > 0) for g in range(len(groups))]
    found = []
    for units in groups:
        total = size_UV[units].sum(axis=0)
        found.append(np.divide(size_UV[units], total, out=np.zeros_like(size_UV[units]), where=total > 0))
    return found
