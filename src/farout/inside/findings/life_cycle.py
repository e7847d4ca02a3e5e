"""The life of the largest outlier: which weight writes it, which takes it out, and whether attention sinks where it is.

Measured by :class:`farout.inside.systematic_outliers.SystematicOutliers`, which tells the lives of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from farout.errors import BadInput
from farout.inside._finding import Finding
from farout.inside._layers import layers_of
from farout.inside._recording import Recording
from farout.inside.findings._common import listed
from farout.inside.findings.massive_activations import least
from farout.inside.quantization_cost import Cost
from farout.inside.systematic_outliers import SystematicOutliers, Write

_TRAINED_WITHOUT = "systematic_outliers"


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Tell the life of the largest outlier that a block creates."""
    try:
        cycle = SystematicOutliers().measure(recording)
    except BadInput:  # no row of blocks, or blocks of several widths: nothing lives from one to the next
        return []
    life = next((life for life in cycle.lives if life.created >= 0 and life.writers), None)
    if life is None:
        return []
    says = f"Channel {life.channel} begins its life in layer {life.created}, where {_written(life.writers)} writes it"
    if life.removed is not None:
        by = f", by {_written(life.cancellers)}" if life.cancellers else ""
        says += f", and layer {life.removed} takes it out{by}"
    if cycle.shared_positions == cycle.shared_positions:
        says += f"; attention sinks at {cycle.shared_positions:.0%} of the positions with outliers"
    evidence = {
        "channel": life.channel,
        "created": life.created,
        "removed": life.removed,
        "writers": [[write.parameter, write.row] for write in life.writers],
        "cancellers": [[write.parameter, write.row] for write in life.cancellers],
        "shared channels": cycle.shared_channels,
        "shared positions": cycle.shared_positions,
    }
    remedy = (
        "Leave the weights that write and remove it in higher precision. The paper reports that training with an extra "
        "key, or a scale of its own, in attention avoids all three."
    )
    layer = next(layer for layer in layers_of(recording) if layer.index == life.created)
    size = life.peak / least(recording[layer.leaves])
    return [Finding("life cycle", life.writers[0].parameter, size, says + ".", evidence, remedy, _TRAINED_WITHOUT)]


def _written(writes: Sequence[Write]) -> str:
    """Name rows of weights; where the gain of a norm stands behind a matrix, it is the gain that makes the outlier."""
    writes = [write for write in writes if write.gain] or writes
    return listed(f"row {write.row} of '{write.parameter}'" for write in writes)
