"""The facts that a recording holds, and what can be done with them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput, UnknownName
from farout.inside._accumulators import ChannelStats
from farout.io.state import read_state, saved, write_state

if TYPE_CHECKING:
    import polars as pl

STILL = ("weight", "moment")  # facts about the model as it is, which no batch adds to
_WORDS, _NUMBERS = ("site", "kind"), ("peak", "ratio", "kurtosis")
_COLUMNS = (
    *_WORDS,
    "names",
    "calls",
    "channels",
    "peak",
    "channel",
    "position",
    "ratio",
    "kurtosis",
    "nan",
    "infinite",
)


@saved("recording")
@dataclass
class Recording:
    """Facts about the numbers in a model, by site; recordings of parts of the data merge into that of all of it.

    Attributes
    ----------
    stats : dict of str to ChannelStats or AttentionStats
        By the name of the site.
    kinds : dict of str to str
        The kind of every site, those in ``aliases`` too.
    aliases : dict of str to str
        Sites that carry the same tensor as another one.
    calls : dict of str to int
        How often each site was passed.
    batches : int
    notes : list of str
        What a reader should know, in sentences.
    """

    stats: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        """Return the facts about a site, under any of its names.

        Raises
        ------
        UnknownName
        """
        name = self.aliases.get(name, name)
        if name not in self.stats:
            raise UnknownName("site of the recording", name, self.kinds)
        return self.stats[name]

    def __contains__(self, name: object) -> bool:
        return self.aliases.get(name, name) in self.stats  # type: ignore[call-overload]

    def names(self, kind: str | None = None, where: str = "*") -> list[str]:
        """Return the names of sites of a kind that match a pattern, aliases among them."""
        return [name for name, of in self.kinds.items() if kind in (None, of) and fnmatchcase(name, where)]

    def merge(self, other: Recording) -> Recording:
        """Return the recording of both parts of the data together.

        Raises
        ------
        BadInput
            The recordings are of models with other weights or other widths.
        """
        kinds, stats, notes = {**self.kinds, **other.kinds}, dict(self.stats), [*self.notes]
        for name, theirs in other.stats.items():
            if name not in stats:
                stats[name] = theirs
            elif kinds[name] not in STILL:
                stats[name] = stats[name].merge(theirs)
            elif not _same(stats[name], theirs):
                raise BadInput(
                    f"the recordings differ in '{name}', which data do not change: they are of different models, or of "
                    "one model before and after a step; compare them instead of merging"
                )
        aliases = {**other.aliases, **self.aliases}
        for name in [name for name in aliases if name in stats]:
            notes.append(f"'{name}' shares a tensor with '{aliases.pop(name)}' in a part of the data only")
        return Recording(
            stats,
            kinds,
            aliases,
            dict(Counter(self.calls) + Counter(other.calls)),
            self.batches + other.batches,
            list(dict.fromkeys([*notes, *other.notes])),
        )

    def gathered(self, group: Any = None) -> Recording:
        """Return the recording of all ranks of ``torch.distributed`` together, on each of them; itself without ranks.

        Ranks exchange what they have merged (kilobytes a site) once, at the end, rather than all-reduce it: ranks may
        have met different sites and lengths, and moments of higher order do not add up.

        Parameters
        ----------
        group : process group, optional
        """
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return self
        parts: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(parts, self, group)
        total = parts[0]
        for part in parts[1:]:
            total = total.merge(part)
        return total

    def save(self, path: str | Path) -> None:
        """Write the recording to one file, without pickle."""
        write_state(path, self)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read what :meth:`save` wrote; nothing in the file is run.

        Raises
        ------
        BadInput
            The file is missing, damaged, or holds something else.
        """
        found = read_state(path)
        if not isinstance(found, cls):
            raise BadInput(f"'{path}' holds a '{type(found).__name__}', and not a recording")
        return found

    def table(self) -> pl.DataFrame:
        """Return one row for each recorded site of channels, in the order in which they were met.

        ``peak`` is the largest absolute value, ``channel`` and ``position`` say where it stands, ``ratio`` is it over
        the median of the channels' largest ones, ``names`` counts the sites that share the tensor.
        """
        import polars as pl

        names, rows = Counter(self.aliases.values()), []
        for name, stats in self.stats.items():
            if isinstance(stats, ChannelStats):
                nowhere: list[Any] = [(float("nan"), None, None)]
                peak, position, channel = (stats.peaks(1) or nowhere)[0]
                middle = float(np.median(stats.absmax))
                ratio = peak / middle if middle > 0 else float("inf")
                bad = int(stats.nan.sum()), int(stats.infinite.sum())
                head = name, self.kinds[name], names[name] + 1, self.calls.get(name, 0), len(stats.count)
                rows.append((*head, peak, channel, position, ratio, stats.kurtosis, *bad))
        kinds = dict.fromkeys(_WORDS, pl.String) | dict.fromkeys(_NUMBERS, pl.Float64)
        return pl.DataFrame(rows, schema=[(word, kinds.get(word, pl.Int64)) for word in _COLUMNS], orient="row")


def _same(a: Any, b: Any) -> bool:
    """Whether two facts agree in every field."""
    return type(a) is type(b) and all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=True) for f in fields(a)
    )
