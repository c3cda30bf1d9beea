"""Compare `mixc tokenize` with datatrove, dolma and Megatron-LM's loop: speed, memory, and the ids.

    python tools/bench_tokenize.py --corpus DIR --tokenizers DIR --venvs DIR
    python tools/bench_tokenize.py ... --quick --only datatrove --names gpt2

The corpus is a folder of `<domain>/*.jsonl.zst` with a field "text"; a mixed cut of it is given to
all. `--tokenizers` holds `<name>.json` files. Each peer is installed from PyPI into an environment
of its own under `--venvs`, once. All run whole commands, start-up included, pinned to as many cores
as they have processes, in turns with mixc: so a change of the machine's speed hits both. All ids
are compared. Prints tables in markdown. The exit code is 1 if ids differ or a tool fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import tables
from bench.corpus import Cut, cut, special_strings
from bench.measure import Usage, machine, measure
from bench.peers import (
    MIXC,
    OTHERS,
    Checked,
    Found,
    Job,
    Tool,
    Vocabulary,
    compare,
    install,
    versions,
    vocabulary,
)

from mixc.errors import MixcError

PARTS = (*OTHERS, "stages")
STAGE_RUNS = 5


@dataclass
class Bench:
    """The benchmark's settings, its folders, and what it has found."""

    arguments: argparse.Namespace
    folder: Path
    whole: Cut
    pythons: dict[str, Path]
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False

    def note(self, text: str) -> None:
        """Something to print beneath the tables, once."""
        say(text)
        if text not in self.notes:
            self.notes.append(text)

    def fail(self, text: str) -> None:
        """Something that is wrong."""
        self.failed = True
        self.note(text)

    def job(self, tool: Tool, known: Vocabulary, processes: int) -> Job:
        """A run of a tool in a fresh folder."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        python = self.pythons.get(tool.name, Path(sys.executable))
        sets = (*self.arguments.set, *tool.sets)
        return Job(self.whole, known, processes, out, python, sets)

    def run(self, tool: Tool, job: Job) -> Usage | None:
        """Run a job; None, and a note, if it fails."""
        log, env = self.folder / "log", environment()
        if tool.packages:
            env.pop("PYTHONPATH", None)
        try:
            command = tool.command(job)
        except ValueError as error:
            self.note(f"{tool.name}: skipped with {job.vocabulary.path.stem}: {error}")
            return None
        say(f"{job.vocabulary.path.stem}, {job.processes} cores: {tool.name} ...", end="")
        usage = measure(command, cores=job.processes, log=log, env=env, cwd=self.folder)
        say(f" {usage.wall:.2f} s, {usage.cpu:.2f} s CPU")
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing said"]
        if usage.code == 0:
            if tool.fallback:
                self.note(f"{tool.name} wrote with {lines[0]}")
            return usage
        if tool.sets and usage.code == 2:
            self.note(f"{tool.name}: skipped, as the recipe refuses `{tool.sets[0]}`: {lines[0]}")
        else:
            self.fail(f"{tool.name}: FAILED with exit code {usage.code}: {lines[-1]}")
        return None

    def read(self, tool: Tool, job: Job) -> Found | None:
        """What a run wrote; None, and a note, if that is not what it should be."""
        try:
            return tool.read(job)
        except (MixcError, OSError, ValueError, LookupError) as error:
            self.fail(f"{tool.name}: FAILED, as its output cannot be read: {error}")
            return None


def environment() -> dict[str, str]:
    """What commands run in: compiled modules are kept, as where people install things."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def side_by_side(bench: Bench, known: Vocabulary, processes: int, chosen: list[Tool]) -> list[Tool]:
    """Run mixc and each other tool in turns, check the ids, add the rows; the tools that work."""
    working = {MIXC, *chosen}
    usages: dict[str, list[Usage]] = {tool.name: [] for tool in (MIXC, *chosen)}
    checks: dict[str, list[Checked]] = {tool.name: [] for tool in (MIXC, *chosen)}
    ours: Found | None = None
    for _ in range(bench.arguments.repeat):
        for tool in [one for other in chosen for one in (MIXC, other)] or [MIXC]:
            job = bench.job(tool, known, processes)
            usage = bench.run(tool, job) if tool in working else None
            found = bench.read(tool, job) if usage else None
            if usage is None or found is None:
                working.discard(tool)
                continue
            usages[tool.name].append(usage)
            ours = ours or found
            usable = bench.whole.stripped | (not tool.strips)
            checks[tool.name].append(compare(ours, found, usable))
    bench.rows += [
        row(bench.whole, known, processes, name, usages, checks[name])
        for name in usages
        if usages[name]
    ]
    bench.failed |= not usages[MIXC.name] or any(
        check.different for one in checks.values() for check in one
    )
    return [tool for tool in chosen if tool in working]


def row(
    whole: Cut,
    known: Vocabulary,
    processes: int,
    name: str,
    usages: dict[str, list[Usage]],
    checks: list[Checked],
) -> dict[str, Any]:
    """What is said of one tool with so many processes."""
    mine, ours = usages[name], usages[MIXC.name] or usages[name]
    wall, cpu = median(usage.wall for usage in mine), median(usage.cpu for usage in mine)
    return {
        "tokenizer": known.path.stem,
        "tool": name,
        "processes": processes,
        "wall": wall,
        "best": min(usage.wall for usage in mine),
        "rate": whole.text_bytes / 1e6 / wall,
        "cpu": cpu,
        "largest_mb": max(usage.largest_mb for usage in mine),
        "tree_mb": max(usage.tree_mb for usage in mine),
        "ratio": wall / median(usage.wall for usage in ours),
        "cpu_ratio": cpu / median(usage.cpu for usage in ours),
        "compared": checks[0].compared,
        "different": max(check.different for check in checks),
        "runs": [asdict(usage) for usage in mine],
    }


def stage_sums(bench: Bench, known: Vocabulary) -> None:
    """Each stage alone on one core, beside a worker that does them all."""
    script, scratch = Path(__file__).parent / "bench/stages.py", bench.folder / "scratch"
    line = [sys.executable, str(script), str(bench.whole.folder), str(known.path), str(scratch)]
    runs = []
    for _ in range(STAGE_RUNS):
        say(f"{known.path.stem}: the stages alone ...")
        log = bench.folder / "log"
        usage = measure(line, cores=1, log=log, env=environment(), cwd=bench.folder)
        shutil.rmtree(scratch, ignore_errors=True)
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        if usage.code:
            bench.fail(f"the stages alone: FAILED: {last}")
            return
        runs.append(json.loads(last))
    bench.stages.append(
        {
            "tokenizer": known.path.stem,
            "engine": runs[0]["engine"],
            "tokens": runs[0]["tokens"],
            "bytes": bench.whole.text_bytes,
            "seconds": {
                name: median(run["seconds"][name] for run in runs) for name in runs[0]["seconds"]
            },
            "worker": median(run["worker"] for run in runs),
            "shares": sorted(sum(run["seconds"].values()) / run["worker"] for run in runs),
        }
    )


def prepare(arguments: argparse.Namespace, folder: Path, known: list[Vocabulary]) -> Bench:
    """Cut the corpus, and install what is missing."""
    say(f"cutting {arguments.megabytes} MB from {arguments.corpus} ...")
    banned = special_strings([one.path for one in known])
    size = int(arguments.megabytes * 1e6)
    whole = cut(arguments.corpus, folder / "cut", size=size, files=arguments.files, banned=banned)
    bench = Bench(arguments, folder, whole, {})
    for key in arguments.only:
        tool = OTHERS.get(key)
        if tool is None or not tool.packages:
            continue
        say(f"installing {tool.name}, unless it is there ...")
        try:
            bench.pythons[tool.name] = install(
                key, tool.packages, arguments.venvs, arguments.python, tool.fallback
            )
        except (subprocess.CalledProcessError, OSError) as error:
            bench.fail(f"{tool.name}: cannot be installed: {error}")
    return bench


def parse(line: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="<domain>/*.jsonl.zst")
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder of <name>.json")
    parser.add_argument("--names", nargs="+", default=["gpt2", "llama3"], metavar="NAME")
    parser.add_argument("--venvs", type=Path, required=True, help="where the peers are installed")
    parser.add_argument("--megabytes", type=float, default=110, help="of text to tokenize")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=2, help="runs of each; the median counts")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="12 MB, one run of each")
    parser.add_argument("--set", "-s", action="append", default=[], help="override mixc's recipe")
    parser.add_argument("--python", default=sys.executable, help="for the peers' environments")
    parser.add_argument("--work", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, help="write all that was measured to this file")
    found = parser.parse_args(line)
    found.only = [name for name in found.only.split(",") if name and name != "mixc"]
    if unknown := sorted(set(found.only) - set(PARTS)):
        parser.error(f"unknown: {', '.join(unknown)}; there are mixc, {', '.join(PARTS)}")
    if found.quick:
        found.megabytes, found.repeat = 12, 1
    if found.repeat < 1 or found.files < 1 or min(found.processes) < 1 or found.megabytes <= 0:
        parser.error("numbers must be positive")
    if shutil.which("taskset") is None:
        parser.error("taskset is not installed (it is in util-linux)")
    found.venvs = found.venvs.absolute()
    return found


def main() -> int:
    arguments = parse()
    known = [vocabulary(arguments.tokenizers / f"{name}.json") for name in arguments.names]
    about: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        bench = prepare(arguments, Path(folder), known)
        chosen = [
            tool
            for key, tool in OTHERS.items()
            if key in arguments.only and (not tool.packages or tool.name in bench.pythons)
        ]
        for one in known:
            working = chosen
            for processes in arguments.processes:
                working = side_by_side(bench, one, processes, working)
            if "stages" in arguments.only:
                stage_sums(bench, one)
        about |= {
            "cut": bench.whole.as_dict(),
            "versions": {
                name: versions(python)
                for name, python in {"mixc": Path(sys.executable), **bench.pythons}.items()
            },
        }
    about["machine"]["load_after"] = os.getloadavg()[0]
    about |= {"rows": bench.rows, "stages": bench.stages, "notes": bench.notes}
    if arguments.json:
        arguments.json.write_text(json.dumps(about, indent=1) + "\n")
    print(tables.render(about))
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
