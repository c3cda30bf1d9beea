"""Compare `mixc build-mixture` with cp, MDSWriter, LitData, Megatron-LM and datasets.

    python tools/bench_build.py --venvs DIR
    python tools/bench_build.py --venvs DIR --quick --only cp,mds

A token store of `--gigabytes` is made of random tokens in documents as long as those of the web,
in 12 domains. A mixture of as many gigabytes is built from it, in turns with what others do with
the same rows: cp, cp and sync (a build is on the disk when it ends), MDSWriter, LitData's optimize,
datasets' interleave and save_to_disk; Megatron-LM builds its indices and reads its blend. All run
whole commands, start-up included, on as many cores as they have workers, with all they read in the
page cache. Then rows are read, by trainers' own readers: the mixture's, and blends on the fly.
The peers are installed from PyPI into an environment of their own under `--venvs`, once. Prints
tables in markdown. The exit code is 1 if a command fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from bench.measure import Usage, machine, measure, take_memory
from bench.peers import install, versions
from bench.tables import busy, table
from bench.token_store import make_recipe, make_store

from mixc import pipeline
from mixc.build.held import staged_sequences
from mixc.build.memory import memory_bytes
from mixc.build.plan import make_plan
from mixc.recipe import Recipe
from mixc.registry import WRITERS
from mixc.store.store import Store, open_store
from mixc.writers.sequences import Folder

_HERE = Path(__file__).parent / "bench"
# Memory that was just given back is there at once, and a virtual machine's returns to its host in
# two seconds: without a rest, or all memory taken once, who comes after whom would decide.
_SETTLED = 4.0
_TORCH = "torch==" + metadata.version("torch").split("+")[0]
PACKAGES = (
    "datasets==5.0.1",
    "litdata==0.2.76",
    "megatron-core==0.16.1",
    "mosaicml-streaming==0.13.0",
    _TORCH,
)
SEEN = ("numpy", "torch", "datasets", "litdata", "megatron-core", "mosaicml-streaming")
OWN = {"mixc": ("nanogpt", "megatron"), "mixc, mds": ("mds",), "mixc, litdata": ("litdata",)}
WRITERS_OF = {"mds": "MDSWriter", "litdata": "LitData's optimize", "datasets": "datasets"}
READERS = {
    "numpy": "numpy, train.bin",
    "megatron-rows": "Megatron-LM's IndexedDataset",
    "mds": "MosaicML's StreamingDataset",
    "litdata": "LitData's TokensLoader",
    "megatron-blend": "Megatron-LM's blend, indices built",
    "datasets": "datasets, interleaved",
}
ON_THE_FLY = ("megatron-blend", "datasets")
PARTS = ("cp", *WRITERS_OF, "megatron", "numpy")


@dataclass
class Bench:
    """The benchmark's settings, its folders, and what it has found."""

    arguments: argparse.Namespace
    folder: Path
    recipe: Recipe
    python: Path | None
    writes: dict[str, list[Usage]] = field(default_factory=dict)
    reads: dict[str, list[tuple[Usage, dict[str, Any]]]] = field(default_factory=dict)
    alone: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: bool = False

    @property
    def out(self) -> Path:
        """Where peers write; emptied before each run."""
        return self.folder / "out"

    def run(self, name: str, command: Sequence[str]) -> tuple[Usage, dict[str, Any]] | None:
        """Run a command into an empty folder: its cost, and the last line it said."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        log = self.folder / "log"
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        if self.python is not None and command[0] == str(self.python):
            env.pop("PYTHONPATH", None)
        os.sync()  # what earlier runs left is nobody's to write
        if self.arguments.memory == "host":
            time.sleep(_SETTLED)
        else:
            take_memory(int(4e9 * max(1, self.arguments.gigabytes)))
        say(f"{name} ...", end="")
        cores = self.arguments.workers
        usage = measure(command, cores=cores, log=log, env=env, cwd=self.folder, shares=False)
        say(f" {usage.wall:.2f} s, {usage.cpu:.2f} s CPU")
        lines = log.read_text(errors="replace").strip().splitlines() or [""]
        if usage.code:
            self.failed = True
            self.notes.append(f"{name}: FAILED with exit code {usage.code}: {lines[-1]}")
            return None
        try:
            return usage, dict(json.loads(lines[-1]))
        except ValueError:
            return usage, {}

    def build(self, name: str) -> Usage | None:
        """Build the mixture anew in the formats of one of our runs."""
        shutil.rmtree(self.recipe.workdir_path / "mixture", ignore_errors=True)
        line = [sys.executable, "-m", "mixc", "build-mixture", str(self.folder / "recipe.yaml")]
        line += ["-s", f"mixture.formats={json.dumps(OWN[name])}"]
        done = self.run(name, [*line, "--workers", str(self.arguments.workers), "--json"])
        return done and done[0]

    def peer(self, what: str, *more: str) -> list[str]:
        """The command of a peer."""
        return [str(self.python), str(_HERE / "trainers.py"), what, str(self.folder), *more]


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


# ---- what is compared ----


def commands(bench: Bench) -> dict[str, list[str]]:
    """The peers that write, by their names."""
    source, target = str(bench.folder / "stream.bin"), str(bench.out / "copy.bin")
    only, found = bench.arguments.only, {}
    if "cp" in only:
        found["cp"] = ["cp", source, target]
        found["cp and sync"] = ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "-", source, target]
    for key, name in WRITERS_OF.items():
        if key in only:
            found[name] = bench.peer(f"write-{key}", str(bench.out))
        if key in only and key in WRITERS:
            writer = str(_HERE / "write_format.py")
            found[f"mixc's writer of {key}"] = [
                *(sys.executable, writer, key, str(bench.folder), str(bench.out))
            ]
    return found


def write_all(bench: Bench) -> None:
    """Each writer in turns with the others, ours among them."""
    peers = commands(bench)
    ours = [name for name, formats in OWN.items() if set(formats) <= set(WRITERS)]
    ours = [name for name in ours if name == "mixc" or set(OWN[name]) & set(bench.arguments.only)]
    for _ in range(bench.arguments.repeat):
        for name in ours:
            if usage := bench.build(name):
                bench.writes.setdefault(name, []).append(usage)
        for name, command in peers.items():
            if done := bench.run(name, command):
                bench.writes.setdefault(name, []).append(done[0])
                if "seconds" in done[1]:
                    bench.alone.setdefault(name, []).append(done[1]["seconds"])


def read_all(bench: Bench, job: dict[str, Any]) -> None:
    """Each reader in turns with the others."""
    only = bench.arguments.only
    keys = [key for key in READERS if key.partition("-")[0] in only and bench.python is not None]
    keys = [key for key in keys if key in (*ON_THE_FLY, "numpy", "megatron-rows") or key in job]
    for _ in range(bench.arguments.repeat):
        for key in keys:
            if done := bench.run(READERS[key], bench.peer(f"read-{key}")):
                bench.reads.setdefault(READERS[key], []).append(done)


# ---- what the peers are given ----


def build_all(bench: Bench) -> dict[str, Any]:
    """A mixture in every format that is read, beside the recipe's own; what the peers must know."""
    store = open_store(bench.recipe.workdir_path / "store")
    only = set(bench.arguments.only)
    formats = [name for name in ("mds", "litdata") if name in WRITERS and name in only]
    OWN["all"] = ("nanogpt", "megatron", *formats)
    if bench.build("all") is None:
        raise SystemExit("\n".join(bench.notes))
    del OWN["all"]
    built = bench.recipe.workdir_path / "mixture"
    kept = bench.folder / "kept"
    built.rename(kept)
    (bench.folder / "stream.bin").hardlink_to(kept / "nanogpt/train.bin")
    manifest = json.loads((kept / "mixture.json").read_text())
    job: dict[str, Any] = {
        "seq_len": manifest["seq_len"],
        "rows": manifest["rows"],
        "workers": bench.arguments.workers,
        "reads": bench.arguments.reads,
        "domains": {name: one["rows"] for name, one in manifest["domains"].items()},
        "megatron": str(kept / "megatron/train"),
        **{name: str(kept / name / "train") for name in formats},
    }
    (bench.folder / "job.json").write_text(json.dumps(job))
    if only & {"megatron", "datasets"}:
        for name in job["domains"]:
            give_domain(store, name, bench.folder / "domains", manifest["seq_len"])
    return job


def planned_memory(recipe: Recipe, workers: int) -> int:
    """What `mixc plan` says of memory, in bytes."""
    store = open_store(recipe.workdir_path / "store")
    plan = make_plan(recipe, store, pipeline.mixture_stages(recipe, store))
    return memory_bytes(plan, store, workers=workers)


def give_domain(store: Store, name: str, folder: Path, seq_len: int) -> None:
    """A domain as Megatron-LM takes it, and as datasets does."""
    say(f"{name} for the peers ...")
    path = folder / "staged" / f"{name}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    shards = list(store.documents(name))
    with path.open("wb") as file:
        for shard in shards:
            file.write(shard.tokens.data)
    lengths = np.concatenate([shard.lengths for shard in shards])
    labels = np.zeros(len(lengths), np.uint8)
    sequences = staged_sequences(path, store.dtype, lengths, labels, (name,))
    WRITERS["megatron"].load().write(sequences, Folder(folder), name)
    rows = sequences.tokens()[: len(sequences.tokens()) // seq_len * seq_len]
    kind = pa.list_(pa.uint16(), seq_len)
    with pa.ipc.new_stream(folder / f"{name}.arrow", pa.schema({"tokens": kind})) as writer:
        for start in range(0, len(rows), 1024 * seq_len):
            part = pa.array(np.asarray(rows[start : start + 1024 * seq_len]))
            writer.write(
                pa.record_batch({"tokens": pa.FixedSizeListArray.from_arrays(part, seq_len)})
            )


# ---- what is said ----


def render(about: dict[str, Any]) -> str:
    """All tables and notes."""
    return "\n\n".join(
        part
        for part in (_about(about), _writes(about), _alone(about), _reads(about), _notes(about))
        if part
    )


def _about(about: dict[str, Any]) -> str:
    machine = about["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gb']:.0f} GB, "
        f"Python {machine['python']}; load {machine['load']:.1f} at the start, "
        f"{machine['load_after']:.1f} at the end.",
        f"{about['bytes'] / 1e9:.2f} GB: {about['rows']:,} rows of {about['seq_len']} tokens, "
        f"from {about['domains']} domains; "
        f"{about['workers']} workers, {about['repeat']} runs each, "
        f"free memory {'given back to a host' if about['memory'] == 'host' else 'at hand'}; "
        f"the plan says about {about['plan_mb']:.0f} MB of memory.",
        *busy(machine),
    ]
    for name, found in about["versions"].items():
        lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    return "\n".join(f"- {line}" for line in lines)


def _spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _writes(about: dict[str, Any]) -> str:
    runs = about["writes"]
    if "mixc" not in runs:
        return ""
    ours = [run["wall"] for run in runs["mixc"]]
    lines = []
    for name, mine in runs.items():
        walls = [run["wall"] for run in mine]
        lines.append(
            (
                name,
                _spread(walls),
                f"{about['rows'] / median(walls):,.0f}",
                f"{about['bytes'] / 1e6 / median(walls):,.0f}",
                f"{median(run['cpu'] for run in mine):.2f}",
                f"{max(run['largest_mb'] for run in mine):.0f}",
                f"{max(run['own_mb'] for run in mine):.0f}",
                _spread([a / b for a, b in zip(walls, ours, strict=False)]),
            )
        )
    titles = ("writing", "wall s", "rows/s", "MB/s", "CPU s", "largest MB", "own MB")
    return table((*titles, "to mixc's wall"), lines)


def _reads(about: dict[str, Any]) -> str:
    lines = []
    for name, mine in about["reads"].items():
        lines.append(
            (
                name,
                _spread([found["start"] for _, found in mine], 3),
                f"{median(found['rate'] for _, found in mine):,.0f}",
                f"{max(usage['largest_mb'] for usage, _ in mine):.0f}",
            )
        )
    return table(("reading", "first row s", "rows/s", "largest MB"), lines) if lines else ""


def _alone(about: dict[str, Any]) -> str:
    lines = [
        (name, _spread(mine), f"{about['rows'] / median(mine):,.0f}")
        for name, mine in about["alone"].items()
    ]
    heads = ("writing of rows that are there, imports left out", "s", "rows/s")
    return table(heads, lines) if lines else ""


def _notes(about: dict[str, Any]) -> str:
    return "\n".join(f"- {note}" for note in (*_LEGEND, *about["notes"]))


_LEGEND = (
    "the whole command, start-up included: median (smallest to largest); ratios within each turn",
    "mixc: nanogpt and megatron, two names of one file, hashed, synced, with rows.parquet",
    "memory: the largest process's resident set at its height, mapped pages of files included, "
    "and what the whole tree holds without them (RssAnon), looked at every 0.25 s",
    "first row: from the reader's making to its first row, imports left out",
)


def parse(line: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venvs", type=Path, required=True, help="where the peers are installed")
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--domains", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument(
        "--memory",
        choices=("host", "own"),
        default="host",
        help="a virtual machine's free memory was given back to its host, or is its own as on a "
        "machine that has no host",
    )
    parser.add_argument("--reads", type=int, default=20_000, help="rows to read")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="50 MB, one run of each")
    parser.add_argument("--python", default=sys.executable, help="for the peers' environment")
    parser.add_argument("--work", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, help="write all that was measured to this file")
    found = parser.parse_args(line)
    found.only = [name for name in found.only.split(",") if name]
    if unknown := sorted(set(found.only) - set(PARTS)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if found.quick:
        found.gigabytes, found.repeat, found.reads = 0.05, 1, 1000
    if min(found.repeat, found.domains, found.workers, found.reads) < 1 or found.gigabytes <= 0:
        parser.error("numbers must be positive")
    if shutil.which("taskset") is None:
        parser.error("taskset is not installed (it is in util-linux)")
    found.venvs = found.venvs.absolute()
    return found


def main() -> int:
    arguments = parse()
    about: dict[str, Any] = {"machine": machine()}
    python = None
    if set(arguments.only) - {"cp"}:
        python = install("trainers", PACKAGES, arguments.venvs, arguments.python)
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name).absolute()
        say(f"making a store of {arguments.gigabytes} GB ...")
        recipe = make_recipe(
            folder,
            gigabytes=arguments.gigabytes,
            domains=arguments.domains,
            seq_len=arguments.seq_len,
            formats=OWN["mixc"],
        )
        make_store(recipe, arguments.gigabytes)
        planned = planned_memory(recipe, arguments.workers)
        bench = Bench(arguments, folder, recipe, python)
        job = build_all(bench)
        write_all(bench)
        read_all(bench, job)
        size = (folder / "stream.bin").stat().st_size
    about["machine"]["load_after"] = os.getloadavg()[0]
    known = {"mixc": Path(sys.executable)} | ({} if python is None else {"trainers": python})
    about |= {
        "bytes": size,
        "plan_mb": planned / 1e6,
        "domains": arguments.domains,
        **{key: getattr(arguments, key) for key in ("seq_len", "workers", "repeat", "memory")},
        "rows": job["rows"],
        "versions": {name: versions(where, SEEN) for name, where in known.items()},
        "writes": {name: [asdict(one) for one in runs] for name, runs in bench.writes.items()},
        "reads": {
            name: [(asdict(usage), found) for usage, found in runs]
            for name, runs in bench.reads.items()
        },
        "alone": bench.alone,
        "notes": bench.notes,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(about, indent=1) + "\n")
    print(render(about))
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
