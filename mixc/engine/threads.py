"""Work shared out to threads, its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    call: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """`call` of each item, by so many threads; by none of one worker.

    At most `workers + 1` items are under way, done and not yet asked for, or in the caller's
    hands. The first error ends it; what has begun is waited for.
    """
    if workers < 2:
        yield from map(call, items)
        return
    waiting, pending = iter(items), deque[Future[Result]]()
    crew = ThreadPoolExecutor(workers)
    try:
        while True:
            for item in islice(waiting, workers + 1 - len(pending)):
                pending.append(crew.submit(call, item))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        crew.shutdown(cancel_futures=True)
