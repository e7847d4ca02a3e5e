"""Hadamard matrices of every order that Sylvester and Paley can build, and the fast transform with them.

A Hadamard matrix ``H`` (n, n) holds 1 and -1, and ``H H' = n I``; over ``sqrt(n)`` it is a rotation that spreads what
stands in one channel evenly over all. Orders beyond 2 are multiples of 4. Three constructions make them here, and
Kronecker products join them:

- Sylvester's doubling: powers of two;
- Paley's first: ``q + 1`` for a prime power ``q`` with ``q % 4 == 3``: 4, 8, 12, 20, 24, 28, 32, 44, 48, 60, 68, ...;
- Paley's second: ``2 (q + 1)`` for ``q % 4 == 1``: 12, 20, 28, 36, 52, 60, 76, 84, 100, 108, ...

Prime powers such as 9, 25, 27, 49 and 343 need the arithmetic of their field, which is computed. Out of reach are 92,
116, 156, 172, 184, 188, ... (most of them are known, by searches such as Williamson's), but not 312 or 344, so the
11,008 channels of LLaMA-2-7B are 344 times 32.

A product ``x H`` is taken factor by factor: ``n (d_1 + d_2 + ...)`` multiplications a row for ``n = d_1 d_2 ...``, with
factors that stay in a cache and few passes over the numbers. With 4,096 channels this takes a tenth to a sixth of the
time of the whole matrix on a CPU core; additions two by two in torch, which are fewest on paper, take five to eight
times as long (``python benchmarks/hadamard.py``).

Shape legend: n order, q field, k degree.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from farout.errors import BadInput

if TYPE_CHECKING:
    import torch

__all__ = ["factors", "hadamard", "has_order", "largest_order", "random_signs", "transform"]

_PASS = 32  # multiplications for each number that one more pass over them is worth


def has_order(n: int) -> bool:
    """Whether a Hadamard matrix of this order can be built.

    Examples
    --------
    >>> [n for n in range(4, 300, 4) if not has_order(n)]
    [92, 116, 156, 172, 184, 188, 232, 236, 260, 268, 292]
    """
    return n > 0 and _best(n) is not None


def largest_order(n: int) -> int:
    """Return the largest order that can be built and divides ``n``.

    Examples
    --------
    >>> [largest_order(n) for n in (576, 11_008, 172, 9, 14)]
    [576, 11008, 4, 1, 2]
    """
    if n < 1:
        raise BadInput(f"channels are 1 at least, not {n}")
    return next(n // parts for parts in range(1, n + 1) if n % parts == 0 and has_order(n // parts))


def factors(n: int) -> tuple[int, ...]:
    """Return the orders whose Kronecker product is the matrix of order ``n``, as :func:`transform` takes them.

    Raises
    ------
    BadInput
        No matrix of that order can be built.

    Examples
    --------
    >>> factors(4096), factors(576), factors(1)
    ((16, 16, 16), (24, 24), ())
    """
    found = _best(n) if n > 0 else None
    if found is None:
        near = largest_order(n) if n > 0 else 1
        raise BadInput(f"no Hadamard matrix of order {n} can be built here; blocks of order {near} divide it")
    return found[1]


def hadamard(n: int) -> np.ndarray:
    """Return a Hadamard matrix.

    Parameters
    ----------
    n : int
        The order.

    Returns
    -------
    int8 array (n, n)
        Of 1 and -1, with rows that are orthogonal. Sylvester's matrix where the order is a power of two.

    Raises
    ------
    BadInput
        No matrix of that order can be built.

    Examples
    --------
    >>> hadamard(4)
    array([[ 1,  1,  1,  1],
           [ 1, -1,  1, -1],
           [ 1,  1, -1, -1],
           [ 1, -1, -1,  1]], dtype=int8)
    >>> H = hadamard(36).astype(int)
    >>> bool((H @ H.T == 36 * np.eye(36)).all())
    True
    """
    out = np.ones((1, 1), np.int8)
    for order in factors(n):
        out = np.kron(out, _primitive(order))
    return out


def random_signs(n: int, seed: int) -> torch.Tensor:
    """Draw signs.

    Parameters
    ----------
    n, seed : int

    Returns
    -------
    tensor (n,)
        Of 1 and -1, float32.

    Examples
    --------
    >>> random_signs(4, 0)
    tensor([-1.,  1.,  1., -1.])
    """
    import torch

    return 2.0 * torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) - 1


def transform(x: torch.Tensor, order: int | None = None, *, across: int = 1, back: bool = False) -> torch.Tensor:
    """Multiply the last axis by an orthonormal Hadamard matrix, in blocks.

    Parameters
    ----------
    x : tensor (..., n)
        Half precision is transformed in float32 and rounded once.
    order : int, optional
        Size of a block; ``n`` by default.
    across : int
        How far apart the channels of a block are: with the channels of a head, equal ones of all heads are joined. A
        block then takes up ``order * across`` channels.
    back : bool
        Whether to multiply by the transposed matrix, which is the inverse.

    Returns
    -------
    tensor (..., n)
        In the precision of ``x``.

    Raises
    ------
    BadInput
        No matrix of that order can be built, or blocks do not divide the channels.

    Examples
    --------
    >>> import torch
    >>> transform(torch.tensor([8.0, 0, 0, 0]))
    tensor([4., 4., 4., 4.])
    >>> transform(torch.tensor([8.0, 0, 0, 0]), 2), transform(torch.tensor([8.0, 0, 0, 0]), 2, across=2)
    (tensor([5.6569, 5.6569, 0.0000, 0.0000]), tensor([5.6569, 0.0000, 5.6569, 0.0000]))
    """
    shape = x.shape
    n = shape[-1] if order is None else order
    parts = factors(n)
    if across < 1 or shape[-1] % (n * across):
        raise BadInput(f"blocks of {n} channels, {across} apart, do not divide {shape[-1]} channels")
    y = x.float() if x.element_size() < 4 else x
    dtype, device = str(y.dtype).rpartition(".")[2], str(y.device)
    for d in reversed(parts):
        matrix = _matrix(d, dtype, device, back)
        y = y.reshape(-1, d) @ matrix if across == 1 else matrix.T @ y.reshape(-1, d, across)
        across *= d
    return y.reshape(shape).to(x.dtype)


@cache
def _best(n: int) -> tuple[int, tuple[int, ...]] | None:
    """Return the least cost of a transform of order ``n``, and its factors; None where there is none."""
    if n == 1:
        return 0, ()
    if n > 2 and n % 4:
        return None
    found = []
    for d in range(2, n + 1):
        if n % d == 0 and _is_primitive(d):
            rest = _best(n // d)
            if rest is not None:
                found.append((d + _PASS + rest[0], (*rest[1], d)))
    return min(found, default=None)


def _is_primitive(n: int) -> bool:
    """Whether a matrix of that order is built in one step."""
    return n & (n - 1) == 0 or _paley(n) is not None


def _paley(n: int) -> tuple[int, int, int] | None:
    """Return which of Paley's constructions gives order ``n``, with the prime and the degree of its field."""
    for which, q, rest in ((1, n - 1, 3), (2, n // 2 - 1, 1)):
        field = _prime_power(q)
        if n % 4 == 0 and q % 4 == rest and field is not None:
            return (which, *field)
    return None


def _prime_power(q: int) -> tuple[int, int] | None:
    """Return the prime and the exponent of a prime power."""
    if q < 2:
        return None
    p = next((p for p in range(2, math.isqrt(q) + 1) if q % p == 0), q)
    k = round(math.log(q, p))
    return (p, k) if p**k == q else None


@cache
def _primitive(n: int) -> np.ndarray:
    """Build a matrix in one step."""
    paley = _paley(n)
    if n & (n - 1) == 0:
        out = np.ones((1, 1), np.int8)
        while len(out) < n:
            out = np.block([[out, out], [out, -out]])
        return out
    assert paley is not None
    which, p, k = paley
    character = _quadratic_character(p, k)
    q = len(character)
    core = np.zeros((q + 1, q + 1), np.int8)
    core[0, 1:], core[1:, 0] = 1, -1 if which == 1 else 1
    core[1:, 1:] = character[_differences(p, k)]
    one = np.eye(q + 1, dtype=np.int8)
    if which == 1:
        return core + one
    plus, minus = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
    return np.kron(core, plus) + np.kron(one, minus)


def _digits(p: int, k: int) -> np.ndarray:
    """Return the elements of the field of ``p**k``, as the coefficients (q, k) of polynomials."""
    return np.arange(p**k)[:, None] // p ** np.arange(k) % p


def _differences(p: int, k: int) -> np.ndarray:
    """Return which element is the difference of each two (q, q)."""
    digits = _digits(p, k)
    return ((digits[:, None] - digits[None]) % p) @ p ** np.arange(k)


def _quadratic_character(p: int, k: int) -> np.ndarray:
    """Return 1 for squares, -1 for other elements and 0 for 0 (q,), in the field of ``p**k``.

    The field is that of polynomials modulo one that cannot be divided. Modulo any other, either something else than 0
    has the square 0, or there are fewer squares; so counting them finds it.
    """
    digits = _digits(p, k)
    q = len(digits)
    squared = np.zeros((q, 2 * k - 1), np.int64)
    for i in range(k):
        squared[:, i : i + k] += digits[:, i : i + 1] * digits
    for lower in digits:  # x^k + lower
        rest = squared % p
        for i in range(2 * k - 2, k - 1, -1):
            rest[:, i - k : i] = (rest[:, i - k : i] - rest[:, i : i + 1] * lower) % p
        squares = rest[:, :k] @ p ** np.arange(k)
        if (squares[1:] > 0).all() and len(np.unique(squares[1:])) == (q - 1) // 2:
            break
    out = np.full(q, -1, np.int8)
    out[squares] = 1
    out[0] = 0
    return out


@lru_cache(maxsize=256)
def _matrix(n: int, dtype: str, device: str, back: bool) -> torch.Tensor:
    """Return an orthonormal matrix, kept for the next call."""
    import torch

    matrix = torch.from_numpy(_primitive(n)).to(torch.float64) / math.sqrt(n)
    return (matrix.T if back else matrix).contiguous().to(device, getattr(torch, dtype))
