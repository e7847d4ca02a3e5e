"""What is said about a model: a finding, with its size, its evidence and what helps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from farout.io.state import saved


@saved("finding")
@dataclass(frozen=True)
class Finding:
    """One thing about the numbers in a model that its user should know.

    Attributes
    ----------
    kind : str
        Such as ``"massive activation"``: one of :data:`farout.inside.diagnosis.KINDS`.
    where : str
        The site, as :func:`farout.inside.record` names it, where it is strongest.
    size : float
        How many times the bound of its kind it is; 1 is just enough to be said. Findings are ranked by rank and size.
    says : str
        The finding in a sentence that an engineer understands who never saw this model.
    evidence : dict of str to Any
        The numbers behind the sentence: plain numbers, words and lists of them.
    remedy : str
        What to do, in a sentence; empty where there is nothing to do.
    recipe : str
        The recipe or training method of this library that the remedy names, by its slug; empty for none.
    gain : float or None
        Predicted: the error that is left with the remedy over the error without it; None where it is not predicted.
    """

    kind: str
    where: str
    size: float
    says: str
    evidence: dict[str, Any] = field(default_factory=dict)
    remedy: str = ""
    recipe: str = ""
    gain: float | None = None
