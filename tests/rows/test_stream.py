import numpy as np
import pytest
from build_helpers import every_held_id, make_store, random_corpus, training_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.rng import Stream
from mixc.rows.stream import DomainStream, targets
from mixc.tokenize import units

# Domains by (documents, mean length): documents far shorter and far longer than a row, epochs
# shorter than a row, a single document.
SHAPES = {"short": (40, 2), "long": (7, 90), "mixed": (25, 12), "few": (3, 1), "one": (1, 4)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Every domain in three units of work, so that its documents lie in up to three shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "_BUNDLE_FILES", 1)
        corpus = random_corpus(1, {name: size for name, size in SHAPES.items() if size[0] >= 3})
        corpus |= {"short": corpus["short"] + corpus["short"][:4]}  # some texts twice
        store = make_store(tmp_path_factory.mktemp("store"), corpus, files=3)
    assert len(store.domains["short"].shards) == 3
    return store


@pytest.fixture(scope="module")
def lone_store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("lone"), random_corpus(2, {"one": SHAPES["one"]}))


class Reference:
    """The stream of a domain written out, token by token."""

    def __init__(self, store, domain, seed, size):
        documents = training_documents(store, domain)
        self.tokens, self.places, self.ends = [], [], []
        while len(self.tokens) < size:
            epoch = len(self.ends)
            for i in Stream(seed, "documents", domain, epoch).permutation(len(documents)):
                number, tokens = documents[i]
                self.tokens += tokens
                self.places += [(epoch, number, at) for at in range(len(tokens))]
            self.ends.append(len(self.tokens))

    def spans(self, row, seq_len):
        """The pieces of a row, as (epoch, document, start, length)."""
        pieces = []
        for epoch, number, at in self.places[row * seq_len : (row + 1) * seq_len]:
            last = pieces[-1] if pieces else None
            if last and last[:2] == [epoch, number] and at == last[2] + last[3]:
                last[3] += 1
            else:
                pieces.append([epoch, number, at, 1])
        return pieces


def pieces_of(spans, count):
    """Spans as lists of (epoch, document, start, length), a list a row."""
    rows = [[] for _ in range(count)]
    for row, *piece in zip(
        *(getattr(spans, f).tolist() for f in ("row", "epoch", "document", "start", "length")),
        strict=True,
    ):
        rows[row].append(piece)
    return rows


def check_rows(store, domain, seq_len, seed, rows):
    stream = DomainStream(store, domain, seq_len=seq_len, seed=seed)
    reference = Reference(store, domain, seed, (max(rows, default=0) + 1) * seq_len)
    asked = np.array(rows, np.int64)
    tokens = stream.tokens(asked)
    assert tokens.shape == (len(rows), seq_len)
    assert tokens.dtype == store.dtype
    for row, got in zip(rows, tokens.tolist(), strict=True):
        assert got == reference.tokens[row * seq_len : (row + 1) * seq_len]
    spans = pieces_of(stream.spans(asked), len(rows))
    assert spans == [reference.spans(row, seq_len) for row in rows]


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([name for name in SHAPES if name != "one"]),
    st.integers(1, 70),
    st.integers(0, 5),
    st.lists(st.integers(0, 25), max_size=8),
)
def test_rows_are_the_documents_of_all_epochs_end_to_end(store, domain, seq_len, seed, rows):
    check_rows(store, domain, seq_len, seed, rows)


@pytest.mark.parametrize("seq_len", [1, 3, 5, 64])
def test_a_domain_of_one_document(lone_store, seq_len):
    check_rows(lone_store, "one", seq_len, 0, list(range(20)))


def test_epochs_have_fresh_permutations_and_equal_tokens(store):
    stream = DomainStream(store, "short", seq_len=1, seed=0)
    size = stream.epoch_tokens
    epochs = [stream.spans(np.arange(e * size, (e + 1) * size)).document for e in range(4)]
    orders = [tuple(dict.fromkeys(epoch.tolist())) for epoch in epochs]
    assert len(set(orders)) == 4
    assert len({tuple(sorted(epoch.tolist())) for epoch in epochs}) == 1


def test_domains_seeds_and_nothing_else_change_the_order(store):
    def first_epoch(domain, seed, seq_len):
        stream = DomainStream(store, domain, seq_len=seq_len, seed=seed)
        spans = stream.spans(np.arange(stream.epoch_tokens // seq_len))
        return list(dict.fromkeys(spans.document.tolist()))

    assert first_epoch("short", 0, 1) != first_epoch("short", 1, 1)
    shared = first_epoch("short", 0, 4)
    assert first_epoch("short", 0, 1)[: len(shared)] == shared


def test_held_out_documents_never_occur(store):
    held = every_held_id(store)
    assert held
    for domain in store.domains:
        stream = DomainStream(store, domain, seq_len=5, seed=0)
        rows = np.arange(3 * stream.epoch_tokens // 5)
        ids = stream.doc_ids(stream.spans(rows).document)
        assert not held & set(ids.tolist())
        entry = store.domains[domain]
        assert stream.epoch_tokens == entry.training_tokens == entry.tokens - entry.held_tokens


def test_a_text_held_out_in_one_domain_is_kept_out_of_the_others(tmp_path):
    corpus = random_corpus(3, {"a": (30, 9), "b": (30, 9)})
    corpus["b"] += corpus["a"]  # all of a's texts stand in b too
    store = make_store(tmp_path, corpus, holdout={"fraction": 0.2})
    chosen_by_a = set(store.held_ids["a"].tolist())
    assert len(chosen_by_a) == 6
    stream = DomainStream(store, "b", seq_len=3, seed=0)
    ids = stream.doc_ids(stream.spans(np.arange(stream.epoch_tokens // 3)).document)
    assert not chosen_by_a & set(ids.tolist())


# ---- the deck ----


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([name for name in SHAPES if name != "one"]),
    st.integers(1, 70),
    st.integers(0, 5),
)
def test_the_deck_is_a_permutation_of_each_epochs_rows(store, domain, seq_len, seed):
    stream = DomainStream(store, domain, seq_len=seq_len, seed=seed)
    for epochs in range(1, 4):
        # All rows that end within the first epochs, before any that does not.
        count = epochs * stream.epoch_tokens // seq_len
        rows = stream.deck(np.arange(count))
        assert sorted(rows.tolist()) == list(range(count))
        assert (stream.spans(rows).epoch < epochs).all()


def test_decks_are_shuffled_anew_each_epoch(store):
    stream = DomainStream(store, "mixed", seq_len=1, seed=0)
    size = stream.epoch_tokens
    first, second = (stream.deck(np.arange(e * size, (e + 1) * size)) - e * size for e in (0, 1))
    assert first.tolist() != sorted(first.tolist())
    assert first.tolist() != second.tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([name for name in SHAPES if name != "one"]),
    st.integers(1, 40),
    st.lists(st.integers(0, 60), min_size=1, max_size=20),
)
def test_a_position_of_the_deck_does_not_depend_on_the_others_asked_for(
    store, domain, seq_len, positions
):
    stream = DomainStream(store, domain, seq_len=seq_len, seed=9)
    whole = stream.deck(np.arange(61))
    asked = np.array(positions)
    assert stream.deck(asked).tolist() == whole[asked].tolist()
    alone = [DomainStream(store, domain, seq_len=seq_len, seed=9).deck(asked[:1])[0]]
    assert alone == whole[asked[:1]].tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 30))
def test_tokens_do_not_depend_on_the_batch(store, rows, seq_len):
    stream = DomainStream(store, "mixed", seq_len=seq_len, seed=2)
    together = stream.tokens(np.array(rows))
    apart = [stream.tokens(np.array([row]))[0].tolist() for row in rows]
    assert together.tolist() == apart


def test_rows_far_ahead_are_found_without_laying_out_the_epochs_before(store):
    stream = DomainStream(store, "few", seq_len=7, seed=0)
    far = 10**12
    epochs = stream.spans(np.array([far])).epoch
    assert epochs.min() == far * 7 // stream.epoch_tokens
    assert epochs.max() == ((far + 1) * 7 - 1) // stream.epoch_tokens
    tokens = stream.tokens(np.array([far, 3]))
    assert tokens[1].tolist() == stream.tokens(np.array([3]))[0].tolist()


# ---- places in the store ----


def test_documents_are_found_in_their_shards(store):
    stream = DomainStream(store, "long", seq_len=8, seed=0)
    shards = list(store.documents("long"))
    assert stream.first_document.tolist() == np.cumsum([0, *map(len, shards)]).tolist()
    every = np.arange(stream.first_document[-1])
    shard, local = stream.locate(every)
    found = [int(shards[s].doc_id[i]) for s, i in zip(shard, local, strict=True)]
    assert found == stream.doc_ids(every).tolist()
    assert found == [int(i) for one in shards for i in one.doc_id]


def test_targets_lie_end_to_end():
    assert targets(np.array([3, 0, 2])).tolist() == [0, 3, 3]
    assert targets(np.array([], np.int64)).tolist() == []
