"""Domains of the same documents, which methods solve for as one."""

import every_method
import numpy as np
import pytest

from mixc import pipeline
from mixc.recipe import load
from mixc.solve.copies import with_copies, without_copies
from mixc.solve.problem import Solution
from mixc.solve.stage import estimate, run_method

ALONE = every_method.CORPUS
BOTH = {"also-code": ALONE["code"], **ALONE}  # "also-code" comes first, and stands for "code"
NAMES = ("also-code", "code", "prose", "web")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return every_method.make_recipe(tmp_path_factory.mktemp("alone"), corpus=ALONE)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return every_method.make_recipe(tmp_path_factory.mktemp("both"), corpus=BOTH)


@pytest.mark.parametrize("name", every_method.TRAINING)
def test_a_text_gets_no_more_under_two_names(alone, both, name):
    wanted = run_method(name, *every_method.problem_for(alone, name))
    found = run_method(name, *every_method.problem_for(both, name))
    assert found.weights[0] == found.weights[1]
    one = np.array([found.weights[:2].sum(), *found.weights[2:]])
    assert one == pytest.approx(wanted.weights, abs=1e-12)
    assert found.weights.sum() == pytest.approx(1)
    assert (found.low <= found.weights + 1e-12).all() and (
        found.weights <= found.high + 1e-12
    ).all()
    for key, values in found.trajectory.items():
        assert values.shape == (*wanted.trajectory[key].shape[:1], 4)[: values.ndim], key
    for mixes in (found.trajectory.get(key) for key in ("alpha", "swarm")):
        assert mixes is None or mixes.sum(axis=1) == pytest.approx(np.ones(len(mixes)))
    for bits in found.bits_per_byte.values():
        assert bits.shape == (4,) and bits[0] == bits[1]
    for _, mix in found.schedule or ():
        assert mix.sum() == pytest.approx(1) and mix[0] == mix[1]


def test_simple_mixes_take_names_as_they_are(both):
    uniform = run_method("uniform", *every_method.problem_for(both, "uniform"))
    assert uniform.weights.tolist() == [1 / 4] * 4


@pytest.mark.parametrize("target", ["code", "also-code"])
def test_a_copy_that_is_named_stays(both, target):
    recipe = load(both, ["solve.method=doge", f"solve.doge.target=[{target}]"])
    problem, _ = every_method.problem_for(both, "doge")
    assert without_copies(problem, recipe.solve.options) is problem
    other = load(both, ["solve.method=doge", "solve.doge.target=[web]"]).solve.options
    solved = without_copies(problem, other)
    assert solved.domains == solved.lab.domains == ("also-code", "prose", "web")
    assert solved.tokens.tolist() == [problem.tokens[0], *problem.tokens[2:]]
    solution = Solution.exact(np.array([0.5, 0.2, 0.3]))
    assert with_copies(solution, problem, solved).weights.tolist() == [0.25, 0.25, 0.2, 0.3]


def test_weights_say_so_and_the_estimate_knows(alone, both):
    settings = ["solve.method=mixing_law", "solve.proxy.steps=3"]
    given = load(both, settings)
    store = pipeline.current_store(given)
    assert list(store.domains) == list(NAMES)
    lone = load(alone, settings)
    expected = estimate(lone, pipeline.current_store(lone))
    assert estimate(given, store)["proxy_tokens"] == expected["proxy_tokens"]
    kept = pipeline.solve_weights(load(both, ["solve.method=odm", "solve.proxy.steps=3"])).manifest
    assert "'code' and 'also-code' hold the same documents: one of them is enough" in kept["doubts"]
