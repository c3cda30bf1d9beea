"""Natural weights: in proportion to the domains' token counts. Costs nothing.

Tokens count once each, whatever `mixture.document_weights` says: these share out a domain among
its documents, and how much of the mixture is the domain's is for its own weight to say.
"""

from __future__ import annotations

from mixc.recipe import Strict
from mixc.solve.problem import Problem, Solution


class Options(Strict):
    """Natural weights have no options."""


def solve(problem: Problem, options: Options) -> Solution:  # noqa: ARG001
    """Weight each domain by its training tokens."""
    return Solution.exact(problem.tokens / problem.tokens.sum())
