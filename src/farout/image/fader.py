"""FADeR: Feature Attenuation of Defective Representation Can Resolve Incomplete Masking on Anomaly Detection.

YeongHyeon Park, Sungho Kang, Myung Jin Kim, Hyeong Seok Kim, Juneho Yi, VAND workshop at CVPR 2025 (arXiv 2407.04597).

A network that paints hidden parts of an image anew finds defects as what it paints otherwise. One fixed mask is fast,
and always the same, but a defect of which a part is seen is painted as it is. FADeR lets less of a patch's features
over the skip connections of a U-Net where they look like those of patches that are painted badly, so that the decoder
must make them up from what lies around; two linear layers tell from a patch's features how much.

The paper claims fewer false alarms and a higher AUROC of images and pixels on MVTec AD and VisA than networks of like
size, and that it can be put into other methods with a fixed mask.

This is in the manner of the paper, and not its method to the letter: its abstract and summaries were at hand, and there
is no official code. The paper's are that two layers a skip connection, applied to each patch alone, attenuate features,
that they learn without labels from the errors of a trained base, and that the base stays as it is. Our choices:

- The base. The paper's mask comes from the attention of a pretrained network, as in its forerunner; here it is a
  checkerboard or a grating, in two passes, or there is none. The loss is the squared error, structural similarity and
  gradient magnitudes; the map is the difference of gradient magnitudes at four scales, smoothed; the score its largest.
- What is learned: ``exp(-e / q)`` by cross-entropy, where ``e`` is the squared error of the base against the image
  without defect, averaged over the patch, and ``q`` the 95 % quantile on normal images. Half of the images carry drawn
  defects (:mod:`farout.image._defects`); these are small, so that their patches and all others count one half each.
- A patch keeps 0.05 at least. Then decoder and attenuation are trained on normal images for a while, where attenuation
  costs a hundredth of what it takes away; ``attenuate=False`` trains its decoder for as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.image._defects import drawn_defects
from farout.image._detector import ImageDetector, Progress, pixels
from farout.image._inpainting import BASES, GROUPS, WINDOW, Attenuation, Painter, painting_loss
from farout.kit.fitting import Cycle
from farout.kit.training import seeded

__all__ = ["FADeR"]

QUANTILE = 0.95  # of the errors on normal images, that sets what is large
PRICE = 0.01  # of attenuation on normal images
JUDGED = 64  # images that the quantile is taken of, and copies with defects, at least


@paper(
    "FADeR",
    title="Feature Attenuation of Defective Representation Can Resolve Incomplete Masking on Anomaly Detection",
    authors="Park, Kang, Kim, Kim, Yi",
    year=2024,
    arxiv="2407.04597",
    kind="detector",
    takes=("image",),
    extra="vision",
    claim="Fewer false alarms and a higher AUROC of images and pixels on MVTec AD and VisA than networks of like size; "
    "goes into other methods with a fixed mask.",
    differs="In the manner of the paper, of which a summary was at hand: the base (a U-Net behind a checkerboard, a "
    "grating or no mask), what attenuation is learned from and its floor are our choices.",
)
class FADeR(ImageDetector):
    """A U-Net that paints images anew, with less of what looks badly painted on its skip connections.

    Parameters
    ----------
    base : {"checkerboard", "grating", "reconstruction"}
        The mask that hides half of the image, then the other half; the last one hides nothing.
    attenuate : bool
        False is the base alone.
    widths : sequence of int
        Channels of the U-Net at each depth, multiples of 8.
    hidden : int
        Units of the attenuation's first layer.
    cell : int
        Pixels a side of the checkerboard's squares, or across the grating's stripes.
    steps : int
        Of training the base; a quarter as many for the attenuation, and for what is trained last.
    learning_rate : float
        Of Adam; ten times as much for the attenuation, and a tenth of it for what is trained last.
    smoothing : float
        Of the map, in pixels.
    size : int
        Pixels a side that images are squeezed to; a multiple of 8 with four depths.
    batch_size : int
        Images of a step of training, and of a pass.
    device : str
        ``"auto"`` is the first GPU where there is one.
    random_state : int
        For the weights, the order of the images and the drawn defects.

    Attributes
    ----------
    history_ : dict of str to list of float
        The losses of each tenth of the training of ``"base"``, ``"attenuation"`` and ``"last"``.
    large_ : list of float
        The error that counts as large at each skip connection, where attenuation is learned.

    Raises
    ------
    UnknownName
        There is no such base.
    BadInput
        A size or number is out of its range, or training diverges.

    Examples
    --------
    >>> images = torch.randint(256, (6, 16, 16, 3), dtype=torch.uint8).numpy()
    >>> detector = FADeR(widths=(8, 16), cell=4, steps=8, size=16, smoothing=1.0).fit(images)
    >>> detector.outlier_score(images[:2]).shape, detector.score_maps(images[:2]).shape
    ((2,), (2, 16, 16))
    """

    def __init__(
        self,
        *,
        base: str = "checkerboard",
        attenuate: bool = True,
        widths: Sequence[int] = (32, 64, 128, 256),
        hidden: int = 64,  # d
        cell: int = 16,
        steps: int = 3_000,
        learning_rate: float = 1e-3,
        smoothing: float = 4.0,
        size: int = 256,
        batch_size: int = 8,
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.base = base
        self.attenuate = attenuate
        self.widths = widths
        self.hidden = hidden
        self.cell = cell
        self.steps = steps
        self.learning_rate = learning_rate
        self.smoothing = smoothing
        self.size = size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _net(self) -> Painter:
        if self.base not in BASES:
            raise UnknownName("base", self.base, BASES)
        if len(self.widths) < 2 or any(width < 1 or width % GROUPS for width in self.widths):
            raise BadInput(f"'widths' are two multiples of {GROUPS} at least, not {list(self.widths)}")
        parts = 2 ** (len(self.widths) - 1)
        if self.size % parts or self.size < WINDOW:
            raise BadInput(
                f"with {len(self.widths)} depths 'size' is a multiple of {parts}, and {WINDOW} pixels at least; it is "
                f"{self.size}"
            )
        if min(self.hidden, self.cell, self.steps) < 1 or self.smoothing < 0 or not self.learning_rate > 0:
            raise BadInput(
                "'hidden', 'cell' and 'steps' are at least 1, 'smoothing' is not below 0 and 'learning_rate' is above "
                f"it, but they are {self.hidden}, {self.cell}, {self.steps}, {self.smoothing:g} and "
                f"{self.learning_rate:g}"
            )
        if self.base != "reconstruction" and self.cell >= self.size:
            raise BadInput(f"a cell of {self.cell} pixels hides whole images of {self.size}; take a smaller one")
        with seeded(self.random_state):
            net = Painter(self.base, self.size, self.cell, self.widths, self.smoothing)
            if self.attenuate:  # drawn last, so that the base is the same with it and without
                net.gates = Attenuation(self.widths[:-1], self.hidden)
        return net

    def _learn(self, net: Painter, x_BCHW: Tensor, progress: Progress) -> None:
        batches, generator = self._cycle(x_BCHW), torch.Generator().manual_seed(self.random_state)
        gates, few = net.gates, -(-self.steps // 4)

        def seen(x_BCHW: Tensor) -> Tensor:
            return net.half_seen(x_BCHW, generator)

        def painting() -> Tensor:
            x_BCHW = self._placed(next(batches)[0])
            with self._half():
                painted_BCHW = net.unet(seen(x_BCHW))
            return painting_loss(x_BCHW, painted_BCHW.float())

        def last() -> Tensor:
            x_BCHW = self._placed(next(batches)[0])
            with self._half():
                features = net.unet.encode(seen(x_BCHW))
                shares = None if gates is None else gates(features[:-1])
                painted_BCHW = net.unet.decode(features, shares)
            price = sum((1 - share).float().mean() for share in shares or [])
            return painting_loss(x_BCHW, painted_BCHW.float()) + PRICE * price

        self.history_: dict[str, list[float]] = {}
        self._run("base", painting, net.unet.parameters(), self.steps, self.learning_rate, progress, (0.0, 0.6))
        if gates is not None:
            judging = self._attenuation(net, gates, x_BCHW)
            self._run("attenuation", judging, gates.parameters(), few, 10 * self.learning_rate, progress, (0.6, 0.8))
        # the encoder, and with it what attenuation is told from, stays as it is
        weights = [*net.unet.up.parameters(), *net.unet.out.parameters()]
        weights += [] if gates is None else gates.parameters()
        self._run("last", last, weights, few, self.learning_rate / 10, progress, (0.8, 1.0))

    def _attenuation(self, net: Painter, gates: Attenuation, x_BCHW: Tensor) -> Callable[[], Tensor]:
        """Return the loss of a step: what is let through, against how well the base paints."""
        generator = torch.Generator().manual_seed(self.random_state)
        clean_BCHW = x_BCHW[torch.arange(max(len(x_BCHW), JUDGED)) % len(x_BCHW)]
        defective_BCHW, masks_BHW = drawn_defects(clean_BCHW, generator)
        shown_BCHW, wanted_BCHW = torch.cat([clean_BCHW, defective_BCHW]), torch.cat([clean_BCHW, clean_BCHW])
        pairs = self._cycle(shown_BCHW, wanted_BCHW, torch.cat([torch.zeros_like(masks_BHW), masks_BHW])[:, None])

        @torch.no_grad()
        def judged(x_BCHW: Tensor, wanted_BCHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            """Return features and, patch by patch, the error of the base."""
            with self._half():
                features = net.unet.encode(net.half_seen(x_BCHW, generator))
                painted_BCHW = net.unet.decode(features)
            error = (painted_BCHW.float() - wanted_BCHW).square().mean(1, keepdim=True)
            return features[:-1], [F.avg_pool2d(error, 2**depth) for depth in range(len(features) - 1)]

        found = [judged(x, x)[1] for x in map(self._placed, x_BCHW[:JUDGED].split(self.batch_size))]
        large = [
            torch.quantile(torch.cat([one[depth].flatten() for one in found]), QUANTILE)
            for depth in range(len(self.widths) - 1)
        ]
        self.large_ = [float(one) for one in large]

        def loss() -> Tensor:
            shown_BCHW, wanted_BCHW, drawn_B1HW = next(pairs)
            features, errors = judged(self._placed(shown_BCHW), self._placed(wanted_BCHW))
            with self._half():
                logits = gates.logits(features)
            fits = []
            for depth, (logit, error, q) in enumerate(zip(logits, errors, large)):
                target = (-error / q.clamp(min=1e-12)).exp()
                fit = F.binary_cross_entropy_with_logits(logit.float(), target, reduction="none")
                drawn = F.max_pool2d(drawn_B1HW.float(), 2**depth).to(fit.device)
                fits += [(fit * one).sum() / one.sum().clamp(min=1) / 2 for one in (drawn, 1 - drawn)]
            return torch.stack(fits).sum()

        return loss

    def _run(
        self,
        name: str,
        loss: Callable[[], Tensor],
        weights: Iterable[Tensor],
        steps: int,
        learning_rate: float,
        progress: Progress,
        part: tuple[float, float],
    ) -> None:
        """Take steps of Adam on some weights."""
        optimizer = torch.optim.Adam(weights, lr=learning_rate)
        self.history_[name] = []
        total, since = torch.zeros((), device=self._place()), 0
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            total, since = total + value.detach(), since + 1
            if step * 10 // steps > (step - 1) * 10 // steps:
                self.history_[name].append(float(total) / since)
                total, since = torch.zeros_like(total), 0
                progress(part[0] + (part[1] - part[0]) * step / steps)
                if not math.isfinite(self.history_[name][-1]):
                    raise BadInput(
                        f"the loss of '{name}' is {self.history_[name][-1]} after {step} steps: lower the learning "
                        f"rate of {self.learning_rate:g}"
                    )

    def _cycle(self, *tensors: Tensor) -> Cycle:
        return Cycle(*tensors, batch_size=min(self.batch_size, len(tensors[0])), seed=self.random_state)

    def _placed(self, x_BCHW: Tensor) -> Tensor:
        return pixels(x_BCHW.to(self._place()))

    def _half(self) -> torch.autocast:
        place = self._place()
        return torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda")
