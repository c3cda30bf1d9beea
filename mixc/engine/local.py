"""Tasks on local processes. Tasks are pure: their results depend on nothing but themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from mixc.engine.schedule import Chain, Schedule
from mixc.errors import MixcError

Context = TypeVar("Context")
Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[float], None]

_IN_FLIGHT = 4  # tasks per worker handed out ahead of the oldest unfinished one
_MEMORY = "out of memory, perhaps: try fewer --workers; finished work is kept"


def run(
    function: Callable[[Context, Task, Report], Result],
    tasks: Sequence[Task],
    *,
    setup: Callable[..., Context],
    arguments: tuple[object, ...],
    workers: int,
    report: Report,
) -> Iterator[Result]:
    """Yield `function(setup(*arguments), task, report)` for each task, by a crew of their own."""
    with Crew(max(1, min(workers, len(tasks)))) as crew:
        crew.prepare(setup, *arguments)
        yield from crew.run(function, tasks, report)


class Crew:
    """Workers: spawned processes that start at once, or, of one, this process itself.

    `prepare` says what each makes for itself, its context, before the next task. Runs follow one
    another and are taken to their end. Raises MX046 if a worker cannot be started, or dies.
    """

    def __init__(self, workers: int) -> None:
        self.workers = max(1, workers)
        self._context: Any = None
        self._setup: tuple[Callable[..., Any], tuple[object, ...]] | None = None
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for _ in range(workers if workers > 1 else 0):
            try:
                self._spawn()
            except OSError as error:
                self.dismiss()
                reason = f"a worker process cannot be started: {(error.strerror or '').lower()}"
                raise MixcError("MX046", reason, help="try fewer --workers") from error

    def _spawn(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        self._pipes.append(ours)
        process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        self._processes.append(process)
        theirs.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """End the workers; what is staged survives whatever they were at."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def prepare(self, setup: Callable[..., Any], *arguments: object) -> None:
        """Have each worker make its context anew, `setup(*arguments)`; its errors meet tasks."""
        self._context, self._setup = None, (setup, arguments)
        for pipe in self._pipes:
            _send(pipe, ("prepare", setup, arguments))

    def run(
        self,
        function: Callable[[Any, Task, Report], Result],
        tasks: Sequence[Task],
        report: Report,
    ) -> Iterator[Result]:
        """Yield `function(context, task, report)` for each task, in the order of tasks.

        `report` is called in this process with what the workers report.
        """
        chains = [Chain(lambda _, task=task: task) for task in tasks]  # type: ignore[misc]
        ahead = _IN_FLIGHT * max(1, len(self._pipes))
        waiting: dict[int, Result] = {}
        following = 0
        for number, _, result in self.run_chains(
            function, chains, accept=lambda _: True, report=report, ahead=ahead
        ):
            waiting[number] = result
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def run_chains(
        self,
        function: Callable[[Any, Task, Report], Result],
        chains: Sequence[Chain[Task]],
        *,
        accept: Callable[[Result], bool],
        report: Report,
        ahead: int | None = None,
    ) -> Iterator[tuple[int, int, Result]]:
        """Yield (chain, n, result) of every task; each chain's in order, the chains as they go.

        `accept` is called in this process with each result, and says whether it is its chain's
        last; what it raises counts as the task's own error. After an error what is under way is
        finished; then the first of the errors, in the order of chains, is raised.
        """
        schedule, report = Schedule(chains, ahead), quiet(report)
        if self._pipes:
            yield from self._driven(function, schedule, chains, accept, report)
            return
        while (place := schedule.next(0)) is not None:
            if self._setup is not None:
                (setup, arguments), self._setup = self._setup, None
                self._context = setup(*arguments)
            result = function(self._context, chains[place[0]].task(place[1]), report)
            yield from schedule.done(place, result, accept(result))

    def _driven(
        self,
        function: Callable[..., Any],
        schedule: Schedule,
        chains: Sequence[Chain[Any]],
        accept: Callable[[Any], bool],
        report: Report,
    ) -> Iterator[tuple[int, int, Any]]:
        """Hand tasks out and results over, until nothing is left or something fails."""
        places: dict[int, tuple[int, int]] = {}
        failures: dict[tuple[int, int], BaseException] = {}

        def hand_out() -> None:
            for worker, pipe in enumerate(self._pipes):
                if worker not in places and (place := schedule.next(worker)) is not None:
                    _send(pipe, ("task", function, chains[place[0]].task(place[1])))
                    places[worker] = place

        hand_out()
        while places:
            for worker, kind, value in self._hear():
                if kind == "report":
                    report(value)
                    continue
                place = places.pop(worker)
                last, failure = _accepted(accept, kind, value)
                if failure is None:
                    yield from schedule.done(place, value, last)
                else:
                    failures[place] = failure
            if not failures:
                hand_out()
        if failures:
            raise failures[min(failures)]

    def _hear(self) -> list[tuple[int, str, Any]]:
        """What the workers say, at least one of them: (worker, kind, value)."""
        ready = wait(self._pipes)
        heard = []
        for worker, pipe in enumerate(self._pipes):
            if pipe in ready:
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError) as error:
                    raise _died() from error
                heard.append((worker, kind, value))
        return heard


def quiet(report: Report) -> Report:
    """Whatever becomes of the display, the work goes on."""

    def quietly(amount: float) -> None:
        with suppress(Exception):
            report(amount)

    return quietly


def _accepted(
    accept: Callable[[Any], bool], kind: str, value: Any
) -> tuple[bool, BaseException | None]:
    """Of a task that is over: whether it is its chain's last, or its error."""
    if kind == "failed":
        return False, value
    try:
        return accept(value), None
    except Exception as error:
        return False, error


def _send(pipe: Connection, message: tuple[object, ...]) -> None:
    try:
        pipe.send(message)
    except OSError as error:
        raise _died() from error


def _died() -> MixcError:
    return MixcError("MX046", "a worker process died", help=_MEMORY)


def _serve(pipe: Connection) -> None:
    """A worker's life. It ends at once when its parent does, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    context: Any = None
    failure: Exception | None = None
    while True:
        try:
            kind, function, value = pipe.recv()
        except EOFError:
            return
        if kind == "prepare":
            context = None  # before the next, so that never two are held
            context, failure = _prepared(function, value)
        elif failure is not None:
            pipe.send(("failed", failure))
        else:
            pipe.send(_answer(function, context, value, pipe))


def _prepared(
    setup: Callable[..., Any], arguments: tuple[object, ...]
) -> tuple[Any, Exception | None]:
    try:
        return setup(*arguments), None
    except Exception as error:  # for the first task to say
        return None, explained(error)


def _answer(
    function: Callable[..., Any], context: Any, task: Any, pipe: Connection
) -> tuple[str, Any]:
    try:
        return "done", function(context, task, lambda amount: pipe.send(("report", amount)))
    except Exception as error:
        return "failed", explained(error)


def explained(error: Exception) -> Exception:
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
