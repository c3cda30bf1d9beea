"""A short training on a GPU: it learns, repeats to the bit, and follows the CPU's."""

from dataclasses import replace

import numpy as np
import pytest
from proxy_helpers import LENGTH, OPTIONS, batches, chain, same_weights

from mixc.proxy.checkpoint import Checkpoint
from mixc.proxy.evaluate import row_losses, stream_losses
from mixc.proxy.train import domain_stats, mean_loss, train

GPU = replace(OPTIONS, steps=20, device="cuda", compile=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_steps_follow_those_of_the_cpu(precision):
    there = train(replace(GPU, precision=precision), batches, mean_loss)
    here = train(replace(GPU, device="cpu", precision="fp32"), batches, mean_loss)
    assert there.losses[-1] < 0.9 * there.losses[0]
    assert there.losses == pytest.approx(here.losses, rel=1e-3 if precision == "fp32" else 0.05)
    stream = chain(1, 1000, np.random.default_rng(2))[0]
    scored = stream_losses(there.model, stream, LENGTH, "cuda")
    assert scored == pytest.approx(stream_losses(there.model, stream, LENGTH, "cpu"), abs=1e-3)


def test_a_run_repeats_to_the_bit_and_goes_on_from_a_checkpoint(tmp_path):
    whole = train(GPU, batches, mean_loss)
    assert same_weights(whole.model, train(GPU, batches, mean_loss).model)

    def stopped(step, losses, batch):
        if step == 12:
            raise KeyboardInterrupt
        return mean_loss(step, losses, batch)

    checkpoint = Checkpoint(tmp_path / "run", "key", every_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        train(GPU, batches, stopped, checkpoint=checkpoint)
    resumed = train(GPU, batches, mean_loss, checkpoint=Checkpoint(tmp_path / "run", "key"))
    assert same_weights(whole.model, resumed.model)
    assert np.array_equal(whole.losses, resumed.losses)


def test_sums_by_domain_are_the_cpus_to_the_bit():
    import torch

    model = train(replace(GPU, steps=1), batches, mean_loss).model
    batch = replace(batches(0), domain=np.arange(16) % 3)
    losses = torch.from_numpy(row_losses(model, batch.tokens))
    other = np.zeros(losses.shape, np.float32) + 3
    here = domain_stats(losses, batch, 3, other)
    assert torch.equal(here.table(), domain_stats(losses.cuda(), batch, 3, other).table())
