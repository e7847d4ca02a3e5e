"""EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies.

Kilian Batzner, Lars Heckler, Rebecca König, WACV 2024 (arXiv 2303.14535).

A network of four convolutions learns from a large classifier to describe patches of 33 x 33 pixels. A student learns
the same of normal images alone, from what it knows worst, and is kept from knowing other images; an autoencoder, and a
student of it, see what belongs elsewhere in the image. Where student and teachers differ, the image is far out.

The paper claims, for S, an image AUROC of 98.8 on MVTec AD, 97.5 on VisA and 90.0 on MVTec LOCO, and 2 ms an image; for
M 99.1, 98.1 and 90.7. There is no official code; a public re-implementation (nelson1425/EfficientAD) gets 99.0, 97.6
and 89.5 for S.

Differences from the paper and that re-implementation:

- The teacher is made from EfficientNet-Lite0, or any backbone, and from images that you give, where the paper has a
  WideResNet-101 and ImageNet. Its features are brought to 384 channels by a fixed random orthogonal map, where the
  paper pools neighbouring channels. The backbone sees the image of 256 pixels, scaled to 512; the paper scales the
  original. 10,000 steps instead of 60,000. A file with published weights of a teacher is taken as it is.
- ImageNet is not here, so that the penalty takes the images that you give. Without ``penalty_images`` there is no
  penalty, and the student then knows anomalies better than it should; ``notes_`` says so.
- ``images_per_step`` is 1 as in the paper. With more, the quantile of the hard loss is over all entries of the batch.
- Normal images, jittered copies and penalty images go through the student at once, which changes no number.
- The jitter is applied to the scaled image. The share of normal images for the quantiles, a tenth, is at least two, and
  below 30 images four jittered copies of each are added.
- On a GPU training runs in bfloat16 where torch thinks it safe, and a step is captured and replayed.
- The teacher's normalisation by channel is part of its last layer. Sizes other than 256 have the autoencoder's sides in
  proportion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farout.cards import paper
from farout.errors import BadInput
from farout.image._detector import ImageDetector, Progress, pixels
from farout.image._efficientad_graph import Replay
from farout.image._efficientad_net import EfficientADNet, losses, normalise
from farout.image._efficientad_teacher import LAYERS, channel_moments, distil, grey, greyed, load_teacher
from farout.image._steps import REPORTS, Steps, adam, check_finite, fast_convolutions, on, quick
from farout.image.backbones import DEFAULT
from farout.io.image_batches import Batches
from farout.kit.fitting import Cycle
from farout.kit.training import seeded

__all__ = ["EfficientAD", "distil"]

QUANTILES = (0.9, 0.995)  # q_a, q_b
ENTRIES = 2**24  # that torch can take a quantile of
FEW, COPIES = 30, 4  # below so many images, so many jittered copies of each that the quantiles are taken over
LATE = 0.95  # of the steps; the learning rate is a tenth afterwards


@paper(
    "EfficientAD",
    title="EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies",
    authors="Batzner, Heckler, König",
    year=2024,
    arxiv="2303.14535",
    kind="detector",
    takes=("image",),
    extra="vision",
    claim="Image AUROC on MVTec AD / VisA / MVTec LOCO: S 98.8 / 97.5 / 90.0, M 99.1 / 98.1 / 90.7, at about 2 ms an "
    "image for S.",
    differs="The teacher imitates EfficientNet-Lite0 (or any backbone) on images that the user gives, by a random "
    "orthogonal map; the penalty needs images of the user's, and is off without. The rest as in the paper.",
)
class EfficientAD(ImageDetector):
    """A student, a teacher and an autoencoder; an image is as far out as the place where they differ most.

    Parameters
    ----------
    variant : {"S", "M"}
        The smaller and faster network, or the larger.
    steps : int
        Of training, 70,000 in the paper; on an H100 some minutes. Take fewer on a CPU.
    teacher : str or Path, optional
        A file with the weights of a teacher, such as :func:`distil` writes. One teacher serves all sets. By default
        one is made from the training images and ``natural``, and kept in the cache.
    backbone, layers
        Whose features a teacher imitates that is made here, see :func:`distil`.
    natural : images, optional
        Images of many kinds, from which a teacher is made beside the training images.
    distil_steps : int
        In which a teacher is made.
    penalty_images : images, optional
        Images of many kinds that show nothing normal, on which the student shall not know the teacher's answer. They
        are scaled to twice ``size``, and the middle is taken. None: no penalty.
    hard : float
        Share of the distances that the student does not learn from, p_hard; 0 is the plain squared error.
    images_per_step : int
    learning_rate, weight_decay : float
    size : int
        Height and width that images are squeezed to, a multiple of 32 and at least 64.
    batch_size : int
        Images that are scored at once.
    device : str
    random_state : int

    Attributes
    ----------
    net_ : torch.nn.Module
        ``quantile_maps(x_BCHW)`` of it gives the two maps apart.
    history_ : list of dict of str to float
        The losses after every hundredth step, and after the last.
    notes_ : list of str

    Notes
    -----
    Images that only training needs are not saved with a detector.

    Examples
    --------
    >>> import tempfile
    >>> from farout.image._efficientad_teacher import _write
    >>> from farout.image._efficientad_net import patch_network
    >>> teacher = Path(tempfile.mkdtemp()) / "teacher.safetensors"
    >>> _write(patch_network("S"), teacher)  # of random weights; take distil(images)
    >>> images = torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8)
    >>> detector = EfficientAD(teacher=teacher, steps=1, size=64).fit(images)
    >>> detector.score_maps(images[:1]).shape
    (1, 64, 64)
    """

    def __init__(
        self,
        *,
        variant: str = "S",
        steps: int = 70_000,
        teacher: str | Path | None = None,
        backbone: Any = DEFAULT,
        layers: Sequence[str] = LAYERS,
        natural: Any = None,
        distil_steps: int = 10_000,
        penalty_images: Any = None,
        hard: float = 0.999,  # p_hard
        images_per_step: int = 1,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        size: int = 256,
        batch_size: int = 32,
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.variant = variant
        self.steps = steps
        self.teacher = teacher
        self.backbone = backbone
        self.layers = layers
        self.natural = natural
        self.distil_steps = distil_steps
        self.penalty_images = penalty_images
        self.hard = hard
        self.images_per_step = images_per_step
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.size = size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def graph(self, batch_size: int = 1) -> Replay:
        """Return the fitted detector for deployment: on a GPU in half precision, as one captured CUDA graph.

        Parameters
        ----------
        batch_size : int
            Images that the graph takes; with fewer, the rest of it is wasted.

        Returns
        -------
        Replay
            ``replay(images)`` takes bytes (b, 3, size, size) and returns scores and maps. On a CPU it is the network.
        """
        self._check_fitted()
        return Replay(self.net_, batch_size, self._place())

    def _net(self) -> EfficientADNet:
        counts = {"steps": self.steps, "images_per_step": self.images_per_step}
        wrong = [name for name, count in counts.items() if count < 1]
        if wrong:
            raise BadInput(f"'{wrong[0]}' must be at least 1, not {counts[wrong[0]]}")
        if not 0 <= self.hard < 1:
            raise BadInput(f"'hard' is a share, at least 0 and below 1, not {self.hard}; the paper takes 0.999")
        with seeded(self.random_state):
            return EfficientADNet(self.variant, self.size)

    def _learn(self, net: EfficientADNet, x_BCHW: Tensor, progress: Progress) -> None:
        place = net.mean.device
        begun = 0.0 if self.teacher is not None else 0.5
        teacher = self.teacher if self.teacher is not None else self._teacher(x_BCHW, lambda done: progress(done / 2))
        load_teacher(net.teacher, teacher)
        generator = torch.Generator().manual_seed(self.random_state)
        order = torch.randperm(len(x_BCHW), generator=generator)
        held = max(2, len(x_BCHW) - int(0.9 * len(x_BCHW)))
        judged_BCHW, learned_BCHW = x_BCHW[order[:held]], x_BCHW[order[held:]]
        net.eval()

        def outputs() -> Any:
            parts = learned_BCHW.split(self.batch_size)
            return (net.teacher(net.normalised(pixels(part.to(place)))) for part in parts)

        with torch.no_grad():
            normalise(net.teacher, *channel_moments(outputs))
        with seeded(self.random_state):  # dropout draws
            self._train(net, learned_BCHW, generator, lambda done: progress(begun + (1 - begun) * done))
        net.eval()
        parts = [pixels(part.to(place)) for part in judged_BCHW.split(self.batch_size)]
        if len(x_BCHW) < FEW:
            parts += [jittered(part, generator) for _ in range(COPIES) for part in parts]
        with torch.no_grad():
            raw_2Bhw = torch.cat([net.raw_maps(part) for part in parts], 1)
        net.start, net.spread = start_and_spread(raw_2Bhw.flatten(1))

    def _teacher(self, x_BCHW: Tensor, progress: Progress) -> Path:
        """Make a teacher of the training images and whatever else there is."""
        images = [x_BCHW]
        if self.natural is not None:
            images += [torch.from_numpy(part) for part in Batches(self.natural, self.size, self.batch_size)]
        else:
            self.notes_.append(
                "the teacher was made from the training images alone, so that it hardly knows what else there is; give "
                "'natural' images, or a 'teacher'"
            )
        return distil(
            torch.cat(images),
            variant=self.variant,
            backbone=self.backbone,
            layers=self.layers,
            steps=self.distil_steps,
            size=self.size,
            device=self.device,
            random_state=self.random_state,
            progress=progress,
        )

    def _train(self, net: EfficientADNet, x_BCHW: Tensor, generator: torch.Generator, progress: Progress) -> None:
        """Train student and autoencoder."""
        place, count = net.mean.device, self.images_per_step
        cycle = Cycle(x_BCHW, batch_size=count, seed=self.random_state)
        others = self._penalty_cycle()
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        net.student.train()
        net.autoencoder.train()

        def images() -> Tensor:
            shape = (count, 3, self.size, self.size)
            return torch.empty(shape, device=place).contiguous(memory_format=torch.channels_last)

        x, changed, penalty = images(), images(), None if others is None else images()
        names = ["hard", "autoencoder", "student_autoencoder", *([] if penalty is None else ["penalty"])]
        last = torch.zeros(len(names), device=place)
        weights = [*net.student.parameters(), *net.autoencoder.parameters()]
        optimizer = adam(weights, self.learning_rate, self.weight_decay, place)

        def step() -> None:
            optimizer.zero_grad()
            with quick(place):
                found = losses(net, x, changed, penalty, self.hard)
            torch.stack(list(found.values())).sum().backward()
            optimizer.step()
            last.copy_(torch.stack([found[name].detach() for name in names]))

        self.history_: list[dict[str, float]] = []
        turn = int(LATE * self.steps)
        with fast_convolutions(place):
            take = Steps(step, place)
            for done in range(1, self.steps + 1):
                if done == turn + 1:
                    for group in optimizer.param_groups:
                        group["lr"] *= 0.1
                    take = Steps(step, place)  # the rate is a part of what was captured
                x.copy_(pixels(on(next(cycle)[0], place)))
                changed.copy_(jittered(x, generator))
                if penalty is not None and others is not None:
                    penalty.copy_(greyed(pixels(on(next(others)[0], place)), 0.3, generator))
                take()
                if done % REPORTS == 0 or done == self.steps:
                    self.history_.append(dict(zip(names, last.tolist())))
                    check_finite(self.history_[-1], done)
                    progress(done / self.steps)
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def _penalty_cycle(self) -> Cycle | None:
        """Cut the middles out of the penalty images, scaled to twice the size."""
        if self.penalty_images is None:
            self.notes_.append(
                "there is no penalty, since ImageNet is not here: the student may know anomalies too well; give "
                "'penalty_images' of many kinds"
            )
            return None
        edge = self.size // 2
        parts = Batches(self.penalty_images, 2 * self.size, self.batch_size)
        middles = [torch.from_numpy(part)[:, :, edge:-edge, edge:-edge].clone() for part in parts]
        return Cycle(torch.cat(middles), batch_size=self.images_per_step, seed=self.random_state + 1)

    def _state(self) -> dict[str, Any]:
        """Everything learned; images that only training needs are left out."""
        return super()._state() | {"natural": None, "penalty_images": None}


def jittered(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast or saturation of each image by a factor from 0.8 to 1.2.

    Examples
    --------
    >>> x_BCHW = torch.full((1, 3, 2, 2), 0.5)  # grey and even: only brightness can change
    >>> bool(((jittered(x_BCHW, torch.Generator().manual_seed(0)) - 0.5).abs() <= 0.1 + 1e-6).all())
    True
    """
    n = len(x_BCHW)
    which = on(torch.randint(3, (n, 1, 1, 1), generator=generator), x_BCHW.device)
    factor = on(0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=generator), x_BCHW.device)
    luma = grey(x_BCHW)
    other = torch.where(which == 1, luma.mean((2, 3), keepdim=True), torch.where(which == 2, luma, 0))
    return (factor * x_BCHW + (1 - factor) * other).clamp(0, 1)


def start_and_spread(maps: Tensor, entries: int = ENTRIES) -> tuple[Tensor, Tensor]:
    """Return q_a and ``q_b - q_a`` of each map's values; the spread is 1 where the quantiles are one.

    Parameters
    ----------
    maps : Tensor (2, n)
    entries : int
        Beyond which so many values are drawn, always the same.

    Examples
    --------
    >>> start_and_spread(torch.stack([torch.arange(1001.0), torch.ones(1001)]))
    (tensor([900.,   1.]), tensor([95.,  1.]))
    """
    if maps.shape[1] > entries:
        places = torch.randint(maps.shape[1], (entries,), generator=torch.Generator().manual_seed(0))
        maps = maps[:, places.to(maps.device)]
    start, end = (torch.stack([torch.quantile(one, q) for one in maps]) for q in QUANTILES)
    return start, torch.where(end - start > 1e-6 * end.abs(), end - start, 1)
