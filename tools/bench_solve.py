"""What whole solves cost by the clock, in plain runs of the same small model.

    python tools/bench_solve.py RECIPE
    OMP_NUM_THREADS=1 python tools/bench_solve.py RECIPE --methods doremi doge --repeat 20

A plain run trains the recipe's small model on a simple mix and scores it by the holdout. Two of
them, on natural and on uniform, and a solve by each method make a turn. Who comes first changes
from turn to turn, and nothing is kept from one to the next. The store must be there (`mixc
tokenize RECIPE`).

Prints a table in markdown: solves in plain runs of the same turn, the median over the turns, the
least and the most; all turns together; and by floating-point operations, as `weights.json` says it.
Two equal trainings may lie some percent apart: so that this can be seen, the second of each pair of
plain runs stands there in terms of the first. Seconds are of wall time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench.measure import machine
from bench.tables import busy, table

from mixc.pipeline import current_store
from mixc.recipe import load
from mixc.registry import METHODS
from mixc.solve.problem import Problem
from mixc.solve.stage import make_problem, run_method
from mixc.store import commit
from mixc.store.store import Store

PLAIN = "plain run"


@dataclass(frozen=True)
class Turn:
    """Seconds of two plain runs, and of each method's solve."""

    plain: tuple[float, float]
    solves: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What is timed: a recipe, with overrides, its store, and methods to solve it by.

    `operations`: what each solve came to in operations, in those of a plain run.
    """

    path: Path
    overrides: tuple[str, ...]
    store: Store
    methods: tuple[str, ...]
    operations: dict[str, float]

    def turn(self, number: int) -> Turn:
        """Time plain runs and all solves once."""
        plain, solves = (0.0, 0.0), {}
        kinds = [PLAIN, *self.methods]
        first = number % len(kinds)
        for kind in kinds[first:] + kinds[:first]:
            with tempfile.TemporaryDirectory(dir=self.path.parent) as scratch:
                if kind == PLAIN:
                    plain = self._plain(Path(scratch))
                else:
                    solves[kind] = self._solve(kind, Path(scratch))
        return Turn(plain, solves)

    def _plain(self, scratch: Path) -> tuple[float, float]:
        problem, _ = self._problem("natural", scratch)
        natural = problem.tokens / problem.tokens.sum()
        uniform = np.full(len(natural), 1 / len(natural))
        return (
            _seconds(lambda: problem.lab.run_mix(natural)),
            _seconds(lambda: problem.lab.run_mix(uniform)),
        )

    def _solve(self, method: str, scratch: Path) -> float:
        problem, options = self._problem(method, scratch)

        def solve() -> None:
            found = run_method(method, problem, options)
            self.operations[method] = found.flops / problem.lab.run_flops

        return _seconds(solve)

    def _problem(self, method: str, scratch: Path) -> tuple[Problem, object]:
        """The recipe's problem, and the method's options; what is kept is kept in `scratch`."""
        chosen = (f"solve.method={method}", f"workdir={scratch}")
        recipe = load(self.path, [*self.overrides, *chosen])
        assert recipe.solve is not None
        return make_problem(recipe, self.store, scratch / "staging"), recipe.solve.options


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(
    path: Path, methods: Sequence[str], *, repeat: int, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """All turns, after one that is not counted: it loads what is needed."""
    about = {**machine(), "date": datetime.now(UTC).date().isoformat()}
    about |= {"torch": metadata.version("torch"), "threads": torch.get_num_threads()}
    store = current_store(load(path, overrides))
    bench = Bench(path.resolve(), tuple(overrides), store, tuple(methods), {})
    with commit.reading(store.root):
        turns = [bench.turn(number) for number in range(repeat + 1)][1:]
    rows = [_row(name, [_plain_runs(turn, name) for turn in turns]) for name in methods]
    seconds = [took for turn in turns for took in turn.plain]
    for row, name in zip(rows, methods, strict=True):
        solves = [turn.solves[name] for turn in turns]
        row |= {"together": sum(solves) / (sum(seconds) / 2), "operations": bench.operations[name]}
    pairs = [turn.plain[1] / turn.plain[0] for turn in turns]
    rows.append(_row("the second plain run, of the first", pairs))
    return {"machine": about, "turns": repeat, "plain_seconds": seconds, "rows": rows}


def _plain_runs(turn: Turn, method: str) -> float:
    return turn.solves[method] / (sum(turn.plain) / 2)


def _row(name: str, ratios: Sequence[float]) -> dict[str, Any]:
    return {"what": name, "median": median(ratios), "least": min(ratios), "most": max(ratios)}


def render(found: dict[str, Any]) -> str:
    """What was measured, in markdown."""
    about = found["machine"]
    lines = [
        f"- {about['date']}, {about['cpu']}, {about['threads']} threads, torch {about['torch']}; "
        f"load {about['load']:.1f} at the start",
        *(f"- {warning}" for warning in busy(about)),
        f"- {found['turns']} turns; a plain run takes {median(found['plain_seconds']):.1f} s",
    ]
    titles = ("solve, in plain runs", "median", "least", "most", "all turns", "by operations")
    columns = ("median", "least", "most", "together", "operations")
    rows = [
        [row["what"], *(f"{row[name]:.2f}" if name in row else "" for name in columns)]
        for row in found["rows"]
    ]
    return "\n".join([*lines, "", table(titles, rows)])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="a recipe whose store is there")
    trained = [name for name, method in METHODS.items() if method.trains]
    parser.add_argument("--methods", nargs="+", default=["doremi", "doge"], choices=trained)
    parser.add_argument("--repeat", type=int, default=5, help="turns that count")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="a file for what was measured")
    given = parser.parse_args()
    found = measure(given.recipe, given.methods, repeat=given.repeat, overrides=given.overrides)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    print(render(found))


if __name__ == "__main__":
    main()
