from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.block_order import (
    assign_blocks,
    assign_blocks_of_ramp,
    assign_blocks_reference,
    rounding,
    shuffle_blocks,
    shuffle_blocks_reference,
)
from mixc_kernels.chairman import assign

_COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=12) | st.lists(
    st.sampled_from([0, 1, 2, 1000]), min_size=1, max_size=12
)


@settings(max_examples=300, deadline=None)
@given(_COUNTS, st.integers(1, 80))
def test_equals_the_reference(counts, block):
    counts = np.array(counts, np.int64)
    wanted = assign_blocks_reference(counts, block)
    assert assign_blocks(counts, block).tolist() == wanted.tolist()


@settings(max_examples=200, deadline=None)
@given(_COUNTS)
def test_blocks_of_one_row_are_the_chairmans(counts):
    """The same promise; and the same order, as both give out what is due first."""
    counts = np.array(counts, np.int64)
    assert assign_blocks(counts, 1).tolist() == assign(counts).tolist()


def worst_of_ramp(labels, begin, counts, block):
    worst, total = Fraction(0), len(labels)
    for end in {*range(block, total, block), total}:
        part = Fraction(end, total)
        rows = np.bincount(labels[:end], minlength=len(counts)).tolist()
        for has, first, count in zip(rows, begin, counts, strict=True):
            worst = max(worst, abs(has - first * part - (count - first) * part**2))
    return worst


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 40), st.integers(1, 2000), st.integers(1, 300), st.integers(0, 2**32))
def test_the_bound_holds_at_every_end_of_a_ramps_blocks(domains, rows, block, seed):
    generator = np.random.default_rng(seed)
    ends = generator.dirichlet(np.full(domains, 0.3), 2) * rows
    counts = np.floor(ends.mean(axis=0)).astype(np.int64)
    counts[0] += rows - counts.sum()
    begin = np.minimum(np.floor(ends[0]).astype(np.int64), 2 * counts)
    left = rows - int(begin.sum())
    for i in range(domains):
        more = min(max(left, -int(begin[i])), 2 * int(counts[i]) - int(begin[i]))
        begin[i] += more
        left -= more
    assert left == 0
    labels = assign_blocks_of_ramp(begin, counts, block)
    used = int(np.count_nonzero(counts))
    assert np.bincount(labels, minlength=domains).tolist() == counts.tolist()
    if used > 1:
        worst = worst_of_ramp(labels, begin.tolist(), counts.tolist(), block)
        assert worst <= 1 - Fraction(1, 2 * used - 2) + Fraction(rounding(rows))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 70), st.integers(0, 2**32))
def test_shuffling_equals_the_reference(labels, block, seed):
    words = np.random.default_rng(seed).integers(0, 2**64, len(labels), np.uint64)
    labels = np.array(labels, np.uint16)
    wanted = shuffle_blocks_reference(labels, block, words)
    shuffle_blocks(labels, block, words)
    assert labels.tolist() == wanted.tolist()


def test_the_largest_words_stay_in_their_block():
    labels = np.arange(10, dtype=np.uint16)
    shuffle_blocks(labels, 5, np.full(10, 2**64 - 1, np.uint64))
    assert labels.tolist() == list(range(10))


def test_each_row_has_a_word():
    with pytest.raises(ValueError, match="one word"):
        shuffle_blocks(np.zeros(3, np.uint16), 2, np.zeros(2, np.uint64))


def test_what_would_overflow_is_refused():
    with pytest.raises(ValueError, match="too many"):
        assign_blocks(np.full(2, 1 << 61), 4)
