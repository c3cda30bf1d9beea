import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from half_gpu import multiply_half
from mixc_kernels import linear_ce_ops, linear_ce_rows, linear_ce_torch
from mixc_kernels.fused_linear_ce import fused_linear_ce
from mixc_kernels.linear_ce_rows import run_rows_reference
from mixc_kernels.linear_ce_torch import Terms

MODES = ["vocab", "hybrid", "store", "naive"]
OURS = MODES[:-1]
TERMS = [
    {},
    {"softcap": 2.0},
    {"z_loss": 0.1},
    {"label_smoothing": 0.2},
    {"softcap": 2.0, "z_loss": 0.1, "label_smoothing": 0.2, "n_vocab": 13},
]


def make_case(n=37, d=16, v=101, dtype=torch.float32, seed=0, n_vocab=None):
    """(hidden, weight, target), the first token and some others ignored."""
    rng = np.random.default_rng(seed)
    hidden, weight = rng.normal(size=(n, d)), rng.normal(size=(v, d))
    target = rng.integers(n_vocab or v, size=n)
    target[::5] = -100
    tensors = (torch.from_numpy(one).to(dtype) for one in (hidden, weight))
    return *(one.requires_grad_() for one in tensors), torch.from_numpy(target)


def normals(n, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=n)).float()


def gradients(scalar, *inputs):
    return torch.autograd.grad(scalar, inputs, retain_graph=True)


def error(got, wanted):
    got, wanted = got.detach().double(), wanted.detach().double()
    return ((got - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


def plainly(hidden, weight, target):
    """Losses as torch has them, in float64."""
    return F.cross_entropy(hidden.double() @ weight.double().T, target, reduction="none")


@pytest.mark.parametrize("mode", MODES)
def test_losses_and_gradients_are_those_of_torch(mode):
    hidden, weight, target = make_case()
    out, wanted = fused_linear_ce(hidden, weight, target, mode=mode), plainly(*make_case())
    assert out.loss.dtype == out.lse.dtype == torch.float32
    assert error(out.loss, wanted) < 1e-6
    assert error(out.lse, (hidden.double() @ weight.double().T).logsumexp(1)) < 1e-6
    assert not out.lse.requires_grad and not out.bad
    assert out.loss[::5].eq(0).all()
    upstream = normals(37)
    found = gradients((out.loss * upstream).sum(), hidden, weight)
    same = make_case()
    expected = gradients((plainly(*same) * upstream).sum(), *same[:2])
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 1e-6
    assert found[0][::5].eq(0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_smoothing_is_torchs(smoothing):
    hidden, weight, target = make_case()
    logits = hidden.double() @ weight.double().T
    wanted = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    for mode in MODES:
        out = fused_linear_ce(hidden, weight, target, label_smoothing=smoothing, mode=mode)
        assert error(out.loss, wanted) < 1e-6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("terms", TERMS)
def test_gradients_are_those_of_finite_differences(mode, terms):
    hidden, weight, target = make_case(6, 4, 17, torch.float64, n_vocab=13)
    token_weight = normals(6).double()

    def total(hidden, weight):
        out = fused_linear_ce(
            hidden, weight, target, mode=mode, budget_bytes=900, token_weight=token_weight, **terms
        )
        return out.loss, out.total

    assert torch.autograd.gradcheck(total, (hidden, weight))


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("terms", TERMS)
def test_all_ways_agree(mode, terms):
    hidden, weight, target = make_case(n_vocab=13)
    reference = fused_linear_ce(hidden, weight, target, mode="naive", **terms)
    out = fused_linear_ce(hidden, weight, target, mode=mode, budget_bytes=5000, **terms)
    torch.testing.assert_close(out.loss, reference.loss, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(out.lse, reference.lse, rtol=2e-6, atol=2e-6)
    for one, other in zip(
        gradients(out.loss.sum(), hidden, weight),
        gradients(reference.loss.sum(), hidden, weight),
        strict=True,
    ):
        assert error(one, other) < 2e-6


@pytest.mark.parametrize("mode", OURS)
def test_weights_of_tokens_are_each_tokens_own(mode):
    """Liger-Kernel issue 968: all were multiplied by the first, which may be ignored."""
    hidden, weight, target = make_case()
    domain = torch.arange(37) % 4
    alpha = torch.tensor([-1.5, 0.0, 0.25, 3.0, 7.0])  # the last has no tokens
    out = fused_linear_ce(hidden, weight, target, domain=domain, alpha=alpha, mode=mode)
    found = gradients(out.total, hidden, weight)
    expected, total = [torch.zeros_like(hidden), torch.zeros_like(weight)], 0.0
    for k in range(4):
        mine = (domain == k) & (target >= 0)
        mean = plainly(hidden, weight, target)[mine].mean()
        total += alpha[k].item() * mean.item()
        for sum_, one in zip(expected, gradients(mean, hidden, weight), strict=True):
            sum_ += alpha[k] * one
    assert out.total.item() == pytest.approx(total, rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 2e-6
    assert found[0][1::4].eq(0).all()


@pytest.mark.parametrize("mode", OURS)
def test_weights_may_come_after_the_forward_pass(mode):
    hidden, weight, target = make_case()
    before = normals(37)
    out = fused_linear_ce(hidden, weight, target, mode=mode, token_weight=before)
    after = gradients((out.loss * before).sum(), hidden, weight)
    both = gradients((out.loss * before).sum() - 0.5 * out.total, hidden, weight)
    for one, other, half in zip(after, gradients(out.total, hidden, weight), both, strict=True):
        assert error(one, other) < 1e-6
        assert error(half, other / 2) < 1e-6


@pytest.mark.parametrize("mode", OURS)
def test_backward_may_be_run_twice(mode):
    """quack pull request 209: saved gradients were scaled in place."""
    hidden, weight, target = make_case()
    token_weight = normals(37)
    out = fused_linear_ce(hidden, weight, target, mode=mode, token_weight=token_weight)
    for scalar in (3 * out.total, out.loss.square().sum()):
        first = gradients(scalar, hidden, weight)
        second = gradients(scalar, hidden, weight)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("v", [1, 63, 64, 65])
@pytest.mark.parametrize("n", [0, 1, 127, 129])
def test_sizes_that_are_no_multiples(mode, v, n):
    hidden, weight, target = make_case(n, 8, v)
    out = fused_linear_ce(hidden, weight, target, mode=mode, budget_bytes=1 << 14)
    expected = plainly(hidden, weight, target)
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-5, atol=1e-6)
    found = gradients(out.loss.sum(), hidden, weight)
    for one, other in zip(found, gradients(expected.sum(), hidden, weight), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", OURS)
def test_a_vocabulary_of_gpt2(mode):
    hidden, weight, target = make_case(3, 4, 50304, n_vocab=50257)
    out = fused_linear_ce(hidden, weight, target, mode=mode, n_vocab=50257)
    expected = plainly(hidden, weight[:50257], target)
    assert error(out.loss, expected) < 1e-6
    by_weight = gradients(out.loss.sum(), weight)[0]
    assert error(by_weight, gradients(expected.sum(), weight)[0]) < 1e-6
    assert by_weight[50257:].eq(0).all()


@pytest.mark.parametrize("mode", OURS)
def test_all_tokens_ignored(mode):
    hidden, weight, _ = make_case()
    target, domain = torch.full((37,), 7), torch.zeros(37, dtype=torch.int64)
    out = fused_linear_ce(
        hidden, weight, target, ignore_index=7, domain=domain, alpha=torch.ones(2), mode=mode
    )
    assert out.loss.eq(0).all() and out.total == 0
    for scalar in (out.total, out.loss.sum()):
        assert all(one.eq(0).all() for one in gradients(scalar, hidden, weight))


@pytest.mark.parametrize("mode", OURS)
def test_inputs_need_not_be_contiguous(mode):
    rng = np.random.default_rng(0)
    wide = torch.from_numpy(rng.normal(size=(16, 74)).astype(np.float32))
    hidden = wide.T[::2].detach().requires_grad_()
    weight = torch.from_numpy(rng.normal(size=(101, 32)).astype(np.float32))[:, ::2]
    weight.requires_grad_()
    target = torch.from_numpy(rng.integers(101, size=74))[::2]
    out = fused_linear_ce(hidden, weight, target, mode=mode)
    expected = plainly(hidden, weight, target)
    assert error(out.loss, expected) < 1e-6
    upstream = torch.ones(1).expand(37)
    found = torch.autograd.grad(out.loss, (hidden, weight), upstream)
    for one, other in zip(found, gradients(expected.sum(), hidden, weight), strict=True):
        assert error(one, other) < 1e-6


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("budget", [0, 1, 3000, 40_000, 1 << 40])
def test_the_budget_changes_nothing(mode, budget):
    """Budgets that round to nothing too (unsloth issue 3827)."""
    hidden, weight, target = make_case(v=301)
    given = {"mode": mode, "token_weight": normals(37), "label_smoothing": 0.1}
    whole = fused_linear_ce(hidden, weight, target, **given)
    out = fused_linear_ce(hidden, weight, target, budget_bytes=budget, **given)
    torch.testing.assert_close(out.loss, whole.loss, rtol=1e-6, atol=1e-6)
    for scalar in ("loss", "total"):
        pair = (gradients(getattr(one, scalar).sum(), hidden, weight) for one in (out, whole))
        for one, other in zip(*pair, strict=True):
            assert error(one, other) < 1e-6


@pytest.mark.parametrize("mode", ["vocab", "hybrid"])
def test_logits_stay_within_the_budget(mode, monkeypatch):
    largest, plain = [], torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda a, b, out: largest.append(out.numel()) or plain(a, b, out=out)
    )
    hidden, weight, target = make_case(64, 4, 4096)
    with torch.no_grad():
        fused_linear_ce(hidden, weight, target, mode=mode, budget_bytes=1 << 18)
    assert max(largest) * 4 <= 1 << 18 and sum(largest) == 64 * 4096


@pytest.mark.parametrize("mode", OURS)
def test_nothing_is_read_before_it_is_written(mode):
    hidden, weight, target = make_case(n_vocab=90)
    given = {"n_vocab": 90, "mode": mode, "budget_bytes": 9000, "token_weight": normals(37)}
    results = []
    for poison in (False, True):
        torch.use_deterministic_algorithms(poison)  # empty tensors are then full of NaN
        try:
            assert not poison or torch.empty(1000).isnan().all()
            out = fused_linear_ce(hidden, weight, target, **given)
            found = gradients(out.loss.sum() + out.total, hidden, weight)
        finally:
            torch.use_deterministic_algorithms(False)
        results.append([out.loss, out.lse, out.total, *found])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", OURS)
def test_inputs_of_half_precision_lose_nothing_more(mode):
    """Losses of the very bfloat16 values, to float32; gradients no worse than torch's."""
    hidden, weight, target = make_case(65, 64, 500, torch.bfloat16)
    exact_inputs = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    expected = plainly(*exact_inputs, target)
    wanted = gradients(expected.sum(), *exact_inputs)
    theirs = F.cross_entropy((hidden @ weight.T).float(), target, reduction="none")
    out = fused_linear_ce(hidden, weight, target, mode=mode)
    assert out.loss.dtype == torch.float32
    assert error(out.loss, expected) < 1e-6
    for one, other, right in zip(
        gradients(out.loss.sum(), hidden, weight),
        gradients(theirs.sum(), hidden, weight),
        wanted,
        strict=True,
    ):
        assert one.dtype == torch.bfloat16
        assert error(one, right) < error(other, right)


@pytest.mark.parametrize("mode", ["hybrid", "store"])
@pytest.mark.parametrize("budget", [1, 20_000, 1 << 30])
def test_products_of_half_precision_as_on_a_gpu(mode, budget, monkeypatch):
    """There half operands are multiplied as they are, and the gradient by logits is half too."""
    multiply_half(monkeypatch, linear_ce_rows)
    hidden, weight, target = make_case(65, 64, 500, torch.bfloat16)
    exact_inputs = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    expected, upstream = plainly(*exact_inputs, target), normals(65)
    wanted = gradients((expected * upstream).sum(), *exact_inputs)
    theirs = F.cross_entropy((hidden @ weight.T).float(), target, reduction="none")
    given = {"mode": mode, "budget_bytes": budget, "token_weight": upstream}
    out = fused_linear_ce(hidden, weight, target, **given)
    assert error(out.loss, expected) < 1e-6
    for scalar in (out.total, (out.loss * upstream).sum()):
        for one, other, right in zip(
            gradients(scalar, hidden, weight),
            gradients((theirs * upstream).sum(), hidden, weight),
            wanted,
            strict=True,
        ):
            assert one.dtype == torch.bfloat16
            assert error(one, right) < 2 * error(other, right)


def test_a_weight_of_float32_gets_its_gradient_in_float32():
    hidden, weight, target = make_case()
    half = hidden.detach().bfloat16().requires_grad_()
    expected = plainly(half, weight, target)
    for mode in OURS:
        out = fused_linear_ce(half, weight, target, mode=mode)
        assert error(out.loss, expected) < 1e-6
        by_weight = gradients(out.loss.sum(), weight)[0]
        assert error(by_weight, gradients(expected.sum(), weight)[0]) < 1e-6


@pytest.mark.parametrize("mode", ["vocab", "hybrid"])
def test_many_chunks_add_no_error(mode):
    """Liger-Kernel pull request 1391: sums over chunks in the weight's type lose ever more."""
    hidden, weight, target = make_case(512, 8, 40, torch.bfloat16)
    exact_inputs = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    wanted = gradients(plainly(*exact_inputs, target).sum(), *exact_inputs)
    out = fused_linear_ce(hidden, weight, target, mode=mode, budget_bytes=1)
    for one, right in zip(gradients(out.loss.sum(), hidden, weight), wanted, strict=True):
        assert error(one, right) < 3e-3  # one rounding to bfloat16 is up to 2^-9


@pytest.mark.parametrize("mode", OURS)
def test_an_offset_that_all_logits_share_costs_nothing(mode):
    """pytorch pull request 195829: a target's logit less the largest one was added to it again."""
    hidden, weight, target = make_case(v=60)
    moved = [torch.cat([one.detach(), torch.zeros(len(one), 1)], 1) for one in (hidden, weight)]
    moved[0][:, -1], moved[1][:, -1] = 1.0, 4096.0
    moved = [one.bfloat16().float().requires_grad_() for one in moved]
    out = fused_linear_ce(*moved, target, mode=mode)
    expected = plainly(*moved, target)
    # Logits near 4096 are rounded to 2^-12; nothing else is.
    torch.testing.assert_close(out.loss.double(), expected, rtol=0, atol=2**-10)
    found = gradients(out.loss.sum(), *moved)
    row_sums = (moved[1][:, -1] - 4096.0).abs().max() + found[0][:, -1].abs().max() / 4096
    assert row_sums < 2e-6  # probabilities add up to one


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrong", [-1, 101, 2**40, -(2**62)])
def test_a_target_out_of_range_is_refused(mode, wrong):
    hidden, weight, target = make_case()
    target[3] = wrong
    with pytest.raises(IndexError, match=f"{wrong} is not in"):
        fused_linear_ce(hidden, weight, target, mode=mode)


def test_where_nobody_looks_a_target_out_of_range_makes_nan(monkeypatch):
    hidden, weight, target = make_case(n_vocab=90)
    target[3] = 90  # what reads it stays within weight
    monkeypatch.setattr(linear_ce_torch, "_refuse", lambda *_: None)  # as on a GPU
    for mode in MODES:
        out = fused_linear_ce(hidden, weight, target, n_vocab=90, mode=mode)
        assert out.bad
        assert out.loss.isnan().nonzero().tolist() == [[3]]
        assert gradients(out.loss.sum(), hidden)[0][3].isnan().all() or mode == "naive"


def test_arguments_that_do_not_fit_together():
    hidden, weight, target = make_case()
    domain, alpha = torch.zeros(37, dtype=torch.int64), torch.ones(1)
    for message, given in {
        "mode": {"mode": "fast"},
        "alpha needs": {"alpha": alpha},
        "takes the place": {"alpha": alpha, "domain": domain, "token_weight": torch.ones(37)},
        "token_weight and": {"token_weight": torch.ones(3)},
        "n_vocab": {"n_vocab": 102},
        "softcap": {"softcap": -1.0},
        "label_smoothing": {"label_smoothing": 1.5},
    }.items():
        with pytest.raises(ValueError, match=message):
            fused_linear_ce(hidden, weight, target, **given)
    with pytest.raises(ValueError, match="hidden"):
        fused_linear_ce(hidden, weight[:, 1:], target)
    with pytest.raises(ValueError, match="int64"):
        fused_linear_ce(hidden, weight, target.int())
    with pytest.raises(IndexError):
        fused_linear_ce(hidden, weight, target, alpha=alpha, domain=domain + 1)


@pytest.mark.parametrize("mode", MODES)
def test_excess_is_over_the_reference_where_there_is_a_loss(mode):
    hidden, weight, target = make_case()
    ref = normals(37)
    out = fused_linear_ce(hidden, weight, target, ref_loss=ref, mode=mode)
    assert torch.equal(out.excess, torch.where(target < 0, 0, out.loss.detach() - ref))
    assert not out.excess.requires_grad


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(mode, frozen):
    inputs = list(make_case())
    inputs[frozen].requires_grad_(False)
    out = fused_linear_ce(*inputs, token_weight=normals(37), mode=mode)
    (out.loss.sum() + out.total).backward()
    same = make_case()
    expected = plainly(*same)
    (expected.sum() + (expected * normals(37)).sum()).backward()
    assert inputs[frozen].grad is None
    assert error(inputs[1 - frozen].grad, same[1 - frozen].grad) < 1e-6
    with torch.no_grad():
        assert torch.equal(fused_linear_ce(*inputs, mode=mode).loss, out.loss)


def test_autocast_leaves_the_reference_alone():
    case = make_case()
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_linear_ce(*case, mode="naive").loss
    assert torch.equal(found, fused_linear_ce(*case, mode="naive").loss)


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(mode, dtype):
    hidden, weight, target = make_case(dtype=dtype)
    plain = fused_linear_ce(hidden, weight, target, mode=mode, token_weight=normals(37))
    with torch.autocast("cpu", torch.bfloat16):
        out = fused_linear_ce(hidden, weight, target, mode=mode, token_weight=normals(37))
        found = gradients(out.loss.sum() + out.total, hidden, weight)
    assert torch.equal(out.loss, plain.loss)
    expected = gradients(plain.loss.sum() + plain.total, hidden, weight)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("way", OURS)
def test_torch_finds_the_operators_sound(way):
    hidden, weight, target = make_case(5, 4, 70)
    settings = (70, -100, 2.0, 0.1, 0.1, 2000)
    torch.library.opcheck(linear_ce_ops.linear_ce, (hidden, weight, target, *settings, way))
    if way == "hybrid":
        given = hidden, weight, target, normals(5), *settings, True, True
        torch.library.opcheck(linear_ce_ops.linear_ce_weighted, given)


@pytest.mark.parametrize("mode", OURS)
def test_a_compiled_model_goes_around_it(mode):
    hidden, weight, target = make_case()
    token_weight = normals(37)

    def step(hidden, weight):
        body = torch.tanh(hidden) * 2
        out = fused_linear_ce(body, weight, target, mode=mode, token_weight=token_weight)
        return out.loss, out.total

    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        loss, total = run(hidden, weight)
        results.append([loss, *gradients(loss.square().sum() + total, hidden, weight)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_row_reference_keeps_to_its_columns():
    """What stands around the logits and the gradient, in the same memory, stays."""
    rng = np.random.default_rng(0)
    held = torch.from_numpy(rng.normal(size=(9, 80)).astype(np.float32))
    room = torch.full((9, 80), 7.0)
    logits, gradient = held[2:7, 3:70], room[2:7, 3:70]
    before = held.clone()
    rows = [torch.empty(5) for _ in range(3)]
    target = torch.tensor([0, 5, -100, 49, 3])
    run_rows_reference(logits, gradient, target, normals(5), *rows, Terms(50))
    assert torch.equal(held, before)
    assert gradient[:, 50:].eq(0).all() and gradient[2].eq(0).all()
    inside = torch.zeros_like(room, dtype=torch.bool)
    inside[2:7, 3:70] = True
    assert room[~inside].eq(7).all()


def test_more_logits_than_32_bits_can_count():
    tokens, vocab = 43_000, 50_257
    rng = np.random.default_rng(0)
    hidden, weight = (
        torch.from_numpy(rng.normal(size=(n, 4))).float().requires_grad_() for n in (tokens, vocab)
    )
    target = torch.from_numpy(rng.integers(vocab, size=tokens))
    last, upstream = slice(tokens - 3, tokens), torch.zeros(tokens)
    upstream[last] = normals(3)
    assert tokens * vocab > 1 << 31
    out = fused_linear_ce(hidden, weight, target, mode="vocab")
    wanted = plainly(hidden[last], weight, target[last])
    assert error(out.loss[last], wanted) < 1e-6
    found = gradients((out.loss * upstream).sum(), hidden, weight)
    exact = gradients((wanted * upstream[last]).sum(), hidden, weight)
    for one, other in zip(found, exact, strict=True):
        assert error(one, other) < 2e-5  # all logits in float32 are off by 1e-5 here
    assert found[0][: last.start].eq(0).all()
