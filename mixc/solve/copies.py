"""Domains of the same documents: one text under several names, which a method sees once.

Nothing tells such domains apart, and a text gets no more weight for having two names: a method
solves for the first of them, and its weight is shared out evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from mixc.solve.problem import Problem, Solution

Index = NDArray[np.int64]
Real = NDArray[np.float64]
_MIXES = ("alpha", "swarm")  # of a trajectory, what weighs the domains


def first_of(problem: Problem) -> Index:
    """The number of the first domain that has the same documents as each, int64[K]."""
    documents = [problem.lab.names[name].documents for name in problem.domains]
    return np.array([documents.index(one) for one in documents], np.int64)


def copies_of(problem: Problem) -> dict[str, str]:
    """Domains that are copies, and the first domain of the same documents."""
    names = problem.domains
    pairs = enumerate(first_of(problem).tolist())
    return {names[copy]: names[first] for copy, first in pairs if first != copy}


def without_copies(problem: Problem, options: object) -> Problem:
    """The problem without copies; as it is, where the options name one, or runs made elsewhere."""
    copies = copies_of(problem)
    named = {*copies, *copies.values()} & set(_strings(options))
    if not copies or named or getattr(options, "files", tuple)():
        return problem
    kept = [number for number, name in enumerate(problem.domains) if name not in copies]
    domains = tuple(problem.domains[number] for number in kept)
    return replace(
        problem, domains=domains, tokens=problem.tokens[kept], lab=problem.lab.of(domains)
    )


def with_copies(solution: Solution, problem: Problem, solved: Problem) -> Solution:
    """The solution of `problem` that one of the problem without copies makes."""
    if solved is problem:
        return solution
    number = {name: place for place, name in enumerate(solved.domains)}
    place = np.array([number[problem.domains[first]] for first in first_of(problem).tolist()])
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


def _strings(options: object) -> Iterator[str]:
    """All strings that a method's options hold."""
    left: list[Any] = [options.model_dump() if isinstance(options, BaseModel) else None]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            left.extend(one.values())
        elif isinstance(one, (list, tuple)):
            left.extend(one)
