"""What the claims on smoothing and on columns in 16 bits share: models with and without planted outliers, and a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farout.claims._rows import counted, means

CHANNELS = 4  # of each norm, planted
DECODERS = ("llama", "opt")  # that can be planted


class Lab:
    """A model, what it is calibrated with, and held-out text.

    Parameters
    ----------
    model : {"llama", "opt", "MiniLM", "SmolLM2"}
    budget : {"small", "full"}
        Of the training of the first two.
    seed : int
        For the planted channels and the calibration text.
    samples, windows : int
        Of 128 tokens: of calibration, and held out.
    factor : float
        k of the planted channels of norms of the first two; 1 plants nothing.
    training : int
        The seed of the training of the first two.
    """

    def __init__(
        self,
        model: str,
        budget: str,
        seed: int,
        samples: int = 16,
        windows: int = 64,
        factor: float = 1.0,
        training: int = 0,
    ) -> None:
        from farout.claims._small_models import parts
        from farout.data.calibration import calibration

        self.opened = _opened(model, budget, factor, seed, training)
        texts = [[part] for part in parts()] if model in DECODERS else ["wikitext2-valid", "wikitext2"]
        settings = {"length": 128, "batch_size": 16}
        self.batches = calibration(texts[0], self.opened, samples=samples, seed=seed, **settings)
        self.held_out = calibration(texts[1], self.opened, samples=windows, seed=0, **settings)

    def quantized(self, recipe: Any, scheme: Any) -> Any:
        """Quantize a copy."""
        from farout.quantize import quantize

        return quantize(copy.deepcopy(self.opened.model), recipe, scheme, self.batches)

    def lost(self, model: Any) -> float:
        """Return the divergence from the full model on held-out text."""
        from farout.bench.divergence import divergence

        return divergence(self.opened, model, self.held_out)


def divergences(
    methods: Mapping[str, Any],
    schemes: Mapping[str, str],
    size: Mapping[str, Any],
    budget: str,
    seeds: Sequence[int],
    progress: Callable[[str, float], None],
    factor: float = 1.0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Quantize models by several methods in several schemes.

    Parameters
    ----------
    methods : mapping of str to recipe
    schemes : mapping of str to str
        What a scheme is called, and its name in full.
    size : mapping
        ``models``, ``schemes``, ``samples`` and ``windows``.
    budget, seeds, progress, factor
        As for :class:`Lab`, one for each seed.

    Returns
    -------
    rows, means : list of dict
        The divergence by ``model``, ``scheme``, ``method`` and ``seed``, and in the mean over seeds.
    """
    rows = []
    for model, seed in counted([(model, seed) for model in size["models"] for seed in seeds], progress):
        lab = Lab(model, budget, seed, size["samples"], size["windows"], factor)
        for scheme in size["schemes"]:
            for name, recipe in methods.items():
                lost = lab.lost(lab.quantized(recipe, schemes[scheme]).model)
                rows.append({"model": model, "scheme": scheme, "method": name, "seed": seed, "divergence": lost})
    return rows, means(rows, "model", "scheme", "method")


def _opened(model: str, budget: str, factor: float, seed: int, training: int) -> Any:
    from farout.claims._passages import smollm2
    from farout.claims._planted import plant
    from farout.claims._small_models import small_language_model
    from farout.data.pretrained import pretrained
    from farout.io.models import open_model

    if model not in DECODERS:
        return smollm2() if model == "SmolLM2" else open_model(pretrained("minilm-l6"))
    opened = small_language_model(model, budget, training)
    return opened if factor == 1 else plant(opened, CHANNELS, factor, seed=seed)[0]
