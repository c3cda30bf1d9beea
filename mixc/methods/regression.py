"""Regression on a swarm: train small models on many mixes, fit surfaces, take the lowest point.

RegMix (arXiv:2407.01492) draws the mixes and fits trees; data mixing laws (arXiv:2403.16952) and
Olmix fit log-linear laws and keep near to the natural mix; here cross-validation chooses between
these, Gaussian processes and their mixture. Few runs put the best mix too far out: how strongly it
is pulled back to the natural mix is chosen by cross-validation too.

`variant: schedule` fits the losses along the runs, stage by stage (RegMix-D, arXiv:2606.18663).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mixc import progress
from mixc.errors import MixcError, Place, did_you_mean
from mixc.recipe_schema import Strict
from mixc.recipe_types import DomainName, LocalPath, wrong
from mixc.solve.problem import Problem, Solution
from mixc.solve.simplex import repetition_cap
from mixc.solve.swarm import default_runs, plan_swarm
from mixc.solve.swarm_files import read_swarm
from mixc.solve.swarm_space import SwarmSpace, reusing, whole
from mixc.solve.weights import read_weights

if TYPE_CHECKING:  # scipy and torch take a second to import, and the schema needs only Options
    from torch import Tensor

    from mixc.proxy.train import Batch
    from mixc.solve.resampling import Aim
    from mixc.solve.runs import MixRun
    from mixc.solve.surfaces import Surface

Real = NDArray[np.float64]

_LEAST_ROWS = 4  # of each domain in each stage, so that each has a loss there


class Options(Strict):
    """Options of `solve.regression`."""

    variant: Literal["static", "schedule"] = Field(
        default="static", description="one mix, or one for each stage of training"
    )
    runs: int | None = Field(
        default=None, ge=3, description="mixes to train on; default: 3 for each domain, and 3"
    )
    seeds: int = Field(
        default=1, ge=1, description="models for each mix; their losses are averaged"
    )
    temperature: float = Field(
        default=0.5, ge=0, le=1, description="mixes are drawn around token counts to this power"
    )
    family: Literal["auto", "log_linear", "gaussian", "boosting", "ensemble"] = Field(
        default="auto", description="the surfaces to fit; auto: by cross-validation"
    )
    metric: str | dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(
        default="mean",
        description="what to lower: mean, worst, one metric (a domain), or metric: weight",
    )
    kl: float | None = Field(
        default=None, ge=0, description="pull to the natural mix; default: by cross-validation"
    )
    draws: int = Field(default=50, ge=20, le=10_000, description="resampled fits for intervals")
    stages: int = Field(default=3, ge=2, le=100, description="stages of a schedule")
    ratios: LocalPath | None = Field(
        default=None, description="CSV of mixes of runs made elsewhere"
    )
    metrics: LocalPath | None = Field(default=None, description="CSV of their metrics")
    reuse: LocalPath | None = Field(
        default=None, description="earlier weights.json: domains that it weighs keep proportions"
    )
    changed: Annotated[tuple[DomainName, ...], Field(strict=False)] = Field(
        default=(), description="domains to solve for although reuse weighs them"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Options:
        if (self.ratios is None) != (self.metrics is None):
            raise wrong("MX009", "'ratios' and 'metrics' need each other", "give both files")
        if self.ratios is not None and (self.variant == "schedule" or self.reuse is not None):
            given = "variant: schedule" if self.variant == "schedule" else "reuse"
            raise wrong("MX009", f"'ratios' excludes '{given}', which needs runs made here")
        if self.variant == "schedule" and self.seeds > 1:
            raise wrong("MX009", "a schedule is fitted to one run of each mix", "leave out seeds")
        if not isinstance(self.metric, str) and not any(self.metric.values()):
            raise wrong("MX009", "'metric' weighs nothing", "give one a weight other than 0")
        if self.changed and self.reuse is None:
            raise wrong("MX009", "'changed' needs 'reuse'", "name the earlier weights.json")
        return self

    def named(self) -> tuple[str, ...]:
        """The domains that it names, among other words."""
        return (*((self.metric,) if isinstance(self.metric, str) else self.metric), *self.changed)

    def files(self) -> tuple[str, ...]:
        """The files, beside the store, that weights depend on."""
        return tuple(one for one in (self.ratios, self.metrics, self.reuse) if one is not None)


@dataclass(frozen=True)
class Swarm:
    """n runs: parts float64[n, k] of a space, metrics float64[n, m] and their names, the cost."""

    parts: Real
    metrics: Real
    names: tuple[str, ...]
    tokens: int = 0
    flops: float = 0.0


def fit_swarm(ratios: Real, losses: Real, *, family: str = "auto", seed: int = 0) -> Surface:
    """Fit surfaces to the metrics [n, m] of runs on mixes [n, k]: `surfaces.fit_surface`."""
    from mixc.solve.surfaces import fit_surface

    return fit_surface(ratios, losses, family=family, seed=seed)


def run_count(problem: Problem, options: Options) -> int:
    """How many models a solve trains."""
    if options.ratios is not None:
        return 0
    k = int((_space(problem, options).natural > 0).sum())
    return options.seeds * (default_runs(k) if options.runs is None else options.runs)


def solve(problem: Problem, options: Options) -> Solution:
    """Train the swarm, or read it; fit; and take the best mix near to the natural one.

    The interval of each weight is that of mixes from resampled runs. Raises MX007 for a metric
    that is not there, MX051 where nothing is held out, MX060 where the cap on epochs leaves no mix.
    """
    space = _space(problem, options)
    if options.ratios is None:
        _refuse_early(problem, options)
    if options.variant == "schedule":
        return _schedule(problem, options, space)
    swarm = (
        _read(problem, options) if options.ratios is not None else _train(problem, options, space)
    )
    best = _best(swarm.parts, swarm.metrics, swarm.names, problem, options, space)
    weights = space.mixes(best.parts)
    low, high = _interval(space.mixes(best.resampled), weights)
    return Solution(
        weights=weights,
        low=low,
        high=high,
        trajectory={
            "swarm": space.mixes(swarm.parts),
            "objective": best.aim.values(swarm.metrics),
            "predicted": best.aim.values(best.surface.predict(swarm.parts)),
        },
        tokens=swarm.tokens,
        flops=swarm.flops,
        environment={} if options.ratios is not None else problem.lab.environment(),
    )


def _refuse_early(problem: Problem, options: Options) -> None:
    """Raise, before anything is trained, what would make runs useless: MX007, MX051."""
    live = np.flatnonzero(problem.tokens)
    if len(live) < 2:
        message = f"there is nothing to mix: all text is that of '{problem.domains[live[0]]}'"
        hint = "name two domains of different text, or set solve.method to natural"
        raise MixcError("MX051", message, help=hint)
    _objective(options.metric, problem.domains)
    if options.variant == "schedule":  # its losses are of training, not of the holdout
        return
    problem.lab.need_holdout("mixes")
    asked = [options.metric] if isinstance(options.metric, str) else list(options.metric)
    for name, size in zip(problem.domains, problem.lab.held_bytes, strict=True):
        if name in asked and not size:
            message = f"solve.regression.metric names '{name}', which holds nothing out"
            raise MixcError("MX051", message, help="raise holdout.fraction")


def _space(problem: Problem, options: Options) -> SwarmSpace:
    natural = problem.tokens / problem.tokens.sum()
    cap = repetition_cap(problem.tokens, problem.target_tokens, problem.max_epochs)
    if options.reuse is None:
        return whole(natural, cap)
    path = problem.folder / options.reuse
    previous = read_weights(path, Place(str(path)))
    return reusing(previous, options.changed, problem.domains, natural, cap)


def _read(problem: Problem, options: Options) -> Swarm:
    assert options.ratios is not None and options.metrics is not None
    folder = problem.folder
    runs = read_swarm(folder / options.ratios, folder / options.metrics, problem.domains)
    return Swarm(runs.ratios, runs.metrics, runs.names)


def _plan(problem: Problem, options: Options, space: SwarmSpace, minimum: float = 0.0) -> Real:
    return plan_swarm(
        space.natural,
        options.runs,
        seed=problem.seed,
        max_ratio=space.cap,
        temperature=options.temperature,
        minimum=minimum,
        order=space.order(problem.lab.order),
    )


def _train(problem: Problem, options: Options, space: SwarmSpace) -> Swarm:
    """Bits per byte of each mix, the mean over seeds. Finished runs are taken from the disk."""
    parts = _plan(problem, options, space)
    seeds = range(problem.seed, problem.seed + options.seeds)

    def run(number: int, mix: Real, seed: int) -> MixRun:
        label = f"on mix {number} of {len(parts)}, seed {seed}"
        return problem.lab.run_mix(mix, seed=seed, label=label)

    mixes = enumerate(space.mixes(parts), 1)
    runs = [[run(number, mix, seed) for seed in seeds] for number, mix in mixes]
    bits = np.array([np.mean([run.bits_per_byte for run in mix], axis=0) for mix in runs])
    held = ~np.isnan(bits).any(axis=0)
    return Swarm(
        parts,
        bits[:, held],
        tuple(name for name, there in zip(problem.domains, held, strict=True) if there),
        sum(run.tokens for mix in runs for run in mix),
        sum(run.flops for mix in runs for run in mix),
    )


@dataclass(frozen=True)
class _Best:
    """The best parts float64[k], and those of resampled runs float64[draws, k]."""

    surface: Surface
    aim: Aim
    parts: Real
    resampled: Real


def _best(
    parts: Real,
    metrics: Real,
    names: tuple[str, ...],
    problem: Problem,
    options: Options,
    space: SwarmSpace,
) -> _Best:
    from mixc.solve.resampling import Aim, choose_kl, run_bootstrap

    seed = problem.seed
    aim = Aim(_objective(options.metric, names), space.natural, space.cap)
    surface = fit_swarm(parts, metrics, family=options.family, seed=seed)
    if options.kl is None:
        kl, pulls = choose_kl(surface, parts, metrics, aim, seed=seed)
    else:
        kl, pulls = options.kl, np.array([options.kl])
    found = surface.minimise(aim.objective, natural=space.natural, kl=kl, cap=space.cap, seed=seed)
    for family, score in surface.scores.items():
        progress.say(
            f"{family}: rank correlation {_known_mean(score.spearman):.3f} of runs left out,"
            f" for {surface.chosen.count(family)} of {len(names)} metrics"
        )
    progress.say(f"pull to the natural mix: {kl:.4g}")
    resampled = run_bootstrap(
        surface, parts, metrics, aim, kl=pulls, start=found, draws=options.draws, seed=seed
    )
    return _Best(surface, aim, found, resampled)


def _known_mean(values: Real, axis: int | None = None) -> Real:
    """The mean of what is no NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis) / known.sum(axis), np.float64)


def _interval(mixes: Real, weights: Real) -> tuple[Real, Real]:
    from mixc.solve.resampling import interval

    return interval(mixes, weights)


def _objective(
    metric: str | dict[str, float], names: tuple[str, ...]
) -> Real | Callable[[Real], Real]:
    """What to lower, of metrics [n, m]: a weight each, or for `worst` the highest of them."""
    if metric == "worst":
        return lambda metrics: np.asarray(metrics.max(axis=1), np.float64)
    if metric == "mean":
        return np.full(len(names), 1 / len(names))
    shares = {metric: 1.0} if isinstance(metric, str) else metric
    for name in shares:
        if name not in names:
            message = f"solve.regression.metric names '{name}', which no run has"
            raise MixcError("MX007", message, help=did_you_mean(name, ["mean", "worst", *names]))
    return np.array([shares.get(name, 0.0) for name in names])


def _schedule(problem: Problem, options: Options, space: SwarmSpace) -> Solution:
    """A mix for each stage: where that stage's surfaces, of losses on new rows, are lowest.

    The losses of a domain in a stage are those of its rows there, in nats a token, which the model
    has not seen before while the domain's first epoch lasts. The weights of the solution are the
    mean over the stages.
    """
    lab, stages = problem.lab, options.stages
    steps = lab.train_options().steps
    ends = [round(steps * (number + 1) / stages) for number in range(stages)]
    rows = steps // stages * lab.batch_rows
    live = int((space.natural > 0).sum())
    if 2 * _LEAST_ROWS * live > rows:
        message = f"a stage of {rows} rows is too short to tell {live} domains' losses"
        raise MixcError("MX051", message, help="raise solve.proxy.steps, or ask for fewer stages")
    if (rows * space.cap[space.natural > 0] < _LEAST_ROWS).any():
        message = f"max_epochs leaves a domain fewer than {_LEAST_ROWS} of a stage's {rows} rows"
        hint = "raise solve.proxy.steps or mixture.max_epochs, or ask for fewer stages"
        raise MixcError("MX051", message, help=hint)
    parts = _plan(problem, options, space, minimum=_LEAST_ROWS / rows)
    losses, tokens, flops = _trajectories(problem, space.mixes(parts))
    cut = np.split(losses, ends[:-1], axis=1)
    by_stage = [_known_mean(one, axis=1) for one in cut]
    there: NDArray[np.bool_] = ~np.isnan(np.sum(by_stage, axis=(0, 1)))
    names = tuple(name for name, known in zip(problem.domains, there, strict=True) if known)
    found = [_best(parts, one[:, there], names, problem, options, space) for one in by_stage]
    mixes = [space.mixes(best.parts) for best in found]
    lengths = np.diff([0, *ends]) / steps
    weights = np.asarray(lengths @ np.stack(mixes), np.float64)
    resampled = np.tensordot(lengths, [space.mixes(best.resampled) for best in found], 1)
    low, high = _interval(resampled, weights)
    return Solution(
        weights=weights,
        low=low,
        high=high,
        schedule=tuple((end / steps, mix) for end, mix in zip(ends, mixes, strict=True)),
        trajectory={
            "swarm": space.mixes(parts),
            **{
                f"objective_{number}": best.aim.values(one[:, there])
                for number, (best, one) in enumerate(zip(found, by_stage, strict=True))
            },
        },
        tokens=tokens,
        flops=flops,
        environment=lab.environment(),
    )


def _trajectories(problem: Problem, mixes: Real) -> tuple[Real, int, float]:
    """Each domain's mean loss at each step of a run on each mix, float64[n, steps, K]; the cost.

    NaN where a batch has none of the domain.
    """
    lab, found, tokens, flops = problem.lab, [], 0, 0.0
    steps, count = lab.train_options().steps, len(problem.domains)
    for number, mix in enumerate(mixes):
        records = {"losses": np.full((steps, count), np.nan)}

        def objective(
            step: int, losses: Tensor, batch: Batch, into: Real = records["losses"]
        ) -> Tensor:
            from mixc.proxy.train import domain_stats

            into[step] = domain_stats(losses, batch, count).mean()
            return losses.mean()

        trained = lab.train(f"swarm-{number:04d}", lab.batches(mix), objective, records=records)
        found.append(records["losses"])
        tokens, flops = tokens + trained.tokens, flops + trained.flops
    return np.stack(found), tokens, flops
