"""`mixc solve-weights`: a store to weights.json and the trajectory that led there.

In the workdir:

- `weights.json`, and `trajectory-<hash>.parquet` beside it: the answer;
- `solve/`: what may serve later solves, such as `solve/runs/<key>.json`, a file for each model
  that was trained on a fixed mix; it stays when the answer is out;
- `.mixc/weights.json/staging/`: checkpoints, `<training>.safetensors` each, in a folder
  `seed-<n>/` per seed where there are several. A run that was killed goes on from them, to the
  same bytes; they go when the answer is out, and stay where a training diverged.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixc.errors import MixcError, Place
from mixc.recipe import Proxy, Recipe
from mixc.recipe_schema import Check, Solve
from mixc.registry import METHODS
from mixc.solve.check import check
from mixc.solve.copies import with_copies, without_copies
from mixc.solve.lab import Lab
from mixc.solve.manifest import Found, manifest
from mixc.solve.problem import Problem, Solution
from mixc.solve.seeds import combine
from mixc.solve.trainer import QUIETLY, Running
from mixc.solve.weights import FILE, SCHEMA, SolvedWeights, open_weights
from mixc.store import commit
from mixc.store.hashes import FileRecord, check_file, hash_file, key_of, seal
from mixc.store.store import Store

ALGORITHM = 5  # a change of what all methods find, from the same store and options, raises it
KEPT = "solve"  # in the workdir: what may serve later solves
_CPU_SHARE = 0.4  # of a large product's speed, what training a small model reaches on a CPU
BASELINES = ("natural", "uniform", "unimax")
_FRESH, _SOLVE = b"fresh", b"solve"  # what the first rank tells the others


def make_problem(
    recipe: Recipe,
    store: Store,
    staging: Path | None = None,
    *,
    seed: int | None = None,
    running: Running = QUIETLY,
) -> Problem:
    """The recipe's domains as a problem for methods, under its seed or another.

    Trainings keep their checkpoints in `staging`, and what may serve later solves stays in the
    workdir's `solve/`; without a staging folder nothing is written.
    """
    options = recipe.mixture
    if not any(domain.training_tokens for domain in store.domains.values()):
        raise MixcError(
            "MX060",
            "no domain has a token to train on",
            help="give the domains more documents, or lower holdout.fraction",
        )
    seed = recipe.seed if seed is None else seed
    key = "" if staging is None else weights_key(recipe, store)
    return Problem(
        domains=tuple(store.domains),
        tokens=np.array([domain.training_tokens for domain in store.domains.values()], np.int64),
        seed=seed,
        lab=_lab(recipe, store, staging, key, seed=seed, running=running),
        target_tokens=options.row_count * options.row_tokens,
        max_epochs=options.max_epochs,
        folder=recipe.folder,
    )


def _lab(
    recipe: Recipe,
    store: Store,
    staging: Path | None = None,
    key: str = "",
    *,
    seed: int = 0,
    running: Running = QUIETLY,
) -> Lab:
    """The recipe's small models. Raises MX007 if they cannot repeat domains as they shall."""
    solve = recipe.solve
    proxy, match = (Proxy(), False) if solve is None else (solve.proxy, solve.match_repetition)
    target = recipe.mixture.row_count * recipe.mixture.row_tokens
    lab = Lab(
        store,
        proxy,
        seed=seed,
        staging=staging,
        folder=None if staging is None else recipe.workdir_path / KEPT,
        key=key,
        target_tokens=None if match is False else target,
        running=running,
    )
    if match is True and lab.kept_rows is None:
        raise MixcError(
            "MX007",
            f"small models are trained on no fewer tokens than the mixture's {target}: they "
            "cannot repeat domains as often",
            place=recipe.place("solve", "match_repetition"),
            help="set it to auto, or lower solve.proxy.steps or solve.proxy.batch_tokens",
        )
    return lab


def run_method(name: str, problem: Problem, options: object = None) -> Solution:
    """Solve a problem by a method of the registry, with its default options if none are given.

    Methods that train see domains of the same documents as one, as a rule: `without_copies`.
    """
    module = METHODS[name].load()
    options = module.Options() if options is None else options
    solved = _seen_by(name, problem, options)
    solution: Solution = module.solve(solved, options)
    return with_copies(solution, problem, solved)


def _seen_by(name: str, problem: Problem, options: object) -> Problem:
    return without_copies(problem, options) if METHODS[name].trains else problem


def weights_key(recipe: Recipe, store: Store) -> str:
    """The key of everything that the weights depend on."""
    assert recipe.solve is not None
    options = recipe.mixture
    method = METHODS[recipe.solve.method]
    kept = _lab(recipe, store).kept_rows if method.trains else None
    files: tuple[str, ...] = getattr(recipe.solve.options, "files", tuple)()
    return key_of(
        {
            "algorithm": ALGORITHM,
            **({"revision": method.revision} if method.revision else {}),
            "store": store.store_hash,
            "solve": recipe.canonical()["solve"],
            "seed": recipe.seed,
            # Of the simple mixes of the check, unimax reads it.
            "mixture": [options.row_count, options.row_tokens, options.max_epochs]
            if method.reads_mixture or _checks(recipe.solve)
            else None,
            "kept_rows": None if kept is None else kept.tolist(),
            **({"files": [_hash(recipe.resolve(path)) for path in files]} if files else {}),
        }
    )


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        message = f"a file that solve reads cannot be read: {error.strerror}"
        raise MixcError("MX041", message, place=Place(str(path))) from error


def fresh(recipe: Recipe, store: Store) -> SolvedWeights | None:
    """The weights that are there, if they are those that this recipe and store would give."""
    try:
        solved = open_weights(recipe.workdir_path / FILE)
    except MixcError:
        return None
    if any(check_file(recipe.workdir_path, file, rehash=True) for file in solved.files.values()):
        return None
    return solved if solved.manifest["key"] == weights_key(recipe, store) else None


def estimate(recipe: Recipe, store: Store) -> dict[str, Any]:
    """What solving would cost: tokens trained on, FLOPs, and about how long on this CPU."""
    assert recipe.solve is not None
    from mixc.proxy.presets import PRESETS, flops_per_token

    proxy, method = recipe.solve.proxy, METHODS[recipe.solve.method]
    problem = _seen_by(recipe.solve.method, make_problem(recipe, store), recipe.solve.options)
    tokens = recipe.solve.seeds * proxy.steps * problem.lab.batch_rows * (proxy.seq_len - 1)
    if (count := getattr(method.load(), "run_count", None)) is not None:
        tokens *= count(problem, recipe.solve.options)
    forward = flops_per_token(PRESETS[proxy.preset], problem.lab.vocab_size, proxy.seq_len - 1)
    passes = method.forward_passes
    flops = passes * forward * tokens
    if (beside := getattr(method.load(), "beside_flops", None)) is not None:
        flops += recipe.solve.seeds * beside(problem, recipe.solve.options)
    return {
        "method": recipe.solve.method,
        "proxy_tokens": tokens if passes else 0,
        "flops": flops,
        "check_flops": (check := _check_runs(recipe.solve) * problem.lab.run_flops),
        "about_seconds_on_cpu": (flops + check) / (_CPU_SHARE * _matmul_rate()) if passes else 0.0,
    }


def _check_runs(solve: Solve) -> int:
    """How many models the check trains at most: runs that are kept are not made again."""
    checks = _checks(solve)
    return checks.seeds * (1 + len(BASELINES)) if checks else 0


def _matmul_rate() -> float:
    """Multiply-adds of this CPU a second, as two operations each, in a large product."""
    a = np.ones((1024, 1024), np.float32)
    a @ a
    start = time.perf_counter()
    a @ a
    return float(2 * 1024**3 / (time.perf_counter() - start))


def find(recipe: Recipe, store: Store, staging: Path, running: Running = QUIETLY) -> Found:
    """Run the recipe's method once for each seed, and hold the answer against the simple mixes.

    All ranks do this together.
    """
    solve = recipe.solve
    assert solve is not None
    checking = _checks(solve)
    problem = make_problem(recipe, store, staging, running=running)
    if checking:
        problem.lab.need_holdout("weights", "or set solve.check to false")
    seeds = tuple(range(recipe.seed, recipe.seed + solve.seeds))
    solutions = []
    for seed in seeds:
        folder = staging if len(seeds) == 1 else staging / f"seed-{seed}"
        mine = make_problem(recipe, store, folder, seed=seed, running=running)
        solutions.append(run_method(solve.method, mine, solve.options))
    simple = {name: run_method(name, problem).weights for name in BASELINES}
    answer, checked = combine(solutions), None
    if checking:
        checked = check(problem, solve.method, answer, simple, seeds=checking.seeds)
    return Found(problem, seeds, tuple(solutions), answer, simple, checked)


def _checks(solve: Solve) -> Literal[False] | Check:
    """The check that the solve ends with: methods that train nothing have none."""
    return solve.check if METHODS[solve.method].trains else False


def unsolved(recipe: Recipe) -> MixcError:
    """What is wrong with a recipe that does not say how to solve, or what to train."""
    return MixcError(
        "MX009",
        "the recipe has no 'solve' section",
        place=recipe.place(),
        help="add one, as in: solve: {method: doremi}",
    )


def solve_weights(recipe: Recipe, store: Store, running: Running = QUIETLY) -> SolvedWeights:
    """Bring weights.json up to date with the recipe and the store, and open it.

    Of the processes that `torchrun` started, all train, and the first reads and writes.
    """
    if recipe.solve is None:
        raise unsolved(recipe)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _bring_up_to_date(recipe, store, running, lambda _: None)
    from mixc.proxy import ranks

    def tell(word: bytes) -> None:
        ranks.from_first(lambda: word)

    with ranks.joined():
        if ranks.first():
            solved = _bring_up_to_date(recipe, store, running, tell)
            tell(json.dumps(solved.manifest).encode())
            return solved
        final = recipe.workdir_path / FILE
        if ranks.from_first(lambda: None) == _SOLVE:
            find(recipe, store, commit.staging_of(final), running)
        return SolvedWeights(final, json.loads(ranks.from_first(lambda: None) or b""))


def _bring_up_to_date(
    recipe: Recipe, store: Store, running: Running, tell: Callable[[bytes], None]
) -> SolvedWeights:
    """Solve if need be. `tell` says to the other ranks whether it is."""
    final = recipe.workdir_path / FILE
    with commit.locked(final) as staging:
        if (solved := fresh(recipe, store)) is not None:
            tell(_FRESH)
            commit.remove(staging)
            return solved
        old = _old_files(final)
        tell(_SOLVE)
        found = find(recipe, store, staging, running)
        files = _stage_files(staging, found)
        commit.write_file(
            staging / FILE, seal(manifest(recipe, store, found, files, weights_key(recipe, store)))
        )
        for file in files.values():
            commit.publish_file(staging / file.path, final.parent / file.path)
        commit.publish_file(staging / FILE, final)
        for file in set(old) - set(files.values()):
            commit.remove(final.parent / file.path)
        commit.remove(staging)
    return open_weights(final)


def _old_files(final: Path) -> list[FileRecord]:
    """The files of the weights that will be replaced. Raises MX043 if they are not ours."""
    try:
        return list(open_weights(final).files.values())
    except MixcError as error:
        if error.code == "MX040" and SCHEMA.encode() not in final.read_bytes():
            raise MixcError(
                "MX043",
                "this file is not mixc's, and would be replaced",
                place=Place(str(final)),
                help="rename it, and give its name to mixture.weights to build with it",
            ) from None
        return []


def _stage_files(staging: Path, found: Found) -> dict[str, FileRecord]:
    """Stage what goes beside weights.json, by its key there."""
    tables: dict[str, pa.Table] = {}
    if found.solutions[0].trajectory:
        each = zip(found.seeds, found.solutions, strict=True)
        tables["trajectory"] = pa.concat_tables(
            _trajectory(found.problem.domains, seed, solution) for seed, solution in each
        )
    if (documents := found.answer.documents) is not None:
        tables["documents"] = pa.table({"doc_id": documents.ids, "weight": documents.weights})
    return {name: _stage_table(staging, name, table) for name, table in tables.items()}


def _stage_table(staging: Path, stem: str, table: pa.Table) -> FileRecord:
    """Stage a table as parquet, under a name made from its content."""
    unnamed = staging / f"{stem}.parquet"
    with commit.create(unnamed) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")
    record = file.record("")
    name = f"{stem}-{record.xxh3[:16]}.parquet"
    commit.rename(unnamed, staging / name)
    return FileRecord(name, record.bytes, record.xxh3)


def _trajectory(domains: Sequence[str], seed: int, solution: Solution) -> pa.Table:
    """A seed's trajectory, a line per step and domain."""
    steps = max(len(values) for values in solution.trajectory.values())
    shape = (steps, len(domains))
    columns = {
        "seed": pa.array(np.full(steps * len(domains), seed)),
        "step": pa.array(np.repeat(np.arange(steps), shape[1])),
        "domain": pa.array(list(domains) * steps),
    }
    for name, values in solution.trajectory.items():
        column = values if values.ndim == 2 else values[:, None]
        columns[name] = pa.array(np.broadcast_to(column, shape).ravel())
    return pa.table(columns)
