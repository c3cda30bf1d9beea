import math

import numpy as np
import pytest
import torch
from build_helpers import every_held_id, make_store, random_corpus, training_documents
from hypothesis import given
from hypothesis import strategies as st

from mixc.proxy import vocabulary as vocabulary_module
from mixc.proxy.evaluate import stream_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import PRESETS, Shape, compact_vocab
from mixc.proxy.vocabulary import Vocabulary, frequencies

CORPUS = random_corpus(5, {"code": (30, 25), "web": (60, 40)})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), CORPUS, holdout={"fraction": 0.2})


counts = st.lists(st.integers(1, 10**6), min_size=2, max_size=200).map(np.array)


@given(counts, st.integers(2, 220), st.data())
def test_the_ids_of_a_place_share_its_probability(counts, size, data):
    """Whatever the probabilities of places, those of all ids sum to 1: a code can be made."""
    eot = data.draw(st.integers(0, len(counts) - 1))
    found = Vocabulary.compact(counts / counts.sum(), size, eot)
    places = np.random.default_rng(len(counts)).dirichlet(np.ones(found.size))
    used = np.bincount(found.ids, minlength=found.size) > 0
    total = (places[found.ids] * np.exp(-found.extra)).sum()
    assert total == pytest.approx(places[used].sum())
    assert (found.extra >= 0).all()
    assert found.ids.max() < found.size <= len(counts)


@given(counts, st.integers(16, 64))
def test_frequent_ids_and_the_end_of_text_keep_a_place(counts, size):
    found = Vocabulary.compact(counts / counts.sum(), size, 1)
    alone = np.bincount(found.ids)[found.ids] == 1
    assert alone[1]
    if len(counts) <= size:
        assert found.ids.tolist() == list(range(len(counts)))
        return
    own = found.ids < size - size // 8
    assert alone[own].all()
    assert (found.extra[own] == 0).all()
    rest = np.delete(np.arange(len(counts)), 1)
    if own[rest].any() and (~own[rest]).any():
        assert counts[rest][own[rest]].min() >= counts[rest][~own[rest]].max()


def test_frequencies_are_the_training_documents(store):
    mean, total = np.zeros(store.vocab_size), 0
    for name in store.domains:
        tokens = [t for _, document in training_documents(store, name) for t in document]
        mean += np.bincount(tokens, minlength=store.vocab_size) / len(tokens)
        total += len(tokens)
    assert every_held_id(store)
    wanted = mean + 0.5 / total
    assert frequencies(store) == pytest.approx(wanted / wanted.sum())


def test_of_large_domains_the_beginning_of_each_shard_counts(store, monkeypatch):
    monkeypatch.setattr(vocabulary_module, "_COUNTED", 60)
    seen = 0
    for documents in store.documents("code"):
        whole = documents.offsets[documents.offsets <= 60 // len(store.domains["code"].shards)]
        seen += int(whole[-1])
    counted = vocabulary_module._domain_counts(store, "code").sum()
    assert 0 < counted <= max(seen, 60)


def test_frequencies_are_counted_once(store, tmp_path, monkeypatch):
    first = frequencies(store, tmp_path)
    monkeypatch.setattr(vocabulary_module, "_count", None)
    assert np.array_equal(frequencies(store, tmp_path), first)
    (file,) = tmp_path.rglob("*.arrow")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    with pytest.raises(TypeError):
        frequencies(store, tmp_path)


def test_losses_are_a_code_for_every_token(store):
    """The lengths of a model's code for all ids after a context: 2^-bits sum to 1."""
    found = Vocabulary.compact(frequencies(store), 64, store.eot_id)
    model = Model(Shape(1, 16, 2, 32), found.size, seed=0)
    with torch.no_grad():
        model.head.mul_(20)
    context = np.array([3, 141, 59])
    total = 0.0
    for token in range(store.vocab_size):
        stream = np.append(context, token)
        nats = stream_losses(model, found.ids[stream], 8, "cpu")[-1] + found.extra[token]
        total += math.exp(-nats)
    assert total == pytest.approx(1 - _unused(model, found, context), abs=1e-5)


def _unused(model, vocabulary, context):
    """What places without an id are given."""
    with torch.no_grad():
        hidden = model(torch.from_numpy(vocabulary.ids[context])[None])[0, -1]
        places = (model.head[: vocabulary.size] @ hidden).softmax(-1).numpy()
    return places[np.bincount(vocabulary.ids, minlength=vocabulary.size) == 0].sum()


def test_small_models_tell_fewer_ids_apart():
    assert compact_vocab(PRESETS["nano"], 50_257) == 8192
    assert compact_vocab(PRESETS["nano"], 300) == 300
    assert compact_vocab(PRESETS["base"], 50_257) == 50_257
