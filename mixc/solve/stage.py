"""`mixc solve-weights`: a store to weights.json and the trajectory that led there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixc import __version__
from mixc.errors import MixcError, Place
from mixc.recipe import Proxy, Recipe
from mixc.registry import METHODS
from mixc.solve.lab import Lab
from mixc.solve.problem import Problem, Solution
from mixc.solve.weights import FILE, SCHEMA, SolvedWeights, finite_or_none, open_weights
from mixc.store import commit
from mixc.store.hashes import FileRecord, check_file, key_of, seal
from mixc.store.store import Store

ALGORITHM = 1  # a change of what methods find, from the same store and options, raises it
RUNS = Path("solve", "runs")  # what training on fixed mixes came to, for later solves too
_CPU_SHARE = 0.4  # of a large product's speed, what training a small model reaches on a CPU
BASELINES = ("natural", "uniform", "unimax")


def make_problem(recipe: Recipe, store: Store, staging: Path | None = None) -> Problem:
    """The recipe's domains as a problem for methods.

    Trainings keep their checkpoints in `staging`, and runs on fixed mixes stay in the workdir's
    `solve/runs/`; without a staging folder nothing is written.
    """
    options = recipe.mixture
    if not any(domain.training_tokens for domain in store.domains.values()):
        raise MixcError(
            "MX060",
            "no domain has a token to train on",
            help="give the domains more documents, or lower holdout.fraction",
        )
    proxy = recipe.solve.proxy if recipe.solve is not None else Proxy()
    return Problem(
        domains=tuple(store.domains),
        tokens=np.array([domain.training_tokens for domain in store.domains.values()], np.int64),
        seed=recipe.seed,
        lab=Lab(
            store,
            proxy,
            seed=recipe.seed,
            staging=staging,
            folder=None if staging is None else recipe.workdir_path / RUNS,
            key="" if staging is None else weights_key(recipe, store),
        ),
        target_tokens=options.row_count * options.row_tokens,
        max_epochs=options.max_epochs,
    )


def run_method(name: str, problem: Problem, options: object = None) -> Solution:
    """Solve a problem by a method of the registry, with its default options if none are given."""
    module = METHODS[name].load()
    solution: Solution = module.solve(problem, module.Options() if options is None else options)
    return solution


def weights_key(recipe: Recipe, store: Store) -> str:
    """The key of everything that the weights depend on."""
    assert recipe.solve is not None
    options = recipe.mixture
    reads = METHODS[recipe.solve.method].reads_mixture
    return key_of(
        {
            "algorithm": ALGORITHM,
            "store": store.store_hash,
            "solve": recipe.canonical()["solve"],
            "seed": recipe.seed,
            "mixture": [options.row_count, options.row_tokens, options.max_epochs]
            if reads
            else None,
        }
    )


def fresh(recipe: Recipe, store: Store) -> SolvedWeights | None:
    """The weights that are there, if they are those that this recipe and store would give."""
    try:
        solved = open_weights(recipe.workdir_path / FILE)
    except MixcError:
        return None
    file = solved.manifest["trajectory"]
    if file is not None and check_file(recipe.workdir_path, FileRecord(**file), rehash=True):
        return None
    return solved if solved.manifest["key"] == weights_key(recipe, store) else None


def estimate(recipe: Recipe, store: Store) -> dict[str, Any]:
    """What solving would cost: tokens trained on, FLOPs, and about how long on this CPU."""
    assert recipe.solve is not None
    from mixc.proxy.presets import PRESETS, flops_per_token

    proxy, passes = recipe.solve.proxy, METHODS[recipe.solve.method].forward_passes
    tokens = proxy.steps * make_problem(recipe, store).lab.batch_rows * (proxy.seq_len - 1)
    forward = flops_per_token(PRESETS[proxy.preset], store.vocab_size, proxy.seq_len - 1)
    flops = passes * forward * tokens
    return {
        "method": recipe.solve.method,
        "proxy_tokens": tokens if passes else 0,
        "flops": flops,
        "about_seconds_on_cpu": flops / (_CPU_SHARE * _matmul_rate()) if passes else 0.0,
    }


def _matmul_rate() -> float:
    """Multiply-adds of this CPU a second, as two operations each, in a large product."""
    a = np.ones((1024, 1024), np.float32)
    a @ a
    start = time.perf_counter()
    a @ a
    return float(2 * 1024**3 / (time.perf_counter() - start))


def solve_weights(recipe: Recipe, store: Store) -> SolvedWeights:
    """Bring weights.json up to date with the recipe and the store, and open it."""
    if recipe.solve is None:
        raise MixcError(
            "MX009",
            "the recipe has no 'solve' section",
            place=recipe.place(),
            help="add one, as in: solve: {method: doremi}",
        )
    final = recipe.workdir_path / FILE
    with commit.locked(final) as staging:
        if (solved := fresh(recipe, store)) is not None:
            commit.remove(staging)
            return solved
        old = _old_trajectory(final)
        problem = make_problem(recipe, store, staging)
        solution = run_method(recipe.solve.method, problem, recipe.solve.options)
        trajectory = _stage_trajectory(staging, problem, solution)
        manifest = _manifest(recipe, store, problem, solution, trajectory)
        commit.write_file(staging / FILE, seal(manifest))
        if trajectory is not None:
            commit.publish_file(staging / trajectory.path, final.parent / trajectory.path)
        commit.publish_file(staging / FILE, final)
        if old is not None and old != trajectory:
            commit.remove(final.parent / old.path)
        commit.remove(staging)
    return open_weights(final)


def _old_trajectory(final: Path) -> FileRecord | None:
    """The trajectory of the weights that will be replaced. Raises MX043 if they are not ours."""
    try:
        file = open_weights(final).manifest["trajectory"]
    except MixcError as error:
        if error.code == "MX040" and SCHEMA.encode() not in final.read_bytes():
            raise MixcError(
                "MX043",
                "this file is not mixc's, and would be replaced",
                place=Place(str(final)),
                help="rename it, and give its name to mixture.weights to build with it",
            ) from None
        return None
    return None if file is None else FileRecord(**file)


def _manifest(
    recipe: Recipe,
    store: Store,
    problem: Problem,
    solution: Solution,
    trajectory: FileRecord | None,
) -> dict[str, Any]:
    solve = recipe.solve
    assert solve is not None
    options = solve.options.model_dump(mode="json")
    names = problem.domains
    return {
        "schema": SCHEMA,
        "key": weights_key(recipe, store),
        "method": solve.method,
        "variant": options.get("variant"),
        "options": options,
        "proxy": solve.proxy.model_dump(mode="json"),
        "domains": {
            name: {
                "weight": float(solution.weights[i]),
                "low": float(solution.low[i]),
                "high": float(solution.high[i]),
            }
            for i, name in enumerate(names)
        },
        "baselines": {
            name: _by_domain(names, run_method(name, problem).weights) for name in BASELINES
        },
        "bits_per_byte": {
            model: _by_domain(names, bits) for model, bits in solution.bits_per_byte.items()
        },
        "trajectory": None if trajectory is None else trajectory.as_dict(),
        "cost": {"tokens": solution.tokens, "flops": solution.flops},
        "provenance": {
            "store_hash": store.store_hash,
            "recipe_hash": key_of({"solve": recipe.canonical()["solve"], "seed": recipe.seed}),
            "seeds": [recipe.seed],
            "environment": dict(solution.environment),
            "overrides": recipe.overrides_of("solve", "mixture", "seed"),
            "mixc_version": __version__,
        },
    }


def _by_domain(names: tuple[str, ...], values: np.ndarray[Any, Any]) -> Mapping[str, Any]:
    return {name: finite_or_none(value) for name, value in zip(names, values, strict=True)}


def _stage_trajectory(staging: Path, problem: Problem, solution: Solution) -> FileRecord | None:
    """Stage the trajectory, a line per step and domain, under a name made from its content."""
    if not solution.trajectory:
        return None
    steps = max(len(values) for values in solution.trajectory.values())
    shape = (steps, len(problem.domains))
    columns = {
        "step": pa.array(np.repeat(np.arange(steps), shape[1])),
        "domain": pa.array(problem.domains * steps),
    }
    for name, values in solution.trajectory.items():
        column = values if values.ndim == 2 else values[:, None]
        columns[name] = pa.array(np.broadcast_to(column, shape).ravel())
    unnamed = staging / "trajectory.parquet"
    with commit.create(unnamed) as file:
        pq.write_table(pa.table(columns), pa.PythonFile(file, mode="w"), compression="zstd")
    record = file.record("")
    name = f"trajectory-{record.xxh3[:16]}.parquet"
    commit.rename(unnamed, staging / name)
    return FileRecord(name, record.bytes, record.xxh3)
