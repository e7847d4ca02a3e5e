"""One rounded weight as compressed-tensors stores it, or the reason why that format cannot hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from farout.errors import BadInput
from farout.quantize._floats import MOST, e4m3
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import Rounded

__all__ = ["Packed", "packed", "unheld", "unheld_inputs"]


@dataclass
class Packed:
    """What stands for a weight in a checkpoint.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By their names beside the weight's, such as ``weight_packed``.
    scheme : dict
        compressed-tensors' ``QuantizationScheme`` without targets, as plain data.
    note : str
        How the loaded map will differ from the rounded one; empty where it does not.
    """

    tensors: dict[str, torch.Tensor]
    scheme: dict[str, Any]
    note: str = ""

    @property
    def how(self) -> str:
        """The format, and the note."""
        return self.scheme["format"] + (f"; {self.note}" if self.note else "")


def unheld(rounded: Rounded, dtype: torch.dtype) -> str:
    """Return why compressed-tensors cannot hold a rounded weight; empty where it can.

    Parameters
    ----------
    rounded : Rounded
    dtype : torch.dtype
        Of the model, and so of stored scales.
    """
    grid, steps = rounded.grid, rounded.steps
    if rounded.kept is not None and bool(rounded.kept.any()):
        return "numbers are kept in 16 bits beside the rounded ones"
    if grid.per == "input":
        return "its steps go along the outputs of a column"
    if grid.kind == "float" and grid.bits == 4:
        return "E2M1 is held as mxfp4 or nvfp4 alone"
    if steps.zero is not None and not _within(steps.zero, grid):
        return "a zero point lies beyond the codes"
    if grid.kind == "nvfp4" and _global_scale(steps) is None:
        return "its steps are not E4M3 over one global scale"
    scales = steps.scale.to(dtype)
    if grid.kind not in ("nvfp4", "mxfp4") and not bool((scales.isfinite() & (scales > 0)).all()):
        return f"a step is too small or too large for {str(dtype).removeprefix('torch.')}"
    return ""


def unheld_inputs(inputs: Grid | None, static: Steps | None) -> str:
    """Return why compressed-tensors cannot say how inputs are rounded; empty where it can.

    Parameters
    ----------
    inputs : Grid or None
    static : Steps or None
        From calibration.
    """
    if inputs is None:
        return ""
    if inputs.per == "input":
        return "they have steps along the tokens"
    if inputs.kind == "nvfp4":
        return "" if static is not None else "in nvfp4 they need a global scale from calibration"
    if not inputs.dynamic and (inputs.per != "tensor" or static is None):
        return "they have static steps, but not one for the whole tensor"
    if static is not None and static.zero is not None and not _within(static.zero, inputs):
        return "a zero point lies beyond the codes"
    return ""


def packed(name: str, rounded: Rounded, inputs: Grid | None, static: Steps | None, dtype: torch.dtype) -> Packed:
    """Pack a rounded weight that the format can hold, with inputs of which it can tell.

    Codes come from the weight and its steps, and are the solver's own (but that a weight in bfloat16 does not tell all
    multiples of a step beyond 128 apart). Scales are stored in the model's dtype, as loaders expect, which rounds them
    where that has 16 bits.

    Raises
    ------
    BadInput
        The weight does not stand on its grid.
    """
    grid, steps = rounded.grid, rounded.steps
    weight = rounded.weight.detach()
    codes = grid.codes(weight, steps)
    exact = grid.values(codes, steps, tuple(weight.shape))
    apart = (exact - weight).abs() > 2 * torch.finfo(weight.dtype).eps * exact.abs() + 1e-3 * steps.scale.min()
    if bool(apart.any()):
        raise BadInput(
            f"{int(apart.sum())} of {apart.numel()} numbers of '{name}' are off the grid that it was rounded to; "
            "was it changed after rounding?"
        )
    scheme: dict[str, Any] = {
        "weights": grid.compressed_tensors(),
        "input_activations": None if inputs is None else inputs.compressed_tensors(inputs=True),
        "format": _format(grid, inputs),
    }
    loose = _stored(steps, grid, dtype)
    # On the grid of the stored scales, where packing finds the same codes again.
    loose["weight"] = grid.values(codes, Steps(loose.pop("effective"), steps.zero), tuple(weight.shape))
    tensors, notes = _compressed(loose, scheme)
    if inputs is not None:
        tensors |= _of_inputs(inputs, static, dtype)
        loaded = "full" if inputs.symmetric else "asymmetric"
        if inputs.rule != loaded:
            notes.append(f"inputs are rounded by the rule '{loaded}' and not '{inputs.rule}'")
    if grid.kind in ("mxfp4", "nvfp4") and dtype != torch.bfloat16:
        notes.append("it is loaded in bfloat16")
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    return Packed(tensors, scheme, "; ".join(notes))


def _compressed(loose: dict[str, torch.Tensor], scheme: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Let compressed-tensors pack a weight; note where it would not take its own tensors back as they are.

    transformers makes room for a packed weight by packing an empty one. Versions 0.18 to 0.20 of compressed-tensors
    then leave the zero points as they are, so that those of the file do not fit; dequantizing on loading still works.
    """
    from compressed_tensors import __version__
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    compressor = BaseCompressor.get_value_from_registry(scheme["format"])
    of_all = QuantizationScheme(targets=[], **scheme)
    tensors = compressor.compress(loose, of_all)
    room = compressor.compress({key: tensor.to("meta") for key, tensor in loose.items()}, of_all)
    if all(room[key].shape == tensor.shape for key, tensor in tensors.items()):
        return tensors, []
    return tensors, [
        f"transformers with compressed-tensors {__version__} loads its zero points only with "
        "quantization_config=CompressedTensorsConfig(dequantize=True)"
    ]


def _format(grid: Grid, inputs: Grid | None) -> str:
    if grid.kind in ("mxfp4", "nvfp4"):
        return f"{grid.kind}-pack-quantized"
    if grid.kind == "float":
        return "float-quantized"
    return "int-quantized" if grid.bits == 8 and inputs is not None else "pack-quantized"


def _stored(steps: Steps, grid: Grid, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors of steps as the format has them, and ``effective``: the scale that they stand for."""
    shape = (1,) if grid.per == "tensor" else steps.scale.shape[:-1] if grid.group else steps.scale.shape
    if grid.kind == "nvfp4":
        whole = _global_scale(steps)
        assert whole is not None  # or else it is unheld
        local = e4m3(steps.scale * whole)
        return {
            "weight_scale": local.reshape(shape),
            "weight_global_scale": whole.reshape(1).float(),
            "effective": local / whole,
        }
    scale = steps.scale if grid.kind == "mxfp4" else steps.scale.to(dtype)
    found = {"weight_scale": scale.reshape(shape), "effective": scale.to(steps.scale.dtype)}
    if steps.zero is not None:
        found["weight_zero_point"] = _signed(steps.zero, grid).reshape(shape)
    return found


def _of_inputs(inputs: Grid, static: Steps | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors of static steps of inputs."""
    if static is None or (inputs.dynamic and inputs.kind != "nvfp4"):
        return {}
    if inputs.kind == "nvfp4":
        return {"input_global_scale": (MOST[8] / static.scale).reshape(1).float()}
    found = {"input_scale": static.scale.reshape(1).to(dtype)}
    if static.zero is not None:
        found["input_zero_point"] = _signed(static.zero, inputs).reshape(1)
    return found


def _signed(zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return zero points for codes from -2^(b-1) on, as the format counts."""
    return (zero - 2 ** (grid.bits - 1)).to(torch.int8)


def _within(zero: torch.Tensor, grid: Grid) -> bool:
    low, high = grid.ends
    return bool(((zero >= low) & (zero <= high)).all())


def _global_scale(steps: Steps) -> torch.Tensor | None:
    """Return the global scale behind steps: the one they carry, or else that by which the largest is 448."""
    whole = steps.global_scale if steps.global_scale is not None else MOST[8] / steps.scale.max()
    local = steps.scale * whole
    return whole if torch.allclose(e4m3(local), local, rtol=1e-5, atol=0) else None
