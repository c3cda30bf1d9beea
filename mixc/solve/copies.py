"""Domains of the same documents in the same order: one text of several names.

Nothing tells such domains apart, and a text gets no more weight for having two names: a method
solves for the first of them, and its weight is shared out evenly. The check and `mixc compare`
judge mixtures as they will be, of all domains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixc.solve.problem import Problem, Solution

Real = NDArray[np.float64]
_MIXES = ("alpha", "swarm")  # of a trajectory, what weighs the domains


def copies_of(problem: Problem) -> dict[str, str]:
    """Domains that are copies, and the first domain of the same documents."""
    names = problem.lab.names
    first = {names[one].documents: one for one in reversed(problem.domains)}
    return {
        one: first[names[one].documents]
        for one in problem.domains
        if first[names[one].documents] != one
    }


def without_copies(problem: Problem, options: object) -> Problem:
    """The problem without copies.

    They stay where the options name one of the same documents, or read runs that have them. So do
    all where the texts, repeated as often as they may be, do not fill the mixture alone.
    """
    copies, named = copies_of(problem), set(getattr(options, "named", tuple)())
    left = {
        copy
        for copy, first in copies.items()
        if not named & {first, *(other for other in copies if copies[other] == first)}
    }
    kept = [number for number, name in enumerate(problem.domains) if name not in left]
    tokens = problem.tokens[kept]
    most = np.inf if problem.max_epochs is None else problem.max_epochs * int(tokens.sum())
    short = most < (problem.target_tokens or 0)
    if not left or short or getattr(options, "files", tuple)():
        return problem
    domains = tuple(problem.domains[number] for number in kept)
    return replace(problem, domains=domains, tokens=tokens, lab=problem.lab.of(domains))


def with_copies(solution: Solution, problem: Problem, solved: Problem) -> Solution:
    """The solution of `problem` that one of the problem without copies makes."""
    if solved is problem:
        return solution
    number, copies = {name: n for n, name in enumerate(solved.domains)}, copies_of(problem)
    place = np.array([number[name if name in number else copies[name]] for name in problem.domains])
    names = np.bincount(place)[place]  # that the text of each domain has

    def same(values: Real) -> Real:
        return values if values.ndim == 1 else values[:, place]

    def shared(mixes: Real) -> Real:
        return np.asarray(mixes[..., place] / names)

    schedule = solution.schedule
    return replace(
        solution,
        weights=shared(solution.weights),
        low=shared(solution.low),
        high=shared(solution.high),
        trajectory={
            name: shared(values) if name in _MIXES else same(values)
            for name, values in solution.trajectory.items()
        },
        bits_per_byte={name: bits[place] for name, bits in solution.bits_per_byte.items()},
        schedule=schedule and tuple((until, shared(mix)) for until, mix in schedule),
    )
