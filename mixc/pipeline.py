"""The stages of a recipe in order: which are stale, what they would do, and doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixc.build import stage as build_stage
from mixc.build.disk import at_once, free_bytes
from mixc.build.foresight import foresee
from mixc.build.memory import memory_bytes
from mixc.build.mixture import Mixture
from mixc.build.plan import BuildPlan, StageWeights, make_plan
from mixc.engine.ray import Cluster
from mixc.errors import MixcError, Place
from mixc.recipe import Recipe
from mixc.solve import stage as solve_stage
from mixc.solve.trainer import QUIETLY, Running
from mixc.solve.weights import SolvedWeights, open_weights, read_schedule, read_weights
from mixc.store import commit
from mixc.store.store import Store, open_store
from mixc.tokenize import stage as tokenize_stage
from mixc.tokenize.assemble import options_key

_BUILD_BYTES_PER_SECOND = 2e8  # about what one core gathers and hashes


@dataclass(frozen=True)
class Outputs:
    """What a run leaves behind."""

    store: Store
    weights: SolvedWeights | None
    mixture: Mixture


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do: `status` is fresh, stale or missing; `details` are for people."""

    stage: str
    status: str
    details: Mapping[str, Any] = field(default_factory=dict)


def run(
    recipe: Recipe,
    *,
    workers: int,
    cluster: Cluster | None = None,
    gather: str = "auto",
    decks: bool = False,
    running: Running = QUIETLY,
) -> Outputs:
    """Tokenize, solve and build, each only if it is stale. A cluster builds; the rest is local."""
    store = tokenize_stage.tokenize(recipe, workers=workers)
    weights = solve_weights(recipe, running) if _solves(recipe) else None
    mixture = build_mixture(recipe, workers=workers, cluster=cluster, gather=gather, decks=decks)
    return Outputs(store, weights, mixture)


def solve_weights(recipe: Recipe, running: Running = QUIETLY) -> SolvedWeights:
    """Solve on the store that is there. Raises MX045 if it is stale."""
    store = current_store(recipe)
    with commit.reading(store.root):
        return solve_stage.solve_weights(recipe, store, running)


def build_mixture(
    recipe: Recipe,
    *,
    workers: int,
    cluster: Cluster | None = None,
    gather: str = "auto",
    decks: bool = False,
) -> Mixture:
    """Build from the store and weights that are there. Raises MX045 if they are stale.

    Neither workers, cluster, gather (see `build.medium.GATHERS`) nor decks change what is built.
    """
    store = current_store(recipe)
    with commit.reading(store.root):
        plan, data = _what(recipe, store)
        return build_stage.build(
            recipe.workdir_path / "mixture",
            plan,
            store,
            data,
            workers=workers,
            cluster=cluster,
            gather=gather,
            decks=decks,
        )


def _what(recipe: Recipe, store: Store) -> tuple[BuildPlan, dict[str, Any]]:
    """What is to be built, and what the manifest says of the recipe."""
    plan = _build_plan(recipe, store)
    canonical = recipe.canonical()
    data = {
        "name": recipe.name,
        "seed": recipe.seed,
        "overrides": recipe.overrides_of("name", "mixture", "seed"),
        "max_epochs": recipe.mixture.max_epochs,
        "recipe_hash": build_stage.recipe_hash(canonical),
    }
    return plan, data


def _build_plan(recipe: Recipe, store: Store) -> BuildPlan:
    stages = mixture_stages(recipe, store)
    return make_plan(recipe, store, stages, _document_weights(recipe, store))


def _document_weights(recipe: Recipe, store: Store) -> Path | None:
    """The file of documents' weights that the recipe asks for.

    Raises MX041 or MX045 if solved ones are asked for and are not there or stale, MX061 if the
    method gave none.
    """
    asked = recipe.mixture.document_weights
    if asked is None or asked != "solved":
        return None if asked is None else recipe.resolve(asked)
    solved = _solved(recipe, store)
    if (file := solved.files.get("documents")) is None:
        raise MixcError(
            "MX061",
            f"the method '{solved.manifest['method']}' gave documents no weights",
            place=recipe.place("mixture", "document_weights"),
            help="solve by ir_dro, or by tracin_we with weights: documents",
        )
    return solved.path.parent / file.path


def current_store(recipe: Recipe) -> Store:
    """The recipe's store, its files all there. Raises MX045 if the recipe has changed since.

    Whether the inputs have changed is for `tokenize` to say: that takes reading them.
    """
    store = open_store(recipe.workdir_path / "store")
    store.check_sizes()
    same_domains = list(store.sources) == sorted(recipe.domains)
    if not same_domains or store.manifest["options_key"] != options_key(recipe):
        raise MixcError(
            "MX045",
            "the store was made with other domains, tokenizer, holdout or seed than the recipe's",
            place=Place(str(store.root)),
            help="run `mixc tokenize`, or `mixc run`",
        )
    return store


def mixture_stages(recipe: Recipe, store: Store) -> list[StageWeights]:
    """The weights that the recipe's mixture asks for, stage by stage."""
    wanted = recipe.mixture.asked_weights()
    found = [weights_of(recipe, store, asked, *keys) for keys, asked in wanted]
    schedules = [schedule_of(recipe, asked, *keys) for keys, asked in wanted]
    if not recipe.mixture.stages:
        return schedules[0] or [StageWeights(1.0, found[0])]
    for schedule, (keys, _) in zip(schedules, wanted, strict=True):
        if schedule:
            message = "these weights are a schedule, which excludes stages of the recipe's own"
            hint = "remove mixture.stages, or solve with variant: static"
            raise MixcError("MX009", message, place=recipe.place(*keys), help=hint)
    stages = recipe.mixture.stages
    if not stages[0].ramp:
        found = [found[0], *found]  # where a ramp would begin
    return [
        StageWeights(stage.until, found[i + 1], found[i] if stage.ramp else None)
        for i, stage in enumerate(stages)
    ]


def weights_of(
    recipe: Recipe, store: Store, asked: str | dict[str, float], *keys: str | int
) -> dict[str, float]:
    """The weights, by domain, that are asked for under these keys of the recipe.

    Raises MX041 or MX045 if solved ones are asked for, and are not there or stale.
    """
    if isinstance(asked, dict):
        return dict(asked)
    if asked.endswith(".json"):
        return read_weights(recipe.resolve(asked), recipe.place(*keys))
    if asked != "solved":
        problem = solve_stage.make_problem(recipe, store)
        weights = solve_stage.run_method(asked, problem).weights
        return dict(zip(problem.domains, weights.tolist(), strict=True))
    return _solved(recipe, store).weights


def _solved(recipe: Recipe, store: Store) -> SolvedWeights:
    """The solved weights. Raises MX041 if there are none, MX045 if they are stale."""
    solved = solve_stage.fresh(recipe, store)
    if solved is None:
        open_weights(recipe.workdir_path / "weights.json")  # says so if there are none
        raise MixcError(
            "MX045",
            "weights.json was solved for another store or other options",
            help="run `mixc solve-weights`, or `mixc run`",
        )
    return solved


def schedule_of(
    recipe: Recipe, asked: str | dict[str, float], *keys: str | int
) -> list[StageWeights]:
    """The stages of solved weights that change along the mixture; none where they do not."""
    if asked == "solved":
        found = open_weights(recipe.workdir_path / "weights.json").schedule
    elif isinstance(asked, str) and asked.endswith(".json"):
        found = read_schedule(recipe.resolve(asked), recipe.place(*keys))
    else:
        return []
    return [StageWeights(until, weights) for until, weights in found]


def _solves(recipe: Recipe) -> bool:
    asked = [weights for _, weights in recipe.mixture.asked_weights()]
    return recipe.solve is not None and "solved" in [*asked, recipe.mixture.document_weights]


def plan(
    recipe: Recipe, *, workers: int, gather: str = "auto", decks: bool = False
) -> list[StagePlan]:
    """What a run would do, stage by stage. Writes nothing."""
    todo = tokenize_stage.plan(recipe)
    status = "fresh" if todo.fresh else ("missing" if todo.old is None else "stale")
    details = {"files": len(todo.inputs), "input_bytes": sum(item.bytes for item in todo.inputs)}
    if not todo.fresh or todo.old is None:
        details |= tokenize_stage.estimate_plan(recipe, todo, workers=workers)
        later = ["solve-weights"] if _solves(recipe) else []
        # Until the tokens are counted, nobody can say more of the later stages.
        return [
            StagePlan("tokenize", status, details),
            *(StagePlan(name, status, {"waits for": "tokenize"}) for name in later),
            StagePlan("build-mixture", _status(recipe), {"waits for": "tokenize", **_size(recipe)}),
        ]
    stages, store = [StagePlan("tokenize", status, details)], todo.old
    if _solves(recipe):
        solved = solve_stage.fresh(recipe, store)
        cost = {} if solved else solve_stage.estimate(recipe, store)
        there = (recipe.workdir_path / "weights.json").exists()
        status = "fresh" if solved else "stale" if there else "missing"
        stages.append(StagePlan("solve-weights", status, cost))
        if solved is None:
            waits = {"waits for": "solve-weights", **_size(recipe)}
            return [*stages, StagePlan("build-mixture", _status(recipe), waits)]
    build = _build_plan(recipe, store)
    root = recipe.workdir_path / "mixture"
    status = "fresh" if build_stage.fresh(root, build) else _status(recipe)
    details = _describe(build, store, root, workers, gather, decks)
    return [*stages, StagePlan("build-mixture", status, details)]


def _status(recipe: Recipe) -> str:
    """Of a mixture that is not fresh."""
    return "stale" if (recipe.workdir_path / "mixture").exists() else "missing"


def _size(recipe: Recipe) -> dict[str, int]:
    """What the recipe alone says of its mixture."""
    options = recipe.mixture
    return {"rows": options.row_count, "tokens": options.row_count * options.row_tokens}


def _describe(
    plan: BuildPlan, store: Store, root: Path, workers: int, gather: str, decks: bool
) -> dict[str, Any]:
    found = foresee(root, plan, store, gather=gather, decks=decks)
    return {
        "rows": plan.rows,
        "tokens": plan.tokens,
        "blocks": -(-plan.rows // plan.block_rows),
        "staged_blocks": found.staged_blocks,
        "reused_blocks": 0 if found.reuse is None else len(found.reuse.blocks),
        "reused_formats": [] if found.reuse is None else found.reuse.formats(plan),
        "deck_rows": found.deck_rows,
        "gather": "two-pass" if found.twice else "one-pass",
        "output_bytes": plan.bytes,
        "disk_bytes": at_once(found.disk),
        "free_bytes": free_bytes(root),
        "about_memory_bytes": memory_bytes(plan, store, workers=workers, twice=found.twice),
        "about_seconds": plan.bytes / _BUILD_BYTES_PER_SECOND,
        "disk": found.disk,
        "domains": build_stage.describe_domains(plan),
    }
