"""Tasks on a Ray cluster, by the contract of `mixc.engine.local`: pure, results in order.

Each worker is an actor that holds the context made by `setup`. A task whose worker is lost, with
its node or alone, is made again by another. Ray is an optional package, imported when asked for.
"""

from __future__ import annotations

import atexit
import heapq
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from mixc import __version__, progress
from mixc.engine.local import Report, explained, quiet
from mixc.errors import FAILED, MixcError, Place

Context = TypeVar("Context")
Task = TypeVar("Task")
Result = TypeVar("Result")
Sight = tuple[Path, str]  # a file, and the hash of its bytes as this machine reads them

_IN_FLIGHT = 4  # tasks per worker handed out ahead of the oldest unfinished one
_TRIES = 3  # of a task whose workers are lost, and of a worker that is lost before it did any
_TICK_SECONDS = 3.0
# How long the cluster's head, and this machine's node, may not answer. Ray gives them 60 and 10.
_CLUSTER_SECONDS, _NODE_SECONDS = 40.0, 5.0
_PATIENCE_SECONDS = 3.0  # a network file system may show a new file late
_SAY_AFTER_SECONDS = 60.0
_OBJECTS_BYTES = 256 << 20
_SHARE = "every node must mount the store and the workdir at the same paths"


@dataclass(frozen=True)
class Cluster:
    """A cluster to run on. `workers`: actors, of one CPU each; None for as many as it has CPUs.

    `address`: HOST:PORT. Without one RAY_ADDRESS counts, and without that a cluster of this
    machine is started, which ends with the run.
    """

    address: str | None = None
    workers: int | None = None


def make_cluster(address: str | None, workers: int | None) -> Cluster:
    """The cluster of a command line. Raises MX037 if Ray is not installed; connects to nothing."""
    _needed()
    return Cluster(address, workers)


def run(
    function: Callable[[Context, Task, Report], Result],
    tasks: Sequence[Task],
    *,
    setup: Callable[..., Context],
    arguments: tuple[object, ...],
    cluster: Cluster,
    report: Report,
    shared: Sequence[Path] = (),
    whole: Callable[[Result], bool] = lambda _: True,
) -> Iterator[Result]:
    """Yield `function(setup(*arguments), task, report)` for each task, in the order of tasks.

    `report` is called in this process once a task is done. `shared`: files that every node must
    read as this one does. `whole` is called in this process with each result; one that it refuses
    is made again.

    Errors of tasks come back as they are. Raises MX037 (no Ray), MX046 (the workers of a task
    died, time after time), MX080 (no cluster, a cluster that is lost, a node that does not share
    the files or has another mixc).
    """
    if not tasks:
        return
    arguments = tuple(one.absolute() if isinstance(one, Path) else one for one in arguments)
    sights = [(path.absolute(), _hash(path)) for path in shared]
    with _connected(cluster) as (ray, pulse):
        _check_nodes(ray, sights)
        count = min(cluster.workers or _cpus(ray), len(tasks))
        work = _Work(tasks, _IN_FLIGHT * count, whole)
        team = _Team(ray, function, count, (sights, setup, arguments), pulse)
        try:
            yield from team.run(work, quiet(report))
        finally:
            team.dismiss()


def _needed() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        message = "--engine ray needs the package 'ray'"
        raise MixcError("MX037", message, help="pip install 'mixc[ray]'") from error


@contextmanager
def _connected(cluster: Cluster) -> Iterator[tuple[Any, _Pulse]]:
    """Ray, connected, and its pulse; a connection that the caller had is used and left."""
    ray = _needed()
    if ray.is_initialized():
        yield ray, _Pulse(ray)
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if not address:
        cpus = cluster.workers or len(os.sched_getaffinity(0))
        options = {
            "address": "local",
            "num_cpus": cpus,
            "object_store_memory": _OBJECTS_BYTES,
            "include_dashboard": False,
        }
    elif address != "auto":
        _check_address(address)
    try:
        with _own_signals():
            # Ray prints of lost nodes on stdout, whatever log_to_driver says.
            inside: Any = importlib.import_module("ray._private.worker")
            inside._worker_logs_enabled = False
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unusable(f"cannot connect to Ray: {_first_line(error)}", address) from error
    pulse = _Pulse(ray)
    try:
        yield ray, pulse
    finally:
        if pulse.lost:
            atexit.register(_leave)
        else:
            ray.shutdown()


def _leave() -> None:
    """At the very end: Ray would wait for a lost cluster, or crash."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(FAILED)


def _check_address(address: str) -> None:
    """Ray itself would try an address for minutes."""
    if "://" in address:
        raise _unusable("a Ray address is HOST:PORT", address, help="run mixc on a node of it")
    if not _answers(address):
        raise _unusable("no Ray cluster answers there", address)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; how mixc ends is for mixc to say."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unusable(message: str, place: object = None, help: str | None = None) -> MixcError:
    where = Place(str(place)) if place else None
    return MixcError("MX080", message, place=where, help=help)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _cpus(ray: Any) -> int:
    count = int(ray.cluster_resources().get("CPU", 0))
    if count < 1:
        raise _unusable("the Ray cluster has no CPUs", help="start nodes with CPUs, and run again")
    return count


def _hash(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def _look(sights: Sequence[Sight], version: str) -> MixcError | None:
    """On a node: what keeps it from working, if anything."""
    if version != __version__:
        message = f"the node {socket.gethostname()} has mixc {__version__}, not {version}"
        return _unusable(message, help="install the same mixc on every node")
    for path, digest in sights:
        if problem := _blind(path, digest):
            message = f"the node {socket.gethostname()} does not share this file: {problem}"
            return _unusable(message, path, help=_SHARE)
    return None


def _blind(path: Path, digest: str) -> str | None:
    """Why a file is not seen as the machine of the command sees it, or None."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            problem = None if _hash(path) == digest else "it holds other bytes there"
        except OSError as error:
            problem = (error.strerror or "it cannot be read").lower()
        if problem is None or time.monotonic() > until:
            return problem
        time.sleep(0.1)


def _check_nodes(ray: Any, sights: Sequence[Sight]) -> None:
    """Have every node look at what must be shared. Nodes that come later look before they work."""
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            strategy = strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            there = look.options(scheduling_strategy=strategy)
            asked[there.remote(sights, __version__)] = node["NodeManagerHostname"]
    for answer, name in asked.items():
        try:
            problem = ray.get(answer)
        except ray.exceptions.RayTaskError as error:  # no mixc, or one without this module
            message = f"the node {name} cannot run mixc: {_last_line(error)}"
            raise _unusable(message, help="install the same mixc on every node") from error
        except ray.exceptions.RayError:
            continue  # it died meanwhile, and will be given no work
        if problem is not None:
            raise problem


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


class _Pulse:
    """Whether the cluster lives. Ray itself ends the process of whoever asks a lost one."""

    def __init__(self, ray: Any) -> None:
        self.lost = False
        here = ray.get_runtime_context()
        self._patience = {}
        for node in ray.nodes():
            if node["NodeID"] == here.get_node_id():
                own = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
                self._patience[own] = _NODE_SECONDS
        self._patience[here.gcs_address] = _CLUSTER_SECONDS
        self._felt = time.monotonic()

    def feel(self, *, now: bool = False) -> None:
        """From time to time, or now: raise MX080 if the cluster does not answer any more."""
        if not now and time.monotonic() < self._felt + _TICK_SECONDS:
            return
        for address, patience in self._patience.items():
            since = time.monotonic()
            while not _answers(address):
                if time.monotonic() > since + patience:
                    self.lost = True
                    again = "run again: finished work is kept"
                    raise _unusable("the Ray cluster was lost", address, help=again)
                time.sleep(1)
        self._felt = time.monotonic()


class _Worker:
    """The actor: a context, and the tasks that it is given."""

    def __init__(self) -> None:
        self._context: Any = None

    def prepare(
        self, how: tuple[Sequence[Sight], Callable[..., Any], tuple[object, ...]]
    ) -> tuple[str, Any, list[float]]:
        """Make the context, if the node shares what it must."""
        sights, setup, arguments = how
        try:
            if (problem := _look(sights, __version__)) is not None:
                return "failed", problem, []
            self._context = setup(*arguments)
        except Exception as error:
            return "failed", explained(error), []
        return "ready", None, []

    def do(self, function: Callable[..., Any], task: Any) -> tuple[str, Any, list[float]]:
        """Do a task: (`done` or `failed`, result or error, what it reported)."""
        reported: list[float] = []
        try:
            return "done", function(self._context, task, reported.append), reported
        except Exception as error:
            return "failed", explained(error), []


class _Work:
    """Which tasks are to do, and the results that wait for their turn."""

    def __init__(self, tasks: Sequence[Any], ahead: int, whole: Callable[[Any], bool]) -> None:
        self.tasks, self.failures = tasks, dict[int, BaseException]()
        self._ahead, self._whole = ahead, whole
        self._new, self._given = 0, 0
        self._again: list[int] = []
        self._tries: Counter[int] = Counter()
        self._waiting: dict[int, Any] = {}

    @property
    def over(self) -> bool:
        return self._given == len(self.tasks)

    def next(self) -> int | None:
        """The number of a task to do now, the oldest first; None if there is none for now."""
        if self.failures:
            return None
        if self._again:
            return heapq.heappop(self._again)
        if self._new >= min(len(self.tasks), self._given + self._ahead):
            return None
        self._new += 1
        return self._new - 1

    def again(self, number: int, error: MixcError) -> None:
        """Have a task done once more; the error is its end if that was tried enough."""
        self._tries[number] += 1
        if self._tries[number] < _TRIES:
            heapq.heappush(self._again, number)
        else:
            self.failures[number] = error

    def done(self, number: int, result: Any) -> Iterator[Any]:
        """Note a result; yield what can be given over now."""
        try:
            whole = self._whole(result)
        except Exception as error:
            self.failures[number] = error
            return
        if not whole:
            message = "what a node of the cluster wrote does not arrive in the file"
            self.again(number, _unusable(message, help=_SHARE))
            return
        self._waiting[number] = result
        while self._given in self._waiting:
            yield self._waiting.pop(self._given)
            self._given += 1


_SETUP = -1  # in the place of a task's number: the making of the context


class _Team:
    """The actors. One that is lost is replaced; the cluster says where, and when."""

    def __init__(
        self,
        ray: Any,
        function: Callable[..., Any],
        count: int,
        preparation: tuple[Sequence[Sight], Callable[..., Any], tuple[object, ...]],
        pulse: _Pulse,
    ) -> None:
        options = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")
        self._ray, self._make = ray, options(_Worker)
        # Sent once, however many workers and tasks there are.
        self._function, self._preparation = ray.put(function), ray.put(preparation)
        self._pulse = pulse
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, tuple[int, int]] = {}  # answer -> (slot, number of the task)
        self._free: set[int] = set()
        self._losses: Counter[int] = Counter()
        self._said = False
        for slot in range(count):
            self._hire(slot)

    def _hire(self, slot: int) -> None:
        """Ask for an actor. It gets work once it is ready, so one that cannot be is in no way."""
        self._actors[slot] = self._make.remote()
        self._asked[self._actors[slot].prepare.remote(self._preparation)] = (slot, _SETUP)

    def dismiss(self) -> None:
        """End the actors; what is staged survives whatever they were at."""
        if self._pulse.lost:
            return
        for actor in self._actors.values():
            with suppress(Exception):
                self._ray.kill(actor)

    def run(self, work: _Work, report: Report) -> Iterator[Any]:
        """Hand tasks out and results over, until nothing is left or something fails."""
        while not work.over:
            self._hand_out(work)
            if work.failures and all(number == _SETUP for _, number in self._asked.values()):
                raise work.failures[min(work.failures)]
            answer = self._hear()
            slot, number = self._asked.pop(answer)
            kind, value, reported = self._read(answer)
            if kind == "lost":
                self._lose(slot, number, work)
                continue
            self._free.add(slot)
            if kind == "failed":
                work.failures[number] = value
            elif kind == "done":
                self._losses[slot] = 0
                for amount in reported:
                    report(amount)
                yield from work.done(number, value)

    def _hand_out(self, work: _Work) -> None:
        while self._free and (number := work.next()) is not None:
            slot = self._free.pop()
            answer = self._actors[slot].do.remote(self._function, work.tasks[number])
            self._asked[answer] = (slot, number)

    def _hear(self) -> Any:
        """An answer, as soon as there is one. Raises MX080 if the cluster is lost."""
        since = time.monotonic()
        while True:
            self._pulse.feel()
            ready, _ = self._ray.wait(list(self._asked), timeout=_TICK_SECONDS)
            if ready:
                return ready[0]
            idle = all(number == _SETUP for _, number in self._asked.values())
            if idle and time.monotonic() > since + _SAY_AFTER_SECONDS:
                progress.say("waiting for Ray to start a worker: are all CPUs of the cluster busy?")
                since = time.monotonic()

    def _read(self, answer: Any) -> tuple[str, Any, list[float]]:
        """What an actor said, or that it cannot be had any more."""
        errors = self._ray.exceptions
        try:
            kind, value, reported = self._ray.get(answer)
        except errors.RayTaskError as error:  # not the task's: what could not be sent, say
            return "failed", RuntimeError(f"in a worker of the cluster:\n{error}"), []
        except errors.RayError:
            return "lost", None, []
        return kind, value, reported

    def _lose(self, slot: int, number: int, work: _Work) -> None:
        """A worker is lost, perhaps with its node: its task and its place are given anew."""
        if not self._said:
            progress.say("a worker of the Ray cluster was lost; what it was at is made again")
            self._said = True
        self._pulse.feel(now=True)  # Ray has no patience with who asks a lost cluster for actors
        with suppress(Exception):  # if it was but out of reach
            self._ray.kill(self._actors[slot])
        self._losses[slot] += 1
        help = "out of memory, perhaps: try fewer --workers; finished work is kept"
        died = MixcError("MX046", f"a worker process of the cluster died {_TRIES} times", help=help)
        if number != _SETUP:
            work.again(number, died)
        if self._losses[slot] < _TRIES:
            self._hire(slot)
        else:
            work.failures.setdefault(number, died)
