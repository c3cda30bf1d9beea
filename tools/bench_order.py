"""Compare the planning of rows with Megatron-LM's blending index: which domain each row is of.

    python tools/bench_order.py --venvs DIR
    python tools/bench_order.py --venvs DIR --rows 100000000 --domains 1000

Each plans as many rows over as many domains, in turns, in a process of its own on one core: the
seconds of the call alone. mixc in blocks, shuffled, as mixtures are by default, and in its strict
order; Megatron-LM by the compiled `build_blending_indices`. All errors of prefixes are looked for.
The peer is installed from PyPI into an environment under `--venvs`, that of `bench_build.py`.
Prints a table in markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench.measure import machine
from bench.peers import install, versions
from bench.tables import busy, table
from bench.token_store import sizes
from bench_build import PACKAGES, SEEN

from mixc.build.counts import row_counts
from mixc.build.order import domain_order, prefix_error

BLOCK = 1024  # the default of recipes
PEER = "Megatron-LM's blending index"
OURS = {f"mixc, in blocks of {BLOCK}": BLOCK, "mixc, strict": 1}


def plan(rows: int, domains: int, block: int) -> dict[str, Any]:
    """The seconds that the order takes, once kernels are loaded, and its error at blocks' ends."""
    domain_order(np.full(domains, 2), shuffle_block=block, seed=1)
    counts = row_counts(sizes(domains), rows, np.full(domains, rows)).rows
    start = time.perf_counter()
    labels = domain_order(counts, shuffle_block=block, seed=1)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "error": prefix_error(labels, counts, shuffle_block=block)}


def measured(line: Sequence[str]) -> dict[str, Any]:
    """Run one of them on the first core: what it says last."""
    core = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def render(options: argparse.Namespace, about: dict[str, Any], found: dict[str, Any]) -> str:
    """What was measured, on what, as a table."""
    theirs, lines = median(run["seconds"] for run in found[PEER]), []
    for name, runs in found.items():
        taken = [run["seconds"] for run in runs]
        spread = f"{median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})"
        ratio = f"{theirs / median(taken):.1f}x"
        lines.append((name, spread, ratio, f"{runs[0]['error']:.2f}"))
    heads = ("order", "s", "faster than it", "worst prefix, rows")
    said = [
        f"{options.rows:,} rows of {options.domains} domains, {options.repeat} runs each; "
        f"{about['cpu']}, one core, load {about['load']:.1f} at the start",
        *busy(about),
        ", ".join(f"{key} {value}" for key, value in about["versions"].items()),
        f"prefixes: at the ends of blocks of {BLOCK}, in the strict order and theirs all",
    ]
    return "\n".join([*(f"- {line}" for line in said), "", table(heads, lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venvs", type=Path, help="where the peer is installed")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--domains", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each; the median counts")
    parser.add_argument("--python", default=sys.executable, help="for the peer's environment")
    parser.add_argument("--block", type=int, help="plan once, in blocks of so many, and say it")
    options = parser.parse_args()
    if options.block is not None:
        print(json.dumps(plan(options.rows, options.domains, options.block)))
        return
    if options.venvs is None:
        parser.error("--venvs is needed")
    about = machine()
    python = install("trainers", PACKAGES, options.venvs.absolute(), options.python)
    about["versions"] = versions(python, SEEN)
    size = [str(options.rows), str(options.domains)]
    again = [sys.executable, __file__, "--rows", size[0], "--domains", size[1], "--block"]
    lines = {name: [*again, str(block)] for name, block in OURS.items()}
    lines[PEER] = [str(python), str(Path(__file__).parent / "bench/blend.py"), *size]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in lines}
    for _ in range(options.repeat):
        for name, line in lines.items():
            found[name].append(measured(line))
    print(render(options, about, found))


if __name__ == "__main__":
    main()
