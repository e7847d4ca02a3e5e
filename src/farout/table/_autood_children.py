"""AutoOD's children in training: briefly, on weights that all of a definition share, or from scratch.

Everything runs on one thread: the networks are tiny, and results must not depend on how many threads add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from farout.errors import BadInput
from farout.kit.training import arrays_of, device_named, fill, train
from farout.table._autood_net import Child
from farout.table._autood_space import Configuration, Space
from farout.table._autood_trial import Trial, auroc

Arrays = dict[str, np.ndarray]

LEARNING_RATE = 3e-3
BATCH = 128
STEPS = 20  # of a child on the shared weights
HELD_OUT, PATIENCE = 0.1, 10  # when the winner stops training
REFERENCE = 4_096  # rows that set centres, components and the statistics of batch normalisation
CHUNK = 8_192  # rows scored at a time


def raise_child(
    configuration: Configuration, weights: Arrays, trial: Trial, seed: int, device: str = "cpu", steps: int = STEPS
) -> tuple[float, Arrays]:
    """Train a child on its blocks of the shared weights for a few steps.

    Returns
    -------
    reward : float
        The AUROC of its scores, averaged over the kinds of outliers; only ranks count, because scores of the four
        definitions have different scales. 0 where training explodes.
    weights : dict of str to array
        The blocks afterwards.
    """
    if torch.get_num_threads() > 1:  # in another process than that of the search
        torch.set_num_threads(1)
    child = _child(configuration, weights, trial.rows.shape[1], device)
    drawn = np.random.default_rng(seed).integers(len(trial.rows), size=steps * BATCH)
    try:
        grow(child, trial.rows[drawn], seed, epochs=1, held_out=0.0)
    except BadInput:
        return 0.0, {}
    usual = scores_of(child, trial.usual)
    reward = float(np.mean([auroc(usual, scores_of(child, rows)) for rows in trial.far_out]))
    return (reward, _blocks(child)) if np.isfinite(reward) else (0.0, {})


def grow_up(configuration: Configuration, rows: np.ndarray, epochs: int, seed: int, device: str = "cpu") -> Arrays:
    """Train a configuration from scratch and return everything that scores need."""
    shared = shared_weights(configuration.definition, Space(), rows.shape[1], seed)
    child = _child(configuration, shared, rows.shape[1], device)
    grow(child, rows, seed, epochs=epochs, held_out=HELD_OUT)
    return arrays_of(child)


def grow(child: Child, rows: np.ndarray, seed: int, epochs: int, held_out: float) -> None:
    """Train a child on rows (n, C); with a held-out share it stops early."""
    x_NC = torch.tensor(rows, device=next(child.parameters()).device)
    reference = x_NC[:: -(-len(x_NC) // REFERENCE)]
    child.begin(reference, seed)
    train(
        child,
        child.loss,
        x_NC,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        seed=seed,
        held_out=held_out,
        patience=PATIENCE if held_out else None,
    )
    child.finish(reference)


def outlier_scores(configuration: Configuration, arrays: Arrays, rows: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Return the scores (n,) of rows by a configuration with the weights of :func:`grow_up`."""
    child = Child(configuration, rows.shape[1]).to(device_named(device))
    fill(child, arrays)
    return scores_of(child, rows)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def scores_of(child: Child, rows: np.ndarray) -> np.ndarray:
    """Return the scores (n,) of rows by a trained child."""
    device = next(child.parameters()).device
    chunks = np.split(rows, range(CHUNK, len(rows), CHUNK))
    return np.concatenate([child.score(torch.tensor(chunk, device=device)).cpu().numpy() for chunk in chunks])


def shared_weights(definition: str, space: Space, columns: int, seed: int) -> Arrays:
    """Draw the weights that the children of one definition share, as large as the widest and deepest of them.

    A narrower child takes the leading block. The arrays hold weights times the root of the number of inputs, so that
    blocks of all widths begin with outputs of variance 1.
    """
    rng = np.random.default_rng(seed)
    layers = ((max(space.widths), "none", "linear"),) * max(space.depths)
    widest = Child(Configuration(definition, "l2", layers), columns)
    shapes = {name: tuple(weight.shape) for name, weight in widest.named_parameters() if name != "centres"}
    return {name: rng.normal(size=s) if name.endswith("weight") else np.zeros(s) for name, s in shapes.items()}


def averaged(weights: Arrays, children: list[Arrays]) -> Arrays:
    """Return shared weights after a batch: each number the mean over the children that trained it."""
    total = {name: np.zeros_like(array) for name, array in weights.items()}
    count = {name: np.zeros_like(array) for name, array in weights.items()}
    for blocks in children:
        for name, block in blocks.items():
            place = tuple(map(slice, block.shape))
            total[name][place] += block
            count[name][place] += 1
    return {
        name: np.divide(total[name], count[name], out=array.copy(), where=count[name] > 0)
        for name, array in weights.items()
    }


def _child(configuration: Configuration, weights: Arrays, columns: int, device: str) -> Child:
    """Build a child on its blocks of the shared weights."""
    child = Child(configuration, columns)
    with torch.no_grad():
        for name, weight in child.named_parameters():
            if name in weights:
                block = weights[name][tuple(map(slice, weight.shape))]
                weight.copy_(torch.tensor(block / _fan(name, block)))
    return child.to(device_named(device))


def _blocks(child: Child) -> Arrays:
    """Return a child's weights in the scale in which they are shared."""
    named = {name: w.detach().cpu().numpy() for name, w in child.named_parameters() if name != "centres"}
    return {name: array * _fan(name, array) for name, array in named.items()}


def _fan(name: str, block: np.ndarray) -> float:
    return np.sqrt(block.shape[1]) if name.endswith("weight") else 1.0
