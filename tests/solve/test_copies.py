"""Domains of the same documents, which methods solve for as one."""

from dataclasses import replace

import every_method
import numpy as np
import pytest

from mixc import pipeline
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.solve.copies import with_copies, without_copies
from mixc.solve.problem import Solution
from mixc.solve.stage import estimate, run_method

ALONE = every_method.CORPUS
BOTH = {"also-code": ALONE["code"], **ALONE}  # "also-code" comes first, and stands for "code"
NAMES = ("also-code", "code", "prose", "web")


VOCAB = 64  # ids that small models tell apart: they follow from frequencies


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return every_method.make_recipe(tmp_path_factory.mktemp("alone"), corpus=ALONE, vocab=VOCAB)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return every_method.make_recipe(tmp_path_factory.mktemp("both"), corpus=BOTH, vocab=VOCAB)


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


def options(path, method, *settings):
    given = [f"solve.{method}.{setting}" for setting in settings]
    return load(path, [f"solve.method={method}", *given]).solve.options


NAMING = [
    ("doge", "target=[code]"),
    ("doge", "target=[also-code]"),
    ("tracin_we", "target=[code]"),
    ("mixmin", "sources=[also-code, web]"),
    ("regression", "metric=code"),
    ("regression", "metric={web: 0.5, also-code: 0.5}"),
]


@pytest.mark.parametrize(("method", "setting"), NAMING)
def test_a_copy_that_is_named_stays(both, method, setting):
    problem, _ = every_method.problem_for(both, method)
    assert without_copies(problem, options(both, method, setting)) is problem
    other = options(both, method, setting.replace("also-code", "prose").replace("code", "prose"))
    assert without_copies(problem, other).domains == ("also-code", "prose", "web")


def test_of_two_texts_the_one_that_is_named_stays(tmp_path):
    corpus = BOTH | {"also-web": ALONE["web"]}
    path = every_method.make_recipe(tmp_path, corpus=corpus)
    problem, _ = every_method.problem_for(path, "doge")
    given = options(path, "doge", "target=[web]", "train_target=true")
    solved = without_copies(problem, given)
    assert solved.domains == ("also-code", "also-web", "prose", "web")
    solution = Solution.exact(np.array([0.4, 0.1, 0.2, 0.3]))
    assert problem.domains == ("also-code", "also-web", "code", "prose", "web")
    found = with_copies(solution, problem, solved).weights
    assert found == pytest.approx([0.2, 0.1, 0.2, 0.2, 0.3])


@pytest.mark.parametrize("method", ["odm", "doremi"])
def test_one_text_of_two_names_is_shared_out_evenly(tmp_path, method):
    path = every_method.make_recipe(tmp_path, corpus={"a": ALONE["code"], "b": ALONE["code"]})
    solution = run_method(method, *every_method.problem_for(path, method))
    assert solution.weights.tolist() == [0.5, 0.5]


def test_one_text_of_two_names_is_nothing_to_mix(tmp_path):
    path = every_method.make_recipe(tmp_path, corpus={"a": ALONE["code"], "b": ALONE["code"]})
    with pytest.raises(MixcError, match="all text is that of 'a'") as raised:
        run_method("regression", *every_method.problem_for(path, "regression"))
    assert raised.value.code == "MX051"


def test_copies_stay_where_without_them_the_mixture_is_not_filled(both):
    problem, given = every_method.problem_for(both, "odm")
    tokens = int(problem.tokens[1:].sum())
    for most, short in ((tokens, False), (tokens + 1, True)):
        asked = replace(problem, target_tokens=most, max_epochs=1.0)
        assert (without_copies(asked, given) is asked) == short


def test_the_problem_without_copies_is_that_of_the_others(both):
    problem, _ = every_method.problem_for(both, "doge")
    other = options(both, "doge", "target=[web]")
    solved = without_copies(problem, other)
    assert solved.domains == solved.lab.domains == ("also-code", "prose", "web")
    assert solved.tokens.tolist() == [problem.tokens[0], *problem.tokens[2:]]
    solution = Solution.exact(np.array([0.5, 0.2, 0.3]))
    assert with_copies(solution, problem, solved).weights.tolist() == [0.25, 0.25, 0.2, 0.3]


@pytest.mark.parametrize("method", ["mixing_law", "ir_dro"])
def test_weights_say_so_and_the_estimate_knows(alone, both, method):
    settings = [f"solve.method={method}", "solve.proxy.steps=3"]
    given = load(both, settings)
    store = pipeline.current_store(given)
    assert list(store.domains) == list(NAMES)
    lone = load(alone, settings)
    expected = estimate(lone, pipeline.current_store(lone))
    for what in ("proxy_tokens", "flops"):
        assert estimate(given, store)[what] == expected[what]
    kept = pipeline.solve_weights(load(both, ["solve.method=odm", "solve.proxy.steps=3"])).manifest
    assert "'code' and 'also-code' hold the same documents: one of them is enough" in kept["doubts"]
