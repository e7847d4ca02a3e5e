"""What every post-hoc score is: fitted to views of usual inputs, it gives views of any inputs a number each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from farout.errors import BadInput, NotFitted
from farout.ood._inputs import lead
from farout.ood.views import Viewer, Views

__all__ = ["Score", "Step", "stepped"]


def signs(slope: Tensor) -> Tensor:
    """Return the signs of a gradient; that of 0 is 1, as in the code of the papers that brought this step."""
    return torch.where(slope >= 0, 1.0, -1.0).to(slope.dtype)


@dataclass(frozen=True)
class Step:
    """A small step of the input against a gradient, ``x - size sign(d objective / dx)``, before it is scored.

    Attributes
    ----------
    size : float
        In units of the picture, whose pixels go from 0 to 1.
    objective : callable
        Views in, tensor (n,) out: what the step lowers.
    way : callable
        The gradient in, the direction of the step out; by default its signs.
    """

    size: float
    objective: Callable[[Views], Tensor]
    way: Callable[[Tensor], Tensor] = signs


class Score(BaseEstimator):
    """Views in, a score each out; larger is farther out.

    A subclass writes ``score`` in torch operations, so that it can be differentiated and exported, and ``fit`` where it
    learns from usual inputs. What is learned lies in attributes whose names end with ``_``.

    Attributes
    ----------
    needs : tuple of {"logits", "features", "stages", "head"}
    learns : bool
        Whether there is something to fit.
    labelled : bool
        Whether fitting takes labels; predicted classes stand in where there are none.
    unseen : bool
        Whether it should be fitted to usual inputs that the model was not trained on.
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    learns: ClassVar[bool] = False
    labelled: ClassVar[bool] = False
    unseen: ClassVar[bool] = False

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Learn what usual inputs look like; scores of logits alone learn nothing."""
        return self

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Score inputs, each by itself.

        Parameters
        ----------
        views : Views
        moved : sequence of Views
            Of the inputs after each of ``steps()``, for scores that have some.

        Returns
        -------
        tensor (n,)
        """
        raise NotImplementedError(f"'{type(self).__name__}' must write score")

    def steps(self) -> tuple[Step, ...]:
        """Return the steps of the input that the score is taken after; most scores have none."""
        return ()

    def to(self, device: Any) -> Self:
        """Move what was learned to a device, in place."""
        for name, value in vars(self).items():
            if name.endswith("_"):
                setattr(self, name, _moved(value, device))
        return self

    def state(self) -> dict[str, Any]:
        """Return what was learned, as plain data and arrays."""
        return {name: _plain(value) for name, value in vars(self).items() if name.endswith("_")}

    def restore(self, state: dict[str, Any]) -> Self:
        """Take back what ``state`` returned."""
        for name, value in state.items():
            setattr(self, name, _tensors(value))
        return self

    def _fitted(self, name: str) -> Any:
        if not hasattr(self, name):
            raise NotFitted(f"this '{type(self).__name__}' is not fitted yet: call fit(views) first")
        return getattr(self, name)


def labels_or_predicted(views: Views, labels: Tensor | None) -> Tensor:
    """Return labels on the device of the views, or the predicted classes where there are none."""
    if labels is None:
        return views.logits.argmax(1)
    if len(labels) != len(views):
        raise BadInput(f"there are {len(views)} inputs and {len(labels)} labels; give one label for each input")
    return labels.to(views.logits.device)


def features_of(views: Views) -> Tensor:
    """Return the features, or say that they were not taken."""
    if views.features is None:
        raise BadInput("the views hold no features; take them with needs=('features', ...)")
    return views.features


def head_of(views: Views) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the head, or say that they were not taken."""
    if views.weight is None or views.bias is None:
        raise BadInput(
            "the views hold no linear head; take them with needs=('head', ...), or use a score without it ('deep_knn')"
        )
    return views.weight, views.bias


def stepped(viewer: Viewer, batch: Any, steps: Sequence[Step], deviation: Sequence[float] | None = None) -> list[Views]:
    """Take views of a batch after each step of its input.

    Parameters
    ----------
    viewer : Viewer
    batch : tensor or mapping
        With one floating-point input.
    steps : sequence of Step
    deviation : sequence of float, optional
        By which each channel of the input was divided: a step is so much smaller there.

    Raises
    ------
    BadInput
        The model takes token ids, which cannot be moved a little.
    """
    found = []
    for step in steps:
        named = [(name, value) for name, value in lead(batch) if value.is_floating_point()]
        if not named:
            raise BadInput("the input is moved along a gradient, and token ids cannot be; take another score")
        name, x = named[0]
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            lowered = step.objective(viewer(_with(batch, name, x))).sum()
            slope = torch.autograd.grad(lowered, x, allow_unused=True)[0] if lowered.requires_grad else None
            if slope is None:
                raise BadInput("the model has no gradients of its input, as an ONNX graph has none; take another score")
        way = step.way(slope)
        if deviation is not None:
            scale = torch.tensor(deviation, dtype=x.dtype, device=x.device)
            way = way / scale.view(-1, *[1] * (x.ndim - 2))
        with torch.no_grad():
            found.append(viewer(_with(batch, name, x.detach() - step.size * way)))
    return found


def _with(batch: Any, name: str, x: Tensor) -> Any:
    """Return a batch with one of its tensors replaced."""
    if isinstance(batch, Tensor):
        return x
    if isinstance(batch, list | tuple):
        return type(batch)(x if str(place) == name else value for place, value in enumerate(batch))
    return {**batch, name: x}


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tensors(one) for name, one in value.items()}
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
