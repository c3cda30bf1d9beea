"""The generator: pinned for good, since every output depends on its words."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc.rng import Stream, stable_order

STREAM = Stream(7, "documents", "web", 3)


def digest(array, dtype):
    return hashlib.sha256(array.astype(dtype).tobytes()).hexdigest()


def test_the_words_never_change():
    """If this fails, every store, deck and mixture changes: it is not the test to mend."""
    assert STREAM.words(6).tolist() == [
        15953102552231896095,
        3164702761939401546,
        14035477768250984417,
        1313534484641058938,
        3489392613592755465,
        7895709392385769411,
    ]
    assert STREAM.permutation(10).tolist() == [3, 1, 4, 5, 7, 8, 9, 6, 2, 0]
    assert [float(x).hex() for x in STREAM.uniforms(4)] == [
        "0x1.bac99c7f0651cp-1",
        "0x1.5f5a432848c3cp-3",
        "0x1.859011558afc0p-1",
        "0x1.23a9ca7854190p-4",
    ]
    assert STREAM.hash(np.array([0, 1, 2, 2**64 - 1], np.uint64)).tolist() == [
        8988756668557491543,
        15677861258857960528,
        10429308208019949292,
        17406636171425431744,
    ]
    assert digest(Stream(0, "init").words(100_000), "<u8") == (
        "305f1e0d2e44b2fff8dfbad4781915e52e5b3bf3c726ac15b4aac5d223be03b0"
    )
    assert digest(Stream(0, "deck/16", "web").permutation(100_000), "<i8") == (
        "429203fefd19720785845b18d9c45e064b560a97e7b7a5de0cae54618ab78180"
    )


def test_the_normals_change_by_no_more_than_rounding():
    """Logarithm and cosine are the machine's own."""
    expected = [1.8036604313082973, 0.2288617674132168, -1.5215450458685944]
    assert STREAM.normals(5)[:3] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (Stream(8, "documents", "web", 3), 16562913531825107043),
        (Stream(7, "documen", "web", 3), 2846403465411714626),
        (Stream(7, "documents", "code", 3), 6062606505388180113),
        (Stream(7, "documents", "web", 4), 18271010379032215148),
        (Stream(0, "x"), 10099286989214901205),
    ],
)
def test_every_part_of_the_name_counts(other, word):
    assert other.words(1).tolist() == [word]


def test_parts_of_the_name_do_not_run_into_each_other():
    names = [Stream(1, "ab", "c"), Stream(1, "a", "bc"), Stream(1, "abc"), Stream(11, "b", "c")]
    names += [Stream(1, "a", "b", 12), Stream(1, "a", "b1", 2)]
    assert len({one.key().tobytes() for one in names}) == len(names)


@given(start=st.integers(0, 5000), n=st.integers(0, 500))
def test_any_part_of_the_words_is_a_slice_of_the_whole(start, n):
    whole = STREAM.words(5500)
    assert np.array_equal(STREAM.words(n, start), whole[start : start + n])


def test_words_far_out_cost_no_walk():
    far = STREAM.words(10, 4 * 2**62 + 3)
    assert np.array_equal(far[1:5], STREAM.words(4, 4 * 2**62 + 4))
    assert len(set(far.tolist())) == 10


@given(seed=st.integers(0, 2**63 - 1), n=st.integers(0, 3000))
def test_a_permutation_holds_each_number_once(seed, n):
    found = Stream(seed, "p").permutation(n)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(n))


@given(
    ids=st.lists(st.integers(0, 2**64 - 1), min_size=1, unique=True), seed=st.integers(0, 2**63 - 1)
)
def test_the_hash_keeps_distinct_ids_apart_and_depends_on_each_alone(ids, seed):
    ids = np.array(ids, np.uint64)
    stream = Stream(seed, "holdout")
    found = stream.hash(ids)
    assert len(set(found.tolist())) == len(ids)
    assert np.array_equal(stream.hash(ids[::-1]), found[::-1])
    assert np.array_equal(stream.hash(ids[-1:]), found[-1:])


def test_the_hash_of_a_run_of_ids_is_injective():
    found = Stream(0, "holdout").hash(np.arange(200_000, dtype=np.uint64))
    assert len(np.unique(found)) == 200_000


def chi_square(numbers, bins):
    """Of counts in equal bins of [0, 1)."""
    counts = np.bincount((numbers * bins).astype(np.int64), minlength=bins)
    expected = len(numbers) / bins
    return float(((counts - expected) ** 2 / expected).sum())


def test_uniforms_are_uniform():
    u = STREAM.uniforms(100_000)
    assert u.min() >= 0
    assert u.max() < 1
    # 99 degrees of freedom: the 0.1 % and 99.9 % quantiles are 61 and 149.
    assert 61 < chi_square(u, 100) < 149
    assert 61 < chi_square((u * 1000) % 1, 100) < 149
    # Neighbours are independent: 10 x 10 cells.
    pairs = np.floor(u[::2] * 10) * 10 + np.floor(u[1::2] * 10)
    assert 61 < chi_square((pairs + 0.5) / 100, 100) < 149


def test_hashes_are_uniform_and_free_of_their_ids_order():
    ids = np.arange(100_000, dtype=np.uint64)
    scaled = Stream(3, "holdout").hash(ids).astype(np.float64) / 2.0**64
    assert 61 < chi_square(scaled, 100) < 149
    assert abs(np.corrcoef(scaled[:-1], scaled[1:])[0, 1]) < 0.01
    again = Stream(4, "holdout").hash(ids).astype(np.float64) / 2.0**64
    assert abs(np.corrcoef(scaled, again)[0, 1]) < 0.01


def test_permutations_are_uniform():
    """Each of the 24 orders of four comes about as often as the others."""
    seen = [tuple(Stream(seed, "p").permutation(4)) for seed in range(4800)]
    counts = np.unique([np.dot(one, [64, 16, 4, 1]) for one in seen], return_counts=True)[1]
    assert len(counts) == 24
    # 23 degrees of freedom: the 0.1 % and 99.9 % quantiles are 7.5 and 49.7.
    assert 7.5 < float(((counts - 200) ** 2 / 200).sum()) < 49.7


def test_normals_are_normal():
    z = STREAM.normals(200_001)
    assert len(z) == 200_001
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert abs((z**3).mean()) < 0.03
    assert abs((z**4).mean() - 3) < 0.06
    for level, share in [(-1.0, 0.158655), (0.0, 0.5), (1.959964, 0.975)]:
        assert abs((z < level).mean() - share) < 0.003


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=60))
def test_the_order_of_words_is_stable(words):
    words = np.array(words, np.uint64)
    assert stable_order(words).tolist() == np.argsort(words, kind="stable").tolist()
