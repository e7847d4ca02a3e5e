"""Grids: which values a number may take, and how many numbers share a step.

A *grid* says how values are rounded, *steps* are the numbers that it needs for a tensor, and *codes* are what is
stored. With a scale ``s`` and a zero point ``z``

    ``codes = clamp(round(x / s) + z)``, ``values = s (codes - z)``, half to even.

Integers of ``b`` bits, with ``lo`` and ``hi`` the least and greatest of the values that share a step and ``m`` the
greater of ``|lo|`` and ``|hi|``:

==========  ===================  ========================  ============================================  ===========
rule        codes                scale                     zero point                                    as in
==========  ===================  ========================  ============================================  ===========
full        -2^(b-1)..2^(b-1)-1  ``m / ((2^b - 1) / 2)``   none                                          GPTQ
narrow      +-(2^(b-1)-1)        ``m / (2^(b-1) - 1)``     none                                          SmoothQuant
asymmetric  0..2^b-1             ``(hi - lo) / (2^b - 1)`` ``round(-lo / s)``, with 0 within [lo, hi]    GPTQ
clamped     0..2^b-1             ``(hi - lo) / (2^b - 1)`` ``round(-lo / s)``, clamped to the codes      AWQ
free        0..2^b-1             ``(hi - lo) / (2^b - 1)`` ``round(-lo / s)``                            OmniQuant
==========  ===================  ========================  ============================================  ===========

"full" and "asymmetric" are also what compressed-tensors does. "clamped" loses range where all values have one sign.
The floats (see ``_floats``) are symmetric: ``s = m / 448`` for E4M3 and ``m / 6`` for E2M1.

Where all values are 0, the range is taken as [-1, 1], as in GPTQ; where all are the same, as [0, that] or [that, 0].
Official code of AWQ and OmniQuant keeps ranges and steps above 1e-5 instead, which loses small weights. OmniQuant cuts
zero points at +-1e4, and values far from 0 with them; here the step grows until the zero point fits.

Half-precision tensors are rounded in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from farout.errors import BadInput
from farout.quantize._floats import MOST, NEAREST, Through, mxfp4_scale, nvfp4_scale

__all__ = ["Grid", "Steps"]

PER = ("tensor", "channel", "group", "input", "token")
RULES = ("full", "narrow", "asymmetric", "clamped", "free")
KINDS = ("int", "float", "mxfp4", "nvfp4")
BLOCKS = {"mxfp4": 32, "nvfp4": 16}  # values a step
FARTHEST = 1e4  # steps between 0 and the nearest end of a "free" range


@dataclass
class Steps:
    """What a grid needs to round a tensor, in the shape of :meth:`Grid.view` with a last axis of 1.

    Attributes
    ----------
    scale : torch.Tensor
        The distance between neighbouring codes; for nvfp4 with the global scale already in it.
    zero : torch.Tensor or None
        The code of 0, an integer; None for symmetric rules.
    global_scale : torch.Tensor or None
        For nvfp4: ``scale * global_scale`` are the group's own scales, which E4M3 holds exactly.
    """

    scale: torch.Tensor
    zero: torch.Tensor | None = None
    global_scale: torch.Tensor | None = None


@dataclass(frozen=True)
class Grid:
    """Which values a number may take, and which numbers share a step.

    Attributes
    ----------
    bits : int
        2 to 8; 4 or 8 for ``kind="float"``.
    per : {"tensor", "channel", "group", "input", "token"}
        What shares a step: all; a row of the weights; ``group`` inputs of a row; ``group`` outputs of a column of the
        weights; a row of the inputs.
    group : int
        For "group" and "input".
    rule : {"full", "narrow", "asymmetric", "clamped", "free"}
        For integers, as in the table above; floats are "full".
    kind : {"int", "float", "mxfp4", "nvfp4"}
    dynamic : bool
        For inputs: whether steps come from the tensor at hand, and not from calibration. Static steps of nvfp4 come
        from one range, and say the global scale, 448 over their scale; groups still take their own steps from the
        tensor at hand.

    Raises
    ------
    BadInput
        There is no such grid.

    Examples
    --------
    >>> grid = Grid(4, "group", 4)
    >>> weight = torch.tensor([[0.1, -0.3, 0.5, 0.75, 0.0, 0.0, 0.0, 0.0]])
    >>> steps = grid.steps(weight)
    >>> steps.scale.flatten()  # a group of zeros has some step
    tensor([0.1000, 0.1333])
    >>> grid.codes(weight, steps)
    tensor([[[ 1., -3.,  5.,  7.],
             [ 0.,  0.,  0.,  0.]]])
    >>> grid.rounded(weight)
    tensor([[ 0.1000, -0.3000,  0.5000,  0.7000,  0.0000,  0.0000,  0.0000,  0.0000]])
    >>> grid.bits_per_weight((1, 8))
    8.0
    """

    bits: int
    per: str = "channel"
    group: int = 0
    rule: str = "full"
    kind: str = "int"
    dynamic: bool = True

    def __post_init__(self) -> None:
        for word, value, known in (("per", self.per, PER), ("rule", self.rule, RULES), ("kind", self.kind, KINDS)):
            if value not in known:
                raise BadInput(f"a grid's {word} is {listed(known)}, not {value!r}")
        if not 2 <= self.bits <= 8:
            raise BadInput(f"a grid has 2 to 8 bits, not {self.bits}")
        if (self.group > 0) != (self.per in ("group", "input")) or self.group < 0:
            raise BadInput(
                f"a grid per '{self.per}' has no group of {self.group}; 'group' and 'input' need one above 0"
            )
        if self.kind == "float" and self.bits not in MOST:
            raise BadInput(f"floats have 4 or 8 bits, not {self.bits}")
        if self.kind != "int" and self.rule != "full":
            raise BadInput(f"a grid of {self.kind} is symmetric, so its rule is 'full' and not '{self.rule}'")
        block = BLOCKS.get(self.kind)
        if block and (self.bits, self.per, self.group) != (4, "group", block):
            raise BadInput(
                f"{self.kind} has 4 bits in groups of {block}, not {self.bits} per '{self.per}' with group {self.group}"
            )

    @property
    def symmetric(self) -> bool:
        """Whether 0 has the code 0, so that there is no zero point."""
        return self.rule in ("full", "narrow")

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest code."""
        if self.kind != "int":
            return -MOST[self.bits], MOST[self.bits]
        half = 2.0 ** (self.bits - 1)
        if not self.symmetric:
            return 0.0, 2 * half - 1
        return (-half if self.rule == "full" else 1 - half), half - 1

    def view(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` so laid out that the last axis shares a step.

        Parameters
        ----------
        x : torch.Tensor, shape (..., I)
            Weights (O, I) where the grid is per "input".

        Returns
        -------
        torch.Tensor
            [1, all] per tensor, [..., I] per channel or token, [..., I / group, group], or [I, O / group, group] per
            input.

        Raises
        ------
        BadInput
            The group does not divide the axis.
        """
        if self.per == "tensor":
            return x.reshape(1, -1)
        if not self.group:
            return x
        if self.per == "input":
            x = x.transpose(-1, -2)
        if x.shape[-1] % self.group:
            raise BadInput(
                f"groups of {self.group} do not divide {x.shape[-1]} values; "
                f"Grid.fitted({x.shape[-1]}) has groups that do"
            )
        return x.unflatten(-1, (-1, self.group))

    def unview(self, v: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Undo :meth:`view` for a tensor that had this shape."""
        if self.per == "input":
            return v.flatten(-2).transpose(-1, -2).reshape(shape)
        return v.reshape(shape)

    def steps(self, x: torch.Tensor, global_scale: torch.Tensor | None = None) -> Steps:
        """Take steps from the least and greatest values that share them.

        Parameters
        ----------
        x : torch.Tensor, shape (..., I)
        global_scale : torch.Tensor, optional
            For nvfp4, where it is known: of all the weights when ``x`` is a part of them, or from calibration.

        Returns
        -------
        Steps
        """
        v = self.view(_wide(x))
        return self.steps_between(v.amin(-1, keepdim=True), v.amax(-1, keepdim=True), global_scale)

    def steps_between(self, low: torch.Tensor, high: torch.Tensor, global_scale: torch.Tensor | None = None) -> Steps:
        """Take steps from ranges; gradients reach ``low`` and ``high`` through the scale.

        Parameters
        ----------
        low, high : torch.Tensor
            In the shape of :meth:`view` with a last axis of 1.
        global_scale : torch.Tensor, optional
            As for :meth:`steps`.

        Returns
        -------
        Steps
        """
        low, high = _wide(low), _wide(high)
        tiny = torch.finfo(low.dtype).tiny
        if self.symmetric:
            most = torch.maximum(low.abs(), high.abs())
            if self.kind == "mxfp4":
                return Steps(mxfp4_scale(most))
            if self.kind == "nvfp4":
                scale, global_scale = nvfp4_scale(most, global_scale)
                return Steps(scale, None, global_scale)
            most = torch.where(most > 0, most, torch.ones_like(most))
            half = (2**self.bits - 1) / 2 if (self.kind, self.rule) == ("int", "full") else self.ends[1]
            return Steps((most / half).clamp(min=tiny))
        no_low, no_high = low.clamp(max=0), high.clamp(min=0)
        if self.rule != "asymmetric":
            same = low == high
            no_low, no_high = torch.where(same, no_low, low), torch.where(same, no_high, high)
        none = no_low == no_high  # all values are 0
        low, high = torch.where(none, -torch.ones_like(low), no_low), torch.where(none, torch.ones_like(high), no_high)
        scale = ((high - low) / self.ends[1]).clamp(min=tiny)
        if self.rule == "free":
            scale = torch.maximum(scale, torch.maximum(low.abs(), high.abs()) / FARTHEST)
        zero = torch.round(-low / scale)
        return Steps(scale, zero.clamp(*self.ends) if self.rule == "clamped" else zero)

    def codes(self, x: torch.Tensor, steps: Steps) -> torch.Tensor:
        """Return the codes of ``x``, in the shape of its view.

        Integers, as floats, from 0 for asymmetric rules and signed for symmetric ones; for floats the E4M3 or E2M1
        value.
        """
        return self._codes(self.view(_wide(x)), steps)

    def values(self, codes: torch.Tensor, steps: Steps, shape: tuple[int, ...]) -> torch.Tensor:
        """Return what codes stand for, as a tensor of this shape."""
        return self.unview(_values(codes, steps), shape)

    def nearest(self, v: torch.Tensor, steps: Steps) -> torch.Tensor:
        """Round values with steps that broadcast to them, such as a column (O, 1) with :meth:`column`'s steps."""
        return _values(self._codes(v, steps), steps)

    def rounded(self, x: torch.Tensor, steps: Steps | None = None, through: bool = False) -> torch.Tensor:
        """Round to the values of the grid, in the dtype of ``x``.

        Parameters
        ----------
        x : torch.Tensor, shape (..., I)
        steps : Steps, optional
            By default from ``x`` itself.
        through : bool
            Pass gradients straight through the rounding. Where a value is not clamped, its own gradient is 1, that of
            the scale ``codes - z - x / s`` and that of the zero point 0; where it is, they are 0, ``codes - z`` and
            ``-s``. Steps that are taken from ``x`` pass theirs on to it.

        Returns
        -------
        torch.Tensor, shape (..., I)
        """
        if steps is None:
            steps = self.steps(x)
        elif self.kind == "nvfp4" and steps.scale.numel() == 1:
            steps = self.steps(x, MOST[8] / steps.scale.reshape(()))
        codes = self._codes(self.view(_wide(x)), steps, through)
        return self.values(codes, steps, tuple(x.shape)).to(x.dtype)

    def column(self, steps: Steps, j: int) -> Steps:
        """Return the steps of column ``j`` of weights (O, I), as [O, 1], or [1, 1] per tensor."""

        def of(one: torch.Tensor | None) -> torch.Tensor | None:
            if one is None or self.per not in ("group", "input"):
                return one
            return one[:, j // self.group] if self.per == "group" else one[j].repeat_interleave(self.group, 0)

        scale = of(steps.scale)
        assert scale is not None
        return Steps(scale, of(steps.zero), steps.global_scale)

    def fitted(self, width: int) -> Grid:
        """Return the grid whose group divides ``width``: the largest divisor that is no larger.

        Parameters
        ----------
        width : int
            The number of inputs, or of outputs where the grid is per "input".

        Returns
        -------
        Grid

        Raises
        ------
        BadInput
            The format fixes its group, and it does not divide.

        Examples
        --------
        >>> Grid(4, "group", 128).fitted(576).group
        96
        """
        if not self.group or width % self.group == 0:
            return self
        if self.kind in BLOCKS:
            raise BadInput(
                f"{self.kind} has groups of {self.group}, which do not divide {width} values; leave them out"
            )
        return replace(self, group=max(size for size in range(1, self.group + 1) if width % size == 0))

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Return the bits that a weight takes with its share of the steps.

        A scale has 16 bits and a zero point ``bits``; mxfp4 and nvfp4 have scales of 8 bits, and nvfp4 32 more for the
        whole.

        Parameters
        ----------
        shape : tuple of int

        Returns
        -------
        float
        """
        count = math.prod(shape)
        steps = {"tensor": 1, "group": count / (self.group or 1), "input": count / (self.group or 1)}
        a_step = 8 if self.kind in BLOCKS else 16 + (0 if self.symmetric else self.bits)
        whole = 32 if self.kind == "nvfp4" else 0
        return self.bits + (steps.get(self.per, count / shape[-1]) * a_step + whole) / count

    def as_dict(self) -> dict[str, Any]:
        """Return the grid as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Grid:
        """Make a grid of what :meth:`as_dict` returned.

        Raises
        ------
        BadInput
            There is no such grid, or a key is none of a grid's.
        """
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise BadInput(f"a grid has {listed(known)}, but no '{key}'")
        if "bits" not in data:
            raise BadInput(f"a grid needs 'bits', and only {listed(data)} are given")
        return cls(**data)

    def compressed_tensors(self, inputs: bool = False) -> dict[str, Any]:
        """Return the grid as compressed-tensors' ``QuantizationArgs``, in plain data.

        Parameters
        ----------
        inputs : bool
            Whether the grid is one for inputs.

        Returns
        -------
        dict

        Raises
        ------
        BadInput
            The format has no such grid.

        Examples
        --------
        >>> Grid(4, "group", 32).compressed_tensors()["strategy"]
        'group'
        """
        if self.per == "input":
            raise BadInput(
                "compressed-tensors has no steps along the outputs; weights per 'input' are stored as floats"
            )
        strategy = "tensor_group" if self.kind == "nvfp4" else self.per
        if not inputs and strategy == "token":
            strategy = "channel"
        if inputs and strategy == "channel":
            strategy = "token"
        args: dict[str, Any] = {
            "num_bits": self.bits,
            "type": "int" if self.kind == "int" else "float",
            "symmetric": self.symmetric,
            "strategy": strategy,
            "dynamic": inputs and ("local" if self.kind == "nvfp4" else self.dynamic),
        }
        if self.group:
            args["group_size"] = self.group
        if self.kind in BLOCKS:
            args["scale_dtype"] = args["zp_dtype"] = "torch.uint8" if self.kind == "mxfp4" else "torch.float8_e4m3fn"
        return args

    def _codes(self, v: torch.Tensor, steps: Steps, through: bool = False) -> torch.Tensor:
        q = v / steps.scale
        if self.kind != "int":
            q = q.clamp(*self.ends)
            return Through.apply(q, NEAREST[self.bits]) if through else NEAREST[self.bits](q)
        q = Through.apply(q, torch.round) if through else q.round_()
        if steps.zero is not None:
            q = q + steps.zero
        return q.clamp(*self.ends)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in float32, or in float64 where it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _values(codes: torch.Tensor, steps: Steps) -> torch.Tensor:
    return (codes if steps.zero is None else codes - steps.zero) * steps.scale


def listed(words: Any) -> str:
    """Return words in quotes, with commas."""
    return ", ".join(f"'{word}'" for word in words)
