"""The tool that runs every method on a problem whose best mix is known."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import planted

from mixc.recipe import load
from mixc.solve.stage import make_problem, run_method
from mixc.tokenize.stage import tokenize

NATURAL = np.array([0.1, 0.4, 0.4, 0.1])


def test_the_search_finds_the_lowest_point_with_few_tries():
    best, tried = np.array([0.29, 0.3, 0.11, 0.3]), []

    def loss(mix):
        tried.append(mix)
        return float(((mix - best) ** 2).sum())

    found = planted.find_best(loss)
    assert found == pytest.approx(best, abs=planted.STEPS[-1])
    assert found[1] == found[3]
    assert len(tried) < 60
    assert len({tuple(np.round(mix, 9)) for mix in tried}) == len(tried)


def test_a_search_may_end_on_an_edge():
    found = planted.find_best(lambda mix: mix[2] + (mix[0] - 0.5) ** 2)
    assert found == pytest.approx([0.5, 0.25, 0.0, 0.25])


def test_chains_have_their_successors_and_words_of_their_own():
    texts = planted.documents("small", seed=1)
    assert len(texts) == planted.CHAINS["small"].documents == len(set(texts))
    follows = {}
    for text in texts:
        words = text.split()
        assert len(words) == planted.DOCUMENT and all(word.startswith("small") for word in words)
        for a, b in pairwise(words):
            follows.setdefault(a, set()).add(b)
    assert len(follows) == planted.CHAINS["small"].words
    assert max(map(len, follows.values())) == planted.CHAINS["small"].successors
    assert texts == planted.documents("small", seed=1)


def test_a_bias_has_the_name_of_where_it_leads():
    best = np.array([0.15, 0.35, 0.15, 0.35])
    for end, name in (
        (NATURAL, "natural"),
        (np.eye(4)[2], "noise"),
        (np.eye(4)[0], "easy"),
        (np.full(4, 0.25), "uniform"),
    ):
        moved = best + 0.9 * (end - best)
        assert planted.towards(moved, best, NATURAL) == f"towards {name}"
    assert planted.towards(best + 0.01 * (NATURAL - best), best, NATURAL) == "none to speak of"


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """(the recipe's path, its store)."""
    path = planted.write_recipe(tmp_path_factory.mktemp("planted"), steps=80)
    return path, tokenize(load(path), workers=1)


@pytest.mark.parametrize(
    ("method", "most", "of_it"),
    [
        ("doremi", "large", (0.5, 1.0)),  # which its reference, of the natural mix, knows best
        ("ir_dro", "small", (0.35, 1.0)),  # which that knows least
        ("odm", "small", (0.25, 0.4)),  # 80 steps lead not far from uniform
    ],
)
def test_what_methods_lean_to(problem, method, most, of_it):
    path, store = problem
    recipe = load(path, [f"solve.method={method}"])
    weights = run_method(method, make_problem(recipe, store), recipe.solve.options).weights
    assert list(planted.CHAINS)[int(weights.argmax())] == most
    assert of_it[0] < weights.max() < of_it[1]


def test_regression_has_the_best_mix_in_its_interval(problem):
    """The best mix as the tool finds it, of 35 that are tried with two seeds.

    How near the answer comes hangs on how a CPU rounds: 0.13 and 0.17 were seen. The nearest of the
    simple mixes, `uniform`, lies 0.25 away.
    """
    path, store = problem
    best = np.array([1 / 6, 3 / 8, 1 / 12, 3 / 8])
    recipe = load(path, ["solve.method=regression"])
    found = run_method("regression", make_problem(recipe, store), recipe.solve.options)
    assert (found.low <= best).all() and (best <= found.high).all()
    assert (found.high - found.low < 0.4).all()
    uniform = np.full(len(best), 1 / len(best))
    away = planted.total_variation(found.weights, best)
    assert away < 0.8 * planted.total_variation(uniform, best)


def test_the_tool_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planted, "GRID", 2)
    monkeypatch.setattr(planted, "STEPS", ())
    monkeypatch.setattr(planted, "COMPARED", (7, 8))
    line = ["planted.py", str(tmp_path), "--steps", "3", "--methods", "natural", "odm"]
    monkeypatch.setattr(sys, "argv", line)
    planted.main()
    found = json.loads((tmp_path / "planted.json").read_text())
    assert [row["mix"] for row in found["rows"]] == ["best", "natural", "odm"]
    assert found["tried"] == 3
    for row in found["rows"]:
        assert sum(row["weights"]) == pytest.approx(1)
    best = found["rows"][0]
    assert best["distance"] == 0 and best["excess"] == [0, 0, 0]
    printed = capsys.readouterr().out
    assert printed.startswith("| mix | easy | large | noise | small |")
    assert printed.count("\n") == 5
