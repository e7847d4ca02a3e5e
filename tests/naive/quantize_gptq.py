"""GPTQ as optimal brain quantization in a fixed order: the full inverse Hessian, and an input removed at a time."""

from __future__ import annotations

import torch


def obq(weight, hessian, rounded):
    """Round column by column; ``rounded(weight, j)`` rounds column j (O,) of the weights as they stand then."""
    weight, inverse = weight.clone(), torch.linalg.inv(hessian)
    found = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        found[:, j] = rounded(weight, j)
        error = (weight[:, j] - found[:, j]) / inverse[j, j]
        weight -= torch.outer(error, inverse[j])
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return found


def gptaq(weight, hessian, cross, rounded):
    """Round column by column and correct for errors of earlier layers, with U and P as they are published."""
    weight = weight.clone()
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    P = torch.triu(cross @ upper.T, 1) @ upper
    found = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        found[:, j] = rounded(weight, j)
        w = weight[:, j].clone()
        error = (w - found[:, j]) / upper[j, j]
        weight[:, j:] -= torch.outer(error, upper[j, j:]) - torch.outer(w, P[j, j:])
    return found


def damped(hessian, damping):
    """Add a share of the mean diagonal to the diagonal."""
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def asymmetric(values, low, high, bits):
    """Round to integers with a zero point, 0 within the range, a row a step; GPTQ's quantizer written out."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    return [scale * (min(max(round(value / scale) + zero, 0), 2**bits - 1) - zero) for value in values]


def loss(weight, rounded, hessian):
    """Return the error of the layer by its definition: sums over outputs and pairs of inputs."""
    change = weight - rounded
    return float(torch.einsum("oi,ij,oj->", change, hessian, change))
