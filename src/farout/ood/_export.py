"""One ONNX graph for a watched model: class logits, outlier score and alarm."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from farout.errors import BadInput, MissingExtra
from farout.io.files import writing
from farout.ood._inputs import batches_of, moved
from farout.ood._onnx import OnnxClassifier
from farout.ood._score import Score
from farout.ood.views import Viewer, evaluating, module_of

OPSET = 18


class _Guard(nn.Module):
    """A batch in; logits, score and alarm out."""

    def __init__(self, viewer: Viewer, score: Score, threshold: float) -> None:
        super().__init__()
        self.inner, self.viewer, self.score_, self.threshold = viewer.model, viewer, score, threshold

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        views = self.viewer(x)
        score = self.score_.score(views)
        # compared in the precision that the score was computed in, and given in single precision
        return views.logits, score.float(), score > self.threshold


def export(watch: Any, path: str | Path, example: Any) -> None:
    """Write the graph of a fitted watch; see :meth:`farout.ood.Watch.export`."""
    if find_spec("onnx") is None:
        raise MissingExtra("exporting a watch", "onnx")
    score = watch._fitted_method()
    if score.steps():
        raise BadInput(
            f"'{type(score).__name__}' moves the input along a gradient, which an ONNX graph does not have; take "
            "another score, or set its size to 0 where it has one"
        )
    opened = watch.open()
    module = module_of(opened)
    if isinstance(module, OnnxClassifier):
        raise BadInput("the model is an ONNX graph already; export the torch model that it comes from")
    batches, _ = batches_of(opened, example, 2)
    batch = moved(next(iter(batches))[0], module)
    name = "input"
    if isinstance(batch, dict):
        if set(batch) != {"pixel_values"}:
            raise BadInput(
                f"a model with one picture or row as input is exported, and this one takes {', '.join(sorted(batch))}"
            )
        name, batch = "pixel_values", batch["pixel_values"]
    with evaluating(module), torch.no_grad():
        viewer = Viewer(module, batch, **watch._how(score))
        score.to(next(module.parameters()).device)
        guard = _Guard(viewer, score, watch.threshold_).eval()
        try:
            with writing(Path(path)) as temporary, warnings.catch_warnings():
                # the tracer runs hooks, which is where views come from; it warns of its age, and of shapes that it
                # fixes
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    guard,
                    (batch,),
                    str(temporary),
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=[name],
                    output_names=["logits", "score", "alarm"],
                    dynamic_axes={part: {0: "inputs"} for part in (name, "logits", "score", "alarm")},
                )
        except Exception as error:
            raise BadInput(
                f"the model with '{type(score).__name__}' cannot be exported "
                f"({' '.join(str(error).split())[:300]}); try a score of logits, such as 'energy', to see whether the "
                "model itself is what fails"
            ) from error
        finally:
            score.to("cpu")
