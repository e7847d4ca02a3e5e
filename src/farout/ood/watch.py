"""Watch a model's inputs: a model and a score in, a detector of what is unlike the training data out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from farout.cards import find
from farout.contract import LABEL_RATE, Detector
from farout.errors import BadInput, NotFitted
from farout.io.models import OpenModel, open_model
from farout.io.state import read_state, write_state
from farout.ood._inputs import batches_of, moved
from farout.ood._score import Score, stepped
from farout.ood.views import Viewer, Views, evaluating, module_of, taken, with_module

__all__ = ["Watch", "score_named"]


class Watch(Detector):
    """A detector whose samples are the inputs of a model.

    Parameters
    ----------
    model : torch.nn.Module, OpenModel, str or Path
        A classifier: a module, or what :func:`farout.io.models.open_model` opens.
    method : str or Score
        A name of the room (``farout list ood``), or a score with parameters of its own.
    features : str, optional
        The module whose output are the features; by default what the linear head reads.
    layers : sequence of str, optional
        The modules whose outputs are the stages; by default they are found.
    pool : {"mean", "first"}
        What stands for the tokens of a sequence.
    deviation : sequence of float, optional
        By which the channels of the input were divided, for scores that move the input; by default what the opened
        model says of its pixels, else 1.
    batch_size : int
    device : str
        ``"auto"`` is the first GPU where there is one, and the model is moved there.
    cache : str or Path, optional
        A folder for views, by content.

    Attributes
    ----------
    method_ : Score
        As fitted.
    threshold_ : float
        Of the alarm: after ``fit`` what 99 % of the training inputs stay below, after ``calibrate`` what usual inputs
        pass with the rate that was asked for.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> usual = torch.randn(200, 2)
    >>> watch = Watch(net, "deep_knn").fit(usual)
    >>> bool(watch.outlier_score(torch.tensor([[50.0, -50.0]])) > watch.outlier_score(usual).mean())
    True
    """

    def __init__(
        self,
        model: Any,
        method: str | Score = "deep_knn",
        *,
        features: str | None = None,
        layers: Sequence[str] | None = None,
        pool: str = "mean",
        deviation: Sequence[float] | None = None,
        batch_size: int = 256,
        device: str = "cpu",
        cache: str | Path | None = None,
    ) -> None:
        self.model = model
        self.method = method
        self.features = features
        self.layers = layers
        self.pool = pool
        self.deviation = deviation
        self.batch_size = batch_size
        self.device = device
        self.cache = cache

    def fit(self, X: Any, y: Any = None, progress: Callable[[float], None] | None = None) -> Watch:
        """Learn what usual inputs look like to the model.

        Parameters
        ----------
        X : array, tensor, list of texts or images, or iterable of batches
            Inputs as the model takes them; of a loader, pairs (x, y) bring their labels.
        y : int array (n,), optional
            True classes, for scores that want them; predicted ones stand in.
        progress : callable, optional
            Called with the share done.
        """
        self.fit_score(X, y, progress)
        return self

    def fit_score(self, X: Any, y: Any = None, progress: Callable[[float], None] | None = None) -> np.ndarray:
        """Fit, and return the scores of the training inputs, taken as new.

        Returns
        -------
        float64 array (n,)
        """
        method = score_named(self.method)
        self._opened_: Any = None
        views, labels = self._taken(X, method, y, progress)
        self.method_ = method.fit(views, labels)
        scores = self.scores_of_views(views) if not method.steps() else self.outlier_score(X)
        self._set_offset(scores)
        self.threshold_ = float(np.quantile(scores, 1 - LABEL_RATE))
        return scores

    def views(self, X: Any, progress: Callable[[float], None] | None = None) -> Views:
        """Take the views that the method needs."""
        return self._taken(X, self._fitted_method(), None, progress)[0]

    def outlier_score(self, X: Any, progress: Callable[[float], None] | None = None) -> np.ndarray:
        """Score inputs, each by itself; larger is farther out.

        Returns
        -------
        float64 array (n,)
        """
        method = self._fitted_method()
        if not method.steps():
            return self.scores_of_views(self._taken(X, method, None, progress)[0])
        opened = self.open()
        module = module_of(opened)
        batches, total = batches_of(opened, X, self.batch_size)
        found: list[Tensor] = []
        viewer: Viewer | None = None
        with evaluating(module):
            method.to(_device_of(module))
            for batch, _ in batches:
                batch = moved(batch, module)
                viewer = viewer or Viewer(module, batch, **self._how(method))
                after = stepped(viewer, batch, method.steps(), self._deviation(opened))
                with torch.no_grad():
                    found.append(method.score(viewer(batch), after).cpu())
                if progress is not None and total:
                    progress(len(found) / total)
            method.to("cpu")
        if not found:
            raise BadInput("there are no inputs; give at least one, and batches that can be read more than once")
        return _finite(torch.cat(found).double().numpy())

    def calibrate(self, X: Any, rate: float = 0.01) -> Self:
        """Set the alarm's threshold by usual inputs that were not trained on, so that at most ``rate`` of such ring.

        Parameters
        ----------
        X
            As for ``outlier_score``; exchangeable with the usual inputs to come.
        rate : float
            The threshold is the ``ceil((m + 1)(1 - rate))``-th smallest of the m scores, which holds in finite samples.

        Raises
        ------
        BadInput
            There are too few inputs for that rate.
        """
        if not 0 < rate < 1:
            raise BadInput(f"a rate lies between 0 and 1, not {rate:g}")
        scores = np.sort(self.outlier_score(X))
        place = math.ceil((len(scores) + 1) * (1 - rate))
        if place > len(scores):
            raise BadInput(
                f"a rate of {rate:g} takes {math.ceil(1 / rate) - 1} inputs to calibrate at least, and there are "
                f"{len(scores)}; give more, or a larger rate"
            )
        self.threshold_ = float(scores[place - 1])
        return self

    def alarm(self, X: Any) -> np.ndarray:
        """Return which inputs lie above the threshold.

        Returns
        -------
        bool array (n,)
        """
        return self.outlier_score(X) > self.threshold_

    def export(self, path: str | Path, example: Any) -> None:
        """Write one ONNX graph that gives logits, outlier score and alarm.

        Parameters
        ----------
        path : str or Path
        example : tensor
            A batch of inputs, as the model takes them; any number of them can go in later.

        Raises
        ------
        BadInput
            The score needs gradients of the input, which a graph does not have, or the model cannot be exported.
        MissingExtra
            onnx is not installed.
        """
        from farout.ood._export import export

        export(self, path, example)

    def save(self, path: str | Path) -> None:
        """Write what was learned, without the model, to a file that :meth:`load` reads; no pickle."""
        method = self._fitted_method()
        settings = {name: getattr(self, name) for name in ("features", "layers", "pool", "deviation", "batch_size")}
        write_state(
            path,
            {
                "watch": {
                    "method": find(type(method).__paper__).slug,
                    "parameters": method.get_params(deep=False),
                    "learned": method.state(),
                    "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
                    "offset": self.offset_,
                    "threshold": self.threshold_,
                }
            },
        )

    @classmethod
    def load(cls, path: str | Path, model: Any, **more: Any) -> Watch:
        """Read what ``save`` wrote, for the same model.

        Parameters
        ----------
        path : str or Path
        model
            As for the class.
        **more
            ``device`` and ``cache``.

        Raises
        ------
        BadInput
            The file is missing or damaged, or holds something else.
        """
        tree = read_state(path)
        if not isinstance(tree, dict) or "watch" not in tree:
            raise BadInput(f"'{path}' holds no watch of a model; write one with Watch.save")
        kept = tree["watch"]
        watch = cls(model, score_named(kept["method"]).set_params(**kept["parameters"]), **kept["settings"], **more)
        watch.method_ = score_named(watch.method).restore(kept["learned"])
        watch.offset_, watch.threshold_ = kept["offset"], kept["threshold"]
        watch._opened_ = None
        return watch

    def _fitted_method(self) -> Score:
        if not hasattr(self, "method_"):
            raise NotFitted("this 'Watch' is not fitted yet: call fit(X) first")
        return self.method_

    def open(self) -> Any:
        """Return the model, opened and on its device."""
        if getattr(self, "_opened_", None) is None:
            opened = self.model
            if not isinstance(opened, nn.Module | OpenModel):
                opened = open_model(opened)
            opened = with_module(opened)
            module = module_of(opened)
            module.to(
                torch.device("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
            )
            self._opened_ = opened
        return self._opened_

    def _how(self, method: Score) -> dict[str, Any]:
        needs = tuple(method.needs)
        return {"needs": needs, "features": self.features, "layers": self.layers, "pool": self.pool}

    def _taken(
        self, X: Any, method: Score, y: Any, progress: Callable[[float], None] | None
    ) -> tuple[Views, Tensor | None]:
        return taken(
            self.open(),
            X,
            self._how(method),
            labels=y,
            batch_size=self.batch_size,
            cache=self.cache,
            progress=progress,
        )

    def scores_of_views(self, views: Views) -> np.ndarray:
        """Score views that were taken before, as ``outlier_score`` scores inputs."""
        with torch.no_grad():
            return _finite(self.method_.score(views).double().numpy())

    def _deviation(self, opened: Any) -> Sequence[float] | None:
        if self.deviation is not None:
            return self.deviation
        pixels = getattr(opened, "pixels", None)
        return None if pixels is None else [value / 255 for value in pixels.deviation]


def score_named(method: str | Score) -> Score:
    """Return a fresh score: of a name, or with the parameters of another.

    Raises
    ------
    UnknownName
        No method has that name.
    BadInput
        It is no score of a model's inputs.

    Examples
    --------
    >>> score_named("energy")
    Energy()
    """
    if isinstance(method, str):
        card = find(method)
        if card.kind != "score":
            raise BadInput(f"'{method}' is no score of a model's inputs, but a {card.kind} of the room '{card.room}'")
        return card.load()()
    if not isinstance(method, Score):
        raise BadInput(f"a method is a name or a Score, and not {type(method).__name__}")
    return type(method)(**method.get_params(deep=False))


def _device_of(module: nn.Module) -> torch.device:
    weight = next(module.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def _finite(scores: np.ndarray) -> np.ndarray:
    wrong = ~np.isfinite(scores)
    if wrong.any():
        raise BadInput(
            f"{int(wrong.sum())} of {len(scores)} scores are not finite, the first is of input {int(wrong.argmax())}; "
            "look at that input, or run the model in float32"
        )
    return scores
