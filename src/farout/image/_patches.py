"""Patch features: a vector at each place of an image, of several levels of a backbone and of the place's surroundings.

>>> fine, coarse = torch.rand(2, 40, 8, 8), torch.rand(2, 112, 4, 4)
>>> patches([fine, coarse]).shape
torch.Size([2, 152, 8, 8])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from farout.errors import BadInput

__all__ = ["at_strides", "patches"]


def patches(features: Sequence[Tensor], pool: int = 3, grid: tuple[int, int] | None = None) -> Tensor:
    """Make locally aware features of several levels, all on one grid.

    Parameters
    ----------
    features : sequence of Tensor (B, D_l, h_l, w_l)
    pool : int
        Side of the neighbourhood over which each level is averaged, odd; 1 leaves the levels as they are. Beyond the
        edge lie zeros, which count, as in PatchCore's official code.
    grid : (int, int), optional
        Height and width; by default those of the first level. Levels of other sizes are brought to it bilinearly.

    Returns
    -------
    Tensor (B, D, h, w)
        ``D`` is the sum of the levels' channels, in their order.

    Raises
    ------
    BadInput
        There is no level, or the side is not an odd number above 0.
    """
    if not features:
        raise BadInput("patch features need a level of a backbone at least; give 'layers'")
    if pool < 1 or pool % 2 == 0:
        raise BadInput(f"the side of a neighbourhood is an odd number above 0, not {pool}; take 3, say")
    size = tuple(features[0].shape[2:]) if grid is None else grid
    levels = []
    for level in features:
        if pool > 1:
            level = avg_pool2d(level, pool, stride=1, padding=pool // 2)
        if tuple(level.shape[2:]) != size:
            level = interpolate(level, size, mode="bilinear", align_corners=False)
        levels.append(level)
    return torch.cat(levels, 1)


def at_strides(strides: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Find the last level of each wanted stride.

    Parameters
    ----------
    strides : sequence of int
        Of a backbone's levels.
    wanted : sequence of int

    Returns
    -------
    tuple of int
        Places in ``strides``.

    Raises
    ------
    BadInput
        No level has such a stride.

    Examples
    --------
    >>> at_strides((2, 2, 4, 8, 16, 16, 32), [8, 16])
    (3, 5)
    """
    last = {stride: place for place, stride in enumerate(strides)}
    missing = [stride for stride in wanted if stride not in last]
    if missing:
        raise BadInput(f"no level of the backbone has stride {missing}; its strides are {list(strides)}: give 'layers'")
    return tuple(last[stride] for stride in wanted)
