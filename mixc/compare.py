"""`mixc compare`: any mixes and methods of a recipe in one league, at equal compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError, did_you_mean
from mixc.pipeline import current_store, schedule_of, weights_of
from mixc.recipe import Recipe, load
from mixc.registry import METHODS
from mixc.solve import answers, stage
from mixc.solve.check import compare, league
from mixc.solve.problem import Solution
from mixc.solve.runs import MixRun
from mixc.solve.trainer import QUIETLY, Running
from mixc.solve.weights import FILE, open_weights
from mixc.store import commit
from mixc.store.store import Store


def compare_mixes(
    recipe: Recipe, names: Sequence[str], *, seeds: int, running: Running = QUIETLY
) -> dict[str, Any]:
    """Train the recipe's small model on every mix with every seed, and rank the mixes.

    A mix is `solved`, a .json file of weights, or a method, with its options of the recipe; one
    that trains is run first, and what that took stands beside the mix as `solve_flops`, None for
    a file, which does not say. Weights that are a schedule are trained on as they change. Runs and
    methods' answers are kept in the workdir: another comparison makes only those that are new, and
    one that was killed goes on. Raises MX008 for a name that is none of these, MX009 where the
    recipe does not say what to train, MX045 for a stale store or stale weights, MX051 where nothing
    is held out to score mixes by.
    """
    if recipe.solve is None:
        raise stage.unsolved(recipe)
    store = current_store(recipe)
    final = recipe.workdir_path / FILE
    with commit.reading(store.root), commit.locked(final) as staging:
        folder = staging / "compare"
        problem = stage.make_problem(recipe, store, folder, running=running)
        problem.lab.need_holdout("mixes")
        mixes = {
            name: _solution(recipe, store, name, folder / name, running)
            for name in dict.fromkeys(names)
        }
        chosen = range(recipe.seed, recipe.seed + seeds)

        def run(name: str, seed: int) -> MixRun:
            mix, label = mixes[name], f"on {name}, seed {seed}"
            return problem.lab.run_mix(mix.weights, seed=seed, schedule=mix.schedule, label=label)

        weights = {name: mix.weights for name, mix in mixes.items()}
        found = league(compare(weights, problem.domains, chosen, run))
        commit.remove(folder)
    for name, entry in found["mixes"].items():
        entry["solve_flops"] = None if name.endswith(".json") else mixes[name].flops
    return found


def _solution(recipe: Recipe, store: Store, name: str, folder: Path, running: Running) -> Solution:
    """A mix: its weights, its schedule if it has one, and the FLOPs that it takes to find them."""
    if name in METHODS:
        return _answer(recipe, store, name, folder, running)
    if name != "solved" and not name.endswith(".json"):
        known = ["solved", *METHODS]
        raise MixcError("MX008", f"unknown mix {name!r:.80}", help=did_you_mean(name, known))
    found = weights_of(recipe, store, name)
    if unknown := set(found) - set(store.domains):
        message = f"'{name}' weighs a domain that the store does not have: '{min(unknown)}'"
        raise MixcError("MX061", message)

    def ordered(weights: Mapping[str, float]) -> NDArray[np.float64]:
        return np.array([weights.get(domain, 0.0) for domain in store.domains])

    stages = schedule_of(recipe, name)
    schedule = tuple((one.until, ordered(one.weights)) for one in stages) or None
    flops = 0.0
    if name == "solved":
        flops = open_weights(recipe.workdir_path / FILE).manifest["cost"]["flops"]
    return replace(Solution.exact(ordered(found)), schedule=schedule, flops=flops)


def _answer(recipe: Recipe, store: Store, name: str, folder: Path, running: Running) -> Solution:
    """A method's answer: one that was kept, or else found now, and kept if models were trained."""
    variant = load(recipe.file, (*recipe.overrides, f"solve.method={name}"))
    assert variant.solve is not None
    key = stage.weights_key(variant, store)
    path = recipe.workdir_path / stage.KEPT / "answers" / f"{key}.json"
    if METHODS[name].trains and (known := answers.load(path)) is not None:
        return known
    problem = stage.make_problem(variant, store, folder, running=running)
    found = stage.run_method(name, problem, variant.solve.options)
    if METHODS[name].trains:
        answers.save(path, found)
    return found
