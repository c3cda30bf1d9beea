import pytest
import torch
from far_rows import far_rows
from mixc_kernels.linear_ce_score import linear_ce_score, linear_ce_score_reference
from mixc_kernels.linear_ce_score_triton import score

SPAN = 1024


def case(N, D, V, dtype, index=torch.int64):
    torch.manual_seed(N + V)
    hidden, weight = torch.randn(N, D).to(dtype), torch.randn(V, D).to(dtype)
    return hidden, weight, torch.randint(V, (N,), dtype=index)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_are_those_of_the_reference(dtype, softcap):
    hidden, weight, target = case(130, 96, 2500, dtype)
    target[::7] = -100
    got = score(hidden, weight, target, softcap, -100, SPAN)
    wanted = linear_ce_score_reference(hidden, weight, target, softcap, -100)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-5)
    assert not got[::7].any()


@pytest.mark.parametrize("V", [1, 63, 64, 65, 1023, 1024, 1025])
@pytest.mark.parametrize("N", [0, 1, 129])
def test_tails(N, V):
    hidden, weight, target = case(N, 33, V, torch.float32, torch.int32)
    got = score(hidden, weight, target, None, -100, SPAN)
    wanted = linear_ce_score_reference(hidden, weight, target, None, -100)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-5)


def test_a_loss_does_not_depend_on_the_other_tokens():
    hidden, weight, target = case(300, 40, 2100, torch.float32)
    whole = score(hidden, weight, target, None, -100, SPAN)
    for part in (slice(0, 1), slice(50, 70), slice(250, 300)):
        got = score(hidden[part], weight, target[part], None, -100, SPAN)
        assert torch.equal(got, whole[part])


def test_offsets_take_more_than_32_bits():
    hidden, weight, target = case(5, 40, 1100, torch.float16)
    wanted = score(hidden, weight, target, None, -100, SPAN)
    got = score(far_rows(hidden), far_rows(weight), target, None, -100, SPAN)
    assert torch.equal(got, wanted)


def test_what_lies_around_the_inputs_is_not_read():
    hidden, weight, target = case(65, 40, 1100, torch.float32)
    wanted = score(hidden, weight, target, None, -100, SPAN)
    rows, head = torch.full((67, 48), torch.nan), torch.full((1102, 48), torch.nan)
    rows[1:-1, 3:43], head[1:-1, 3:43] = hidden, weight
    got = score(rows[1:-1, 3:43], head[1:-1, 3:43], target, None, -100, SPAN)
    assert torch.equal(got, wanted)
    turned = score(hidden.T.contiguous().T, weight.T.contiguous().T, target, None, -100, SPAN)
    assert torch.equal(turned, wanted)


def test_targets_that_are_not_there():
    hidden, weight, _ = case(6, 8, 10, torch.float32)
    target = torch.tensor([-1, 10, 2**40, -100, 0, -(2**40)])
    got = score(hidden, weight, target, None, -100, SPAN)
    assert got.isnan().tolist() == [True, True, True, False, False, True]


def test_a_common_offset_costs_no_precision():
    hidden, weight, target = case(16, 16, 2000, torch.float32)
    hidden = torch.cat([hidden, torch.full((16, 1), 1024.0)], 1)
    weight = torch.cat([weight, torch.ones(2000, 1)], 1)
    wanted = linear_ce_score_reference(hidden, weight, target, None, -100)
    for got in (
        score(hidden, weight, target, None, -100, SPAN),
        linear_ce_score(hidden, weight, target),
    ):
        # Logits near 1024 are rounded to 2**-13 apart.
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2**-11)
