"""`mixc compare`: any mixes and methods of a recipe in one league, at equal compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError, did_you_mean
from mixc.pipeline import current_store, weights_of
from mixc.recipe import Recipe, load
from mixc.registry import METHODS
from mixc.solve import stage
from mixc.solve.check import compare, league
from mixc.solve.runs import MixRun
from mixc.solve.weights import FILE
from mixc.store import commit
from mixc.store.store import Store

Real = NDArray[np.float64]


def compare_mixes(recipe: Recipe, names: Sequence[str], *, seeds: int) -> dict[str, Any]:
    """Train the recipe's small model on every mix with every seed, and rank the mixes.

    A mix is `solved`, a .json file of weights, or a method, with its options of the recipe; one
    that trains is run first, and what that took stands beside the mix as `solve_flops`. Runs are
    kept in the workdir: another comparison makes only those that are new. Raises MX008 for a name
    that is none of these, MX045 for a stale store or stale weights.
    """
    store = current_store(recipe)
    final = recipe.workdir_path / FILE
    with commit.reading(store.root), commit.locked(final) as staging:
        folder = staging / "compare"
        mixes, costs = dict[str, Real](), dict[str, float]()
        for name in dict.fromkeys(names):
            mixes[name], costs[name] = _weights(recipe, store, name, folder / name)
        problem = stage.make_problem(recipe, store, folder)
        chosen = [recipe.seed + number for number in range(seeds)]

        def run(weights: Real, seed: int) -> MixRun:
            return problem.lab.run_mix(weights, seed=seed)

        found = league(compare(mixes, problem.domains, chosen, run))
        commit.remove(folder)
    for name, entry in found["mixes"].items():
        entry["solve_flops"] = costs[name]
    return found


def _weights(recipe: Recipe, store: Store, name: str, folder: Path) -> tuple[Real, float]:
    """The weights of a mix, float64[K], and the FLOPs that it takes to find them."""
    if name in METHODS:
        variant = load(recipe.file, (*recipe.overrides, f"solve.method={name}"))
        assert variant.solve is not None
        problem = stage.make_problem(variant, store, folder)
        solution = stage.run_method(name, problem, variant.solve.options)
        return solution.weights, solution.flops
    if name != "solved" and not name.endswith(".json"):
        known = ["solved", *METHODS]
        raise MixcError("MX008", f"unknown mix {name!r:.80}", help=did_you_mean(name, known))
    found = weights_of(recipe, store, name)
    if unknown := set(found) - set(store.domains):
        message = f"'{name}' weighs a domain that the store does not have: '{min(unknown)}'"
        raise MixcError("MX061", message)
    return np.array([found.get(domain, 0.0) for domain in store.domains]), 0.0
