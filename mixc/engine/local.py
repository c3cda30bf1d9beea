"""Tasks on local processes. Tasks are pure: their results depend on nothing but themselves."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

_GRACE_S = 5
_IN_FLIGHT = 4  # tasks per worker handed out ahead of the oldest unfinished one
_MEMORY = "out of memory, perhaps: try fewer --workers; finished work is kept"


class Crew:
    """Workers: processes that start at once, or, of one, this process itself unless `apart`.

    The workers are forked from one fresh process, a spawned one without threads of its own, after
    it has called `first`: what that loads is loaded once and shared by all. It is a head start and
    no more: its errors are met again by whoever needs what it should have loaded.

    `prepare` says what each makes for itself, its context, before the next task. Runs follow one
    another and are taken to their end. Raises MX046 if a worker cannot be started, or dies.
    """

    def __init__(
        self, workers: int, first: Callable[[], object] | None = None, *, apart: bool = False
    ) -> None:
        self.workers = max(1, workers)
        self._context: Any = None
        self._setup: tuple[Callable[..., Any], tuple[object, ...]] | None = None
        self._pipes: list[Connection] = []
        self._parent: BaseProcess | None = None
        # A message may be large, and its reader not be ready: nobody waits for that here.
        self._sender = ThreadPoolExecutor(1)
        self._sent: list[Future[None]] = []
        if workers > 1 or apart:
            try:
                self._spawn(first)
            except OSError as error:
                self.dismiss()
                reason = f"a worker process cannot be started: {(error.strerror or '').lower()}"
                raise MixcError("MX046", reason, help="try fewer --workers") from error

    def _spawn(self, first: Callable[[], object] | None) -> None:
        spawn = multiprocessing.get_context("spawn")
        theirs: list[Connection] = []
        try:
            for _ in range(self.workers):
                our_end, their_end = spawn.Pipe()
                self._pipes.append(our_end)
                theirs.append(their_end)
            self._parent = spawn.Process(target=_fork_workers, args=(theirs,), daemon=True)
            self._parent.start()
        finally:
            for pipe in theirs:
                pipe.close()
        self._send_later(self._pipes[:1], first)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """End the workers; what is staged survives whatever they were at."""
        if self._parent is not None and self._parent.pid is not None:
            self._parent.terminate()
            self._parent.join(_GRACE_S)
            self._parent.kill()  # one that was started with SIGTERM ignored
            self._parent.join()
        self._sender.shutdown()
        for pipe in self._pipes:
            # A pipe is at its end once its worker, whom its parent takes along, is gone.
            with suppress(EOFError, OSError):
                while True:
                    pipe.recv_bytes()
            pipe.close()

    def prepare(self, setup: Callable[..., Any], *arguments: object) -> None:
        """Have each worker make its context anew, `setup(*arguments)`; its errors meet tasks."""
        self._context, self._setup = None, (setup, arguments)
        self._send_later(self._pipes, ("prepare", setup, arguments))

    def _send_later(self, pipes: list[Connection], message: object) -> None:
        """Send before whatever the next run sends, which raises what this meets."""
        self._sent += [self._sender.submit(_send, pipe, message) for pipe in pipes]

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
            while self._sent:
                self._sent.pop(0).result()
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


def _send(pipe: Connection, message: object) -> None:
    try:
        pipe.send(message)
    except OSError as error:
        raise _died() from error


def _died() -> MixcError:
    return MixcError("MX046", "a worker process died", help=_MEMORY)


def _fork_workers(pipes: list[Connection]) -> None:
    """The life of the workers' parent: they end at once when it does, as it does with its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        first = pipes[0].recv()
    except EOFError:
        return
    with suppress(BaseException):
        if first is not None:
            first()
    gc.freeze()  # else the collector would write to what is shared
    workers: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: _end(workers))
    bond, held = os.pipe()
    for mine in pipes:
        worker = os.fork()
        if worker == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(held)
            for pipe in pipes:
                if pipe is not mine:
                    pipe.close()
            threading.Thread(target=_die_at_end, args=(bond,), daemon=True).start()
            try:
                _serve(mine)
            except BaseException:
                traceback.print_exc()
            finally:  # never into what this process was a copy of
                os._exit(0)
        workers.append(worker)
    for pipe in pipes:
        pipe.close()
    own = multiprocessing.parent_process()
    if own is not None:
        own.join()
    _end(workers)


def _end(workers: list[int]) -> None:
    """End this process and its workers. They are waited for: so their time is counted as ours."""
    for worker in workers:
        with suppress(OSError):
            os.kill(worker, signal.SIGKILL)
    for worker in workers:
        with suppress(OSError):
            os.waitpid(worker, 0)
    os._exit(0)


def _die_at_end(bond: int) -> None:
    """End this process when no other holds the far end of a pipe."""
    os.read(bond, 1)
    os._exit(1)


def _serve(pipe: Connection) -> None:
    """A worker's life."""
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
