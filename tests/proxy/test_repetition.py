import numpy as np
import pytest
from build_helpers import make_store
from hypothesis import assume, given
from hypothesis import strategies as st

from mixc.build.counts import row_counts
from mixc.proxy.repetition import matched_rows
from mixc.proxy.sampler import Decks, Sampler
from mixc.rows.stream import DomainStream

SEQ_LEN = 16


@given(
    st.lists(st.integers(SEQ_LEN, 10**12), min_size=2, max_size=6),
    st.lists(st.integers(1, 100), min_size=6, max_size=6),
    st.integers(1, 10**5),
    st.integers(1, 10**13),
)
def test_a_matched_run_makes_as_many_passes_as_its_target(tokens, shares, run_rows, target):
    """Within the rounding of a row of what is kept, and of a row of what is drawn."""
    assume(target >= run_rows * SEQ_LEN)
    tokens = np.array(tokens)
    weights = np.array(shares[: len(tokens)], float) / sum(shares[: len(tokens)])
    kept = matched_rows(tokens, seq_len=SEQ_LEN, run_rows=run_rows, target_tokens=target)
    exact = tokens * (run_rows / target)
    assert (np.abs(kept - exact) <= 1 + 1e-9 * exact).all()
    drawn = row_counts(weights, run_rows, np.full(len(tokens), run_rows)).rows
    passes, wanted = drawn / kept, weights * target / tokens
    # passes * kept is within a row of wanted * exact
    assert (np.abs(passes * kept - wanted * exact) <= 1 + 1e-9 * exact).all()


def test_a_run_as_long_as_its_target_sees_all():
    tokens = np.array([160, 169, 3])
    whole = matched_rows(tokens, seq_len=16, run_rows=100, target_tokens=1600)
    assert whole.tolist() == [10, 10, 1]
    longer = matched_rows(tokens, seq_len=16, run_rows=1000, target_tokens=1600)
    assert longer.tolist() == [10, 10, 1]


# ---- a small good domain ----

SIZES = {"bulk": 4000, "good": 60}  # documents, each as long as a row


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    corpus = {
        name: [[number % 300, *[0] * (SEQ_LEN - 2)] for number in range(rows)]
        for name, rows in SIZES.items()
    }
    store = make_store(tmp_path_factory.mktemp("store"), corpus, holdout={"fraction": 0})
    return [DomainStream(store, name, seq_len=SEQ_LEN, seed=0) for name in SIZES]


def worth(streams, batches):
    """What a run has learnt, in rows of bulk: good rows count three times, repeats ever less.

    A row seen r times in the mean is worth 1 + 15 (1 - exp(-(r - 1) / 15)) fresh ones
    (Muennighoff et al., arXiv:2305.16264, equation 5), a law in the numbers of passes alone.
    """
    domain, rows = batches(0).domain, batches.rows(0)
    total = 0.0
    for k, quality in enumerate((1.0, 3.0)):
        mine = rows[domain == k]
        fresh = len(np.unique(streams[k].spans(mine).document))
        total += quality * fresh * (1 + 15 * (1 - np.exp(-(len(mine) / fresh - 1) / 15)))
    return total


def best_share(streams, rows, prefix=None):
    """The share of the good domain, in steps of a twentieth, that is best for runs of `rows`."""
    shares = np.arange(1, 20) / 20
    found = []
    for share in shares:
        good = round(rows * share)
        decks = Decks(streams, seed=0, prefix_rows=prefix)
        batches = Sampler(decks, lambda good=good: iter([np.array([rows - good, good])]))
        found.append(worth(streams, batches))
    return float(shares[np.argmax(found)])


def test_a_small_good_domain_is_weighed_as_for_the_target(streams):
    target, run = 4000, 400
    tokens = np.array([stream.epoch_tokens for stream in streams])
    kept = matched_rows(tokens, seq_len=SEQ_LEN, run_rows=run, target_tokens=target * SEQ_LEN)
    right = best_share(streams, target)
    assert 0.2 < right < 0.5
    assert best_share(streams, run) >= right + 0.4  # a short run hardly repeats it
    assert best_share(streams, run, kept) == pytest.approx(right, abs=0.051)
