"""From a recording to findings: every kind looks at it, and what matters most comes first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module

from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.quantization_cost import SCHEMES, Cost

__all__ = ["KINDS", "Finding", "diagnose"]

# kinds in the order of what they mean for the model's user, and the file that finds each
KINDS = {
    "not a number": "not_a_number",
    "beyond float16": "not_a_number",
    "rounding cost": "rounding",
    "massive activation": "massive_activations",
    "life cycle": "life_cycle",
    "residual sink": "residual_sinks",
    "outlier channel": "outlier_channels",
    "weight line": "weight_outliers",
    "single weight": "weight_outliers",
    "attention sink": "attention_sinks",
    "heavy tail": "heavy_tails",
    "column pattern": "patterns",
    "row pattern": "patterns",
    "spike": "massive_activations",
    "dead units": "dead_units",
    "saturated units": "dead_units",
}


def diagnose(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Say what is wrong with a model's numbers and what to do about it.

    Parameters
    ----------
    recording : Recording
        From :func:`farout.inside.record`. Kinds whose sites were not recorded find nothing.
    costs : list of Cost, optional
        From :func:`farout.inside.quantization_costs`; without them no gain is predicted. Costs that are no numbers, as
        of a model whose activations are none, are left out.

    Returns
    -------
    list of Finding
        The gravest first: by kind in the order of ``KINDS``, then by size; what is within its bound (such as rounding
        that costs nothing) comes last.

    Examples
    --------
    >>> import torch
    >>> from farout.inside import record
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...
    >>> linear = torch.nn.Linear(64, 64)
    >>> linear.weight.data[7] *= 50.0
    >>> [finding.says for finding in diagnose(record(linear, [torch.randn(64, 64)]))]
    ["Far above the median of their matrix: row 7 of 'weight' (55 times)."]
    """
    sound = [cost for cost in costs if all(math.isfinite(cost.of(scheme)) for scheme in SCHEMES)]
    found: list[Finding] = []
    for file in dict.fromkeys(KINDS.values()):
        found += import_module(f"farout.inside.findings.{file}").find(recording, sound)
    order = list(KINDS)
    return sorted(found, key=lambda finding: (finding.size < 1, order.index(finding.kind), -finding.size))
