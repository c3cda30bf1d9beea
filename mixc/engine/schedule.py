"""Which task a worker does next: tasks stand in chains, and workers stay with their chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")


@dataclass(frozen=True)
class Chain(Generic[Task]):
    """Tasks in a row, cheapest if one worker does them all; idle workers help out all the same.

    `task(n)` makes the n-th, in the parent. Where `length` is None the chain goes on until a
    result says that it has ended; results past that end are dropped.
    """

    task: Callable[[int], Task]
    size: float = 1.0
    length: int | None = 1


@dataclass
class _State:
    """How far a chain is: tasks handed out and given over, results that wait, who is at it."""

    length: int | None
    size: float
    handed_out: int = 0
    given: int = 0
    waiting: dict[int, Any] = field(default_factory=dict)
    workers: set[int] = field(default_factory=set)

    @property
    def open(self) -> bool:
        return self.length is None or self.handed_out < self.length


class Schedule:
    """Hands out the places (chain, n) of tasks, and puts results into order.

    Once every chain has a worker, idle ones help with the largest. `ahead` bounds how far past
    the oldest unfinished chain tasks are handed out.
    """

    def __init__(self, chains: Sequence[Chain[Any]], ahead: int | None) -> None:
        self._states = [_State(chain.length, chain.size) for chain in chains]
        self._ahead = ahead
        self._at: dict[int, int] = {}
        self._untouched = 0
        self._oldest = 0

    def next(self, worker: int) -> tuple[int, int] | None:
        """(chain, n), or None if there is nothing for this worker to do now."""
        chain = self._at.get(worker)
        if chain is None or not self._states[chain].open:
            chain = self._choose()
        if chain is None:
            return None
        state = self._states[chain]
        state.workers.add(worker)
        if self._at.get(worker, chain) != chain:
            self._states[self._at[worker]].workers.discard(worker)
        self._at[worker] = chain
        state.handed_out += 1
        return chain, state.handed_out - 1

    def _choose(self) -> int | None:
        limit = len(self._states)
        if self._ahead is not None:
            limit = min(limit, self._oldest + self._ahead)
        if self._untouched < limit:
            self._untouched += 1
            return self._untouched - 1
        shared = [i for i in range(self._oldest, self._untouched) if self._states[i].open]
        return max(
            shared,
            key=lambda i: (self._states[i].size / (1 + len(self._states[i].workers)), -i),
            default=None,
        )

    def done(
        self, place: tuple[int, int], result: Any, ended: bool
    ) -> Iterator[tuple[int, int, Any]]:
        """Note a result; yield what can be given over now, each chain's results in order."""
        chain, number = place
        state = self._states[chain]
        state.waiting[number] = result
        if ended and (state.length is None or number + 1 < state.length):
            state.length = number + 1
        while state.given in state.waiting and state.given != state.length:
            yield chain, state.given, state.waiting.pop(state.given)
            state.given += 1
        while self._oldest < len(self._states):
            oldest = self._states[self._oldest]
            if oldest.given != oldest.length:
                break
            self._oldest += 1
