"""Tasks on local processes. Tasks are pure: their results depend on nothing but themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from mixc.errors import MixcError

Context = TypeVar("Context")
Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[float], None]

_IN_FLIGHT = 4  # tasks per worker handed out ahead of the oldest unfinished one
_MEMORY = "out of memory, perhaps: try fewer --workers; finished work is kept"


@dataclass(frozen=True)
class Chain(Generic[Task]):
    """Tasks in a row, cheapest if one worker does them all; idle workers help out all the same.

    `task(n)` makes the n-th, in the parent. Where `length` is None the chain goes on until a
    result says that it has ended; results past that end are dropped.
    """

    task: Callable[[int], Task]
    size: float = 1.0
    length: int | None = 1


def run(
    function: Callable[[Context, Task, Report], Result],
    tasks: Sequence[Task],
    *,
    setup: Callable[..., Context],
    arguments: tuple[object, ...],
    workers: int,
    report: Report,
) -> Iterator[Result]:
    """Yield `function(context, task, report)` for each task, in the order of tasks.

    Each worker makes its own context, `setup(*arguments)`, once. `report` is called in this
    process with what the workers report. Raises MX046 if a worker dies.
    """
    chains = [Chain(lambda _, task=task: task) for task in tasks]  # type: ignore[misc]
    waiting: dict[int, Result] = {}
    done = run_chains(
        function,
        chains,
        ended=lambda _: True,
        setup=setup,
        arguments=arguments,
        workers=workers,
        report=report,
        ahead=_IN_FLIGHT * workers,
    )
    following = 0
    for number, _, result in done:
        waiting[number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def run_chains(
    function: Callable[[Context, Task, Report], Result],
    chains: Sequence[Chain[Task]],
    *,
    ended: Callable[[Result], bool],
    setup: Callable[..., Context],
    arguments: tuple[object, ...],
    workers: int,
    report: Report,
    ahead: int | None = None,
) -> Iterator[tuple[int, int, Result]]:
    """Yield (chain, n, result) of every task; each chain's in order, the chains as they go.

    Workers stay with their chain. Once every chain has a worker, idle ones help with the largest.
    `ahead` bounds how far past the oldest unfinished chain tasks are handed out. After an error
    what is under way is finished; then the first of its errors, in the order of chains, is raised.
    """
    schedule = _Schedule(chains, ahead)
    if workers == 1 or (len(chains) <= 1 and all(chain.length == 1 for chain in chains)):
        context = setup(*arguments)
        while (place := schedule.next(0)) is not None:
            result = function(context, chains[place[0]].task(place[1]), report)
            yield from schedule.done(place, result, ended(result))
        return
    if all(chain.length == 1 for chain in chains):
        workers = min(workers, len(chains))
    crew = _Crew(workers, function, setup, arguments)
    try:
        yield from _driven(crew, schedule, chains, ended, report)
    finally:
        crew.dismiss()


def _driven(
    crew: _Crew,
    schedule: _Schedule,
    chains: Sequence[Chain[Any]],
    ended: Callable[[Any], bool],
    report: Report,
) -> Iterator[tuple[int, int, Any]]:
    """Hand tasks out and results over, until nothing is left or something fails."""
    places: dict[int, tuple[int, int]] = {}
    failures: dict[tuple[int, int], BaseException] = {}

    def hand_out() -> None:
        for worker in crew.members:
            if worker not in places and (place := schedule.next(worker)) is not None:
                crew.give(worker, chains[place[0]].task(place[1]))
                places[worker] = place

    hand_out()
    while places:
        for worker, kind, value in crew.hear():
            if kind == "report":
                # Whatever becomes of the display, the work goes on.
                with suppress(Exception):
                    report(value)
            elif kind == "failed":
                failures[places.pop(worker)] = value
            else:
                yield from schedule.done(places.pop(worker), value, ended(value))
        if not failures:
            hand_out()
    if failures:
        raise failures[min(failures)]


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


class _Schedule:
    """Which task a worker does next."""

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


class _Crew:
    """Spawned workers, each at the other end of a pipe."""

    def __init__(
        self,
        count: int,
        function: Callable[..., object],
        setup: Callable[..., object],
        arguments: tuple[object, ...],
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes: dict[int, Connection] = {}
        self._processes = []
        for number in range(count):
            try:
                ours, theirs = spawn.Pipe()
                process = spawn.Process(
                    target=_serve, args=(theirs, function, setup, arguments), daemon=True
                )
                process.start()
            except OSError as error:
                reason = f"a worker process cannot be started: {(error.strerror or '').lower()}"
                raise MixcError("MX046", reason, help="try fewer --workers") from error
            theirs.close()
            self._pipes[number] = ours
            self._processes.append(process)

    @property
    def members(self) -> Sequence[int]:
        """The workers' numbers."""
        return range(len(self._processes))

    def give(self, worker: int, task: object) -> None:
        """Hand a task to an idle worker."""
        try:
            self._pipes[worker].send(task)
        except OSError as error:
            raise _died() from error

    def hear(self) -> list[tuple[int, str, Any]]:
        """What the workers say, at least one of them: (worker, kind, value)."""
        ready = wait(list(self._pipes.values()))
        heard = []
        for worker, pipe in self._pipes.items():
            if pipe in ready:
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError) as error:
                    raise _died() from error
                heard.append((worker, kind, value))
        return heard

    def dismiss(self) -> None:
        """End the workers; what is staged survives whatever they were at."""
        for process in self._processes:
            process.terminate()
        for process, pipe in zip(self._processes, self._pipes.values(), strict=True):
            process.join()
            pipe.close()


def _died() -> MixcError:
    return MixcError("MX046", "a worker process died", help=_MEMORY)


def _serve(
    pipe: Connection,
    function: Callable[..., object],
    setup: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    """A worker's life. It ends at once when its parent does, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    failure: Exception | None = None
    context: object = None
    try:
        context = setup(*arguments)
    except Exception as error:  # for the first task to say
        failure = _explained(error)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        if failure is not None:
            pipe.send(("failed", failure))
            continue
        try:
            result = function(context, task, lambda amount: pipe.send(("report", amount)))
        except Exception as error:
            pipe.send(("failed", _explained(error)))
        else:
            pipe.send(("done", result))


def _explained(error: Exception) -> Exception:
    """An error that travels: those that are not ours bring their traceback along."""
    if type(error).__module__.partition(".")[0] == "mixc":
        return error
    if isinstance(error, MemoryError):
        return MixcError("MX046", "a worker process ran out of memory", help=_MEMORY)
    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
