"""Pictures of objects of two parts on a ground, with the words for them, and a small dual encoder that learns both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.75, 0.15),
    "blue": (0.15, 0.2, 0.95),
    "yellow": (0.95, 0.9, 0.1),
    "purple": (0.65, 0.15, 0.8),
    "white": (0.97, 0.97, 0.97),
    "cyan": (0.1, 0.85, 0.9),
    "black": (0.03, 0.03, 0.03),
}
SHAPES = ("disc", "square", "triangle", "cross", "diamond")
FILLERS = ("a", "photo", "of", "the", "one", "big", "small", "here")
WORDS = ("X", ".", *FILLERS, *COLOURS, *SHAPES)
BEGIN, END = len(WORDS), len(WORDS) + 1
LONGEST = 16  # tokens of a text
MOST = 20_000  # pictures that are drawn to train an encoder

Part = tuple[str, str]
Thing = tuple[Part, Part]


def name_of(thing: Thing) -> str:
    """Return the words for a thing: colour and shape of the upper part, then of the lower one.

    Examples
    --------
    >>> name_of((("red", "disc"), ("blue", "cross")))
    'red disc blue cross'
    """
    return " ".join(word for part in thing for word in part)


def tokenize(texts: Sequence[str]) -> Any:
    """Return token ids (P, T) of texts of known words, padded with the token that ends a text.

    Examples
    --------
    >>> tokenize(["X red disc .", "a"]).shape
    torch.Size([2, 6])
    """
    import torch

    rows = [[BEGIN, *(WORDS.index(word) for word in text.replace(".", " .").split()), END] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [END] * (longest - len(row)) for row in rows])


def drawn(things: Sequence[Thing], generator: Any, size: int = 32) -> Any:
    """Draw a picture of each thing, somewhere, on a ground of its own (n, 3, size, size), pixels between 0 and 1.

    Parameters
    ----------
    things : sequence of ((colour, shape), (colour, shape))
    generator : torch.Generator
        Of the CPU.
    size : int

    Examples
    --------
    >>> import torch
    >>> drawn([(("red", "disc"), ("blue", "cross"))], torch.Generator().manual_seed(0)).shape
    torch.Size([1, 3, 32, 32])
    """
    import torch

    n = len(things)
    ground = torch.rand(n, 1, 6, 6, generator=generator) * 0.4 + 0.3 + 0.1 * torch.rand(n, 3, 1, 1, generator=generator)
    x_BCHW = torch.nn.functional.interpolate(ground, (size, size), mode="bilinear")
    radius = (0.2 + 0.05 * torch.rand(n, generator=generator))[:, None, None]
    across, down = (1 - 2 * radius) * torch.rand(2, n, 1, 1, generator=generator) + torch.stack([radius, 2 * radius])
    down = down.clamp(max=1 - 2 * radius)
    at = (torch.arange(size) + 0.5) / size
    for place, side in enumerate((-1, 1)):
        u = (at[None, None, :] - across) / radius
        v = (at[None, :, None] - down - side * radius) / radius
        kinds = torch.tensor([SHAPES.index(thing[place][1]) for thing in things])[:, None, None]
        colours = torch.tensor([COLOURS[thing[place][0]] for thing in things])
        colours = (colours + 0.08 * torch.randn(n, 3, generator=generator))[:, :, None, None]
        x_BCHW = torch.where(_inside(kinds, u, v)[:, None], colours, x_BCHW)
    return (x_BCHW + 0.03 * torch.randn(x_BCHW.shape, generator=generator)).clamp(0, 1)


def _inside(kinds: Any, u: Any, v: Any) -> Any:
    """Whether places (n, H, W), in radii from the middle, lie in the shape of each."""
    import torch

    u, v = torch.broadcast_tensors(u.abs(), v)
    most, least = torch.maximum(u, v.abs()), torch.minimum(u, v.abs())
    inside = torch.stack(
        [u**2 + v**2 < 1, most < 0.85, (u < (v + 1) / 2) & (v < 0.9), (most < 1) & (least < 0.33), u + v.abs() < 1.1]
    )
    return inside.gather(0, kinds[None].expand(1, *u.shape))[0]


def captions(things: Sequence[Thing], generator: Any) -> list[str]:
    """Return a text for each thing: up to six words that say nothing, then its name."""
    import torch

    lengths = torch.randint(7, (len(things),), generator=generator).tolist()
    words = [FILLERS[i] for i in torch.randint(len(FILLERS), (sum(lengths),), generator=generator).tolist()]
    texts = []
    for thing, length in zip(things, lengths):
        texts.append(" ".join([*words[:length], name_of(thing), "."]))
        words = words[length:]
    return texts


def dual_encoder(
    parts: Sequence[Part],
    *,
    size: int,
    patch: int,
    width: int,
    layers: int,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    device: Any,
) -> Any:
    """Train transformers' CLIPModel from nothing on pictures and texts of all things that these parts make.

    The loss is CLIP's: of a batch, each picture shall find its text and each text its picture.

    Returns
    -------
    transformers.CLIPModel
        In evaluation mode, on the device.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    from farout.kit.fitting import rate_at
    from farout.kit.training import seeded

    tower = {"num_attention_heads": 4, "projection_dim": 64}
    text = {"vocab_size": END + 1, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"max_position_embeddings": 2 * LONGEST, "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": END}
    image = {"image_size": size, "patch_size": patch, "hidden_size": width, "intermediate_size": 2 * width}
    image |= {"num_hidden_layers": layers}
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        config = CLIPConfig(text_config=text | tower, vision_config=image | tower, projection_dim=64)
        model: Any = CLIPModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    targets = torch.arange(batch, device=device)
    picks = torch.randint(len(parts), (min(MOST, steps * batch), 2), generator=generator)
    things = [(parts[upper], parts[lower]) for upper, lower in picks.tolist()]
    chunks = [things[at : at + 1000] for at in range(0, len(things), 1000)]
    pixels = torch.cat([2 * drawn(chunk, generator, size).to(device) - 1 for chunk in chunks])
    codes = (picks @ torch.tensor([len(parts), 1])).to(device)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * rate_at(step, steps, warmup=steps // 20)
        rows = torch.randint(len(things), (batch,), generator=generator)
        ids = tokenize(captions([things[row] for row in rows.tolist()], generator)).to(device)
        rows = rows.to(device)
        logits = model(input_ids=ids, pixel_values=pixels[rows]).logits_per_image
        # a thing that is there twice is not its own rival
        twice = (codes[rows][:, None] == codes[rows]) & ~torch.eye(batch, dtype=torch.bool, device=device)
        logits = logits.masked_fill(twice, -torch.inf)
        loss = torch.nn.functional.cross_entropy(logits, targets) + torch.nn.functional.cross_entropy(logits.T, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # 100, as CLIP
    return model.eval()
