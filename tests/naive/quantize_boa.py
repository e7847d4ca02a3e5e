"""BoA and TurboBoA by their definitions: each time something is rounded, all else is solved for anew. One head, numpy.

No Cholesky factor of an inverse occurs: where the method has one, the system that it stands for is solved.
"""

import numpy as np


def boa(W, H_in, H_out, scale, zero, top, rows=1, R=None):
    """Round W (d, I) with steps ``scale``, ``zero`` (d,) and codes 0..top; returns the rounded weight.

    Rows in blocks; in a block column after column. After each column the rest of the block is what minimises
    ``||(w - q) x_c + w dx_c - D X_rest||``; after each block the rows behind are what minimises
    ``tr(H_out D H_in D') + 2 tr(H_out W R D')`` but for the part that their own columns will correct.
    """
    now, V = W.copy(), np.zeros_like(W)
    d, inputs = W.shape
    R = np.zeros((inputs, inputs)) if R is None else R
    for start in range(0, d, rows):
        block, rest = slice(start, min(start + rows, d)), slice(min(start + rows, d), d)
        moved = now[block].copy()
        for c in range(inputs):
            s, z = scale[block], zero[block]
            V[block, c] = s * (np.clip(np.round(moved[:, c] / s) + z, 0, top) - z)
            if c + 1 < inputs:
                behind = H_in[c + 1 :, c + 1 :]
                error = np.outer(moved[:, c] - V[block, c], H_in[c, c + 1 :])
                moved[:, c + 1 :] += np.linalg.solve(behind, (error + np.outer(moved[:, c], R[c, c + 1 :])).T).T
        off = now[block] - V[block] + np.linalg.solve(H_in, (now[block] @ R).T).T
        if rest.start < d:
            now[rest] += np.linalg.solve(H_out[rest, rest], H_out[rest, block] @ off)
    return V


def objective(W, V, H_in, H_out, R=None):
    """``tr(H_out D H_in D') + 2 tr(H_out W R D')``: the error for inputs of the full model, but for a constant."""
    D = W - V
    cross = 0 if R is None else 2 * np.trace(H_out @ W @ R @ D.T)
    return np.trace(H_out @ D @ H_in @ D.T) + cross


def searched(w, H, bits):
    """Steps of one row: the shrink and the zero point that round it best to nearest, ``(scale, zero)``."""
    top = 2**bits - 1
    low, high = min(w.min(), 0), max(w.max(), 0)
    best = (np.inf, 0.0, 0.0)
    for i in range(80):
        p = 1 - i / 100
        scale = p * (high - low) / top
        for zero in (np.floor(-p * low / scale), np.ceil(-p * low / scale)):
            e = w - scale * (np.clip(np.round(w / scale) + zero, 0, top) - zero)
            if e @ H @ e < best[0]:
                best = (e @ H @ e, scale, zero)
    return best[1:]


def attention_hessian(K, rotations):
    """``2/n sum over positions t of R_t' K'K R_t`` of one head: keys (T, D) as the product sees them, R_t (T, D, D)."""
    return 2 / len(rotations) * sum(R.T @ K.T @ K @ R for R in rotations)
