"""What the claims about training measure of a small decoder: outliers, sinks, and what rounding costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

SINK_HEAD = 0.3  # of a head's attention to the first token, from which on it is a sink head
GRIDS = {"W8": (8, None), "W4": (4, None), "W8A8": (8, 8), "W4A4": (4, 4)}


def measured(model: Any, windows: np.ndarray, last: bool = True) -> dict[str, Any]:
    """Measure outliers, sinks and, at last, what rounding costs.

    Returns
    -------
    dict
        ``loss`` in nats for each byte; ``sink heads`` of all layers, whose attention to the first token is above 0.3,
        and ``first token``, the mean of that attention; ``sink columns``, key positions with a tenth of a block's
        attention; ``peak`` of the residual stream, and the same ``over median``; ``residual sink``, the largest mean
        absolute value of a channel over that of the median one; ``systematic`` channels; ``wcol``, the largest ratio of
        a weight to the mean of its row or column; and by how much each grid of :data:`GRIDS` raises
        the loss.
    """
    import torch

    from farout.inside import record
    from farout.inside.systematic_outliers import SystematicOutliers
    from farout.kit.language import evaluate

    tokens = torch.from_numpy(windows[:, :-1]).long().to(next(model.parameters()).device)
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = tokens.split(max(1, len(tokens) // 4))
        shares = [torch.stack([probs.mean((0, 2)) for probs in model.probabilities(part)]) for part in parts]
        shares_LHK = torch.stack(shares).mean(0)[..., : tokens.shape[1]]
        recording = record(model, parts, what=("residual", "weight"))
        cycle = SystematicOutliers().measure(recording)
        sizes = [recording[f"blocks.{i}.out"] for i in range(len(model.blocks))]
        loss = evaluate(model, windows)
        facts = {
            "loss": loss,
            "sink heads": int((shares_LHK[..., 0] > SINK_HEAD).sum()),
            "first token": float(shares_LHK[..., 0].mean()),
            "sink columns": int((shares_LHK.mean(1) >= 0.1).sum()),
            "peak": max(row["peak"] for row in cycle.layers),
            "over median": max(row["peak"] / row["median"] for row in cycle.layers),
            "residual sink": max(float(size.magnitude.max() / np.median(size.magnitude)) for size in sizes),
            "systematic": cycle.systematic,
            "wcol": max(row["ratio"] for row in cycle.layers),
        }
        if last:
            for name, (bits, inputs) in GRIDS.items():
                with rounded(model, bits, inputs):
                    facts[name] = evaluate(model, windows, batch_size=len(windows)) - loss
    model.train(training)
    return facts


@contextmanager
def rounded(model: Any, bits: int, inputs: int | None) -> Iterator[None]:
    """Let linear maps of a decoder's blocks multiply rounded weights and, with ``inputs``, rounded inputs.

    Both by the largest absolute value, to symmetric integers of so many bits. With inputs of 4 bits a row of weights
    has a scale of its own, and so has a token, since nothing would survive otherwise; else a tensor has one.
    """
    from torch import nn

    whole = inputs != 4
    with ExitStack() as stack:
        for module in model.blocks.modules():
            if isinstance(module, nn.Linear):
                stack.callback(setattr, module.weight, "data", module.weight.data)
                module.weight.data = to_grid(module.weight.data, bits, whole)
                if inputs:
                    hook = module.register_forward_pre_hook(lambda _, args: (to_grid(args[0], inputs, whole),))
                    stack.callback(hook.remove)
        yield


def to_grid(x: Any, bits: int, whole: bool) -> Any:
    """Round to a symmetric integer grid whose last step is the largest absolute value, of all or of each row."""
    top = 2 ** (bits - 1) - 1
    most = x.abs().amax() if whole else x.abs().amax(-1, keepdim=True)
    scale = most.clamp(min=1e-12) / top
    return (x / scale).round() * scale
