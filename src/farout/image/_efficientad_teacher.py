"""EfficientAD's teacher: a patch description network that imitates a large classifier's patch features.

A teacher is made once, of images of all sorts, and serves every set of normal images. The cache keeps it under a hash
of what it was made from.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.errors import BadInput, MissingExtra
from farout.image._detector import pixels
from farout.image._efficientad_net import CHANNELS, DEVIATION, MEAN, patch_network
from farout.image._patches import patches
from farout.image._steps import REPORTS, Steps, adam, check_finite, fast_convolutions, on, quick
from farout.image.backbones import DEFAULT, Backbone
from farout.io.files import writing
from farout.io.image_batches import Batches
from farout.kit.fitting import Cycle
from farout.kit.training import device_named, seeded

LAYERS = ("_blocks.2", "_blocks.4", "_blocks.10")  # of EfficientNet-Lite0: 24, 40 and 112 channels
RECIPE = 1  # counted up when a teacher of the same words becomes another
GREY = (0.299, 0.587, 0.114)
MOST = 10_000  # images that targets are normalised over


def distil(
    images: Any,
    *,
    variant: str = "S",
    backbone: Any = DEFAULT,
    layers: Sequence[str] = LAYERS,
    steps: int = 10_000,
    batch_size: int = 16,
    size: int = 256,
    device: str = "cpu",
    random_state: int = 0,
    path: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Make a teacher for :class:`farout.image.efficientad.EfficientAD`, or find the one made before of the same.

    Parameters
    ----------
    images : folder, list of paths, arrays or images, array or tensor
        Of many kinds. They are held in memory, 3 ``size`` ^2 bytes each.
    variant : {"S", "M"}
    backbone, layers
        Of :class:`farout.image.Backbone`: whose features are imitated. It sees images at twice their size.
    steps, batch_size : int
        The paper takes 60,000 steps of 16 images.
    size : int
        Height and width of the images that the teacher sees.
    device : str
    random_state : int
    path : str or Path, optional
        Where the teacher is written, as safetensors. By default it is kept in the cache (``$XDG_CACHE_HOME/farout``,
        else ``~/.cache/farout``) under a hash of images, backbone and settings, and found there the next time.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    pathlib.Path
        Of the file.

    Raises
    ------
    BadInput
        An image cannot be read, a number is too small, the layers are not the backbone's, the loss is not finite, or
        the file cannot be written.
    """
    if steps < 1 or batch_size < 1:
        raise BadInput(f"'steps' and 'batch_size' must be at least 1; they are {steps} and {batch_size}")
    place = device_named(device)
    x_BCHW = torch.cat([torch.from_numpy(part) for part in Batches(images, size, batch_size)])
    source = backbone if isinstance(backbone, Backbone) else Backbone(backbone, layers)
    words = (RECIPE, variant, steps, batch_size, size, random_state, source.layers, type(source.net).__name__)
    path = _cache() / f"{_hash(words, source, x_BCHW)}.safetensors" if path is None else Path(path)
    if path.is_file() and path.parent == _cache():
        return path
    if not os.access(path.parent, os.W_OK):
        raise BadInput(f"a teacher cannot be written to '{path.parent}': no such folder, or no permission")
    generator = torch.Generator().manual_seed(random_state)
    with seeded(random_state):
        teacher: Any = patch_network(variant, padding=True)
    teacher.to(place, memory_format=torch.channels_last)
    targets = Targets(source, size // 4, generator).to(place)
    targets.normalise_over(x_BCHW, batch_size, generator)
    _imitate(teacher, targets, Cycle(x_BCHW, batch_size=batch_size, seed=random_state), steps, generator, progress)
    _write(teacher, path)
    return path


class Targets(nn.Module):
    """What a teacher imitates: patch features of a backbone, turned into 384 channels of mean 0 and deviation 1.

    Parameters
    ----------
    backbone : Backbone
    side : int
        Height and width of the grid.
    generator : torch.Generator
        Of the orthogonal map to 384 channels: it keeps angles and lengths, or, where there are more than 384
        features, those of the part that it keeps.
    """

    projection: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: Backbone, side: int, generator: torch.Generator) -> None:
        super().__init__()
        self.backbone, self.side = backbone, side
        weight = torch.empty(CHANNELS, sum(backbone.channels))
        self.register_buffer("projection", nn.init.orthogonal_(weight, generator=generator)[:, :, None, None])
        self.register_buffer("mean", torch.zeros(CHANNELS, 1, 1))
        self.register_buffer("deviation", torch.ones(CHANNELS, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, 384, side, side) of pixels from 0 to 1."""
        twice = F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=False)
        features = patches(self.backbone(twice), grid=(self.side, self.side))
        return (F.conv2d(features, self.projection).float() - self.mean) / self.deviation

    @torch.no_grad()
    def normalise_over(self, x_BCHW: Tensor, batch_size: int, generator: torch.Generator) -> None:
        """Take mean and deviation of each channel over images (bytes), at most 10,000 of them."""
        place = self.projection.device
        chosen = x_BCHW[torch.randperm(len(x_BCHW), generator=generator)[:MOST]]

        def outputs() -> Any:
            return (self(greyed(pixels(part.to(place)), 0.1, generator)) for part in chosen.split(batch_size))

        mean, deviation = channel_moments(outputs)
        self.mean, self.deviation = mean[:, None, None], torch.where(deviation > 0, deviation, 1)[:, None, None]


def channel_moments(outputs: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (C,) of the channels of maps, in two passes over what ``outputs()`` yields.

    Examples
    --------
    >>> channel_moments(lambda: iter([torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[1.0, 3.0]]]])]))
    (tensor([2.]), tensor([1.]))
    """
    sums = [(y_BCHW.double().sum((0, 2, 3)), y_BCHW[:, 0].numel()) for y_BCHW in outputs()]
    count = sum(places for _, places in sums)
    mean = torch.stack([one for one, _ in sums]).sum(0) / count
    squares = [(y_BCHW.double() - mean[:, None, None]).square().sum((0, 2, 3)) for y_BCHW in outputs()]
    return mean.float(), (torch.stack(squares).sum(0) / count).sqrt().float()


def greyed(x_BCHW: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Turn each image grey with a chance."""
    chosen = on(torch.rand(len(x_BCHW), 1, 1, 1, generator=generator) < chance, x_BCHW.device)
    return torch.where(chosen, grey(x_BCHW), x_BCHW)


def grey(x_BCHW: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W)."""
    red, green, blue = x_BCHW.split(1, 1)  # a tensor of weights would make the GPU wait for the host
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def _imitate(
    teacher: nn.Sequential,
    targets: Targets,
    cycle: Cycle,
    steps: int,
    generator: torch.Generator,
    progress: Callable[[float], None] | None,
) -> None:
    """Train a network to give the targets, by the mean squared error."""
    place = targets.projection.device
    optimizer = adam(teacher.parameters(), 1e-4, 1e-5, place)
    mean, deviation = (torch.tensor(v, device=place)[:, None, None] for v in (MEAN, DEVIATION))
    batch = next(cycle)[0].shape
    x_BCHW = torch.empty(batch, device=place).contiguous(memory_format=torch.channels_last)
    last = torch.zeros((), device=place)

    def step() -> None:
        optimizer.zero_grad()
        with quick(place):
            with torch.no_grad():
                wanted = targets(x_BCHW)
            loss = F.mse_loss(teacher((x_BCHW - mean) / deviation).float(), wanted)
        loss.backward()
        optimizer.step()
        last.copy_(loss.detach())

    with fast_convolutions(place):
        take = Steps(step, place)
        for done in range(1, steps + 1):
            x_BCHW.copy_(greyed(pixels(on(next(cycle)[0], place)), 0.1, generator))
            take()
            if done % REPORTS == 0 or done == steps:
                check_finite({"imitation": float(last)}, done)
                if progress is not None:
                    progress(done / steps)


def load_teacher(teacher: nn.Sequential, path: str | Path) -> None:
    """Give a network the weights of a file: safetensors, or a pickled state dict, of farout or published elsewhere.

    Layers are told apart by the first number in their names, which may be ``0.weight``, ``3.weight`` or
    ``conv1.weight``, ``conv2.weight``. Nothing of a file is run.

    Raises
    ------
    BadInput
        There is no such file, it holds no weights, or they are another network's.
    MissingExtra
        safetensors is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no teacher at '{path}'; make one: farout.image.efficientad.distil(images)")
    try:
        found = _read(path)
    except MissingExtra:
        raise
    except Exception as error:  # a damaged file makes readers raise almost anything
        raise BadInput(f"'{path}' holds no weights of a teacher ({' '.join(str(error).split())[:200]})") from error
    own = teacher.state_dict()
    names = {name: tuple(int(n) for n in re.findall(r"\d+", name)) for name in found}
    taken = {
        mine: found[theirs]
        for kind in ("weight", "bias")
        for mine, theirs in zip(
            [name for name in own if name.endswith(kind)],
            sorted((name for name in found if name.endswith(kind)), key=lambda name: names[name]),
        )
    }
    wrong = [name for name, weight in own.items() if name not in taken or taken[name].shape != weight.shape]
    if wrong or len(found) != len(own):
        seen = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in list(found.items())[:4])
        raise BadInput(
            f"the weights in '{path}' are no teacher's of this variant: {len(own)} are wanted and {len(found)} there, "
            f"of which the first are {seen}; take the other variant, or make a teacher with distil(images)"
        )
    teacher.load_state_dict(taken)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return dict(_safetensors().load_file(path))
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not found or not all(isinstance(weight, Tensor) for weight in found.values()):
        raise ValueError("it is no state dict")
    return found


def _write(teacher: nn.Sequential, path: Path) -> None:
    weights = {name: weight.cpu().contiguous() for name, weight in teacher.state_dict().items()}
    with writing(path) as temporary:
        _safetensors().save_file(weights, temporary)


def _safetensors() -> Any:
    try:
        from safetensors import torch as module
    except ImportError as error:
        raise MissingExtra("the file of a teacher", "torch") from error
    return module


def _cache() -> Path:
    """The folder of teachers in the user's cache; made where it can be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farout" / "teachers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"'{folder}' cannot be made ({error.strerror}); set XDG_CACHE_HOME, or give 'path'") from error
    return folder


def _hash(words: Any, backbone: Backbone, x_BCHW: Tensor) -> str:
    """Tell teachers apart by all that they are made from."""
    digest = hashlib.sha256(repr(words).encode())
    for name, weight in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    digest.update(x_BCHW.contiguous().numpy().data)
    return digest.hexdigest()[:32]
