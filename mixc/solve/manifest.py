"""weights.json as plain data: the answer, how sure it is, what it is worth, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc import __version__
from mixc.recipe import Recipe
from mixc.registry import METHODS
from mixc.solve.check import Checked, league
from mixc.solve.copies import copies_of
from mixc.solve.doubts import doubts
from mixc.solve.problem import Problem, Solution
from mixc.solve.seeds import disagreement
from mixc.solve.weights import FILES, SCHEMA, finite_or_none
from mixc.store.hashes import FileRecord, key_of
from mixc.store.store import Store

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a solve found: the solution of each seed, the answer that they make together, the
    simple mixes float64[K] by name, and how the answer stood beside them.
    """

    problem: Problem
    seeds: tuple[int, ...]
    solutions: tuple[Solution, ...]
    answer: Solution
    simple: Mapping[str, Real]
    checked: Checked | None


def manifest(
    recipe: Recipe, store: Store, found: Found, files: Mapping[str, FileRecord], key: str
) -> dict[str, Any]:
    """What weights.json says, by the rules of `mixc.weights/1`."""
    solve, problem = recipe.solve, found.problem
    assert solve is not None
    trains = METHODS[solve.method].trains
    options = solve.options.model_dump(mode="json")
    names, kept = problem.domains, problem.lab.kept_rows if trains else None
    simple = _simple_answer(recipe, found)
    return {
        "schema": SCHEMA,
        "key": key,
        "method": solve.method,
        "variant": options.get("variant"),
        "options": options,
        "proxy": solve.proxy.model_dump(mode="json"),
        "kept_rows": None if kept is None else dict(zip(names, kept.tolist(), strict=True)),
        **_answer(solve.method, found, simple),
        "baselines": {name: _by_domain(names, weights) for name, weights in found.simple.items()},
        "check": _check(found.checked),
        "doubts": [*_copies(problem), *_doubts(found, simple)] if trains else [],
        "bits_per_byte": {
            model: _by_domain(names, bits) for model, bits in found.answer.bits_per_byte.items()
        },
        "between_seeds": disagreement(names, found.solutions),
        **{name: files[name].as_dict() if name in files else None for name in FILES},
        "cost": _cost(found, trains=trains),
        "provenance": {
            "store_hash": store.store_hash,
            "recipe_hash": key_of({"solve": recipe.canonical()["solve"], "seed": recipe.seed}),
            "seeds": list(found.seeds),
            "environment": dict(found.answer.environment),
            "overrides": recipe.overrides_of("solve", "mixture", "seed"),
            "mixc_version": __version__,
        },
    }


def _simple_answer(recipe: Recipe, found: Found) -> str | None:
    """The simple mix that is taken in place of the method's answer: on a tie, if asked for."""
    assert recipe.solve is not None
    options, checked = recipe.solve.check, found.checked
    if checked and checked.verdict.as_good and options and options.on_tie == "simple":
        return checked.verdict.as_good[0]
    return None


def _answer(method: str, found: Found, simple: str | None) -> dict[str, Any]:
    """The weights to build with: the method's, or those of a simple mix."""
    names, answer = found.problem.domains, found.answer
    if simple is not None:
        weights = found.simple[simple]
        return {
            "answer": simple,
            "domains": _domains(names, weights, weights, weights),
            "not_taken": _domains(names, answer.weights, answer.low, answer.high),
        }
    return {
        "answer": method,
        "domains": _domains(names, answer.weights, answer.low, answer.high),
        **_schedule(names, answer),
    }


def _domains(names: Sequence[str], weights: Real, low: Real, high: Real) -> dict[str, Any]:
    rows = zip(names, weights.tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: {"weight": w, "low": a, "high": b} for name, w, a, b in rows}


def _check(checked: Checked | None) -> dict[str, Any] | None:
    if checked is None:
        return None
    return {**league(checked.comparison), "verdict": asdict(checked.verdict)}


def _copies(problem: Problem) -> list[str]:
    """Of domains that no method can tell apart."""
    return [
        f"'{copy}' and '{first}' hold the same documents: one of them is enough"
        for copy, first in copies_of(problem).items()
    ]


def _doubts(found: Found, simple: str | None) -> list[str]:
    """Of the weights to build with: those of a simple mix follow from the counts alone."""
    problem, answer, solutions = found.problem, found.answer, found.solutions
    if simple is not None:
        answer = Solution.exact(found.simple[simple])
        solutions = (answer,)
    epochs = None
    if problem.target_tokens:
        epochs = answer.weights * problem.target_tokens / np.maximum(problem.tokens, 1)
    alpha, low, high = solutions[0].trajectory.get("alpha"), answer.low, answer.high
    if answer.schedule is not None:  # it is meant to change: its range is no noise
        alpha, low, high = None, answer.weights, answer.weights
    elif alpha is not None:
        alpha = alpha[-problem.lab.options.steps :]  # of several rounds the last
    return doubts(
        problem.domains,
        answer.weights,
        low,
        high,
        problem.tokens / problem.tokens.sum(),
        trajectory=alpha,
        seeds=np.stack([one.weights for one in solutions]) if len(solutions) > 1 else None,
        epochs=epochs,
        max_epochs=problem.max_epochs,
    )


def _cost(found: Found, *, trains: bool) -> dict[str, Any]:
    """Tokens and FLOPs of the solve, and of how many plain runs of the small model it is worth."""
    cost: dict[str, Any] = {"tokens": found.answer.tokens, "flops": found.answer.flops}
    if trains:
        cost["plain_runs"] = found.answer.flops / found.problem.lab.run_flops
    if found.checked is not None:
        comparison = found.checked.comparison
        cost["check"] = {"tokens": comparison.tokens, "flops": comparison.flops}
    return cost


def _schedule(names: Sequence[str], solution: Solution) -> dict[str, Any]:
    if solution.schedule is None:
        return {}
    return {
        "schedule": [
            {"until": until, "weights": _by_domain(names, weights)}
            for until, weights in solution.schedule
        ]
    }


def _by_domain(names: Sequence[str], values: Real) -> Mapping[str, Any]:
    return {name: finite_or_none(value) for name, value in zip(names, values, strict=True)}
