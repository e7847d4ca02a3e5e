"""The layers of a recorded model: its rows of like blocks, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass

from farout.inside._recording import Recording

__all__ = ["Layer", "layers_of"]


@dataclass(frozen=True)
class Layer:
    """One block.

    Attributes
    ----------
    index : int
        Its place among the blocks, from 0.
    name : str
        Its module.
    enters, leaves : str
        The sites of the residual stream before and after it.
    """

    index: int
    name: str
    enters: str
    leaves: str

    def holds(self, site: str) -> bool:
        """Whether a site or parameter lies inside the block."""
        return site.startswith(f"{self.name}.") and site not in (self.enters, self.leaves)


def layers_of(recording: Recording) -> list[Layer]:
    """Return the blocks of the longest row of blocks that a recording saw; none where the model has no such row.

    Blocks of a row are named alike but for a number, such as ``model.layers.11``; blocks inside blocks are parts of
    these.

    Examples
    --------
    >>> import torch
    >>> from farout.inside import record
    >>> block = lambda: torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 4))
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(block(), block()))
    >>> [layer.name for layer in layers_of(record(model, [torch.ones(2, 4)]))]
    ['1.0', '1.1']
    """
    rows: dict[str, list[str]] = {}
    for site in recording.names("residual", "*.out"):
        name = site.removesuffix(".out")
        parent, _, last = name.rpartition(".")
        rows.setdefault(parent if last.isdigit() else name, []).append(name)
    if not rows:
        return []
    longest = max(rows.values(), key=len)  # the first of equals
    return [Layer(i, name, f"{name}.in", f"{name}.out") for i, name in enumerate(longest)]
