"""Where work runs: threads of this process, or a Dask cluster. Work is always a map, then a tree of merges.

States merge, so a fit over partitions needs no shuffle: each partition sends a small state, and pairs of states merge
until one is left. Tasks are handed paths and row ranges, never data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from typing import Any, Protocol, TypeVar

from farout.errors import BadInput, MissingExtra

A = TypeVar("A")
B = TypeVar("B")
Work = Callable[[Any, Any], Any]
Merge = Callable[[Any, Any], Any]
Done = Callable[[], None]


def in_threads(work: Callable[[A], B], items: Iterable[A], n_jobs: int | None) -> Iterator[B]:
    """Map in order, over threads when there is more than one; numpy releases the lock in sorts and arithmetic.

    Parameters
    ----------
    n_jobs : int, optional
        As in scikit-learn: None is 1 unless a joblib context says otherwise, -1 is every core.

    Examples
    --------
    >>> list(in_threads(abs, [-1, -2], n_jobs=2))
    [1, 2]
    """
    from joblib import effective_n_jobs

    workers = effective_n_jobs(n_jobs)
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as threads:
        yield from threads.map(work, items)


class Engine(Protocol):
    """Runs a map over partitions, or a map and a tree of merges; ``work(shared, item)`` is a module's function."""

    def map(self, work: Work, items: Sequence[Any], shared: Any, done: Done) -> Iterator[Any]:
        """Yield ``work(shared, item)`` in the order of the items, calling ``done`` after each."""

    def map_reduce(self, work: Work, merge: Merge, items: Sequence[Any], shared: Any, done: Done) -> Any:
        """Return all ``work(shared, item)`` merged."""


class Local:
    """One partition after another, in this process, in bounded memory."""

    def map(self, work: Work, items: Sequence[Any], shared: Any, done: Done) -> Iterator[Any]:
        """Yield ``work(shared, item)`` in the order of the items, calling ``done`` after each."""
        for item in items:
            result = work(shared, item)
            done()
            yield result

    def map_reduce(self, work: Work, merge: Merge, items: Sequence[Any], shared: Any, done: Done) -> Any:
        """Return all ``work(shared, item)`` merged, one after another."""
        return reduce(merge, self.map(work, items, shared, done))


class Dask:
    """A Dask cluster. Work lost with a worker is done again elsewhere, so the result does not depend on it.

    What is shared is a task of its own: it travels once to each worker, and is made anew where a worker is lost.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def map(self, work: Work, items: Sequence[Any], shared: Any, done: Done) -> Iterator[Any]:
        """Yield ``work(shared, item)`` in the order of the items, calling ``done`` after each."""
        futures = self._futures(work, items, shared)
        while futures:
            result = futures.pop(0).result()  # and let the cluster forget it
            done()
            yield result

    def map_reduce(self, work: Work, merge: Merge, items: Sequence[Any], shared: Any, done: Done) -> Any:
        """Return all ``work(shared, item)`` merged pair by pair."""
        level = self._futures(work, items, shared)
        for future in level:
            future.add_done_callback(lambda _: done())
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            level = [self.client.submit(merge, *pair, pure=False) if len(pair) == 2 else pair[0] for pair in pairs]
        return level[0].result()

    def _futures(self, work: Work, items: Sequence[Any], shared: Any) -> list[Any]:
        common = self.client.submit(_same, shared, pure=False)
        return [self.client.submit(work, common, item, pure=False) for item in items]


def _same(value: A) -> A:
    return value


@contextmanager
def engine(kind: str, scheduler: str | None = None) -> Iterator[Engine]:
    """Open an engine: ``"local"``, or ``"dask"`` on the cluster at ``scheduler`` (a local one where none is given).

    Raises
    ------
    MissingExtra
        When Dask is not installed.
    BadInput
        When no scheduler answers at the address.
    """
    if kind == "local":
        yield Local()
        return
    if kind != "dask":
        raise BadInput(f"an engine is 'local' or 'dask', not '{kind}'")
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingExtra("the Dask engine", "dist") from error
    # not as Dask's default: what the caller does with Dask beside us must run where it ran before
    if scheduler:
        try:
            client = Client(scheduler, timeout="10s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise BadInput(f"no Dask scheduler answers at '{scheduler}' ({error})") from error
        with client:
            yield Dask(client)
    else:
        # one thread a worker: sorting keeps a core busy
        with (
            LocalCluster(threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield Dask(client)
