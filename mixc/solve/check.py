"""The check: is a solved mix better than the simple ones, on this data, at equal compute?

Every mix trains the same models: equal seeds, and so equal initialisation and the rows of each
domain in the same order, and equal tokens. Another seed is another initialisation and another
order, so that an interval over seeds is about both. Between seeds losses differ by far more than
between mixes of one seed; so mixes are compared seed by seed, and an interval is one of paired
differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixc.solve.problem import Problem, Solution

Real = NDArray[np.float64]
_LEVEL = 0.95


class Run(Protocol):
    """What training on a mix gave: bits per byte float64[K], NaN where nothing is held out."""

    @property
    def bits_per_byte(self) -> Real:
        """Loss on each domain's holdout."""

    @property
    def tokens(self) -> int:
        """Tokens trained on."""

    @property
    def flops(self) -> float:
        """What that took."""


# (name of a mix, seed) -> a model that is trained on it.
RunMix = Callable[[str, int], Run]


@dataclass(frozen=True)
class Comparison:
    """M mixes, each trained with S seeds.

    `weights` are float64[M, K], `bits` bits per byte float64[M, S, K], NaN for a domain that
    holds nothing out. `tokens` and `flops` are those of all runs together.
    """

    names: tuple[str, ...]
    domains: tuple[str, ...]
    seeds: tuple[int, ...]
    weights: Real
    bits: Real
    tokens: int
    flops: float

    def mean(self, name: str) -> Real:
        """Bits per byte of a mix, the mean over the domains that hold something out, [S]."""
        return np.asarray(np.nanmean(self.bits[self.names.index(name)], axis=1))

    def worst(self, name: str) -> tuple[str, float]:
        """The domain in which a mix is worst, in the mean over seeds, and its bits per byte."""
        bits = self.bits[self.names.index(name)].mean(axis=0)
        worst = int(np.nanargmax(bits))
        return self.domains[worst], float(bits[worst])

    def against(self, name: str, other: str) -> Difference:
        """Mean bits per byte of `name` less those of `other`, seed by seed."""
        return paired(self.mean(name) - self.mean(other))


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, and its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def lower(self) -> bool:
        """Whether the first is lower, beyond doubt."""
        return self.high < 0


def paired(differences: Real) -> Difference:
    """Student's t interval of the mean of paired differences, float64[S].

    With one pair nothing is known of their spread: the interval is all numbers. Pairs that agree
    to the bit, as those of a mix with itself, give an interval without width.
    """
    count, mean = len(differences), float(differences.mean())
    if count == 1:
        wide = 0.0 if mean == 0 else np.inf
        return Difference(mean, mean - wide, mean + wide)
    from scipy.special import stdtrit

    error = float(differences.std(ddof=1)) / count**0.5
    half = float(stdtrit(count - 1, (1 + _LEVEL) / 2)) * error
    return Difference(mean, mean - half, mean + half)


def compare(
    mixes: Mapping[str, Real], domains: Sequence[str], seeds: Sequence[int], run_mix: RunMix
) -> Comparison:
    """Train on every mix with every seed, seed by seed.

    `mixes` are weights float64[K] by name; `run_mix(name, seed)` trains and scores a model.
    """
    names = tuple(mixes)
    bits = np.empty((len(names), len(seeds), len(domains)))
    tokens, flops = 0, 0.0
    for s, seed in enumerate(seeds):
        for m, name in enumerate(names):
            run = run_mix(name, seed)
            bits[m, s] = run.bits_per_byte
            tokens, flops = tokens + run.tokens, flops + run.flops
    weights = np.stack([mixes[name] for name in names])
    return Comparison(names, tuple(domains), tuple(seeds), weights, bits, tokens, flops)


@dataclass(frozen=True)
class Verdict:
    """What a comparison says of one mix beside the simple ones.

    `outcome` is better, tie or worse. `as_good` are the simple mixes that it is not better than
    beyond doubt, the best first.
    """

    outcome: str
    as_good: tuple[str, ...]
    text: str


def judge(found: Comparison, mix: str, simple: Sequence[str]) -> Verdict:
    """Whether `mix` has lower mean bits per byte than every simple mix, beyond doubt.

    worse: a simple mix is better beyond doubt. tie: neither. Intervals are not widened for there
    being several simple mixes; that all must be beaten makes better rarer, not likelier.
    """
    against = {name: found.against(mix, name) for name in simple}
    as_good = [name for name in simple if not against[name].lower]
    as_good.sort(key=lambda name: float(found.mean(name).mean()))
    if not as_good:
        nearest = max(against, key=lambda name: against[name].mean)
        text = f"{mix} is better than {_all_of(simple)}: {_than(against[nearest], nearest)}"
        return Verdict("better", (), text)
    if higher := [name for name in as_good if found.against(name, mix).lower]:
        first = higher[0]
        text = f"{first} is better than {mix}, which has {_than(against[first], first)}"
        return Verdict("worse", tuple(as_good), f"{text}: use {first}")
    first = as_good[0]
    if len(found.seeds) == 1:
        text = f"one seed cannot tell {mix} from {_all_of(as_good)}"
    else:
        text = f"{first} is as good as {mix}, which has {_than(against[first], first)}"
    return Verdict("tie", tuple(as_good), f"{text}: prefer {first}, which costs nothing")


def _than(difference: Difference, other: str) -> str:
    side = "less" if difference.mean < 0 else "more"
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return f"{abs(difference.mean):.4f} bits per byte {side} than {other} ({interval})"


@dataclass(frozen=True)
class Checked:
    """A solve's answer beside the simple mixes, and what that says of it."""

    comparison: Comparison
    verdict: Verdict


def check(
    problem: Problem, name: str, answer: Solution, simple: Mapping[str, Real], *, seeds: int
) -> Checked:
    """Train on the answer, called `name`, and on the simple mixes, float64[K], and judge.

    An answer that changes along the run is trained on as it changes. Weights of documents are
    left out: models see domains' rows.
    """
    mixes = {name: answer.weights, **simple}
    chosen = range(problem.seed, problem.seed + seeds)

    def run(mix: str, seed: int) -> Run:
        schedule = answer.schedule if mix == name else None
        label = f"on {mix}, seed {seed}"
        return problem.lab.run_mix(mixes[mix], seed=seed, schedule=schedule, label=label)

    found = compare(mixes, problem.domains, chosen, run)
    return Checked(found, judge(found, name, list(simple)))


def league(found: Comparison) -> dict[str, Any]:
    """The comparison as plain data, the best mix first; each is paired with the best."""
    order = sorted(found.names, key=lambda name: float(found.mean(name).mean()))
    table = {}
    for name in order:
        mean = found.bits[found.names.index(name)].mean(axis=0)
        domain, bits = found.worst(name)
        difference = found.against(name, order[0])
        table[name] = {
            "mean": float(found.mean(name).mean()),
            "worst": bits,
            "worst_domain": domain,
            "over_best": difference.mean,
            "low": _finite(difference.low),
            "high": _finite(difference.high),
            "weights": _by_domain(found.domains, found.weights[found.names.index(name)]),
            "bits_per_byte": _by_domain(found.domains, mean),
        }
    return {
        "mixes": table,
        "seeds": list(found.seeds),
        "runs": len(found.names) * len(found.seeds),
        "tokens": found.tokens,
        "flops": found.flops,
    }


def _by_domain(domains: Sequence[str], values: Real) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in zip(domains, values, strict=True)}


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def _all_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
