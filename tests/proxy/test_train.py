import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from proxy_helpers import LENGTH, OPTIONS, VOCAB, batches, chain, same_weights

from mixc.errors import MixcError
from mixc.proxy import device
from mixc.proxy.evaluate import stream_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import Shape, flops_per_token
from mixc.proxy.train import (
    Batch,
    batch_losses,
    domain_stats,
    mean_loss,
    rate_at,
    train,
    weighted_loss,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products: threads only get in each other's way
    yield
    torch.set_num_threads(threads)


def test_training_reaches_the_entropy_of_a_chain():
    trained = train(replace(OPTIONS, steps=150), batches, mean_loss)
    assert trained.losses[0] == pytest.approx(math.log(VOCAB), abs=0.1)
    stream = chain(1, 4000, np.random.default_rng(99))[0]
    losses = stream_losses(trained.model, stream, LENGTH, "cpu")
    assert math.log(2) - 0.03 < losses.mean() < math.log(2) + 0.08


def test_two_runs_agree_to_the_bit_whatever_the_global_generator():
    torch.manual_seed(1)
    first = train(OPTIONS, batches, mean_loss)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = train(OPTIONS, batches, mean_loss)
    assert np.array_equal(first.losses, second.losses)
    assert same_weights(first.model, second.model)
    assert torch.equal(state, torch.get_rng_state())
    assert not same_weights(first.model, train(replace(OPTIONS, seed=1), batches, mean_loss).model)


def test_cost_and_reports():
    seen = []
    trained = train(OPTIONS, batches, mean_loss, on_step=lambda *given: seen.append(given))
    assert [step for step, _ in seen] == list(range(8))
    assert [loss for _, loss in seen] == trained.losses.tolist()
    assert trained.tokens == 8 * 16 * LENGTH
    assert trained.flops == 3 * flops_per_token(OPTIONS.shape, VOCAB, LENGTH) * trained.tokens


def test_training_goes_on_from_given_weights():
    first = train(OPTIONS, batches, mean_loss)
    kept = {name: weight.clone() for name, weight in first.model.state_dict().items()}
    still = train(replace(OPTIONS, learning_rate=0.0), batches, mean_loss, init=kept)
    assert same_weights(still.model, first.model)
    train(OPTIONS, batches, mean_loss, init=kept)
    assert all(torch.equal(kept[name], w) for name, w in first.model.state_dict().items())


def test_weight_decay_acts_on_matrices_alone():
    def nothing(_step, losses, _batch):
        return 0.0 * losses.sum()

    options = replace(OPTIONS, steps=1, learning_rate=0.1)
    start = Model(OPTIONS.shape, VOCAB, OPTIONS.seed).state_dict()
    for name, weight in train(options, batches, nothing).model.state_dict().items():
        factor = 0.99 if weight.ndim > 1 else 1.0
        torch.testing.assert_close(weight, start[name] * factor)


def test_a_loss_that_is_not_finite_names_the_step():
    def poisoned(step, losses, _batch):
        return losses.mean() * (math.nan if step == 3 else 1.0)

    with pytest.raises(MixcError, match="step 3 of 8: the gradient's norm is nan") as caught:
        train(OPTIONS, batches, poisoned)
    assert caught.value.code == "MX050"
    assert "solve.proxy.learning_rate" in caught.value.help

    init = Model(OPTIONS.shape, VOCAB, seed=0).state_dict()
    init["norm"] = torch.full_like(init["norm"], math.nan)
    with pytest.raises(MixcError, match="step 0 of 8: the loss is nan"):
        train(OPTIONS, batches, mean_loss, init=init)


@pytest.mark.parametrize("steps", [1, 2, 5, 100, 333])
def test_the_learning_rate_rises_then_falls(steps):
    options = replace(OPTIONS, steps=steps, learning_rate=1.0)
    rates = np.array([rate_at(step, options) for step in range(steps)])
    rise = max(1, round(0.06 * steps))
    assert rates[:rise] == pytest.approx(np.arange(1, rise + 1) / rise)
    assert (np.diff(rates[rise - 1 :]) < 0).all()
    if steps > 1:
        assert rates[-1] == pytest.approx(0.1)


def test_the_default_learning_rate_is_for_any_width():
    wide = Shape(layers=2, width=192, heads=2, hidden=96)
    for shape in (OPTIONS.shape, wide):
        options = replace(OPTIONS, shape=shape, learning_rate=None, steps=100)
        assert max(rate_at(step, options) for step in range(100)) == 3e-3


def test_weighted_loss_is_the_weighted_sum_of_domain_means():
    losses = torch.tensor([[1.0, 3.0], [2.0, 6.0], [4.0, 8.0]], requires_grad=True)
    batch = Batch(np.zeros((3, 3), dtype=np.int64), np.array([2, 0, 2]))
    weights = np.array([0.5, 0.3, 0.2])  # domain 1 is absent, and its share is not made up for
    loss = weighted_loss(losses, batch, weights)
    assert loss.item() == pytest.approx(0.5 * 4.0 + 0.2 * 4.0)
    loss.backward()
    assert losses.grad[:, 0].tolist() == pytest.approx([0.05, 0.25, 0.05])


def test_sums_by_domain_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    losses = torch.from_numpy(rng.exponential(size=(9, 50)).astype(np.float32)).requires_grad_()
    other = rng.exponential(size=(9, 50)).astype(np.float32)
    domain = np.array([0, 0, 2, 2, 2, 2, 0, 3, 3])
    batch = Batch(np.zeros((9, 51), np.int64), domain)
    stats = domain_stats(losses, batch, 4, other)
    raw = losses.detach().numpy().astype(np.float64) - other
    for found, values in (
        (stats.mean(), losses.detach().numpy()),
        (stats.mean_raw_excess(), raw),
        (stats.mean_excess(), np.maximum(raw, 0)),
    ):
        wanted = [values[domain == k].mean(dtype=np.float64) for k in (0, 2, 3)]
        assert found[[0, 2, 3]] == pytest.approx(wanted, rel=1e-7)
        assert np.isnan(found[1])
    order = rng.permutation(9)
    moved = Batch(batch.tokens, domain[order])
    again = domain_stats(losses[torch.from_numpy(order)], moved, 4, other[order])
    assert torch.equal(stats.table(), again.table())


def test_a_loss_far_above_that_of_knowing_nothing_is_divergence():
    with pytest.raises(MixcError, match="the loss is") as caught:
        train(replace(OPTIONS, learning_rate=30.0, warmup=0.0), batches, mean_loss)
    assert caught.value.code == "MX050"


def test_bf16_follows_fp32(monkeypatch):
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx512_bf16"})
    plain = train(OPTIONS, batches, mean_loss)
    coarse = train(replace(OPTIONS, precision="bf16"), batches, mean_loss)
    assert not same_weights(plain.model, coarse.model)
    assert coarse.losses == pytest.approx(plain.losses, rel=0.02)
    assert all(weight.dtype == torch.float32 for weight in coarse.model.parameters())


def test_a_backward_takes_the_objectives_place():
    def backward(state, batch):
        losses = batch_losses(state.model, batch)
        losses.mean().backward()
        return losses.detach()

    plain = train(OPTIONS, batches, mean_loss)
    other = train(OPTIONS, batches, mean_loss, backward=backward)
    assert same_weights(plain.model, other.model)
    assert np.array_equal(plain.losses, other.losses)
