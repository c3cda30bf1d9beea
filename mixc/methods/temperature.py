"""Temperature sampling: token counts to the power 1/T (as in arXiv:1907.05019, section 3).

T = 1 is natural, T -> infinity is uniform. Costs nothing.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixc.recipe import Strict
from mixc.solve.problem import Problem, Solution


class Options(Strict):
    """How far to flatten."""

    temperature: float = Field(default=3.3, ge=1, description="1 is natural, large is uniform")


def solve(problem: Problem, options: Options) -> Solution:
    """Flatten the natural weights. A domain without training tokens keeps weight 0."""
    shares = problem.tokens / problem.tokens.sum()
    flat = np.power(shares, 1 / options.temperature)
    return Solution.exact(flat / flat.sum())
