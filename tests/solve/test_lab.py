"""Batches, held-out losses and runs on fixed mixes, on a tiny store."""

import numpy as np
import pytest
from build_helpers import make_store, random_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.recipe import Proxy
from mixc.solve import runs
from mixc.solve.lab import Lab

OPTIONS = Proxy(preset="nano", steps=3, batch_tokens=128, seq_len=16, device="cpu")
CORPUS = random_corpus(3, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store. Not to be changed."""
    return make_store(tmp_path_factory.mktemp("lab"), CORPUS)


@pytest.fixture(scope="module")
def lab(store):
    """A lab that writes nothing."""
    return Lab(store, OPTIONS, seed=1)


simplex = st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any).map(np.array)


@settings(max_examples=20, deadline=None)
@given(st.lists(simplex, min_size=1, max_size=12))
def test_schedules_keep_every_domain_near_its_due(lab, schedule):
    weights = [one / one.sum() for one in schedule]
    batches = lab.scheduled_batches(lambda step: weights[step])
    due, drawn = np.zeros(3), np.zeros(3)
    for step, share in enumerate(weights):
        due += share * lab.batch_rows
        drawn += np.bincount(batches(step).domain, minlength=3)
        assert (abs(due - drawn) < 1.5).all()


def test_schedules_draw_rows_in_deck_order_whenever_they_are_asked(lab):
    def policy(step):
        return np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]][step % 2])

    batches = lab.scheduled_batches(policy)
    seen = [batches(step) for step in range(5)]
    late = lab.scheduled_batches(policy)(4)  # as where a run goes on from a checkpoint
    assert np.array_equal(late.tokens, seen[4].tokens)
    plain = lab.batches(np.array([1.0, 0.0, 0.0]))
    deck = np.concatenate([plain(step).tokens for step in range(3)])
    mine = np.concatenate([one.tokens[one.domain == 0] for one in seen])
    assert np.array_equal(mine, deck[: len(mine)])
    assert len(mine) > lab.batch_rows


def test_held_losses_are_those_of_the_bits_per_byte(lab, store):
    model = lab.train("plain", lab.batches(np.full(3, 1 / 3))).model
    nats = lab.held_losses(model)
    sizes = [sum(int(one.n_bytes.sum()) for one in store.held_out(name)) for name in lab.domains]
    tokens = [sum(len(one.tokens) for one in store.held_out(name)) for name in lab.domains]
    assert [len(one) for one in nats] == tokens
    total = np.array([one.sum(dtype=np.float64) for one in nats])
    assert lab.bits_per_byte(model) == pytest.approx(total / np.log(2) / sizes)


def test_a_run_on_a_mix_is_made_once(store, tmp_path, monkeypatch):
    folders = {"staging": tmp_path / "staging", "folder": tmp_path / "runs"}
    lab = Lab(store, OPTIONS, seed=1, **folders)
    mix = np.array([0.2, 0.3, 0.5])
    made = lab.run_mix(mix)
    assert made.tokens == 3 * 8 * 15
    assert made.losses_per_step.shape == (3,)
    assert list(folders["staging"].iterdir()) == []
    again = Lab(store, OPTIONS, seed=1, key="another method", **folders)
    monkeypatch.setattr(Lab, "train", None)
    known = again.run_mix(mix)
    assert np.array_equal(known.bits_per_byte, made.bits_per_byte)
    assert np.array_equal(known.losses_per_step, made.losses_per_step)
    assert (known.tokens, known.flops) == (made.tokens, made.flops)
    for other in (lambda: again.run_mix(mix, seed=2), lambda: again.run_mix(mix[::-1])):
        with pytest.raises(TypeError):
            other()


def test_a_kept_run_that_is_damaged_is_made_again(store, tmp_path, capsys):
    lab = Lab(store, OPTIONS, seed=1, staging=tmp_path / "staging", folder=tmp_path / "runs")
    made = lab.run_mix(np.full(3, 1 / 3))
    (file,) = (tmp_path / "runs").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"tokens": 3', b'"tokens": 4'))
    assert runs.load(file) is None
    assert "is not used" in capsys.readouterr().err
    assert lab.run_mix(np.full(3, 1 / 3)).tokens == made.tokens
    assert file.read_bytes() == whole


def test_a_domain_without_holdout_has_no_bits_per_byte(tmp_path):
    store = make_store(tmp_path, CORPUS, holdout={"fraction": 0.0})
    lab = Lab(store, OPTIONS, seed=1)
    model = lab.train("plain", lab.batches(np.full(3, 1 / 3))).model
    assert np.isnan(lab.bits_per_byte(model)).all()
