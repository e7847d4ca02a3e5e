"""What penalised regressions share: SCAD and MCP, as ``lam |b| + q(b)`` with q smooth and concave, and scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from farout.errors import BadInput, UnknownName

SHAPES = {"scad": 3.7, "mcp": 2.0}  # of the papers: a and gamma


@dataclass(frozen=True)
class Penalty:
    """A penalty that is ``lam |b|`` near 0 and constant for large b, so that large coefficients are not shrunk.

    A level ``lam`` may be one number or one for each coefficient; where it is 0, nothing is penalised. With an infinite
    shape both penalties are the lasso's.

    Attributes
    ----------
    kind : {"scad", "mcp"}
    shape : float
        Where the penalty becomes constant, in units of ``lam``: a > 2 for SCAD, gamma > 1 for MCP.

    Examples
    --------
    >>> scad = Penalty.of("scad", None)
    >>> scad.value(np.array([0.5, -9.0]), 1.0)  # 0.5, and (a + 1) / 2
    2.85
    >>> scad.slope(np.array([0.5, -9.0]), 1.0)
    array([-0.,  1.])
    """

    kind: str
    shape: float

    @classmethod
    def of(cls, kind: str, shape: float | None) -> Penalty:
        """Make a penalty, of the paper's shape where none is given."""
        if kind not in SHAPES:
            raise UnknownName("penalty", kind, SHAPES)
        shape = SHAPES[kind] if shape is None else float(shape)
        least = 2 if kind == "scad" else 1
        if not shape > least:
            raise BadInput(f"the shape of '{kind}' is above {least}, not {shape}")
        return cls(kind, shape)

    @property
    def curvature(self) -> float:
        """Lipschitz constant of ``q'``: 1 / (a - 1) or 1 / gamma."""
        return 1 / (self.shape - 1) if self.kind == "scad" else 1 / self.shape

    def value(self, b: np.ndarray, lam: float | np.ndarray) -> float:
        """Return the penalty of coefficients (p,), added up.

        SCAD: ``lam |b|``; ``(2 a lam |b| - b^2 - lam^2) / (2 (a - 1))`` above lam; ``lam^2 (a + 1) / 2`` above a lam.
        MCP: ``lam |b| - b^2 / (2 gamma)``; ``gamma lam^2 / 2`` above gamma lam. Cutting |b| off where the last piece
        begins gives that piece.
        """
        size = np.abs(b)
        if np.isinf(self.shape):
            return float((lam * size).sum())
        size = np.minimum(size, self.shape * lam)
        if self.kind == "scad":
            return float((lam * size - np.maximum(size - lam, 0) ** 2 * self.curvature / 2).sum())
        return float((lam * size - size**2 * self.curvature / 2).sum())

    def slope(self, b: np.ndarray, lam: float | np.ndarray) -> np.ndarray:
        """Return ``q'`` (p,) of coefficients.

        SCAD: ``0``, ``(lam sgn b - b) / (a - 1)``, ``-lam sgn b`` on the three pieces; MCP: ``-b / gamma``,
        ``-lam sgn b``.
        """
        size = np.abs(b)
        excess = np.maximum(size - lam, 0) if self.kind == "scad" else size
        return -np.sign(b) * np.minimum(excess * self.curvature, lam)


def soft(u: np.ndarray, t: float | np.ndarray) -> np.ndarray:
    """Return ``sgn(u) max(|u| - t, 0)``, the minimiser of ``(b - u)^2 / 2 + t |b|``.

    Examples
    --------
    >>> soft(np.array([-3.0, 0.5, 2.0]), 1.0)
    array([-2.,  0.,  1.])
    """
    return u - np.clip(u, -t, t)


def location(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations (d,) of the columns; 1 for what varies by rounding only."""
    middle, scale = X.mean(axis=0), X.std(axis=0)
    return middle, np.where(scale > 1e-12 * np.abs(middle), scale, 1.0)
