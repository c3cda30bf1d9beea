import numpy as np
import pytest
from build_helpers import every_held_id, make_store, random_corpus, training_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.best_fit import best_fit_reference

from mixc.rng import Stream
from mixc.rows import packing
from mixc.rows.packing import Layout

SHAPES = {"short": (40, 2), "long": (7, 90), "mixed": (25, 12), "few": (3, 1)}
NAMES = st.sampled_from(list(SHAPES))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    corpus = random_corpus(1, SHAPES)
    return make_store(tmp_path_factory.mktemp("store"), corpus, holdout={"fraction": 0.1})


def best_fit_rows(store, domain, seq_len, seed, epoch, chunk):
    """An epoch's rows, the slow way: each a list of (document, start, length)."""
    documents = training_documents(store, domain)
    order = Stream(seed, "documents", domain, epoch).permutation(len(documents))
    rows = []
    for begin in range(0, len(order), chunk):
        pieces = [
            (documents[i][0], start, min(seq_len, len(documents[i][1]) - start))
            for i in order[begin : begin + chunk]
            for start in range(0, len(documents[i][1]), seq_len)
        ]
        numbers = best_fit_reference(np.array([p[2] for p in pieces], np.int64), seq_len).tolist()
        rows += [
            [piece for piece, number in zip(pieces, numbers, strict=True) if number == row]
            for row in range(max(numbers) + 1)
        ]
    return rows


def rows_of(spans, count):
    rows = [[] for _ in range(count)]
    fields = (getattr(spans, name).tolist() for name in ("row", "document", "start", "length"))
    for row, *piece in zip(*fields, strict=True):
        rows[row].append(tuple(piece))
    return rows


@settings(max_examples=60, deadline=None)
@given(NAMES, st.integers(1, 70), st.integers(0, 5), st.sampled_from([1, 4, 7, 1 << 16]))
def test_rows_are_those_of_best_fit_epoch_by_epoch(store, domain, seq_len, seed, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK_DOCUMENTS", chunk)
        stream = Layout(seq_len, seed, "best_fit").open(store, [domain])[0]
        epochs = [best_fit_rows(store, domain, seq_len, seed, e, chunk) for e in range(3)]
        sizes = [len(rows) for rows in epochs]
        every = np.arange(sum(sizes))
        spans = stream.spans(every)
    assert rows_of(spans, len(every)) == [row for rows in epochs for row in rows]
    assert spans.epoch.tolist() == [e for e in range(3) for row in epochs[e] for _ in row]
    # The deck: each epoch's rows in some order, before those of the next.
    deck = stream.deck(every)
    begin = 0
    for size in sizes:
        assert sorted(deck[begin : begin + size]) == list(range(begin, begin + size))
        begin += size
    # Rows within epochs, and back.
    for number in range(3):
        assert stream.rows_within(number, 10**9) == sum(sizes[:number])
        assert stream.epochs_of(sum(sizes[:number])) == number
    half = stream.rows_within(1.5, 10**9)
    assert half == sizes[0] + sizes[1] // 2
    assert stream.rows_within(1.5, 2) == min(2, half)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.integers(1, 70), st.integers(0, 5))
def test_documents_are_whole_unless_longer_than_a_row(store, domain, seq_len, seed):
    stream = Layout(seq_len, seed, "best_fit").open(store, [domain])[0]
    rows = stream.rows_within(1, 10**9)
    spans = stream.spans(np.arange(rows))
    documents = dict(training_documents(store, domain))
    seen = dict.fromkeys(documents, 0)
    for document, start, length in zip(spans.document, spans.start, spans.length, strict=True):
        assert start % seq_len == 0
        assert length == min(seq_len, len(documents[document]) - start)
        seen[document] += length
    assert seen == {number: len(tokens) for number, tokens in documents.items()}
    assert not every_held_id(store) & set(stream.doc_ids(spans.document).tolist())


@settings(max_examples=40, deadline=None)
@given(NAMES, st.integers(1, 40), st.lists(st.integers(0, 60), max_size=9))
def test_tokens_are_the_pieces_and_then_padding(store, domain, seq_len, rows):
    stream = Layout(seq_len, 3, "best_fit").open(store, [domain])[0]
    asked = np.array(rows, np.int64)
    tokens = stream.tokens(asked)
    assert tokens.shape == (len(rows), seq_len)
    documents = dict(training_documents(store, domain))
    for row, pieces in zip(tokens.tolist(), rows_of(stream.spans(asked), len(rows)), strict=True):
        text = [t for d, start, length in pieces for t in documents[d][start : start + length]]
        assert row == text + [store.eot_id] * (seq_len - len(text))
    fresh = Layout(seq_len, 3, "best_fit").open(store, [domain])[0]
    for row, got in list(zip(rows, tokens.tolist(), strict=True))[::-1]:
        assert fresh.tokens(np.array([row]))[0].tolist() == got


def test_a_domain_without_training_documents_has_no_rows(tmp_path):
    corpus = {"all": [[1, 2], [3]], "one": [[1, 2]], "other": [[3]]}
    store = make_store(tmp_path, corpus, holdout={"fraction": 0.5})
    (empty,) = (name for name in ("one", "other") if not store.domains[name].training_tokens)
    stream = Layout(4, 0, "best_fit").open(store, [empty])[0]
    assert stream.rows_within(np.inf, 9) == 0
    assert stream.epochs_of(0) == 0
    assert stream.tokens(stream.deck(np.zeros(0, np.int64))).shape == (0, 4)


def test_rows_without_a_cap_lay_no_epochs_out(store):
    (stream,) = Layout(16, 0, "best_fit").open(store, ["few"])
    assert stream.rows_within(np.inf, 10**12) == 10**12
