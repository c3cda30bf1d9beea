from fractions import Fraction

import numpy as np
import pytest
from build_helpers import make_store, random_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.proxy import sampler as sampler_module
from mixc.proxy.sampler import Decks, Sampler, counts_of, rows_of_part, scheduled_counts
from mixc.rows.stream import DomainStream

LENGTH = 8
DOMAINS = {"long": (12, 90), "short": (60, 6), "tiny": (4, 9)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), random_corpus(1, DOMAINS))


def streams_of(store):
    return [DomainStream(store, name, seq_len=LENGTH, seed=3) for name in DOMAINS]


def decks_of(store, prefix=None):
    return Decks(
        streams_of(store), seed=3, prefix_rows=None if prefix is None else np.array(prefix)
    )


def rows_by_domain(sampler, steps):
    """The numbers and the tokens of each domain's rows, in the order of batches."""
    numbers, tokens = {}, {}
    for step in range(steps):
        batch = sampler(step)
        assert (np.diff(batch.domain) >= 0).all()
        assert batch.tokens.dtype == batch.domain.dtype == np.int64
        for domain, row, values in zip(
            batch.domain.tolist(), sampler.rows(step).tolist(), batch.tokens, strict=True
        ):
            numbers.setdefault(domain, []).append(row)
            tokens.setdefault(domain, []).append(values.tolist())
    return numbers, tokens


weights = st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any).map(np.array)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(weights, min_size=1, max_size=8), st.floats(0.01, 1.0) | st.sampled_from([0.25, 1.0])
)
def test_a_part_has_a_share_of_each_domains_rows_evenly_over_the_run(store, counts, share):
    whole = Sampler(decks_of(store), lambda: iter(counts), known_steps=len(counts))
    part, seen, drawn = whole.part(share), np.zeros(3, np.int64), np.zeros(3, np.int64)
    for step, now in enumerate(counts):
        places, mine, batch = part.places(step), part(step), whole(step)
        assert np.array_equal(mine.tokens, batch.tokens[places])
        assert np.array_equal(mine.domain, batch.domain[places])
        assert np.array_equal(part.domains(step), mine.domain)
        assert np.array_equal(part.rows(step), whole.rows(step)[places])
        drawn, seen = drawn + now, seen + np.bincount(mine.domain, minlength=3)
        assert np.array_equal(seen, rows_of_part(drawn, share))
        assert (seen[drawn > 0] >= 1).all()  # the first of each is in it
        assert (np.abs(seen - share * drawn) < 1 + 1e-9).all()
        if share == 1:
            assert np.array_equal(places, np.arange(len(batch.domain)))


@settings(max_examples=40, deadline=None)
@given(st.lists(weights, min_size=1, max_size=5), st.integers(1, 40), st.data())
def test_a_domains_rows_come_in_deck_order_whatever_the_weights(store, counts, block, data):
    prefix = data.draw(st.none() | st.lists(st.integers(1, 30), min_size=3, max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "_BLOCK_ROWS", block)
        sampler = Sampler(decks_of(store, prefix), lambda: iter(counts))
    numbers, tokens = rows_by_domain(sampler, len(counts))
    plain = decks_of(store, prefix)
    for domain, got in numbers.items():
        wanted = plain.rows(domain, np.arange(len(got)))
        assert got == wanted.tolist()
        assert tokens[domain] == streams_of(store)[domain].tokens(wanted).tolist()
    assert [len(numbers.get(k, [])) for k in range(3)] == np.sum(counts, axis=0).tolist()


def test_without_a_prefix_the_deck_is_the_builds(store):
    decks = decks_of(store)
    positions = np.arange(100)
    for domain, stream in enumerate(streams_of(store)):
        assert decks.rows(domain, positions).tolist() == stream.deck(positions).tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=3), st.integers(1, 4))
def test_a_prefix_comes_again_and_again_in_a_fresh_order(store, prefix, passes):
    decks = decks_of(store, prefix)
    for domain, size in enumerate(prefix):
        rows = decks.rows(domain, np.arange(passes * size)).reshape(passes, size)
        first = streams_of(store)[domain].deck(np.arange(size))
        assert rows[0].tolist() == first.tolist()
        assert (np.sort(rows, axis=1) == np.sort(first)).all()
        if size > 15:
            assert len({tuple(one) for one in rows.tolist()}) == passes


def test_any_step_can_be_asked_for_at_any_time(store):
    counts = [np.array(c) for c in ([1, 2, 0], [3, 0, 0], [0, 2, 1], [1, 1, 1])]
    wanted = [Sampler(decks_of(store), lambda: iter(counts))(step) for step in range(4)]
    sampler = Sampler(decks_of(store), lambda: iter(counts))
    for step in (3, 0, 2, 2, 1, 3):
        batch = sampler(step)
        assert np.array_equal(batch.tokens, wanted[step].tokens)
        assert np.array_equal(batch.domain, wanted[step].domain)


def test_ids_are_mapped(store):
    counts = [np.array([2, 2, 2])]
    ids = np.arange(store.vocab_size)[::-1].copy()
    plain = Sampler(decks_of(store), lambda: iter(counts))(0)
    mapped = Sampler(decks_of(store), lambda: iter(counts), ids)(0)
    assert np.array_equal(mapped.tokens, store.vocab_size - 1 - plain.tokens)


def test_few_rows_are_held_however_many_domains(store):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "_HELD_BYTES", 2 * 3 * LENGTH * 2 * 5)  # uint16
        decks = decks_of(store)
    assert len(decks._read_block(0, 0)[0]) == 5
    for first in range(0, 500, 7):
        decks.read(first % 3, first, 7)
    assert decks._read.cache_info().currsize <= 6


def test_counts_of_labels():
    labels = np.array([0, 2, 2, 1, 0, 0, 2], np.uint16)
    assert [c.tolist() for c in counts_of(labels, 3, 4)()] == [
        [1, 0, 2, 0],
        [2, 1, 0, 0],
        [0, 0, 1, 0],
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), min_size=1))
def test_rows_under_changing_weights_stay_near_what_is_owed(shares):
    size, total = 5, len(shares)
    weights = [np.array(share) / sum(share) for share in shares]
    asked = []

    def policy(step):
        asked.append(step)
        return weights[step]

    steps = scheduled_counts(policy, size)()
    owed, have = [Fraction(0)] * 4, np.zeros(4, int)
    most = sum(Fraction(1, k) for k in range(1, 5))
    for step in range(total):
        counts = next(steps)
        assert asked == list(range(step + 1))  # no weights are asked for before their step
        assert counts.sum() == size
        have += counts
        owed = [
            o + size * Fraction(s, sum(shares[step]))
            for o, s in zip(owed, shares[step], strict=True)
        ]
        for behind in (o - int(h) for o, h in zip(owed, have, strict=True)):
            assert behind + 1e-9 > -1
            assert behind - 1e-9 <= most


def test_a_domain_without_weight_is_never_drawn():
    steps = scheduled_counts(lambda step: np.array([0.0, 0.3, 0.7]), 7)()
    assert all(next(steps)[0] == 0 for _ in range(200))


def test_a_policy_may_read_what_earlier_steps_recorded(store):
    """Weights that follow from records of the steps before: the same from the start or resumed."""
    records = np.zeros((6, 3))

    def policy(step):
        return records[step - 1] if step else np.full(3, 1 / 3)

    whole = Sampler(decks_of(store), scheduled_counts(policy, 6))
    batches = []
    for step in range(6):
        batches.append(whole(step))
        seen = batches[-1].tokens.sum(axis=1) * (1.0 + batches[-1].domain)
        mass = np.bincount(batches[-1].domain, seen, minlength=3) + 1
        records[step] = mass / mass.sum()
    resumed = Sampler(decks_of(store), scheduled_counts(policy, 6))
    assert np.array_equal(resumed(4).tokens, batches[4].tokens)
    assert (np.ptp(records, axis=0) > 0.05).all()
