"""Data mixing laws: each domain's loss as c_i + k_i exp(sum_j t_ij r_j) of the mix r.

Ye et al., arXiv:2403.16952, equation 1. The laws are fitted to a swarm of small models, and the
weights are where the mean of the predicted losses is least, without a pull to the natural mix. This
is `regression` with its log-linear surfaces alone. The paper also extrapolates losses over steps
and model sizes by power laws; here the small runs' own losses are fitted, as all its mixes share
steps and size.
"""

from __future__ import annotations

from pydantic import Field

from mixc.methods import regression
from mixc.recipe import Strict
from mixc.solve.problem import Problem, Solution


class Options(Strict):
    """Options of `solve.mixing_law`."""

    runs: int = Field(default=20, ge=3, description="mixes to train on, as many as the paper's")


def run_count(problem: Problem, options: Options) -> int:
    """How many models a solve trains."""
    return regression.run_count(problem, _as_regression(options))


def solve(problem: Problem, options: Options) -> Solution:
    """Fit the laws, and take the least mean. Errors as in `regression`."""
    return regression.solve(problem, _as_regression(options))


def _as_regression(options: Options) -> regression.Options:
    return regression.Options(runs=options.runs, family="log_linear", kl=0.0)
