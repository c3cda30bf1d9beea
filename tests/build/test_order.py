from fractions import Fraction

import numpy as np
import pytest
from build_helpers import tijdeman, worst_error
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.block_order import assign_blocks, shuffle_blocks_reference
from mixc_kernels.chairman import assign

from mixc.build.order import bound, domain_order, prefix_error
from mixc.rng import Stream


@st.composite
def orders(draw):
    """(rows of 2 to 1000 domains, shuffle_block, seed)."""
    domains = draw(st.integers(2, 100) | st.integers(100, 1000))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = np.exp(draw(st.floats(0, 4)) * generator.standard_normal(domains))
    total = draw(st.integers(1, 4000))
    rows = generator.multinomial(total, weights / weights.sum())
    return (
        rows.astype(np.int64),
        draw(st.integers(1, 1 << draw(st.integers(0, 13)))),
        draw(st.integers(0, 2**63 - 1)),
    )


def block_ends(total, block):
    return sorted({*range(block, total + 1, block), total})


@settings(max_examples=150, deadline=None)
@given(orders())
def test_the_bound_holds_at_every_blocks_end(order):
    rows, block, seed = order
    labels = domain_order(rows, shuffle_block=block, seed=seed)
    ends = block_ends(len(labels), block)
    assert np.bincount(labels, minlength=len(rows)).tolist() == rows.tolist()
    assert worst_error(labels, rows, ends) <= tijdeman(rows)


@settings(max_examples=100, deadline=None)
@given(orders())
def test_prefix_error_is_the_largest_error_over_block_ends(order):
    rows, block, seed = order
    labels = domain_order(rows, shuffle_block=block, seed=seed)
    error = prefix_error(labels, rows, shuffle_block=block)
    assert error == float(worst_error(labels, rows, block_ends(len(labels), block)))
    assert error <= bound(rows)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.randoms(), st.integers(1, 9))
def test_prefix_error_of_any_order_of_labels(rows, random, block):
    labels = [domain for domain, count in enumerate(rows) for _ in range(count)]
    random.shuffle(labels)
    if not labels:
        return
    worst = Fraction(0)
    for end in block_ends(len(labels), block):
        for domain, count in enumerate(rows):
            share = Fraction(end * count, len(labels))
            worst = max(worst, abs(labels[:end].count(domain) - share))
    found = prefix_error(np.array(labels, np.uint16), np.array(rows), shuffle_block=block)
    assert found == float(worst)


def test_without_shuffling_the_order_is_tijdemans_own():
    rows = np.array([70, 20, 0, 10])
    assert domain_order(rows, shuffle_block=1, seed=3).tolist() == assign(rows).tolist()


def test_the_order_follows_from_the_seed():
    rows = np.array([500, 300, 200])
    first = domain_order(rows, shuffle_block=100, seed=1)
    assert first.tolist() == domain_order(rows, shuffle_block=100, seed=1).tolist()
    assert first.tolist() != domain_order(rows, shuffle_block=100, seed=2).tolist()


def test_blocks_are_shuffled_apart():
    labels = domain_order(np.array([500, 500]), shuffle_block=100, seed=1).reshape(-1, 100)
    assert len({tuple(block) for block in labels.tolist()}) == 10


def test_every_arrangement_of_a_block_is_as_likely():
    # Equal domains, blocks of one row each: the 24 arrangements, 1000 times each on average.
    labels = domain_order(np.full(4, 24_000), shuffle_block=4, seed=7).reshape(-1, 4)
    _, seen = np.unique(labels @ np.array([64, 16, 4, 1]), return_counts=True)
    assert len(seen) == 24
    assert ((seen - 1000) ** 2 / 1000).sum() < 58  # chi-square of 23 degrees, p = 1e-4


@pytest.mark.parametrize("block", [7, 1000])
def test_millions_of_rows_are_shuffled_block_by_block(block):
    """More than there are random words at a time: a block's are its rows', wherever it stands."""
    rows = np.array([1_500_000, 1_000_003])
    labels, plain = domain_order(rows, shuffle_block=block, seed=5), assign_blocks(rows, block)
    stream, count = Stream(5, "order"), len(plain) // block
    for number in (0, 1, (1 << 20) // block, (1 << 20) // block + 1, count - 1, count):
        cut = slice(number * block, (number + 1) * block)
        words = stream.words(len(plain[cut]), number * block)
        wanted = shuffle_blocks_reference(plain[cut], block, words)
        assert labels[cut].tolist() == wanted.tolist()
    whole = count * block
    ones = labels[:whole].reshape(-1, block).sum(1), plain[:whole].reshape(-1, block).sum(1)
    assert (ones[0] == ones[1]).all()
    ends = np.array(block_ends(len(plain), block))
    error = prefix_error(labels, rows, shuffle_block=block)
    assert error == float(worst_error(labels, rows, ends))


def test_the_bound_counts_domains_that_have_rows():
    assert bound(np.array([5])) == 0
    assert bound(np.array([5, 0, 3])) == 0.5
    assert bound(np.array([1, 1, 1])) == 0.75
    for domains in range(2, 200):  # a float below the true bound would call good orders damaged
        assert Fraction(bound(np.ones(domains))) >= Fraction(float(tijdeman(np.ones(domains))))
