"""How often regression's intervals hold the best mix, on problems whose best mix is known.

    python tools/intervals.py
    python tools/intervals.py --domains 10 --noise 0.1 --problems 12

A problem has k domains of sizes drawn at random, and as many losses. Each falls with what the mix
has of its own domain and, less steeply, with what it has of some others: by a log-linear law, which
is one of those that are fitted, or by a power law, which is not. A swarm as `regression` plans it,
of 3 (k + 1) runs, reads these losses with an error, whose spread is a part of theirs over the
swarm. What the method makes of it is held against the lowest mean of the losses without error.

Prints a table in markdown: how many of the weights' intervals hold the best mix's weight (95% are
asked for), how wide they are, how far the answer is from the best mix in total variation, and how
much of what the best mix gains over natural the answer gains (median), and uniform.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mixc.methods import regression
from mixc.solve.doubts import total_variation
from mixc.solve.lab import Lab
from mixc.solve.problem import Problem, Solution
from mixc.solve.swarm import plan_swarm

Real = NDArray[np.float64]
Law = Callable[[Real, Real, Real], Real]

LAWS: dict[str, Law] = {
    "log-linear": lambda seen, least, height: least + height * np.exp(-2 * seen),
    "power": lambda seen, least, height: least + height * (0.03 + seen) ** -0.3,
}
STARTS = 4  # of the search for the best mix, beside natural and uniform


@dataclass(frozen=True)
class Truth:
    """What is known of a problem: its natural mix and its best, float64[k], and its losses."""

    natural: Real
    best: Real
    losses: Callable[[Real], Real]  # of mixes [n, k], float64[n, k]

    def gain(self, mix: Real) -> float:
        """How much of what the best mix gains over natural, in the mean loss, `mix` gains."""
        natural, best, mine = self.losses(np.stack([self.natural, self.best, mix])).mean(axis=1)
        return float((natural - mine) / (natural - best))


def make_truth(law: Law, k: int, seed: int) -> Truth:
    """Draw a problem of k domains."""
    lots = np.random.default_rng([seed, k])
    natural = lots.dirichlet(np.ones(k))
    helps = lots.uniform(0, 0.3, (k, k)) * (lots.random((k, k)) < 0.5)
    helps += np.diag(lots.uniform(0.5, 1.5, k))  # [loss, domain]
    least, height = lots.uniform(0.5, 2.5, k), np.exp(lots.uniform(-0.5, 0.5, k))

    def losses(mixes: Real) -> Real:
        return law(mixes @ helps.T, least, height)

    starts = [natural, np.full(k, 1 / k), *lots.dirichlet(np.ones(k), STARTS)]
    return Truth(natural, _lowest(losses, starts), losses)


def _lowest(losses: Callable[[Real], Real], starts: list[Real]) -> Real:
    """The mix of the lowest mean loss."""
    from scipy.optimize import minimize

    found = [
        minimize(
            lambda mix: float(losses(mix[None]).mean()),
            start,
            method="SLSQP",
            bounds=[(0, 1)] * len(start),
            constraints=[{"type": "eq", "fun": lambda mix: mix.sum() - 1}],
            options={"ftol": 1e-12, "maxiter": 500},
        )
        for start in starts
    ]
    return np.asarray(min(found, key=lambda one: float(one.fun)).x, np.float64)


def solve(truth: Truth, noise: float, seed: int) -> Solution:
    """What regression makes of a swarm whose losses are read with an error."""
    mixes = plan_swarm(truth.natural, seed=seed)
    losses = truth.losses(mixes)
    lots = np.random.default_rng([seed, len(truth.best), 1])
    losses += noise * losses.std(axis=0) * lots.standard_normal(losses.shape)
    names = tuple(f"d{number}" for number in range(len(truth.best)))
    tokens = (truth.natural * 1e9).astype(np.int64)
    with tempfile.TemporaryDirectory() as there:
        for name, table in (("ratios", mixes), ("metrics", losses)):
            rows = [["run", *names], *([n, *row] for n, row in enumerate(table.tolist()))]
            lines = (",".join(map(str, row)) + "\n" for row in rows)
            (Path(there) / f"{name}.csv").write_text("".join(lines))
        # Nothing is trained: the runs are there.
        problem = Problem(names, tokens, seed, cast("Lab", None), folder=Path(there))
        return regression.solve(
            problem, regression.Options(ratios="ratios.csv", metrics="metrics.csv")
        )


def measure(law: str, k: int, noise: float, problems: int) -> list[str]:
    """A row of the table."""
    held, width, distance, gains = [], [], [], []
    for seed in range(problems):
        truth = make_truth(LAWS[law], k, seed)
        found = solve(truth, noise, seed)
        held.append((found.low <= truth.best + 1e-9) & (truth.best <= found.high + 1e-9))
        width.append(found.high - found.low)
        distance.append(total_variation(found.weights, truth.best))
        gains.append([truth.gain(found.weights), truth.gain(np.full(k, 1 / k))])
    mine, uniform = np.median(gains, axis=0)
    means = (np.mean(held), np.mean(width), np.mean(distance), mine, uniform)
    return [law, str(k), f"{noise:g}", *(f"{value:.2f}" for value in means)]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", type=int, nargs="+", default=[5])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.02, 0.1, 0.3])
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LAWS))
    parser.add_argument("--problems", type=int, default=20, help="of each kind")
    given = parser.parse_args()
    head = ["law", "domains", "noise", "intervals hold", "width", "distance", "gain", "uniform's"]
    print("| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1))
    for law in given.laws:
        for k in given.domains:
            for noise in given.noise:
                row = measure(law, k, noise, given.problems)
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
