"""What all detectors of images share: reading, batches, devices, saving and one ONNX graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from farout.contract import Detector
from farout.errors import BadInput, MissingExtra, NotFitted
from farout.image._maps import scaled
from farout.io.files import writing
from farout.io.image_batches import Batches

Progress = Callable[[float], None]
OPSET = 18
FROZEN = "backbone."  # weights below this name are found again by the backbone's name, and not saved


class ImageDetector(Detector):
    """Images in; a score each out, and where in the image.

    A subclass has the parameters ``size``, ``batch_size`` and ``device`` beside its own, and writes two methods:

    - ``_net()`` returns the network as the parameters say, with nothing learned. It takes images (B, 3, size, size)
      with pixels from 0 to 1, and returns scores (B,) and maps (B, size, size), or None instead of maps. A frozen
      backbone in it is called ``backbone``.
    - ``_learn(net, x_BCHW, progress)`` fits it to images, a uint8 tensor (n, 3, size, size) on the CPU; buffers may
      change their shapes.

    Attributes
    ----------
    net_ : torch.nn.Module
        As fitted, in evaluation mode.
    notes_ : list of str
        What a user must know of the images that were read last.

    Notes
    -----
    Images are a folder, paths, arrays or tensors, as :func:`farout.io.images.read_images` takes them, of any sizes;
    they are squeezed to ``size`` x ``size``.
    """

    least: ClassVar[int] = 5  # training images

    size: int
    batch_size: int
    device: str

    def fit(self, X: Any, y: Any = None, progress: Progress | None = None) -> ImageDetector:
        """Learn what normal images look like.

        Parameters
        ----------
        X : folder, list of paths, arrays or images, array or tensor
            Normal images only.
        y : ignored
        progress : callable, optional
            Called with the share done.
        """
        self.fit_score(X, y, progress)
        return self

    def fit_score(self, X: Any, y: Any = None, progress: Progress | None = None) -> np.ndarray:
        """Fit, and return the scores of the training images, taken as new.

        Returns
        -------
        float64 array (n,)

        Raises
        ------
        BadInput
            There are too few images, or one cannot be read.
        """
        batches = Batches(X, self.size, self.batch_size)
        if len(batches.images) < self.least:
            raise BadInput(
                f"'{type(self).__name__}' learns from {self.least} normal images at least, and there "
                f"{'is' if len(batches.images) == 1 else 'are'} {len(batches.images)}; give more"
            )
        x_BCHW = torch.cat([torch.from_numpy(part) for part in batches])
        self.notes_ = list(batches.notes)
        net = self._net().to(self._place())
        self._learn(net, x_BCHW, progress or (lambda share: None))
        self.net_ = net.eval().requires_grad_(False)
        scores = self._passed(x_BCHW.split(self.batch_size))[0]
        self._set_offset(scores)
        return scores

    def outlier_score(self, X: Any, progress: Progress | None = None) -> np.ndarray:
        """Score images, each by itself; larger is farther out.

        Returns
        -------
        float64 array (n,)
        """
        return self._passed(self._batches(X), progress)[0]

    def score_maps(self, X: Any, progress: Progress | None = None) -> np.ndarray:
        """Say where in the images they are far out.

        Returns
        -------
        float32 array (n, size, size)

        Raises
        ------
        BadInput
            The method gives no maps.
        """
        return self.scores_and_maps(X, progress)[1]

    def scores_and_maps(self, X: Any, progress: Progress | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``outlier_score`` and ``score_maps`` return, of one pass."""
        scores, maps = self._passed(self._batches(X), progress, maps=True)
        if maps is None:
            raise BadInput(f"'{type(self).__name__}' scores whole images and gives no maps; take 'patchcore', say")
        return scores, maps

    def stream(self, batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield scores and maps (None where the method has none) of one batch after the other.

        Parameters
        ----------
        batches : Batches
            Of this detector's ``size``.
        """
        self._check_fitted()
        for part in batches:
            yield self._one(torch.from_numpy(part), maps=True)

    def half(self, on: bool = True) -> ImageDetector:
        """Let a GPU compute in half precision where it may (autocast); on a CPU nothing changes."""
        self.half_ = on
        return self

    def export(self, path: str | Path) -> None:
        """Write one ONNX graph: ``images`` (B, 3, size, size) with pixels from 0 to 1 in, ``score`` and ``map`` out.

        Raises
        ------
        MissingExtra
            onnx is not installed.
        BadInput
            The network cannot be exported.
        """
        self._check_fitted()
        if find_spec("onnx") is None:
            raise MissingExtra("exporting a detector", "onnx")
        x_BCHW = torch.rand(2, 3, self.size, self.size)
        net = self.net_.cpu()
        with torch.no_grad():
            names = ["score", "map"] if net(x_BCHW)[1] is not None else ["score"]
        try:
            with writing(Path(path)) as temporary, warnings.catch_warnings(), torch.no_grad():
                # the tracer runs hooks, which is where features come from; it warns of its age, and of shapes that
                # it fixes
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    net,
                    (x_BCHW,),
                    str(temporary),
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=["images"],
                    output_names=names,
                    dynamic_axes={name: {0: "batch"} for name in ("images", *names)},
                )
        except Exception as error:
            raise BadInput(
                f"'{type(self).__name__}' cannot be exported ({' '.join(str(error).split())[:300]})"
            ) from error
        finally:
            self.net_.to(self._place())

    def _net(self) -> nn.Module:
        raise NotImplementedError(f"'{type(self).__name__}' must write _net")

    def _learn(self, net: Any, x_BCHW: Tensor, progress: Progress) -> None:
        raise NotImplementedError(f"'{type(self).__name__}' must write _learn")

    def _place(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def _check_fitted(self) -> None:
        if not hasattr(self, "net_"):
            raise NotFitted(f"this '{type(self).__name__}' is not fitted yet: call fit(X) first")

    def _batches(self, X: Any) -> Batches:
        self._check_fitted()
        return Batches(X, self.size, self.batch_size)

    def _passed(
        self, batches: Batches | Sequence[Tensor], progress: Progress | None = None, maps: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Run all batches through the network."""
        scores, drawn = [], []
        for done, part in enumerate(batches, 1):
            score, map_BHW = self._one(torch.as_tensor(part), maps)
            scores.append(score)
            drawn.append(map_BHW)
            if progress is not None:
                progress(done / len(batches))
        if isinstance(batches, Batches):
            self.notes_ = list(batches.notes)
        found = [one for one in drawn if one is not None]
        return np.concatenate(scores), np.concatenate(found) if found else None

    def _one(self, x_BCHW: Tensor, maps: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Run a batch of bytes through the network."""
        place = self._place()
        x_BCHW = x_BCHW.to(
            place, memory_format=torch.channels_last if place.type == "cuda" else torch.contiguous_format
        )
        half = getattr(self, "half_", False) and place.type == "cuda"
        with torch.inference_mode(), torch.autocast(place.type, torch.float16, enabled=half):
            score, map_BHW = self.net_(pixels(x_BCHW))
        score = score.double().cpu().numpy()
        if not np.isfinite(score).all():
            raise BadInput("a score is not finite: the features of an image overflow; compute in single precision")
        return score, map_BHW.float().cpu().numpy() if maps and map_BHW is not None else None

    def _state(self) -> dict[str, Any]:
        """Everything learned, as plain data: the network's weights, without those of a frozen backbone."""
        plain = {name: value for name, value in super()._state().items() if name not in ("net_", "notes_")}
        if not hasattr(self, "net_"):  # an alarm keeps its detector as it was before the fit, too
            return plain
        learned = {n: w.cpu().numpy() for n, w in self.net_.state_dict().items() if not n.startswith(FROZEN)}
        backbone = plain.get("backbone")
        if isinstance(backbone, nn.Module):
            raise BadInput(
                "a detector around a module of your own cannot be saved, since a file holds no code; write it with "
                "export(path), or name the backbone"
            )
        return plain | {"learned": learned}

    def _restore(self, values: dict[str, Any]) -> None:
        learned = values.pop("learned", None)
        super()._restore(values)
        if learned is None:
            return
        net = self._net()
        for name, array in learned.items():
            _set(net, name, torch.from_numpy(np.array(array)))
        self.net_ = net.to(self._place()).eval().requires_grad_(False)
        self.notes_ = []


def pixels(x_BCHW: Tensor) -> Tensor:
    """Turn bytes into pixels from 0 to 1."""
    return x_BCHW.float() / 255


def map_like(map_HW: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scale one map bilinearly to the height and width of its image.

    Returns
    -------
    float32 array (height, width)
    """
    return scaled(torch.from_numpy(map_HW)[None].float(), shape)[0].numpy()


def _set(net: nn.Module, name: str, value: Tensor) -> None:
    """Set a weight or buffer, whatever its shape was."""
    *path, last = name.split(".")
    module = net.get_submodule(".".join(path))
    if last in module._parameters:
        module._parameters[last] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[last] = value
