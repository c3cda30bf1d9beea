from collections import Counter
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build_helpers import make_store, random_corpus, training_documents, write_document_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.rng import Stream
from mixc.rows.packing import Layout
from mixc.rows.weights import ONE, DocumentWeights, draw, read_weights

WEIGHTS = st.lists(
    st.one_of(st.sampled_from([0, 1, 2, 0.5, 0.1, 1 / 3]), st.floats(0, 5)), min_size=1, max_size=40
)


def units_of(weights):
    return np.rint(np.array(weights, float) * ONE).astype(np.int64)


def draw_reference(weights, seed, domain, epoch):
    """The documents of an epoch in plain fractions, each as often as it is drawn."""
    words = Stream(seed, "documents", domain, epoch).words(len(weights)).tolist()
    shift = Fraction(int(Stream(seed, "weights", domain, epoch).words(1)[0]) % ONE, ONE)
    first, again, end = [], [], shift
    for i in sorted(range(len(weights)), key=lambda i: words[i]):
        begin, end = end, end + Fraction(int(units_of([weights[i]])[0]), ONE)
        copies = floor(end) - floor(begin)
        first += [(words[i], i)] * (copies > 0)
        again += [i] * (copies - 1)
    more = Stream(seed, "copies", domain, epoch).words(len(again)).tolist()
    return [i for _, i in sorted([*first, *zip(more, again, strict=True)], key=lambda one: one[0])]


@settings(max_examples=150, deadline=None)
@given(WEIGHTS, st.integers(0, 9), st.integers(0, 9))
def test_documents_are_drawn_by_systematic_resampling(weights, seed, epoch):
    drawn = draw(units_of(weights), seed=seed, domain="a", epoch=epoch).tolist()
    assert drawn == draw_reference(weights, seed, "a", epoch)
    counts, exact = Counter(drawn), [Fraction(int(u), ONE) for u in units_of(weights)]
    for i, weight in enumerate(exact):
        assert counts[i] in (floor(weight), ceil(weight))
    assert abs(len(drawn) - sum(exact)) < 1


@given(st.integers(1, 50), st.integers(0, 9))
def test_weights_of_one_change_nothing(size, epoch):
    plain = Stream(3, "documents", "a", epoch).permutation(size)
    assert draw(np.full(size, ONE), seed=3, domain="a", epoch=epoch).tolist() == plain.tolist()


def test_the_mean_over_epochs_is_the_weight():
    weights = [0.25, 1.75, 3, 0.01, 2.5]
    counts = sum(
        np.bincount(draw(units_of(weights), seed=0, domain="a", epoch=e), minlength=5)
        for e in range(4000)
    )
    assert np.abs(counts / 4000 - weights).max() < 0.03


def test_copies_do_not_stand_side_by_side():
    drawn = draw(units_of([2.0] * 500), seed=0, domain="a", epoch=0)
    assert len(drawn) == 1000
    assert np.count_nonzero(drawn[1:] == drawn[:-1]) < 10


# ---- the file ----


def test_a_file_is_read_in_any_order_and_written_back(tmp_path):
    path = write_document_weights(tmp_path / "w.parquet", {7: 0.5, 2**64 - 1: 3, 1: 0})
    weights = read_weights(path)
    assert weights.ids.tolist() == [1, 7, 2**64 - 1]
    assert (weights.units / ONE).tolist() == [0, 0.5, 3]
    units, given_ = weights.of(np.array([7, 8, 1], np.uint64))
    assert (units / ONE).tolist() == [0.5, 1, 0]
    assert given_.tolist() == [True, False, True]
    weights.write(tmp_path / "again")
    again = read_weights(tmp_path / "again/document_weights.parquet")
    assert again.digest() == weights.digest()
    assert again.digest() != DocumentWeights(weights.ids, weights.units + 1).digest()


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int64()])
def test_weights_of_any_number_type(tmp_path, kind):
    table = pa.table({"doc_id": pa.array([5], pa.uint64()), "weight": pa.array([2], kind)})
    pq.write_table(table.append_column("url", [["x"]]), tmp_path / "w.parquet")
    assert read_weights(tmp_path / "w.parquet").units.tolist() == [2 * ONE]


def test_no_weights_at_all_are_weights_of_one(tmp_path):
    weights = read_weights(write_document_weights(tmp_path / "w.parquet", {}))
    assert weights.of(np.array([3], np.uint64))[0].tolist() == [ONE]


UINT, DOUBLE = pa.uint64(), pa.float64()
BAD = {
    "negative": ("MX061", [1], UINT, [-0.1], DOUBLE),
    "nan": ("MX061", [1], UINT, [float("nan")], DOUBLE),
    "infinite": ("MX061", [1], UINT, [float("inf")], DOUBLE),
    "too large": ("MX061", [1], UINT, [1025.0], DOUBLE),
    "null weight": ("MX061", [1], UINT, [None], DOUBLE),
    "null id": ("MX061", [None], UINT, [1.0], DOUBLE),
    "twice": ("MX061", [4, 1, 4], UINT, [1.0, 1.0, 1.0], DOUBLE),
    "signed": ("MX026", [1], pa.int64(), [1.0], DOUBLE),
    "text": ("MX026", [1], UINT, ["x"], pa.string()),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_are_refused(tmp_path, name):
    code, ids, id_type, weights, weight_type = BAD[name]
    table = pa.table({"doc_id": pa.array(ids, id_type), "weight": pa.array(weights, weight_type)})
    pq.write_table(table, tmp_path / "w.parquet")
    with pytest.raises(MixcError) as raised:
        read_weights(tmp_path / "w.parquet")
    assert raised.value.code == code
    assert "w.parquet" in str(raised.value.place)


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "noise").write_bytes(b"PAR1 no parquet PAR1")
    pq.write_table(pa.table({"doc_id": pa.array([1], UINT)}), tmp_path / "half")
    for name, code in {"noise": "MX026", "half": "MX026", "none": "MX041"}.items():
        with pytest.raises(MixcError) as raised:
            read_weights(tmp_path / name)
        assert raised.value.code == code


# ---- streams ----


SHAPES = {"short": (40, 2), "long": (7, 90), "few": (4, 1)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    corpus = random_corpus(1, SHAPES)
    return make_store(tmp_path_factory.mktemp("store"), corpus, holdout={"fraction": 0.1})


def weigh(store, domain, weights):
    """Documents of a domain and their weights, some by default."""
    stream = Layout(1, 0).open(store, [domain])[0]
    ids = stream.doc_ids(stream.training)
    listed = {int(i): w for i, w in zip(ids, weights, strict=False) if w != 1}
    order = np.argsort(np.array(list(listed), np.uint64))
    units = units_of(list(listed.values()))
    given_ = DocumentWeights(np.array(list(listed), np.uint64)[order], units[order])
    return given_, [listed.get(int(i), 1) for i in ids]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(SHAPES)), st.integers(1, 30), WEIGHTS)
def test_rows_are_the_drawn_documents_end_to_end(store, domain, seq_len, listed):
    weights, every = weigh(store, domain, listed)
    layout = Layout(seq_len, 5, weighted=True)
    if not units_of(every).any():
        (stream,) = layout.open(store, [domain], weights)
        assert stream.rows_within(np.inf, 9) == 0
        nothing = np.zeros(0, np.int64)
        assert stream.tokens(stream.deck(nothing)).shape == (0, seq_len)
        return
    if units_of(every).sum() < ONE:
        with pytest.raises(MixcError) as raised:
            layout.open(store, [domain], weights)
        assert raised.value.code == "MX061"
        return
    (stream,) = layout.open(store, [domain], weights)
    documents = training_documents(store, domain)
    epochs = [
        [token for i in draw_reference(every, 5, domain, e) for token in documents[i][1]]
        for e in range(4)
    ]
    tokens = [token for epoch in epochs for token in epoch]
    assert [stream.drawn(e) for e in range(4)] == [len(epoch) for epoch in epochs]
    rows = len(tokens) // seq_len
    found = stream.tokens(np.arange(rows)).ravel().tolist()
    assert found == tokens[: rows * seq_len]
    begin = np.cumsum([0, *map(len, epochs)])
    spans = stream.spans(np.arange(rows))
    length = np.bincount(spans.epoch, weights=spans.length, minlength=4)
    whole = np.searchsorted(begin, rows * seq_len, side="right") - 1
    assert length[:whole].tolist() == [len(epoch) for epoch in epochs[:whole]]
    for e in range(1, 4):
        # The first rows of the deck are those that end within the first epochs.
        count = int(begin[e]) // seq_len
        assert stream.rows_within(e, 10**9) == count
        assert sorted(stream.deck(np.arange(count)).tolist()) == list(range(count))
        assert stream.epochs_of(count) <= e
    half = int(begin[1]) + len(epochs[1]) // 2
    assert stream.rows_within(1.5, 10**9) == half // seq_len


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.lists(st.sampled_from([0, 0.5, 1, 2]), min_size=1, max_size=40))
def test_drawn_documents_are_packed_by_best_fit(store, seq_len, listed):
    weights, every = weigh(store, "short", listed)
    if sum(every) < 1:
        return
    (stream,) = Layout(seq_len, 5, "best_fit", weighted=True).open(store, ["short"], weights)
    documents = training_documents(store, "short")
    for epoch in range(2):
        first, stop = stream.rows_within(epoch, 10**9), stream.rows_within(epoch + 1, 10**9)
        spans = stream.spans(np.arange(first, stop))
        assert set(spans.epoch.tolist()) == {epoch}
        found: Counter[int] = Counter()
        for number, length in zip(spans.document.tolist(), spans.length.tolist(), strict=True):
            found[number] += length
        copies = Counter(draw_reference(every, 5, "short", epoch))
        assert found == {documents[i][0]: n * len(documents[i][1]) for i, n in copies.items()}
        assert stream.drawn(epoch) == spans.length.sum()


def test_weights_of_one_give_the_same_stream(store):
    plain = Layout(7, 5).open(store, ["short"])[0]
    weights = DocumentWeights(np.array([1], np.uint64), np.array([5]))
    same = Layout(7, 5, weighted=True).open(store, ["short"], weights)[0]
    rows = np.arange(40)
    assert same.weighted == 0
    assert same.tokens(rows).tolist() == plain.tokens(rows).tolist()
    assert same.deck(rows).tolist() == plain.deck(rows).tolist()
