"""Feed damaged and hostile inputs to the readers, the recipe, the tokenizer file and the store.

    python tools/fuzz.py --minutes 30
    python tools/fuzz.py --minutes 5 --target parquet --target arrow --finds build/finds
    python tools/fuzz.py --target parquet --replay build/finds/parquet-0123456789ab.bin

An input may end well or with MixcError or MixcErrors. All else is a find: another exception, a
crash of native code, 10 seconds of the processor or 50 by the clock, or memory beyond 4 GiB of
address space. Inputs run in a child process; it notes each one in shared memory first, so that a
crash leaves its input. The parent starts the next child and goes on. Finds of one place are
counted once and kept under --finds: the input as .bin, what happened as .txt. Only one process
runs inputs at a time; the time is shared by the targets, and the recipe, whose YAML is slow, gets
more of it.

With the package atheris inputs are chosen by coverage of mixc's lines (native code shows none);
without it, by random changes of valid files alone. The exit code is 1 if there are finds.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import json
import mmap
import os
import platform
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from random import Random
from typing import Any

from fuzz_mutate import MAX_BYTES, blind
from fuzz_targets import HEAD, PLANTED, TARGETS, Run, Target

from mixc.errors import MixcError, MixcErrors

HANG = 10.0  # seconds of the processor; the clock is given more, as others may use the machine
_SLACK = 5
MEMORY = 4 << 30  # bytes of address space
_HEADER = struct.Struct("<QQ")  # runs so far, bytes of the current input
OURS = (MixcError, MixcErrors)
_KNOWN = {**TARGETS, "planted": PLANTED}


@dataclass
class Finds:
    """What went wrong in a target, by a short name of each place, kept in a folder."""

    target: str
    folder: Path | None
    seen: dict[str, str] = field(default_factory=dict)

    def add(self, data: bytes, where: str, story: str) -> None:
        """Keep an input, if its place is new. `where` names the place, `story` tells of it."""
        name = f"{self.target}-{hashlib.sha256(where.encode()).hexdigest()[:12]}"
        if name in self.seen:
            return
        self.seen[name] = where
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{name}.bin").write_bytes(data)
            (self.folder / f"{name}.txt").write_text(f"{where}\n\n{story}", errors="replace")


@dataclass
class Current:
    """The input that is run now, and how many there were, where the parent can read them."""

    memory: mmap.mmap
    runs: int = 0

    def note(self, data: bytes) -> None:
        self.runs += 1
        self.memory[: _HEADER.size + len(data)] = _HEADER.pack(self.runs, len(data)) + data

    def read(self) -> tuple[int, bytes]:
        runs, size = _HEADER.unpack_from(self.memory)
        return runs, bytes(self.memory[_HEADER.size : _HEADER.size + size])


def _map(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _HEADER.size + HEAD + 2 * MAX_BYTES)


def try_input(run: Run, data: bytes, finds: Finds) -> None:
    """Run one input, and keep it if it ends as none may. The children also watch the time."""
    try:
        try:
            run(data)
        except OURS as error:
            str(error).encode()  # what a user is shown
            errors = error.errors if isinstance(error, MixcErrors) else (error,)
            json.dumps([one.as_dict() for one in errors])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # panics of Rust are no Exception
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if not Path(f.filename).name.startswith("fuzz")
        ]
        last = f"{_short(frames[-1].filename)}:{frames[-1].lineno}" if frames else "the tool"
        ours = [f"{_short(f.filename)}:{f.lineno}" for f in frames if "mixc/" in f.filename]
        where = f"{type(error).__name__} at {last} from {(ours or ['-'])[-1]}"
        finds.add(data, where, "".join(traceback.format_exception(error, limit=-12)))


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])


def mutations(target: Target, seed: int) -> Any:
    """Inputs without end: first the seeds, then changes of them and of changed ones."""
    rng = Random(seed)
    pool = target.inputs()
    rng.shuffle(pool)  # one that kills hides not always the same ones
    bodies = [one[HEAD:] for one in pool]
    yield from pool

    def change(rng: Random, data: bytes) -> bytes:
        return blind(rng, data, bodies, target.tokens)

    kept = len(pool)
    while True:
        data = target.mutate(rng, rng.choice(pool), change)
        yield data
        if rng.random() < 0.2:  # not too many, or the seeds would be drowned
            pool[kept:] = [*pool[kept:], data][-kept:]


# The child


def child(name: str, finds: Finds, options: argparse.Namespace) -> None:
    """Run inputs of one target until the time or the number of runs is spent."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    target, current = _KNOWN[name], Current(_map(options.child / "current"))
    folder = options.child / "files"
    folder.mkdir(exist_ok=True)
    covers = name != "planted" and options.engine == "atheris"
    if covers:
        with import_module("atheris").instrument_imports(include=["mixc"]):
            run = target.make(folder)
    else:
        run = target.make(folder)
    watched, end = False, time.monotonic() + options.seconds

    def one(data: bytes) -> None:
        nonlocal watched
        if time.monotonic() > end or current.runs in (options.runs, target.lifetime):
            os._exit(0)  # with threads of native code about, a slower way out can hang
        if not watched:  # the first time here: libFuzzer may have set handlers of its own
            for number in (signal.SIGALRM, signal.SIGPROF):
                faulthandler.register(number, chain=True)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            watched = True
        data = data.ljust(HEAD, b"\0")
        current.note(data)
        signal.setitimer(signal.ITIMER_PROF, options.hang)
        signal.setitimer(signal.ITIMER_REAL, options.hang * _SLACK)
        known = len(finds.seen)
        try_input(run, data, finds)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if len(finds.seen) != known:
            (options.child / "seen.json").write_text(json.dumps(finds.seen))

    if covers:
        _by_coverage(target, one, options)
        return
    for data in mutations(target, options.seed):
        one(data)


def _by_coverage(target: Target, one: Run, options: argparse.Namespace) -> None:
    atheris = import_module("atheris")
    corpus = options.child / "corpus"
    if not corpus.exists():
        corpus.mkdir()
        for number, data in enumerate(target.inputs()):
            (corpus / f"seed{number}").write_bytes(data)
    bodies = [data[HEAD:] for data in target.inputs()]

    def change(rng: Random, data: bytes) -> bytes:
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, max(len(data) + 16, 64)))
        return blind(rng, data, bodies, target.tokens)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return target.mutate(Random(seed), data, change)[:max_size]

    handled = ("abrt", "bus", "fpe", "ill", "int", "segv", "term", "xfsz")
    line = [sys.argv[0], f"-seed={options.seed or 1}"]
    line += [f"-max_len={HEAD + target.longest}", "-len_control=0", "-rss_limit_mb=0", "-timeout=0"]
    line += ["-reload=0", "-verbosity=0"]
    line += [f"-handle_{name}=0" for name in handled]
    atheris.Setup([*line, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


# The parent


@dataclass(frozen=True)
class Result:
    """What came of one target. `deaths` counts children that an input killed."""

    target: str
    runs: int
    seconds: float
    deaths: int
    finds: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        rate = round(self.runs / max(self.seconds, 1e-9))
        return {**self.__dict__, "seconds": round(self.seconds, 1), "runs_per_second": rate}


def fuzz(name: str, seconds: float, options: argparse.Namespace) -> Result:
    """Run a target in children, one after another, until its time is spent."""
    finds = Finds(name, options.finds)
    start, runs, children, deaths = time.monotonic(), 0, 0, 0
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as temporary:
        folder = Path(temporary)
        while (left := seconds - (time.monotonic() - start)) > 1:
            code, done, data, log = _one_child(name, folder, left, options, children)
            runs += done
            finds.seen |= _read_json(folder / "seen.json")
            if code and not done:
                raise SystemExit(f"{name}: the child did not start ({code}):\n{log}")
            children += 1
            if code:
                deaths += 1
                finds.add(data, _cause(code, log), log)
                (folder / "seen.json").write_text(json.dumps(finds.seen))
            if 0 <= options.runs <= runs:
                break
    return Result(name, runs, time.monotonic() - start, deaths, finds.seen)


def _one_child(
    name: str, folder: Path, seconds: float, options: argparse.Namespace, number: int
) -> tuple[int, int, bytes, str]:
    """(exit code, runs, last input, end of what it said) of a child."""
    current = folder / "current"
    current.write_bytes(bytes(_HEADER.size + HEAD + 2 * MAX_BYTES))
    line = [sys.executable, __file__, "--child", str(folder), "--seconds", str(seconds)]
    line += ["--target", name, "--seed", str(options.seed + number), "--engine", options.engine]
    line += [
        "--finds",
        str(options.finds),
        "--runs",
        str(options.runs),
        "--hang",
        str(options.hang),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log)
        try:
            code = process.wait(seconds + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    with (folder / "log").open("rb") as log_file:
        log_file.seek(max(0, log_file.seek(0, 2) - 6000))
        said = log_file.read().decode(errors="replace")
    done, data = Current(_map(current)).read()
    return code, done, data, said


def _cause(code: int, log: str) -> str:
    """How a child died, and where in mixc, as faulthandler's lines have it."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if -code in (signal.SIGALRM, signal.SIGPROF):
        how = "hang"
    frames = re.findall(r'File "[^"]*?([^/"]+/[^/"]+)", line (\d+) in \w+', log)
    return " ".join([how, *(f"{file}:{line}" for file, line in frames[:3])])


def _read_json(path: Path) -> dict[str, str]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def report(results: Sequence[Result], options: argparse.Namespace) -> dict[str, Any]:
    """Print a table of the results; the same as plain data."""
    print(f"{'target':<12}{'runs':>10}{'seconds':>9}{'runs/s':>8}{'deaths':>8}{'finds':>7}")
    for one in [*results, _sum(results)]:
        row = one.as_dict()
        print(
            f"{one.target:<12}{one.runs:>10}{row['seconds']:>9}{row['runs_per_second']:>8}"
            f"{one.deaths:>8}{len(one.finds):>7}"
        )
    for one in results:
        for name, where in one.finds.items():
            print(f"{name}: {where}")
    versions = {name: metadata.version(name) for name in ("pyarrow", "tokenizers", "msgspec")}
    return {
        "engine": options.engine,
        "seed": options.seed,
        "versions": {"python": platform.python_version(), **versions},
        "targets": [one.as_dict() for one in results],
    }


def _sum(results: Sequence[Result]) -> Result:
    finds = {name: where for one in results for name, where in one.finds.items()}
    seconds = sum(one.seconds for one in results)
    return Result(
        "all", sum(o.runs for o in results), seconds, sum(o.deaths for o in results), finds
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    has_atheris = importlib.util.find_spec("atheris") is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="for all targets together")
    add("--runs", type=int, default=-1, help="at most so many runs of each target")
    add("--target", action="append", choices=_KNOWN, help="by default all")
    add("--seed", type=int, default=1)
    add("--jobs", type=int, default=1, choices=(1,), help="processes that run inputs at a time")
    add("--finds", type=Path, default=Path("build/fuzz-finds"), help="where finds are kept")
    add("--json", type=Path, help="write the results here")
    add("--hang", type=float, default=HANG, help="seconds that an input may take")
    add("--replay", type=Path, help="run one input of one target, unguarded")
    default = "atheris" if has_atheris else "mutate"
    add("--engine", choices=("atheris", "mutate"), default=default)
    add("--child", type=Path, help=argparse.SUPPRESS)
    add("--seconds", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; its exit code."""
    options = _options(arguments)
    names = options.target or list(TARGETS)
    if options.child:
        finds = Finds(names[0], options.finds, _read_json(options.child / "seen.json"))
        child(names[0], finds, options)
        return 0
    if options.replay:
        with tempfile.TemporaryDirectory() as folder:
            _KNOWN[names[0]].make(Path(folder))(options.replay.read_bytes())
        return 0
    if options.engine == "mutate":
        print("random changes of valid files, not guided by coverage", flush=True)
    results = []
    shares = {name: _KNOWN[name].share for name in names}
    for name, share in shares.items():
        results.append(fuzz(name, 60 * options.minutes * share / sum(shares.values()), options))
        print(json.dumps(results[-1].as_dict()), file=sys.stderr, flush=True)
    data = report(results, options)
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return 1 if any(one.finds for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
