"""Skill-It's graph and weights, by hand."""

import numpy as np
import pytest

from mixc.methods.skill_it import graph, update


def test_the_graph_is_what_each_domain_gave_up():
    before = np.array([2.0, 4.0])
    after = np.array([[1.0, 4.0], [2.5, 1.0]])  # training on 0 helps itself; on 1 hurts 0
    assert graph(before, after).tolist() == [[0.5, 0.0], [0.0, 0.75]]


def test_a_domain_without_a_loss_gives_up_nothing():
    assert graph(np.array([2.0, 0.0]), np.array([[1.0, 0.0], [1.0, 0.0]])).tolist() == [
        [0.5, 0.0],
        [0.5, 0.0],
    ]


def test_weights_are_exponentials_of_what_is_still_lost():
    A = np.array([[0.5, 0.1], [0.0, 0.75]])
    losses = np.array([[1.0, 2.0], [0.5, 1.0]])
    gain = 0.5 * np.array([0.5 * 1.5 + 0.1 * 3, 0.75 * 3])
    assert update(A, losses, 0.5) == pytest.approx(np.exp(gain) / np.exp(gain).sum())


def test_who_helps_many_gets_more_and_large_losses_do_not_overflow():
    A = np.array([[1.0, 1.0], [0.0, 1.0]])
    weights = update(A, np.array([[1e4, 1e4]]), 1.0)
    assert weights == pytest.approx([1.0, 0.0])
    assert update(np.eye(2), np.array([[3.0, 3.0]]), 1.0).tolist() == [0.5, 0.5]
