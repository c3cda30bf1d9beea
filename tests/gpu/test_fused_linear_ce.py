"""The loss of a linear head on a GPU, beside float64 of the same bfloat16 numbers."""

import pytest
import torch
from mixc_kernels.fused_linear_ce import fused_linear_ce
from mixc_kernels.linear_ce_score import linear_ce_score
from mixc_kernels.linear_ce_torch import Terms, linear_ce_reference
from mixc_kernels.linear_ce_triton import run_rows


def case(tokens, width, vocab, dtype=torch.bfloat16):
    make = torch.Generator("cuda")
    hidden = torch.empty(tokens, width, device="cuda").normal_(generator=make).to(dtype)
    weight = torch.empty(vocab, width, device="cuda").normal_(0, width**-0.5, generator=make)
    target = torch.empty(tokens, device="cuda").uniform_(0, vocab - 1, generator=make).long()
    return hidden.requires_grad_(), weight.to(dtype).requires_grad_(), target


def exact(hidden, weight, target, upstream):
    """(loss, gradients by hidden and weight) in float64."""
    inputs = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    loss, _ = linear_ce_reference(*inputs, target, Terms(len(weight)))
    return loss.detach(), *torch.autograd.grad((loss * upstream).sum(), inputs)


def off(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("mode", ["hybrid", "store", "vocab"])
@pytest.mark.parametrize("shape", [(1000, 256, 5003), (513, 768, 50257)])
def test_bf16_is_as_near_to_float64_as_its_rounding_allows(shape, mode):
    hidden, weight, target = case(*shape)
    upstream = torch.linspace(-1, 1, len(hidden), device="cuda")
    loss, *gradients = exact(hidden, weight, target, upstream)
    out = fused_linear_ce(hidden, weight, target, mode=mode, budget_bytes=1 << 26)
    assert out.loss.dtype == torch.float32 and not out.bad
    assert off(out.loss, loss) < 1e-5
    found = torch.autograd.grad((out.loss * upstream).sum(), (hidden, weight))
    for one, wanted in zip(found, gradients, strict=True):
        assert one.dtype == torch.bfloat16
        assert off(one, wanted) < 1e-2  # bfloat16 keeps 8 bits


def test_weights_known_before_give_the_same():
    hidden, weight, target = case(1000, 256, 5003)
    upstream = torch.linspace(0, 1, len(hidden), device="cuda")
    loss, *gradients = exact(hidden, weight, target, upstream)
    out = fused_linear_ce(hidden, weight, target, token_weight=upstream, budget_bytes=1 << 22)
    assert out.total.item() == pytest.approx((loss * upstream).sum().item(), rel=1e-5)
    for one, wanted in zip(
        torch.autograd.grad(out.total, (hidden, weight)), gradients, strict=True
    ):
        assert off(one, wanted) < 1e-2


def test_losses_alone_are_those_of_the_loss():
    hidden, weight, target = case(1000, 256, 5003)
    loss, *_ = exact(hidden, weight, target, torch.ones(1000, device="cuda"))
    assert off(linear_ce_score(hidden, weight, target), loss) < 1e-5
    # Of a float32 head only what bfloat16 keeps is multiplied, as in training.
    assert torch.equal(
        linear_ce_score(hidden, weight.float(), target), linear_ce_score(hidden, weight, target)
    )


def test_ids_out_of_range_have_a_loss_of_nan_and_no_other():
    hidden, weight, target = case(300, 64, 1000)
    target[7], target[9] = 1000, -100
    out = fused_linear_ce(hidden, weight, target, mode="hybrid")
    assert out.bad
    assert out.loss.isnan().nonzero().flatten().tolist() == [7]
    assert out.loss[9] == 0


def test_more_logits_than_32_bits_can_count():
    """N * V > 2**31: rows at the end are those that offsets of 32 bits would miss."""
    tokens, vocab = 44_000, 50_257
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("less than 24 GiB of the GPU's memory are free")
    hidden, weight, target = case(tokens, 64, vocab)
    last = slice(tokens - 256, tokens)
    ends = hidden[last].detach().requires_grad_()
    loss, by_hidden, _ = exact(ends, weight, target[last], torch.ones(256, device="cuda"))
    out = fused_linear_ce(hidden, weight, target, mode="store")  # all logits in one buffer
    assert off(out.loss[last], loss) < 1e-5
    (found,) = torch.autograd.grad(out.loss.sum(), hidden)
    assert off(found[last], by_hidden) < 1e-2


def test_the_kernel_between_products_counts_in_64_bits():
    """One chunk of more than 2**31 logits, and its gradient in place."""
    rows, vocab = 33_000, 65_536
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("less than 16 GiB of the GPU's memory are free")
    logits = torch.zeros(rows, vocab, device="cuda")
    target = torch.zeros(rows, dtype=torch.int64, device="cuda")
    scale = torch.ones(rows, device="cuda")
    loss, top, total = (torch.empty(rows, device="cuda") for _ in range(3))
    run_rows(logits, logits, target, scale, loss, top, total, Terms(vocab))
    assert torch.allclose(loss, torch.full_like(loss, torch.tensor(float(vocab)).log().item()))
    assert torch.allclose(logits[-1, 1:], torch.full_like(logits[-1, 1:], 1 / vocab))
    assert logits[-1, 0].item() == pytest.approx(1 / vocab - 1)
