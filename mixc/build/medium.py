"""Whether a store can be read at random: what it lies on, and whether memory holds it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixc.build.plan import BuildPlan
from mixc.store.store import Store

GATHERS = ("auto", "one-pass", "two-pass")
# File systems over a network: each small read waits for a server.
_REMOTE = re.compile(
    r"nfs4?|cifs|smb3|lustre|ceph|gpfs|beegfs|glusterfs|9p|afs|orangefs|panfs|wekafs|fuse\..*"
)
_CACHED = 0.6  # of free memory: a store that fits is read from the disk once, in either way


def two_passes(asked: str, plan: BuildPlan, store: Store) -> bool:
    """Whether to gather in two passes; `asked` is one of `GATHERS`."""
    if asked != "auto":
        return asked == "two-pass"
    used = [name for name, rows in zip(plan.domains, plan.counts.rows, strict=True) if rows]
    size = sum(store.domains[name].tokens for name in used) * store.dtype.itemsize
    return size > _CACHED * free_memory() and seeks(store.root)


def read_whole(plan: BuildPlan, store: Store, rows: NDArray[np.int64]) -> list[str]:
    """The domains that are best read from one end to the other before they are gathered from.

    `rows`, int64[K], are those that are gathered. The domains are all whose rows take half of their
    tokens or more, if memory holds these domains.
    """
    pairs = zip(plan.domains, rows.tolist(), strict=True)
    found = [name for name, n in pairs if 2 * n * plan.row_len >= store.domains[name].tokens > 0]
    size = sum(store.domains[name].tokens for name in found) * store.dtype.itemsize
    return found if size <= _CACHED * free_memory() else []


def free_memory() -> int:
    """Bytes that files may be cached in: of this machine, or of this process's control group."""
    found = re.search(r"^MemAvailable: +(\d+) kB", _read("/proc/meminfo"), re.M)
    group = re.search(r"^0::(.*)$", _read("/proc/self/cgroup"), re.M)
    most = _read(f"/sys/fs/cgroup{group[1]}/memory.max") if group else ""
    free = [int(found[1]) << 10] if found else []
    return min([*free, *([int(most)] if most.strip().isdecimal() else [])], default=0)


def seeks(path: Path) -> bool:
    """Whether what a folder lies on is slow to be read at random: a disk that turns, a network."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = re.findall(rf"^\d+ \d+ {number} .* - (\S+) ", _read("/proc/self/mountinfo"), re.M)
    if any(_REMOTE.fullmatch(kind) for kind in mounts):
        return True
    disk = Path(f"/sys/dev/block/{number}").resolve()
    queues = [folder / "queue" / "rotational" for folder in (disk, disk.parent)]
    return any(_read(str(queue)).strip() == "1" for queue in queues)


def _read(path: str) -> str:
    """What the kernel says; nothing where it does not."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
