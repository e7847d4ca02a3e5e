"""A CLIP-like model seen from outside: features of whole images, of regions, and of texts with learned words in them.

The parts are found by what they hold and by running them once, and are checked by computing what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from farout.errors import BadInput

TOLERANCE = 1e-3  # relative; kernels of attention differ by less


class DualEncoder:
    """A frozen model with an image tower of pre-norm blocks and a text tower, such as transformers' ``CLIPModel``.

    Parameters
    ----------
    model : torch.nn.Module
        With ``get_image_features(pixel_values=...)``, ``get_text_features(input_ids=...)`` and ``logit_scale``, the
        logarithm of what cosines are multiplied by. Its weights are frozen, and it is put into evaluation mode.
    example : tensor (1 or more, 3, H, W)
        Images, to look where the parts are.

    Attributes
    ----------
    scale : float
    width : int
        Of the words' embeddings.

    Raises
    ------
    BadInput
        The model has no such parts.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        lacking = [
            name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)
        ]
        if lacking:
            raise BadInput(
                f"a dual encoder has '{lacking[0]}', and '{type(model).__name__}' has not; give a model such as "
                "transformers' CLIPModel"
            )
        self.model: Any = model.eval().requires_grad_(False)
        self.scale = float(torch.as_tensor(self.model.logit_scale).exp())
        self._tower = _look(self.model, example)
        self._words = _embedding(self.model, example.device)
        self.width = self._words.embedding_dim

    def images(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return features of whole images (B, D) and of their regions (B, R, D), all of length one; no gradients.

        A region goes through the last block by the value path alone: it does not attend to the others.
        """
        tower, caught = self._tower, []
        hook = tower.block.register_forward_pre_hook(
            lambda _, args, named: caught.append(_hidden(args, named)), with_kwargs=True
        )
        try:
            with torch.no_grad():
                whole = _tensor(self.model.get_image_features(pixel_values=x_BCHW))
                (x_BTD,) = caught
                x_BTD = x_BTD + tower.attention.out_proj(tower.attention.v_proj(tower.before(x_BTD)))
                x_BTD = x_BTD + tower.mlp(tower.after(x_BTD))
                regions = tower.tail(x_BTD[:, 1:])
        finally:
            hook.remove()
        return normalize(whole, dim=-1), normalize(regions, dim=-1)

    def texts(self, ids_PT: Tensor, words_PLW: Tensor | None = None) -> Tensor:
        """Return features (P, D) of length one of texts; gradients reach the learned words.

        Parameters
        ----------
        ids_PT : int64 tensor (P, T)
            Token ids, the first of which begins the text.
        words_PLW : tensor (P, L, W), optional
            Embeddings in the place of those of the tokens 1 to L.
        """

        def learned(_: Any, args: Any, output: Tensor) -> Tensor | None:
            if words_PLW is None:
                return None
            L = words_PLW.shape[1]
            return torch.cat([output[:, :1], words_PLW.to(output), output[:, 1 + L :]], dim=1)

        hook = self._words.register_forward_hook(learned)
        try:
            return normalize(_tensor(self.model.get_text_features(input_ids=ids_PT)), dim=-1)
        finally:
            hook.remove()


@dataclass(frozen=True)
class _Tower:
    """The last block of the image tower, x + attention(before(x)) and then + mlp(after(x)), and what follows it."""

    block: nn.Module
    before: nn.Module
    attention: Any
    after: nn.Module
    mlp: nn.Module
    tail: Callable[[Tensor], Tensor]


def _look(model: Any, example: Tensor) -> _Tower:
    """Find the last block and what follows it, and check that this gives what the model gives."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, named: Any, output: Any) -> None:
            seen = _hidden(args, named)
            calls.append((name, module, seen, output[0] if isinstance(output, tuple) else output))

        return hook

    hooks = [one.register_forward_hook(note(name), with_kwargs=True) for name, one in model.named_modules() if name]
    try:
        with torch.no_grad():
            whole = _tensor(model.get_image_features(pixel_values=example))
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, *_ in calls]
    attentions = [
        name
        for name, module, *_ in calls
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in ("v_proj", "out_proj"))
    ]
    if not attentions:
        raise BadInput(
            "no attention with linear layers 'v_proj' and 'out_proj' ran in the image tower, so that there is no value "
            "path for regions; take a vision transformer such as that of transformers' CLIPModel"
        )
    parent = attentions[-1].rpartition(".")[0]
    block = calls[names.index(parent)]
    parts = [call for call in calls if call[0].rpartition(".")[0] == parent]
    follow = [module for _, module, *_ in calls[names.index(parent) + 1 :] if not list(module.children())]
    tail = nn.Sequential(*follow)
    if len(parts) == 4 and parts[1][0] == attentions[-1]:
        _, (_, before, *_), (_, attention, _, mixed), (_, after, *_), (_, mlp, *_) = block, *parts
        with torch.no_grad():
            x_BTD = block[2] + mixed
            x_BTD = x_BTD + mlp(after(x_BTD))
            if x_BTD.ndim == 3 and _same(x_BTD, block[3]) and _same(tail(x_BTD[:, 0]), whole):
                return _Tower(block[1], before, attention, after, mlp, tail)
    raise BadInput(
        f"the last block of the image tower, '{parent}', is not a norm, an attention, a norm and a perceptron, each "
        "pair added to what it reads, whose first token becomes the feature of the image"
    )


def _embedding(model: Any, device: torch.device) -> nn.Embedding:
    """Return the table of words that the text tower reads first."""
    seen: list[nn.Embedding] = []
    hooks = [
        one.register_forward_hook(lambda module, args, output: seen.append(module))
        for one in model.modules()
        if isinstance(one, nn.Embedding)
    ]
    try:
        with torch.no_grad():
            model.get_text_features(input_ids=torch.zeros(1, 3, dtype=torch.long, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise BadInput("no table of word embeddings ran in the text tower, so that words cannot be learned")
    return seen[0]


def _hidden(args: Any, named: dict[str, Any]) -> Any:
    """Return the first tensor that a module was called with."""
    return next((value for value in (*args, *named.values()) if isinstance(value, Tensor)), None)


def _tensor(output: Any) -> Tensor:
    """Return features, which newer versions of transformers give as part of an output."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= TOLERANCE * b.norm())
