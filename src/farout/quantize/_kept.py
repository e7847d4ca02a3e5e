"""Finished blocks in a folder, so that a run that was stopped goes on where it was.

A block is one safetensors file: its tensors, and in the header, as JSON, how its maps are rounded. ``run.json`` tells
which model, recipe and scheme the folder belongs to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from farout.errors import BadInput
from farout.io.files import writing
from farout.quantize._blocks import Block
from farout.quantize._linear import PARTS, QuantLinear
from farout.quantize.grid import Grid
from farout.quantize.scheme import Scheme

if TYPE_CHECKING:
    from farout.quantize.recipe import Recipe

__all__ = ["Kept"]


class Kept:
    """The folder of one run."""

    def __init__(self, folder: str | Path, model: nn.Module, recipe: Recipe, scheme: Scheme) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        run = {"model": _fingerprint(model), "recipe": recipe.as_dict(), "scheme": str(scheme)}
        told = self.folder / "run.json"
        if told.exists():
            before = json.loads(told.read_text(encoding="utf-8"))
            other = [name for name in run if before.get(name) != json.loads(json.dumps(run[name]))]
            if other:
                raise BadInput(
                    f"'{self.folder}' holds the blocks of another run: its {' and '.join(other)} differ; name another "
                    "folder, or remove this one"
                )
        else:
            with writing(told) as path:
                path.write_text(json.dumps(run, indent=2), encoding="utf-8")

    def _path(self, block: Block) -> Path:
        return self.folder / f"block-{block.index:04d}.safetensors"

    def save(self, block: Block) -> None:
        """Keep a finished block."""
        from safetensors.torch import save_file

        maps = {
            name: _described(module) for name, module in block.module.named_modules() if isinstance(module, QuantLinear)
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in block.module.state_dict().items()}
        own = {name: tensor.clone() for name, tensor in tensors.items()}  # shared storage is refused by the format
        with writing(self._path(block)) as path:
            save_file(own, path, metadata={"maps": json.dumps(maps)})

    def restore(self, block: Block) -> bool:
        """Bring a finished block back; False where it is none."""
        from safetensors import safe_open

        path = self._path(block)
        if not path.exists():
            return False
        with safe_open(path, "pt") as file:
            maps = json.loads(file.metadata()["maps"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, told in maps.items():
            _rebuild(
                block.own(name),
                told,
                {key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}.")},
            )
        plain = {key: t for key, t in tensors.items() if not any(key.startswith(f"{name}.") for name in maps)}
        block.module.load_state_dict(plain, strict=False)
        return True


def _described(module: QuantLinear) -> dict[str, Any]:
    """Return what a map is made of, but for its tensors."""
    grid, rounding = module.grid, module.rounding
    return {
        "grid": None if grid is None else grid.as_dict(),
        "before": [type(part).__name__ for part in module.before],
        "rounding": None if rounding is None else {"kind": type(rounding).__name__, **rounding.options()},  # type: ignore[operator]
    }


def _rebuild(module: Any, told: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Make a map what it was."""
    like = module.weight
    tensors = {name: tensor.to(like.device) for name, tensor in tensors.items()}
    module.weight = nn.Parameter(tensors["weight"], requires_grad=False)
    module.bias = nn.Parameter(tensors["bias"], requires_grad=False) if "bias" in tensors else None
    module.grid = None if told["grid"] is None else Grid.from_dict(told["grid"])
    for name in ("weight_scale", "weight_zero", "kept"):
        setattr(module, name, tensors.get(name))

    def part(kind: str, prefix: str, options: dict[str, Any]) -> nn.Module:
        make: Callable[..., nn.Module] = PARTS[kind].restored  # type: ignore[attr-defined]
        return make(options, {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)})

    module.before = nn.ModuleList(part(kind, f"before.{i}.", {}) for i, kind in enumerate(told["before"]))
    if told["rounding"] is not None:
        options = dict(told["rounding"])
        module.rounding = part(options.pop("kind"), "rounding.", options)


def _fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights: names, shapes, and a thousandth of the numbers."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().flatten()[::997].float().cpu().numpy().tobytes())
    return digest.hexdigest()
