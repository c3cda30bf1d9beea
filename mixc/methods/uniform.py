"""Uniform weights: the same for every domain. Costs nothing, and is hard to beat."""

from __future__ import annotations

import numpy as np

from mixc.recipe import Strict
from mixc.solve.problem import Problem, Solution


class Options(Strict):
    """Uniform weights have no options."""


def solve(problem: Problem, options: Options) -> Solution:  # noqa: ARG001
    """Weight each domain by 1/K."""
    count = len(problem.domains)
    return Solution.exact(np.full(count, 1 / count))
