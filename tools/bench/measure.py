"""Run a command on a few cores, and see what it and all its processes cost."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ctypes import CDLL
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

_EVERY = 0.25  # seconds between two looks at the memory
_SHARES_EVERY = 8  # of these looks: the system goes through all pages for it
_ORPHANS = 5.0  # seconds that helpers of the command may outlive it
_TAKE = """
import contextlib, mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
with contextlib.suppress(OSError):  # faster, where the kernel has huge pages
    memory.madvise(mmap.MADV_HUGEPAGE)
memory[::4096] = memory[::4096]
"""
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True)
class Usage:
    """Seconds of wall and of CPU (user + sys, all processes). Memory in MB, looked at each 0.25 s:
    the largest process's resident set at its height, the sum of the tree's shares (PSS, looked at
    each 2 s), and of its own memory, without pages of files, which the system may take back
    (RssAnon).
    """

    code: int
    wall: float
    cpu: float
    largest_mb: float
    tree_mb: float
    own_mb: float


def measure(
    command: Sequence[str],
    *,
    cores: int,
    log: Path,
    env: Mapping[str, str],
    cwd: Path,
    shares: bool = True,
) -> Usage:
    """Run `command` pinned to the first `cores` cores; its output goes to the file `log`.

    Without `shares` the tree's are not looked at: it takes long where gigabytes are mapped.
    """
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    if len(chosen) < cores:
        raise SystemExit(f"{cores} cores are wanted, and there are {len(chosen)}")
    # Helpers that outlive the command become our children, so that their time counts too.
    CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    before = set(_children(os.getpid(), _parents()))
    line = ["taskset", "-c", ",".join(map(str, chosen)), *command]
    memory, done = [0.0, 0.0, 0.0], threading.Event()
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(line, stdout=output, stderr=output, env=env, cwd=cwd)
        watcher = threading.Thread(target=_watch, args=(process.pid, memory, done, shares))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    cpu = usage.ru_utime + usage.ru_stime + _reap_orphans(before)
    return Usage(process.returncode, wall, cpu, *memory)


def _reap_orphans(before: set[int]) -> float:
    """Wait for what the command left behind; the CPU seconds of it."""
    cpu, end = 0.0, time.monotonic() + _ORPHANS
    while left := set(_children(os.getpid(), _parents())) - before:
        if time.monotonic() > end:
            raise SystemExit(f"processes are still running after their command: {sorted(left)}")
        for pid in left:
            with suppress(ChildProcessError):
                found, _, usage = os.wait4(pid, os.WNOHANG)
                cpu += usage.ru_utime + usage.ru_stime if found else 0.0
        time.sleep(0.01)
    return cpu


def _watch(root: int, memory: list[float], done: threading.Event, shares: bool) -> None:
    for look in count():
        if done.wait(_EVERY):
            return
        parents = _parents()
        tree = {root}
        while more := {pid for one in tree for pid in _children(one, parents)} - tree:
            tree |= more
        memory[0] = max(memory[0], *(_kb(pid, "status", "VmHWM") for pid in tree))
        if shares and look % _SHARES_EVERY == 0:
            memory[1] = max(memory[1], sum(_kb(pid, "smaps_rollup", "Pss") for pid in tree))
        memory[2] = max(memory[2], sum(_kb(pid, "status", "RssAnon") for pid in tree))


def _parents() -> dict[int, int]:
    """The parent of every process."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            stat = path.read_text(errors="replace")
            parents[int(path.parent.name)] = int(stat.rpartition(")")[2].split()[1])
    return parents


def _children(pid: int, parents: Mapping[int, int]) -> list[int]:
    return [child for child, parent in parents.items() if parent == pid]


def _kb(pid: int, file: str, field: str) -> float:
    """A field of a process's memory, in MB; 0 if the process is gone."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/{file}").read_text()
        if found := re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE):
            return int(found[1]) * 1024 / 1e6
    return 0.0


def take_memory(most: int) -> None:
    """Take free memory, a GB left and at most so many bytes, and give it back.

    A virtual machine has it from its host then.
    """
    found = re.search(r"^MemFree: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    size = min(most, (int(found[1]) << 10) - (1 << 30) if found else 0)
    if size > 0:  # by a process that ends, so that all of it is given back
        subprocess.run([sys.executable, "-c", _TAKE, str(size)], check=True)


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo").read_text()
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gb": memory / 1e9,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }
