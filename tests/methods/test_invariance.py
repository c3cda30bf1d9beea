"""What no method's answer depends on: numbers and names of domains, and how many processes work."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace

import every_method
import numpy as np
import pytest

from mixc.proxy.train import Batch
from mixc.registry import METHODS
from mixc.solve.stage import run_method

TURNED = np.array([2, 0, 1])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return every_method.make_recipe(tmp_path_factory.mktemp("invariance"))


@pytest.fixture(scope="module")
def answers(recipe):
    """Each method's answer, found once."""
    found = {}

    def answer(name):
        if name not in found:
            found[name] = run_method(name, *every_method.problem_for(recipe, name))
        return found[name]

    return answer


BACK = np.argsort(TURNED)


class Relabelled:
    """The same batches under the domains' other numbers."""

    def __init__(self, batches):
        self.batches, self.places = batches, batches.places

    def __call__(self, step):
        return Batch(self.batches(step).tokens, BACK[self.batches(step).domain])

    def part(self, share):
        return Relabelled(self.batches.part(share))


def renumbered(problem):
    """The problem with domain TURNED[k] as its domain k, and the same batches."""
    lab = problem.lab
    other = copy.copy(lab)
    other.domains = tuple(lab.domains[k] for k in TURNED)
    other.batches = lambda weights: Relabelled(lab.batches(weights[BACK]))
    other.scheduled_batches = lambda policy: Relabelled(
        lab.scheduled_batches(lambda step: policy(step)[BACK])
    )
    return replace(problem, domains=other.domains, tokens=problem.tokens[TURNED], lab=other)


def bounds(solution):
    return solution.weights, solution.low, solution.high


@pytest.mark.parametrize("name", METHODS)
def test_t14_other_numbers_for_the_domains_permute_the_answer(recipe, answers, name):
    problem, options = every_method.problem_for(recipe, name)
    plain, other = answers(name), run_method(name, renumbered(problem), options)
    for one, turned in zip(bounds(plain), bounds(other), strict=True):
        assert turned == pytest.approx(one[TURNED], abs=1e-6)


def test_t14_the_order_in_the_recipe_and_the_workers_change_nothing(answers, tmp_path):
    turned = every_method.make_recipe(
        tmp_path, corpus=dict(reversed(every_method.CORPUS.items())), workers=3
    )
    for name in METHODS:
        found = run_method(name, *every_method.problem_for(turned, name))
        assert np.array_equal(found.weights, answers(name).weights), name


def test_t14_two_processes_find_what_one_finds(recipe, answers):
    runner = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    line = [sys.executable, "-m", *runner, every_method.__file__, str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    for name, weights in json.loads(done.stdout).items():
        # MixMin divides by how far models are apart, which is little after six steps.
        exact = 1e-5 if name == "mixmin" else 1e-6
        assert answers(name).weights == pytest.approx(weights, abs=exact), name


def equal_sizes():
    """Domains that counts do not tell apart: 24 documents of 20 ids."""
    rng = np.random.default_rng(3)
    return {name: rng.integers(0, 300, (24, 20)).tolist() for name in sorted(every_method.CORPUS)}


@pytest.mark.parametrize("name", every_method.TRAINING)
def test_t14_nor_do_names_break_ties_or_order_sums(tmp_path, name):
    """Of equal domains, and of the frequencies that make a compact vocabulary."""
    corpus = equal_sizes()
    names = list(corpus)
    renamed = {name: corpus[names[k]] for name, k in zip(names, TURNED, strict=True)}
    found = []
    for folder, one in (("plain", corpus), ("renamed", renamed)):
        path = every_method.make_recipe(tmp_path / folder, corpus=one, vocab=64)
        found.append(run_method(name, *every_method.problem_for(path, name)))
    for plain, turned in zip(bounds(found[0]), bounds(found[1]), strict=True):
        assert turned == pytest.approx(plain[TURNED], abs=1e-6)


def test_t14_other_names_for_the_domains_rename_the_answer(answers, tmp_path):
    names = sorted(every_method.CORPUS)
    renamed = {name: every_method.CORPUS[names[k]] for name, k in zip(names, TURNED, strict=True)}
    other = every_method.make_recipe(tmp_path, corpus=renamed)
    for name in METHODS:
        found = run_method(name, *every_method.problem_for(other, name))
        for one, turned in zip(bounds(answers(name)), bounds(found), strict=True):
            assert turned == pytest.approx(one[TURNED], abs=1e-6), name
