"""Tasks on local processes. Tasks are pure: their results depend on nothing but themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

from mixc.errors import MixcError

Context = TypeVar("Context")
Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[float], None]

_IN_FLIGHT = 4  # tasks per worker handed out ahead of the oldest unfinished one

_context: Any = None
_report: Report = lambda amount: None  # noqa: ARG005, E731


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
    if workers == 1 or len(tasks) <= 1:
        context = setup(*arguments)
        for task in tasks:
            yield function(context, task, report)
        return
    spawn = multiprocessing.get_context("spawn")
    queue: SimpleQueue[float | None] = spawn.SimpleQueue()
    with (
        _draining(queue, report),
        ProcessPoolExecutor(
            min(workers, len(tasks)), spawn, _start, (queue, setup, arguments)
        ) as pool,
    ):
        try:
            yield from _in_order(pool, function, tasks, _IN_FLIGHT * workers)
        except BrokenProcessPool as error:
            raise MixcError(
                "MX046",
                "a worker process died",
                help="out of memory, perhaps: try fewer --workers; finished work is kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor,
    function: Callable[[Context, Task, Report], Result],
    tasks: Sequence[Task],
    ahead: int,
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    for task in tasks:
        waiting.append(pool.submit(_call, function, task))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _draining(queue: SimpleQueue[float | None], report: Report) -> Iterator[None]:
    def drain() -> None:
        while (amount := queue.get()) is not None:
            # Whatever becomes of the display, the pipe must be emptied, or the workers stall.
            with suppress(Exception):
                report(amount)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        queue.put(None)
        thread.join(timeout=5)


def _start(
    queue: SimpleQueue[float | None],
    setup: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    """Make a worker ready. It ends at once when its parent does, however that happens."""
    global _context, _report
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _report = queue.put
    try:
        _context = setup(*arguments)
    except Exception as error:  # for the first task to raise: an initialiser's error is lost
        _context = _Failed(error)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


@dataclass(frozen=True)
class _Failed:
    """A context that could not be made."""

    error: Exception


def _call(function: Callable[[Any, Task, Report], Result], task: Task) -> Result:
    if isinstance(_context, _Failed):
        raise _context.error
    return function(_context, task, _report)
