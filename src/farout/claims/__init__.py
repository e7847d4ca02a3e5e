"""One file a paper: its own claim, run again in small, against a threshold that was written down before the run."""

from __future__ import annotations

from farout.claims._claim import BUDGETS, Claim, as_text, run
from farout.claims._files import read, save

__all__ = ["BUDGETS", "Claim", "as_text", "read", "run", "save"]
