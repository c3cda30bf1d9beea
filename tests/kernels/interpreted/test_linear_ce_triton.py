"""The row kernel, run by Triton's interpreter."""

import numpy as np
import pytest
import torch
from far_rows import far_rows
from mixc_kernels import linear_ce_rows
from mixc_kernels.fused_linear_ce import fused_linear_ce
from mixc_kernels.linear_ce_rows import run_rows_reference
from mixc_kernels.linear_ce_torch import Terms
from mixc_kernels.linear_ce_triton import run_rows

ALL_TERMS = {"softcap": 2.0, "z_loss": 0.1, "label_smoothing": 0.2}
TARGET = torch.tensor([0, 5, -100, 49, 3, 17, 49])
GUARD = 7.0


def normals(*size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size)).float()


def run_guarded(run, columns, terms, dtype, out_dtype, *, in_place=False, scale=None):
    """Loss and gradient, then the gradient from what the first call found; and the buffers.

    Logits and gradient are the middle of buffers that are full of `GUARD`.
    """
    n = len(TARGET)
    held = torch.full((n + 2, columns + 9), GUARD, dtype=dtype)
    held[1:-1, 5 : 5 + columns] = 3 * normals(n, columns)
    room = held if in_place else torch.full(held.shape, GUARD, dtype=out_dtype)
    logits, gradient = (one[1:-1, 5 : 5 + columns] for one in (held, room))
    before, rows = held.clone(), [torch.full((n,), torch.nan) for _ in range(3)]
    scale = normals(n, seed=1) if scale is None else scale
    run(logits, gradient, TARGET, scale, *rows, terms)
    first = gradient.clone()
    if not in_place:
        assert torch.equal(held, before)
        gradient.fill_(torch.nan)
        run(logits, gradient, TARGET, scale, None, *rows[1:], terms)
    outside = torch.ones_like(held, dtype=torch.bool)
    outside[1:-1, 5 : 5 + columns] = False
    assert room[outside].eq(GUARD).all()
    return [*rows, first, gradient.clone()]


@pytest.mark.parametrize("columns", [50, 64, 65, 5000])
@pytest.mark.parametrize("terms", [{}, ALL_TERMS])
def test_equals_the_reference(columns, terms):
    case = (columns, Terms(50 if columns < 5000 else 4999, **terms), torch.float32, torch.float32)
    for got, wanted in zip(
        run_guarded(run_rows, *case), run_guarded(run_rows_reference, *case), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6)
        if got.ndim == 2:
            assert got[2].eq(0).all() and got[:, case[1].n_vocab :].eq(0).all()


@pytest.mark.parametrize("in_place", [True, False])
def test_offsets_take_more_than_32_bits(in_place):
    rows = len(TARGET)
    near, scale, terms = 3 * normals(rows, 64), normals(rows, seed=1), Terms(50, **ALL_TERMS)
    far = far_rows(near)
    out, wanted = (far, near) if in_place else (far_rows(near), near.clone())
    found, expected = ([torch.full((rows,), torch.nan) for _ in range(3)] for _ in range(2))
    run_rows(far, out, TARGET, scale, *found, terms)
    run_rows(near, wanted, TARGET, scale, *expected, terms)
    assert torch.equal(out, wanted)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_and_gradients_may_be_half(dtype):
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-10
    got = run_guarded(run_rows, 65, Terms(50), dtype, dtype)
    exact = run_guarded(run_rows_reference, 65, Terms(50), torch.float32, torch.float32)
    kept = TARGET >= 0
    for one, wanted in zip(got[:3], exact, strict=False):
        torch.testing.assert_close(one[kept], wanted[kept], rtol=rounding, atol=16 * rounding)
    assert got[3].dtype == dtype
    torch.testing.assert_close(got[3].float(), exact[3], rtol=0.1, atol=16 * rounding)


def test_a_gradient_may_take_the_place_of_its_logits():
    case = (65, Terms(50, **ALL_TERMS), torch.float32, torch.float32)
    apart, in_place = run_guarded(run_rows, *case), run_guarded(run_rows, *case, in_place=True)
    assert all(torch.equal(a, b) for a, b in zip(apart, in_place, strict=True))


def test_a_target_out_of_range_makes_nan():
    loss, _, _, gradient, _ = run_guarded(run_rows, 65, Terms(49), torch.float32, torch.float32)
    wrong = TARGET == 49
    assert loss[wrong].isnan().all() and loss[~wrong].isfinite().all()
    assert gradient[wrong][:, :49].isnan().all() and gradient[~wrong].isfinite().all()


def test_an_ignored_row_is_zero_whatever_its_logits_and_weight():
    logits, scale = torch.full((2, 65), torch.nan), torch.tensor([torch.inf, torch.nan])
    rows = [torch.empty(2) for _ in range(3)]
    run_rows(logits, logits, torch.tensor([-100, -100]), scale, *rows, Terms(50))
    assert logits.eq(0).all() and rows[0].eq(0).all()


@pytest.mark.parametrize("mode", ["hybrid", "store"])
@pytest.mark.parametrize("terms", [{}, {**ALL_TERMS, "n_vocab": 65}])
def test_whole_calls_equal_the_reference(mode, terms, monkeypatch):
    monkeypatch.setattr(linear_ce_rows, "run_rows_reference", run_rows)
    results = []
    for way in ("naive", mode):
        hidden, weight = normals(9, 8).requires_grad_(), normals(67, 8, seed=1).requires_grad_()
        target = torch.tensor([-100, *range(57, 65)])
        out = fused_linear_ce(
            hidden, weight, target, token_weight=normals(9), mode=way, budget_bytes=3000, **terms
        )
        (out.total + out.loss.square().sum()).backward()
        results.append([out.loss, out.lse, out.total, hidden.grad, weight.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
