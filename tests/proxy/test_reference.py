import numpy as np
import pytest
import torch
from build_helpers import make_store, random_corpus

from mixc.proxy import reference as reference_module
from mixc.proxy.model import Model
from mixc.proxy.presets import Shape
from mixc.proxy.reference import cached_losses, uncached_losses, weights_hash
from mixc.proxy.sampler import Decks, Sampler
from mixc.rows.stream import DomainStream

SHAPE = Shape(layers=1, width=16, heads=2, hidden=32)
DOMAINS = {"code": (12, 40), "prose": (30, 20)}
LENGTH = 8
KEY = {"store": "s", "rows": [LENGTH, 0]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), random_corpus(1, DOMAINS))


def sampler_of(store, counts, steps=4, prefix=None):
    streams = [DomainStream(store, name, seq_len=LENGTH, seed=0) for name in DOMAINS]
    decks = Decks(streams, seed=0, prefix_rows=None if prefix is None else np.array(prefix))
    return Sampler(decks, lambda: iter([np.array(counts)] * steps), known_steps=steps)


@pytest.fixture
def model(store):
    return Model(SHAPE, store.vocab_size, seed=0)


@pytest.fixture
def passes(monkeypatch):
    """The rows that are scored, one in a pass."""
    monkeypatch.setattr(reference_module, "_TOKENS_AT_ONCE", {"cpu": 1})
    scored = []
    real = reference_module.row_losses

    def counting(model, tokens):
        scored.extend(map(tuple, tokens.tolist()))
        return real(model, tokens)

    monkeypatch.setattr(reference_module, "row_losses", counting)
    return scored


def same(losses, others, steps=4):
    return all(np.array_equal(losses(step), others(step)) for step in range(steps))


def test_a_part_of_batches_costs_no_more_than_its_rows(store, model, tmp_path, passes):
    whole, part = sampler_of(store, [1, 1]), sampler_of(store, [1, 1]).part(0.5)
    cached, every = cached_losses(model, part, tmp_path, KEY), uncached_losses(model, whole)
    assert len(passes) == sum(len(part.domains(step)) for step in range(4)) == 4
    assert [len(cached(step)) for step in range(4)] == [2, 0, 2, 0]
    for step in range(4):
        assert np.array_equal(cached(step), every(step)[part.places(step)])
    assert same(cached, uncached_losses(model, part))


def test_losses_are_those_of_the_model(store, model, tmp_path):
    batches = sampler_of(store, [3, 2])
    cached = cached_losses(model, batches, tmp_path, KEY)
    assert same(cached, uncached_losses(model, batches))
    for step in range(4):
        tokens = torch.from_numpy(batches(step).tokens)
        with torch.no_grad():
            logits = model(tokens[:, :-1]) @ model.head[: store.vocab_size].T
        wanted = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        assert cached(step).dtype == np.float32
        np.testing.assert_allclose(cached(step), wanted.numpy(), rtol=1e-5)


def test_a_second_run_scores_nothing(store, model, tmp_path, passes):
    batches = sampler_of(store, [3, 2])
    first = cached_losses(model, batches, tmp_path, KEY)
    assert len(passes) == 20
    passes.clear()
    second = cached_losses(Model(SHAPE, store.vocab_size, seed=0), batches, tmp_path, KEY)
    assert passes == []
    assert same(first, second)


def test_only_rows_that_no_run_came_by_are_scored(store, model, tmp_path, passes):
    """Whatever the weights and the steps, and to the bit as if nothing had been there."""
    cached_losses(model, sampler_of(store, [3, 1]), tmp_path, KEY)
    passes.clear()
    other = sampler_of(store, [2, 4])
    losses = cached_losses(model, other, tmp_path, KEY)
    assert len(passes) == 4 * 4 - 4 * 1  # of the first domain, 8 of the 12 rows that are there
    assert same(losses, cached_losses(model, other, tmp_path / "elsewhere", KEY))


def test_rows_are_scored_alike_beside_any_others(store, model, tmp_path, monkeypatch):
    sizes = []
    real = reference_module.row_losses

    def measuring(model, tokens):
        sizes.append(len(tokens))
        return real(model, tokens)

    monkeypatch.setattr(reference_module, "row_losses", measuring)
    monkeypatch.setattr(reference_module, "_TOKENS_AT_ONCE", {"cpu": 3 * (LENGTH - 1)})
    other = sampler_of(store, [2, 4])
    cached_losses(model, sampler_of(store, [3, 1]), tmp_path, KEY)
    losses = cached_losses(model, other, tmp_path, KEY)
    assert set(sizes) == {3}
    assert len(sizes) == -(-16 // 3) + -(-12 // 3)  # of all steps together
    assert same(losses, cached_losses(model, other, tmp_path / "elsewhere", KEY))
    assert same(losses, uncached_losses(model, other))


def test_a_row_that_comes_again_is_scored_once(store, model, tmp_path, passes):
    batches = sampler_of(store, [3, 2], prefix=[2, 3])
    losses = cached_losses(model, batches, tmp_path, KEY)
    assert len(passes) == 5
    assert same(losses, uncached_losses(model, batches))
    passes.clear()
    cached_losses(model, sampler_of(store, [2, 3], steps=1), tmp_path, KEY)
    assert passes == []  # those of a prefix are those of the deck


def test_another_model_or_key_shares_nothing(store, model, tmp_path, passes):
    batches = sampler_of(store, [3, 2])
    cached_losses(model, batches, tmp_path, KEY)
    changed = Model(SHAPE, store.vocab_size, seed=0)
    with torch.no_grad():
        changed.head[3, 5] += 1e-6
    assert weights_hash(changed) != weights_hash(model)
    for other, key in ((changed, KEY), (model, KEY | {"rows": [LENGTH, 1]})):
        passes.clear()
        cached_losses(other, batches, tmp_path, key)
        assert len(passes) == 20


def test_a_killed_run_loses_the_last_table_alone(store, model, tmp_path, passes, monkeypatch):
    monkeypatch.setattr(reference_module, "_TABLE_BYTES", 6 * 4 * (LENGTH - 1))
    monkeypatch.setattr(reference_module, "_TOKENS_AT_ONCE", {"cpu": 5 * (LENGTH - 1)})
    batches = sampler_of(store, [3, 2])
    wanted = cached_losses(model, batches, tmp_path / "whole", KEY)
    assert len(list((tmp_path / "whole").rglob("*.arrow"))) == 2
    passes.clear()
    real = reference_module._losses

    def dying(*given):
        if len(passes) >= 15:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(reference_module, "_losses", dying)
    with pytest.raises(KeyboardInterrupt):
        cached_losses(model, batches, tmp_path, KEY)
    monkeypatch.setattr(reference_module, "_losses", real)
    passes.clear()
    assert same(cached_losses(model, batches, tmp_path, KEY), wanted)
    assert len(passes) == 10


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "other key"])
def test_a_harmed_file_is_found_and_made_anew(store, model, tmp_path, passes, capsys, harm):
    batches = sampler_of(store, [3, 2])
    wanted = cached_losses(model, batches, tmp_path / "whole", KEY)
    cached_losses(model, batches, tmp_path, KEY)
    (file,) = (p for p in tmp_path.rglob("*.arrow") if "whole" not in p.parts)
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    if harm == "other key":
        cached_losses(model, batches, tmp_path / "x", KEY | {"store": "t"})
        (other,) = (tmp_path / "x").rglob("*.arrow")
        file.unlink()
        other.rename(file.with_name(other.name))
    else:
        file.write_bytes({"flip": data, "cut": data[:-8], "empty": b""}[harm])
    passes.clear()
    assert same(cached_losses(model, batches, tmp_path, KEY), wanted)
    assert len(passes) == 20
    assert "is found anew" in capsys.readouterr().err
    passes.clear()
    cached_losses(model, batches, tmp_path, KEY)
    assert passes == []
