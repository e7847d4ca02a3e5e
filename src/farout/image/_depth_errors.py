"""How far depth maps are from the truth, on all pixels and on parts of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from farout.errors import BadInput


def garg_crop(shape: tuple[int, int]) -> np.ndarray:
    """Say which pixels of KITTI's frames are judged, after Garg et al. (ECCV 2016); bool (H, W).

    Examples
    --------
    >>> int(garg_crop((100, 200)).sum())
    10915
    """
    H, W = shape
    inside = np.zeros(shape, bool)
    inside[int(0.40810811 * H) : int(0.99189189 * H), int(0.03594771 * W) : int(0.96405229 * W)] = True
    return inside


def depth_errors(
    predicted: np.ndarray,
    true: np.ndarray,
    regions: Mapping[str, np.ndarray] | None = None,
    *,
    judged: np.ndarray | None = None,
    scaled_on: np.ndarray | None = None,
    least: float = 1e-3,
    most: float = 80.0,
) -> dict[str, dict[str, float]]:
    """Compare depth maps with the truth, each scaled by the ratio of medians, since video alone gives no scale.

    Parameters
    ----------
    predicted, true : array (n, H, W)
        In metres; what is farther than ``most`` in truth is not judged.
    regions : mapping of str to bool array (n, H, W), optional
        Parts that are judged by themselves, such as background and moving objects.
    judged : bool array (H, W) or (n, H, W), optional
        Such as :func:`garg_crop`; by default all.
    scaled_on : bool array (n, H, W), optional
        Pixels whose medians are compared; by default all that are judged. The official evaluation of moving objects
        takes the background.
    least, most : float
        To which scaled predictions are cut.

    Returns
    -------
    dict of str to dict of str to float
        For ``"all"`` and each region: ``abs_rel``, ``sq_rel``, ``rmse``, ``rmse_log``, ``d1``, ``d2``, ``d3`` (shares
        with a ratio below 1.25, its square and its cube), and ``bias``, the relative error with its sign: below 0 is
        too near. Means over frames, weighted by pixels of the region.

    Raises
    ------
    BadInput
        Shapes differ, or a frame has no pixel to be scaled on.

    Examples
    --------
    >>> true = np.array([[[4.0, 8.0, 10.0]]])
    >>> round(depth_errors(3 * true, true)["all"]["abs_rel"], 6)
    0.0
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    parts: dict[str, Any] = {"all": np.ones(true.shape, bool), **(regions or {})}
    shapes = {predicted.shape, true.shape, *(np.shape(part) for part in parts.values())}
    if len(shapes) > 1 or true.ndim != 3:
        raise BadInput(f"depths and regions are arrays (n, H, W) of one shape; here they are {sorted(shapes)}")
    valid = (true > least) & (true < most) & (True if judged is None else np.broadcast_to(judged, true.shape))
    basis = valid if scaled_on is None else valid & scaled_on
    if not basis.any((1, 2)).all():
        raise BadInput(f"frame {int(np.argmin(basis.any((1, 2))))} has no pixel that it could be scaled on")
    ratios = [np.median(t[b]) / np.median(p[b]) for p, t, b in zip(predicted, true, basis)]
    scaled = (predicted * np.array(ratios)[:, None, None]).clip(least, most)
    found = {}
    for name, part in parts.items():
        d, t = scaled[part & valid], true[part & valid]
        off, ratio = np.abs(d - t), np.maximum(d / t, t / d)
        counts = (part & valid).sum((1, 2))
        frame = np.repeat(np.arange(len(true)), counts)  # which frame each pixel is of
        squares, logs = (np.bincount(frame, x, len(true)) for x in (off**2, np.log(ratio) ** 2))
        total = max(len(t), 1)
        found[name] = {
            "abs_rel": float((off / t).sum() / total),
            "sq_rel": float((off**2 / t).sum() / total),
            "rmse": float(np.sqrt(squares * counts).sum() / total),  # of each frame a root, weighted by its pixels
            "rmse_log": float(np.sqrt(logs * counts).sum() / total),
        } | {f"d{power}": float((ratio < 1.25**power).sum() / total) for power in (1, 2, 3)}
        found[name]["bias"] = float(((d - t) / t).sum() / total)
    return found
