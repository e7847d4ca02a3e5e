"""Four-bit weights of groups, packed for a kernel that reads whole words and multiplies a group at a time.

compressed-tensors puts eight neighbours into a word. Here a word holds one element of each of eight neighbouring
groups: nibble j of word i is element i of group 8b + j, for block b of eight groups. Shifting a row of words by 4j then
gives a whole group in order, which has one scale a row and meets one contiguous piece of x. A row of a block is one
contiguous run of ``group`` words (512 bytes for 128). Groups that are missing in the last block stand as zeros with a
scale of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from farout.errors import BadInput

__all__ = ["Int4Weight"]


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """Nibbles of int32 words along a new last axis, lowest first."""
    return (words[..., None] >> torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)) & 15


def _packed(nibbles: torch.Tensor) -> torch.Tensor:
    """Eight nibbles of the last axis in one int32, lowest first."""
    shifts = torch.arange(0, 32, 4, device=nibbles.device)
    return (nibbles.to(torch.int64) << shifts).sum(-1).to(torch.int32)


@dataclass(frozen=True)
class Int4Weight:
    """A weight [N, K] in four bits, ``(code - zero) * scale`` with codes 0..15 and a scale a group of a row.

    Attributes
    ----------
    words : int32 [N, blocks * group]
        Eight codes a word, in the order of this module.
    scale : [8 * blocks, N]
        Of each group, one row of outputs after another.
    zero : int8 [8 * blocks, N] or None
        None: 8 everywhere.
    inputs : int
        K.
    group : int
        Inputs of a row that share a scale.

    Examples
    --------
    >>> import torch
    >>> codes = torch.arange(16).repeat(2, 16)
    >>> weight = Int4Weight.from_codes(codes, torch.ones(2, 2))
    >>> weight.words.shape, torch.equal(weight.codes(), codes)
    (torch.Size([2, 128]), True)
    >>> weight.dense()[0, :3]
    tensor([-8., -7., -6.])
    """

    words: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    inputs: int
    group: int

    @property
    def outputs(self) -> int:
        """N."""
        return self.words.shape[0]

    @classmethod
    def from_codes(cls, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> Int4Weight:
        """Pack codes [N, K] in 0..15 with scales [N, K / group] and, unless they are all 8, zeros of the same shape."""
        (N, K), groups = codes.shape, scale.shape[1]
        if K % groups or scale.shape[0] != N:
            raise BadInput(f"scales {tuple(scale.shape)} do not divide codes {tuple(codes.shape)} into groups of a row")
        if codes.min() < 0 or codes.max() > 15:
            raise BadInput(f"codes must lie in 0..15, these lie in {int(codes.min())}..{int(codes.max())}")
        if zero is not None and zero.shape != scale.shape:
            raise BadInput(f"zeros {tuple(zero.shape)} must have the shape of the scales {tuple(scale.shape)}")
        group, missing = K // groups, -groups % 8
        padded = torch.cat([codes, codes.new_full((N, missing * group), 8)], 1)
        words = _packed(padded.reshape(N, -1, 8, group).transpose(2, 3)).reshape(N, -1)
        pad = torch.nn.functional.pad
        zeros = None if zero is None else pad(zero.T.to(torch.int8), (0, 0, 0, missing), value=8).contiguous()
        return cls(words, pad(scale.T, (0, 0, 0, missing)).contiguous(), zeros, K, group)

    @classmethod
    def from_compressed_tensors(
        cls,
        weight_packed: torch.Tensor,
        weight_scale: torch.Tensor,
        weight_shape: tuple[int, int],
        weight_zero_point: torch.Tensor | None = None,
    ) -> Int4Weight:
        """Pack anew what a "pack-quantized" checkpoint holds: int32 [N, K / 8], [N, groups], and [N / 8, groups]."""
        N, K = weight_shape
        zero = None
        if weight_zero_point is not None:
            zero = _unpacked(weight_zero_point).transpose(1, 2).reshape(-1, weight_scale.shape[1])[:N]
        return cls.from_codes(_unpacked(weight_packed).reshape(N, -1)[:, :K], weight_scale, zero)

    def codes(self) -> torch.Tensor:
        """The codes [N, K], 0..15, as int32."""
        blocks = self.words.reshape(self.outputs, -1, self.group)
        return _unpacked(blocks).transpose(2, 3).reshape(self.outputs, -1)[:, : self.inputs]

    def dense(self) -> torch.Tensor:
        """The weight [N, K] in float32."""
        groups = self.inputs // self.group
        zero = 8 if self.zero is None else self.zero[:groups].T.float()[:, :, None]
        codes = self.codes().reshape(self.outputs, groups, self.group).float()
        return ((codes - zero) * self.scale[:groups].T.float()[:, :, None]).reshape(self.outputs, self.inputs)

    def compressed_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of a "pack-quantized" checkpoint, by name."""
        pad, groups = torch.nn.functional.pad, self.inputs // self.group
        codes = pad(self.codes(), (0, -self.inputs % 8), value=0)
        named = {
            "weight_packed": _packed(codes.reshape(self.outputs, -1, 8)),
            "weight_scale": self.scale[:groups].T.contiguous(),
            "weight_shape": torch.tensor([self.outputs, self.inputs], dtype=torch.int32),
        }
        if self.zero is not None:
            zero = pad(self.zero[:groups].T, (0, 0, 0, -self.outputs % 8))
            named["weight_zero_point"] = _packed(zero.reshape(-1, 8, groups).transpose(1, 2))
        return named
