import numpy as np
import pytest
import torch
from mixc_kernels.linear_ce_score import linear_ce_score, linear_ce_score_reference


def case(N, D, V, dtype=torch.float32):
    rng = np.random.default_rng(N + V)
    hidden, weight = (
        torch.from_numpy(rng.normal(size=(rows, D)).astype(np.float32)).to(dtype) for rows in (N, V)
    )
    return hidden, weight, torch.from_numpy(rng.integers(V, size=N))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_are_those_of_the_reference(dtype, softcap):
    hidden, weight, target = case(130, 48, 9000, dtype)
    target[::7] = -100
    got = linear_ce_score(hidden, weight, target, softcap=softcap)
    wanted = linear_ce_score_reference(hidden, weight, target, softcap, -100)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-5)
    assert not got[::7].any()


@pytest.mark.parametrize("V", [1, 63, 64, 65, 4095, 4096, 4097])
@pytest.mark.parametrize("N", [0, 1, 127, 129])
def test_tails(N, V):
    hidden, weight, target = case(N, 7, V)
    got = linear_ce_score(hidden, weight, target.int(), budget_bytes=4 * 4096 * 50)
    wanted = linear_ce_score_reference(hidden, weight, target, None, -100)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-5)


def test_a_padded_head_is_the_head_without_padding():
    hidden, weight, target = case(20, 8, 100)
    padded = torch.cat([weight, torch.full((28, 8), torch.nan)])
    got = linear_ce_score(hidden, padded, target, n_vocab=100)
    assert torch.equal(got, linear_ce_score(hidden, weight, target))


@pytest.mark.parametrize("budget", [0, 1 << 12, 1 << 16])
def test_no_more_logits_than_the_budget_are_held(budget, monkeypatch):
    hidden, weight, target = case(60, 8, 5000)
    whole, seen, plain = linear_ce_score(hidden, weight, target), [], torch.mm

    def spy(*args, **out):
        logits = plain(*args, **out)
        seen.append(logits.nbytes)
        return logits

    monkeypatch.setattr(torch, "mm", spy)
    got = linear_ce_score(hidden, weight, target, budget_bytes=budget)
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-6)
    assert max(seen) <= max(budget, 4 * 60)
    assert sum(seen) == 60 * 5000 * 4


def test_no_gradient_is_recorded_and_nothing_is_changed():
    hidden, weight, target = case(9, 8, 30)
    before = hidden.clone(), weight.clone()
    weight.requires_grad_()
    assert not linear_ce_score(hidden, weight, target, softcap=2.0).requires_grad
    assert torch.equal(hidden, before[0])
    assert torch.equal(weight, before[1])


def test_certain_tokens_have_no_loss_and_impossible_ones_a_large_one():
    weight = torch.tensor([[1000.0], [-1000.0]])
    got = linear_ce_score(torch.ones(2, 1), weight, torch.tensor([0, 1]))
    assert got.tolist() == [0.0, 2000.0]


@pytest.mark.parametrize("wrong", [-1, 30, 31, 2**40])
def test_targets_that_are_not_in_the_vocabulary(wrong):
    hidden, weight, target = case(9, 8, 40)
    target = target % 30
    target[4] = wrong
    with pytest.raises(IndexError, match=f"target {wrong} is not in"):
        linear_ce_score(hidden, weight, target, n_vocab=30)
    linear_ce_score(hidden, weight, target, n_vocab=30, ignore_index=wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(9, 7)}, "hidden must be"),
        ({"hidden": torch.zeros(9, 8, dtype=torch.float64)}, "weight so too or float32"),
        ({"target": torch.zeros(8, dtype=torch.int64)}, "target must be"),
        ({"target": torch.zeros(9)}, "target must be"),
        ({"n_vocab": 41}, "n_vocab must be"),
        ({"n_vocab": 0}, "n_vocab must be"),
        ({"softcap": 0.0}, "softcap"),
    ],
)
def test_wrong_inputs(change, message):
    hidden, weight, target = case(9, 8, 40)
    with pytest.raises(ValueError, match=message):
        linear_ce_score(**{"hidden": hidden, "weight": weight, "target": target} | change)
