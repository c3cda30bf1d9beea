"""The methods that follow from the counts alone: natural, uniform, unimax, temperature."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mixc.registry import METHODS
from mixc.solve.problem import Problem
from mixc.solve.stage import run_method

SIMPLE = [name for name, entry in METHODS.items() if not entry.trains]


def problem(*tokens, target=None, epochs=None):
    names = tuple(f"d{i}" for i in range(len(tokens)))
    # None of these methods may touch the laboratory.
    return Problem(
        names, np.array(tokens), seed=0, lab=None, target_tokens=target, max_epochs=epochs
    )


def weights(name, given_problem, **options):
    return run_method(name, given_problem, METHODS[name].load().Options(**options)).weights


def test_these_are_the_methods_that_train_nothing():
    assert set(SIMPLE) == {"natural", "uniform", "unimax", "temperature"}


@settings(deadline=None)
@given(
    st.sampled_from(SIMPLE),
    st.lists(st.integers(0, 10**13), min_size=1, max_size=50).filter(any),
    st.one_of(st.none(), st.integers(1, 10**13)),
)
def test_weights_lie_on_the_simplex_and_are_exact(name, tokens, target):
    solution = run_method(name, problem(*tokens, target=target))
    assert solution.weights.sum() == pytest.approx(1, abs=1e-12)
    assert (solution.weights >= 0).all()
    assert solution.low.tolist() == solution.high.tolist() == solution.weights.tolist()
    assert (solution.tokens, solution.flops) == (0, 0.0)
    # More tokens never make a domain's weight smaller.
    order = np.argsort(tokens, kind="stable")
    assert (np.diff(solution.weights[order]) >= -1e-12).all()


def test_natural():
    assert weights("natural", problem(10, 30, 60)).tolist() == [0.1, 0.3, 0.6]
    assert weights("natural", problem(0, 5)).tolist() == [0.0, 1.0]


def test_uniform():
    assert weights("uniform", problem(1, 10**12, 5, 7)).tolist() == [0.25] * 4
    assert weights("uniform", problem(9)).tolist() == [1.0]


# ---- unimax ----


@pytest.mark.parametrize(("epochs", "tokens"), [(2, [2, 20, 38]), (1, [1, 10, 49])])
def test_unimax_of_the_reference_page(epochs, tokens):
    expected = pytest.approx(np.array(tokens) / 60)
    sizes = (1, 10, 100)
    assert weights("unimax", problem(*sizes, target=60), max_epochs=epochs) == expected
    assert weights("unimax", problem(*sizes, target=60, epochs=epochs)) == expected
    # The option goes before the mixture's cap.
    assert weights("unimax", problem(*sizes, target=60, epochs=3), max_epochs=epochs) == expected


def test_unimax_without_a_cap_allows_four_epochs():
    assert weights("unimax", problem(1, 10, 100, target=60)) == pytest.approx(
        np.array([4, 28, 28]) / 60
    )


def test_unimax_without_a_budget_takes_the_domains_own_tokens():
    assert weights("unimax", problem(1, 10, 100), max_epochs=1) == pytest.approx(
        np.array([1, 10, 100]) / 111
    )


def test_unimax_with_a_budget_over_all_caps_is_natural():
    assert weights("unimax", problem(1, 10, 100, target=10**6)) == pytest.approx(
        np.array([1, 10, 100]) / 111
    )


def test_unimax_of_even_room_is_uniform():
    assert weights("unimax", problem(50, 60, 70, target=60)) == pytest.approx([1 / 3] * 3)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=20).filter(any),
    st.integers(1, 10**7),
    st.floats(0.1, 10),
)
def test_unimax_repeats_nothing_more_than_the_cap_and_is_else_even(tokens, target, epochs):
    found = weights("unimax", problem(*tokens, target=target), max_epochs=epochs)
    room = epochs * np.array(tokens)
    spent = found * min(target, room.sum())
    assert (spent <= room * (1 + 1e-9)).all()
    unfull = spent < room * (1 - 1e-9)
    assert spent[unfull] == pytest.approx(spent.max(initial=0, where=unfull), rel=1e-9)


# ---- temperature ----


def test_temperature_between_natural_and_uniform():
    sizes = problem(1, 16)
    assert weights("temperature", sizes, temperature=1).tolist() == [1 / 17, 16 / 17]
    assert weights("temperature", sizes, temperature=2) == pytest.approx([1 / 5, 4 / 5])
    assert weights("temperature", sizes, temperature=4) == pytest.approx([1 / 3, 2 / 3])
    assert weights("temperature", sizes, temperature=1e9) == pytest.approx([0.5, 0.5])
    default = 16 ** (1 / 3.3)
    assert weights("temperature", sizes) == pytest.approx(
        [1 / (1 + default), default / (1 + default)]
    )


def test_a_domain_without_tokens_keeps_weight_0_at_any_temperature():
    assert weights("temperature", problem(0, 4, 4), temperature=1e9) == pytest.approx([0, 0.5, 0.5])


# ---- options ----


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("natural", {"x": 1}),
        ("uniform", {"x": 1}),
        ("unimax", {"max_epochs": 0}),
        ("unimax", {"max_epochs": -1.0}),
        ("unimax", {"max_epochs": float("inf")}),
        ("unimax", {"epochs": 4}),
        ("temperature", {"temperature": 0.5}),
        ("temperature", {"temperature": float("nan")}),
        ("temperature", {"temperature": float("inf")}),
        ("temperature", {"temperature": "2"}),
    ],
)
def test_wrong_options_are_refused(name, options):
    with pytest.raises(ValidationError):
        METHODS[name].load().Options(**options)
