"""What the kinds of findings share: layers as arrays, English lists, and remedies with what they would gain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from farout.inside._accumulators import ChannelStats
from farout.inside._layers import Layer, layers_of
from farout.inside._recording import Recording
from farout.inside.quantization_cost import REMEDIES, Cost

SIMPLER = 0.05  # of the cost: so much more may a simpler remedy leave

# what a remedy does, in words that go on after "Use ..."
DOES = {
    "per-token scales": "a scale for each token (dynamic) instead of one for the tensor",
    "smoothquant": "SmoothQuant, which moves the range of input channels into the weights",
    "rotation": "a rotation of the channels (QuaRot), which spreads a peak over many channels",
    "outlier columns in 16 bits": "LLM.int8(), which multiplies the columns beyond 6 in 16 bits",
    "first token in 16 bits": "16 bits for the first token, such as a prefix that is kept unquantized",
    "groups of 128": "a scale for each 128 weights",
}


def residual(recording: Recording) -> list[tuple[Layer, ChannelStats]]:
    """Return the layers that a recording saw, each with the facts about the residual stream after it."""
    found = []
    for layer in layers_of(recording):
        if layer.leaves in recording:
            stats = recording[layer.leaves]
            if isinstance(stats, ChannelStats) and stats.count.any():
                found.append((layer, stats))
    return found


def channel_sites(recording: Recording, *kinds: str) -> Iterator[tuple[str, ChannelStats]]:
    """Iterate over the recorded sites of some kinds, each tensor once, under its first name of these kinds."""
    seen = set()
    for kind in kinds:
        for name in recording.names(kind):
            main = recording.aliases.get(name, name)
            stats = recording[name]
            if main not in seen and isinstance(stats, ChannelStats) and stats.count.any():
                seen.add(main)
                yield name, stats


def runs(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of each row of consecutive numbers.

    Examples
    --------
    >>> runs([1, 2, 3, 7])
    [(1, 3), (7, 7)]
    """
    found: list[tuple[int, int]] = []
    for i in sorted(set(indices)):
        if found and found[-1][1] == i - 1:
            found[-1] = found[-1][0], i
        else:
            found.append((i, i))
    return found


def listed(items: Iterable[object], most: int = 6) -> str:
    """Write a list as English does.

    Examples
    --------
    >>> listed([3, 5, 8]), listed(range(9))
    ('3, 5 and 8', '0, 1, 2, 3, 4, 5 and 3 more')
    """
    words = [str(item) for item in items]
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plural(one: str, items: Sequence[object], many: str = "") -> str:
    """Write a noun in front of a list of what it names.

    Examples
    --------
    >>> plural("channel", [3]), plural("channel", [3, 5])
    ('channel 3', 'channels 3 and 5')
    """
    return f"{one if len(items) == 1 else many or one + 's'} {listed(items)}"


def in_layers(indices: Iterable[int]) -> str:
    """Name layers by their spans.

    Examples
    --------
    >>> in_layers([4]), in_layers([1, 2, 3, 7])
    ('layer 4', 'layers 1-3 and 7')
    """
    spans = [str(a) if a == b else f"{a}-{b}" for a, b in runs(indices)]
    return f"{'layer' if len(spans) == 1 and '-' not in spans[0] else 'layers'} {listed(spans)}"


def best_remedy(
    costs: Sequence[Cost], scheme: str, among: Sequence[str], otherwise: str
) -> tuple[str, str, float | None]:
    """Choose the remedy that leaves the least, and say it: words, recipe, share of the cost that is left.

    Parameters
    ----------
    costs : list of Cost
        Of the maps that it concerns; empty where nothing was measured, and then ``otherwise`` is named.
    scheme : str
    among : list of str
        Remedies, the simplest first, which is taken where it leaves little more than the best.
    otherwise : str
    """
    if not costs or total(costs, scheme) == 0:
        return f"Use {DOES[otherwise]}.", REMEDIES[otherwise], None
    shares = {remedy: left(costs, scheme, remedy) for remedy in among}
    chosen = next(remedy for remedy in among if shares[remedy] <= min(shares.values()) + SIMPLER)
    best = shares[chosen]
    if best > 0.9:
        return "None of the remedies that were tried helps much; keep these maps in 16 bits.", "", best
    return f"Use {DOES[chosen]}: predicted to leave {best:.0%} of the cost at {scheme}.", REMEDIES[chosen], best


def total(costs: Sequence[Cost], scheme: str, remedy: str = "") -> float:
    """Add up the predicted losses of some maps, or their errors where no loss is predicted."""
    return sum(cost.of(scheme, remedy) for cost in costs)


def left(costs: Sequence[Cost], scheme: str, remedy: str) -> float:
    """Return the share of the cost of some maps that a remedy leaves."""
    whole = total(costs, scheme)
    return total(costs, scheme, remedy) / whole if whole else 1.0
