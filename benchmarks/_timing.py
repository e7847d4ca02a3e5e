"""Timing for machines that are noisy: the rivals take turns, each keeps its best time, and only ratios are printed."""

from __future__ import annotations

import time
from collections.abc import Callable


def best(rivals: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Return each rival's best time in seconds; they run in turns, so that a slow spell of the machine hits all."""
    seconds = dict.fromkeys(rivals, float("inf"))
    for _ in range(rounds):
        for name, work in rivals.items():
            start = time.perf_counter()
            work()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def report(title: str, seconds: dict[str, float], floor: str, limits: dict[str, float]) -> None:
    """Print each rival's ratio to the floor, beside its limit where it has one."""
    print(f"\n{title}  (floor: {floor}, {seconds[floor]:.3g} s here)")
    for name, time_ in seconds.items():
        if name != floor:
            ratio = time_ / seconds[floor]
            limit = limits.get(name)
            verdict = "" if limit is None else f"   limit {limit:g}   {'ok' if ratio <= limit else 'TOO SLOW'}"
            print(f"  {name:36} {ratio:8.2f} x{verdict}")
