"""Batches, held-out losses and runs on fixed mixes, on a tiny store."""

from dataclasses import replace

import numpy as np
import pytest
from build_helpers import make_store, random_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.proxy import reference
from mixc.proxy.train import mean_loss, train
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
    folders = {"staging": tmp_path / "staging", "folder": tmp_path / "kept"}
    lab = Lab(store, OPTIONS, seed=1, **folders)
    mix = np.array([0.2, 0.3, 0.5])
    made = lab.run_mix(mix)
    assert made.tokens == 3 * 8 * 15
    assert made.losses_per_step.shape == (3,)
    assert list(folders["staging"].iterdir()) == []
    again = Lab(store, OPTIONS, seed=1, key="another method", **folders)
    monkeypatch.setattr("mixc.solve.trainer.Trainer.train", None)
    known = again.run_mix(mix)
    assert np.array_equal(known.bits_per_byte, made.bits_per_byte)
    assert np.array_equal(known.losses_per_step, made.losses_per_step)
    assert (known.tokens, known.flops) == (made.tokens, made.flops)
    beside = again.run_mix(mix + np.array([1e-9, 0, -1e-9]))  # the same rows
    assert np.array_equal(beside.bits_per_byte, made.bits_per_byte)
    for other in (lambda: again.run_mix(mix, seed=2), lambda: again.run_mix(mix[::-1])):
        with pytest.raises(TypeError):
            other()


def test_a_model_that_a_method_trained_on_a_mix_is_its_run(store, tmp_path, monkeypatch):
    mix = np.array([0.2, 0.3, 0.5])
    made = Lab(store, OPTIONS, seed=1).run_mix(mix)
    lab = Lab(store, OPTIONS, seed=1, staging=tmp_path / "staging", folder=tmp_path / "kept")
    scored = lab.score_run(mix, lab.train("reference", lab.batches(mix)))
    monkeypatch.setattr("mixc.solve.trainer.Trainer.train", None)
    known = lab.run_mix(mix)
    for run in (scored, known):
        assert np.array_equal(run.bits_per_byte, made.bits_per_byte)
        assert np.array_equal(run.losses_per_step, made.losses_per_step)
        assert (run.tokens, run.flops) == (made.tokens, made.flops)


def test_people_see_what_a_run_is_on(store, tmp_path, capsys):
    lab = Lab(store, OPTIONS, seed=1, staging=tmp_path / "staging", folder=tmp_path / "kept")
    lab.run_mix(np.full(3, 1 / 3), label="on uniform, seed 1")
    assert "train on uniform, seed 1: " in capsys.readouterr().err


def test_a_kept_run_that_is_damaged_is_made_again(store, tmp_path, capsys):
    lab = Lab(store, OPTIONS, seed=1, staging=tmp_path / "staging", folder=tmp_path / "kept")
    made = lab.run_mix(np.full(3, 1 / 3))
    (file,) = (tmp_path / "kept" / "runs").iterdir()
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


def test_runs_on_different_mixes_are_paired(lab):
    """The same rows of a domain in the same order, and the same first weights by seed."""
    runs = [lab.batches(np.array(mix)) for mix in ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1])]
    rows = [_rows_by_domain(one) for one in runs]
    for domain in range(3):
        shared = min(len(one[domain]) for one in rows)
        assert shared > 1
        assert np.array_equal(rows[0][domain][:shared], rows[1][domain][:shared])
    still = replace(lab.train_options(), learning_rate=0.0)
    first, second = (train(still, one, mean_loss).model.state_dict() for one in runs)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = train(replace(still, seed=2), runs[0], mean_loss).model.state_dict()
    assert not np.array_equal(first["head"], other["head"])


def test_a_seed_of_a_run_is_of_first_weights_and_of_the_order_of_rows(store, monkeypatch):
    seen = {}

    def keep(trainer, name, batches, **_):
        seen.setdefault(trainer.options.seed, []).append(_rows_by_domain(batches))
        raise KeyboardInterrupt

    monkeypatch.setattr("mixc.solve.trainer.Trainer.train", keep)
    lab = Lab(store, OPTIONS, seed=1)
    for seed in (1, 2):
        for mix in ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1]):
            with pytest.raises(KeyboardInterrupt):
                lab.run_mix(np.array(mix), seed=seed)
    for domain in range(3):
        (a, b), (c, d) = ([run[domain] for run in seen[seed]] for seed in (1, 2))
        shared = min(len(a), len(b))
        assert np.array_equal(a[:shared], b[:shared]) and np.array_equal(c[:shared], d[:shared])
        assert not np.array_equal(a[:shared], c[:shared])


def _rows_by_domain(batches):
    seen = [batches(step) for step in range(OPTIONS.steps)]
    return [np.concatenate([one.tokens[one.domain == k] for one in seen]) for k in range(3)]


def test_models_repeat_domains_as_often_as_the_mixture(store):
    target = 8 * OPTIONS.steps * 128
    lab = Lab(store, OPTIONS, seed=1, target_tokens=target)
    tokens = np.array([one.training_tokens for one in store.domains.values()])
    assert lab.kept_rows.tolist() == np.floor(tokens / (8 * 16) + 0.5).tolist()
    mine = _rows_by_domain(lab.batches(np.array([0.8, 0.1, 0.1])))[0]
    kept = int(lab.kept_rows[0])
    assert len(mine) > 2 * kept
    assert len(np.unique(mine[:kept], axis=0)) == kept
    for first in range(0, len(mine) - kept + 1, kept):
        again = mine[first : first + kept]
        assert np.array_equal(np.unique(again, axis=0), np.unique(mine[:kept], axis=0))
    assert Lab(store, OPTIONS, seed=1, target_tokens=OPTIONS.steps * 128).kept_rows is None


def test_what_a_run_came_to_depends_on_the_rows_that_are_kept(store, tmp_path):
    mix = np.full(3, 1 / 3)
    folders = {"staging": tmp_path / "staging", "folder": tmp_path / "kept"}
    whole = Lab(store, OPTIONS, seed=1, **folders).run_mix(mix)
    matched = Lab(store, OPTIONS, seed=1, target_tokens=10**5, **folders).run_mix(mix)
    assert not np.array_equal(whole.losses_per_step, matched.losses_per_step)


def test_a_compact_vocabulary_gives_bits_per_byte_of_all_ids(store):
    lab = Lab(store, OPTIONS.model_copy(update={"vocab": 64}), seed=1)
    assert lab.train_options().vocab_size == lab.vocab_size == 64
    batches = lab.batches(np.full(3, 1 / 3))
    assert batches(0).tokens.max() < 64
    model = lab.train("plain", batches).model
    nats = lab.held_losses(model)
    for domain, name in enumerate(lab.domains):
        stream = lab._held_stream(name)[0]
        extra = lab.vocabulary.extra[stream[1:]]
        assert (nats[domain] >= extra).all()
        # Hardly trained: not far below log 64 for the place of each token.
        assert (nats[domain] - extra).mean() == pytest.approx(np.log(64), rel=0.2)
    assert lab.bits_per_byte(model) == pytest.approx(_bits(lab, nats))


def _bits(lab, nats):
    sizes = [sum(int(one.n_bytes.sum()) for one in lab.store.held_out(k)) for k in lab.domains]
    return np.array([one.sum(dtype=np.float64) for one in nats]) / np.log(2) / sizes


def test_reference_losses_are_found_once(store, tmp_path, monkeypatch):
    folders = {"staging": tmp_path / "staging", "folder": tmp_path / "kept"}
    lab = Lab(store, OPTIONS, seed=1, **folders)
    batches = lab.batches(np.full(3, 1 / 3))
    model = lab.train("reference", batches).model
    first = lab.reference_losses(model, batches, "reference")
    assert first(0).shape == (lab.batch_rows, OPTIONS.seq_len - 1)
    scheduled = lab.scheduled_batches(lambda _: np.full(3, 1 / 3))
    late = lab.reference_losses(model, scheduled, "reference")
    plain = Lab(store, OPTIONS, seed=1)
    direct = plain.reference_losses(model, batches, "reference")
    assert all(np.array_equal(first(step), direct(step)) for step in range(3))
    assert late(2).shape == first(2).shape

    monkeypatch.setattr(reference, "row_losses", None)
    again = Lab(store, OPTIONS, seed=1, key="another step size", **folders)
    second = again.reference_losses(model, again.batches(np.full(3, 1 / 3)), "reference")
    assert all(np.array_equal(first(step), second(step)) for step in range(3))
    with pytest.raises(TypeError):
        late(1)


def test_rows_that_come_again_are_scored_once(store, tmp_path):
    folders = {"staging": tmp_path / "staging", "folder": tmp_path / "kept"}
    lab = Lab(store, OPTIONS, seed=1, target_tokens=8 * OPTIONS.steps * 128, **folders)
    for weights in (np.full(3, 1 / 3), np.array([0.8, 0.1, 0.1])):
        batches = lab.batches(weights)
        rows = [
            (domain, row)
            for step in range(OPTIONS.steps)
            for domain, row in zip(batches.domains(step), batches.rows(step), strict=True)
        ]
        assert lab.scored_share(weights) == pytest.approx(len(set(rows)) / len(rows))
    assert lab.scored_share(weights) < 1
    assert Lab(store, OPTIONS, seed=1, **folders).scored_share(weights) == 1
    nowhere = Lab(store, OPTIONS, seed=1, target_tokens=8 * OPTIONS.steps * 128)
    assert nowhere.scored_share(weights) == 1
