"""Make a command fail at every write-side system call, and see that nothing is ever half done.

    python tools/crash_sweep.py RECIPE tokenize --older holdout.fraction=0.3
    python tools/crash_sweep.py RECIPE build-mixture --older seed=1 --fault ENOSPC --stride 5
    python tools/crash_sweep.py RECIPE build-mixture --also=--decks --also=--gather=two-pass

The workdir is brought to an older state (by the overrides `--older`), then the command is run
with one fault: killed by SIGKILL, or given ENOSPC or EIO, at the n-th call of one kind. Afterwards
each output must be the old one or the new one, whole, and the command, run again, must leave the
same bytes as if nothing had happened. Needs strace, whose fault injection does the work. The last
line counts the faults injected and the bad states found; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mixc.recipe import load

CALLS = (
    "fallocate", "fsync", "ftruncate", "link", "linkat", "mkdir", "mkdirat", "pwrite64", "pwritev",
    "rename", "renameat", "renameat2", "rmdir", "unlink", "unlinkat", "write",
)  # fmt: skip
STAGES = ("tokenize", "solve-weights", "build-mixture")
INJECT = {"kill": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
NO_DISK = {"rmdir", "unlink", "unlinkat"}  # calls that do not fail for want of space


@dataclass(frozen=True)
class Sweep:
    """One command of one recipe, and the folders that the sweep works in."""

    recipe: Path
    command: str
    older: tuple[str, ...]
    folder: Path
    also: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)

    @property
    def workdir(self) -> Path:
        """What the command writes to."""
        return self.folder / "workdir"

    def mixc(self, command: str, *sets: str, strace: tuple[str, ...] = ()) -> int:
        """Run a command on the workdir, perhaps under strace; its exit code."""
        line = [*strace, sys.executable, "-m", "mixc", command, str(self.recipe)]
        for one in (*sets, f"workdir={self.workdir}"):
            line += ["-s", one]
        workers = [] if command == "solve-weights" else ["--workers", "1"]
        also = self.also if command == self.command else ()
        done = subprocess.run([*line, *workers, *also], capture_output=True, text=True, check=False)
        self.said.append(done.stderr)
        return done.returncode

    def prepare(self) -> tuple[str, str]:
        """Make the state before the command; the fingerprints before and after it."""
        solves = load(self.recipe).solve is not None
        stages = [stage for stage in STAGES if solves or stage != "solve-weights"]
        earlier = stages[: stages.index(self.command)]
        for stage in (*earlier, self.command):
            if self.mixc(stage, *self.older):
                raise SystemExit(f"{stage} fails without any fault:\n{self.said[-1]}")
        for stage in earlier:
            self.mixc(stage)
        shutil.copytree(self.workdir, self.folder / "before")
        before = fingerprint(self.workdir)
        if self.mixc(self.command):
            raise SystemExit(f"{self.command} fails without any fault:\n{self.said[-1]}")
        return before, fingerprint(self.workdir)

    def restore(self) -> None:
        """Put the workdir back to the state before the command."""
        shutil.rmtree(self.workdir)
        shutil.copytree(self.folder / "before", self.workdir)

    def count(self) -> Counter[str]:
        """How often the command's first thread makes each call."""
        self.restore()
        log = self.folder / "strace.log"
        self.mixc(self.command, strace=("strace", "-o", str(log), "-e", f"trace={_set()}"))
        return Counter(re.findall(r"^(\w+)\(", log.read_text(errors="replace"), re.MULTILINE))


def _set() -> str:
    return ",".join(f"?{call}" for call in CALLS)


def fingerprint(workdir: Path) -> str:
    """A hash of all outputs; control files, decks and unlisted trajectories do not count."""
    weights = workdir / "weights.json"
    listed = weights.read_text() if weights.exists() else ""
    state = hashlib.sha256()
    for path in sorted(path for path in workdir.rglob("*") if path.is_file()):
        name = path.relative_to(workdir)  # a domain may have any name
        unlisted = name.parts[0].startswith("trajectory-") and name.name not in listed
        if name.parts[0] not in (".mixc", "decks") and not unlisted:
            state.update(str(name).encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


def points(counts: Counter[str], fault: str, stride: int) -> Iterator[tuple[str, int]]:
    """The calls to fail: every `stride`-th of them all."""
    calls = [call for call in CALLS if fault == "kill" or call not in NO_DISK]
    every = [(call, n + 1) for call in calls for n in range(counts[call])]
    yield from every[::stride]


def bad_state(sweep: Sweep, states: tuple[str, str], inject: str) -> str | None:
    """Inject one fault; what is wrong afterwards, if anything is."""
    sweep.restore()
    strace = ("strace", "-o", "/dev/null", "-e", f"trace={_set()}", "-e", f"inject={inject}")
    code = sweep.mixc(sweep.command, strace=strace)
    found = fingerprint(sweep.workdir)
    if found not in states:
        return "neither the old state nor the new one"
    if code == 0 and found != states[1]:
        return "it says that all went well, and has not published"
    if sweep.mixc(sweep.command):
        return "it cannot be run again"
    if fingerprint(sweep.workdir) != states[1]:
        return "run again, it gives other bytes"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("command", choices=STAGES)
    parser.add_argument("--older", action="append", default=[], help="override of the old state")
    parser.add_argument("--also", action="append", default=[], help="one more word of the command")
    parser.add_argument("--fault", choices=INJECT, default="kill")
    parser.add_argument("--stride", type=int, default=1, help="fail every N-th call alone")
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("strace is not installed")
    bad = tried = 0
    with tempfile.TemporaryDirectory() as folder:
        older, also = tuple(arguments.older), tuple(arguments.also)
        sweep = Sweep(arguments.recipe.absolute(), arguments.command, older, Path(folder), also)
        states = sweep.prepare()
        for call, n in points(sweep.count(), arguments.fault, arguments.stride):
            wrong = bad_state(sweep, states, f"{call}:{INJECT[arguments.fault]}:when={n}")
            tried += 1
            if wrong:
                bad += 1
                print(f"{arguments.command}, {arguments.fault} at {call} {n}: {wrong}", flush=True)
    print(f"{arguments.command}: {tried} faults ({arguments.fault}) injected, {bad} bad states")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
