import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.domain_reduce import domain_reduce, domain_reduce_reference

K = 5
float32 = st.floats(width=32) | st.floats(0, 16, width=32)
tokens = st.lists(st.tuples(float32, st.integers(0, K - 1), float32, st.booleans()), max_size=40)


def columns(rows, dtype=torch.int64):
    loss, domain, ref_loss, valid = zip(*rows, strict=True) if rows else ([],) * 4
    return {
        "loss": torch.tensor(loss, dtype=torch.float32),
        "domain": torch.tensor(domain, dtype=dtype),
        "ref_loss": torch.tensor(ref_loss, dtype=torch.float32),
        "valid": torch.tensor(valid, dtype=torch.bool),
    }


def losses(N=2000, seed=0):
    """Losses as models have them, some not finite, one domain without tokens."""
    rng = np.random.default_rng(seed)
    loss, ref_loss = rng.gamma(2.0, 2.0, (2, N)).astype(np.float32)
    loss[rng.integers(N, size=5)] = np.nan
    ref_loss[rng.integers(N, size=5)] = np.inf
    return {
        "loss": torch.from_numpy(loss),
        "domain": torch.from_numpy(rng.choice([0, 1, 3, 4], N).astype(np.int16)),
        "ref_loss": torch.from_numpy(ref_loss),
        "valid": torch.from_numpy(rng.random(N) < 0.9),
    }


def cut(case, places):
    return {name: column[places] for name, column in case.items()}


@settings(max_examples=200, deadline=None)
@given(
    tokens, st.sampled_from([torch.int16, torch.int32, torch.int64]), st.sampled_from([0, -1, 0.3])
)
def test_sums_are_those_of_the_reference(rows, dtype, clip):
    case = columns(rows, dtype)
    wanted = domain_reduce_reference(
        case["loss"].tolist(),
        case["domain"].tolist(),
        K,
        case["ref_loss"].tolist(),
        clip,
        case["valid"].tolist(),
    )
    assert domain_reduce(**case, K=K, clip=clip).table().tolist() == wanted


@settings(max_examples=100, deadline=None)
@given(tokens, tokens)
def test_sums_of_parts_are_the_sums_of_the_whole(some, others):
    whole = domain_reduce(**columns(some + others), K=K).table()
    parts = domain_reduce(**columns(some), K=K) + domain_reduce(**columns(others), K=K)
    assert torch.equal(parts.table(), whole)


@pytest.mark.parametrize("size", [1, 7, 64, 2000])
def test_chunks_change_no_bit(size):
    case = losses()
    parts = [domain_reduce(**cut(case, slice(at, at + size)), K=K) for at in range(0, 2000, size)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    assert torch.equal(total.table(), domain_reduce(**case, K=K).table())


def test_the_order_of_tokens_changes_no_bit_a_hundred_times():
    case, rng = losses(), np.random.default_rng(1)
    wanted = domain_reduce(**case, K=K).table()
    for _ in range(100):
        assert torch.equal(domain_reduce(**cut(case, rng.permutation(2000)), K=K).table(), wanted)


def test_ranks_change_no_bit(tmp_path):
    case = losses()
    np.savez(tmp_path / "case.npz", **{name: column.numpy() for name, column in case.items()})
    script = Path(__file__).with_name("reduce_ranks.py")
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), tmp_path], stderr=subprocess.PIPE)
        for rank in range(4)
    ]
    for rank in ranks:
        errors = rank.communicate()[1]
        assert rank.returncode == 0, errors.decode()
    wanted = domain_reduce(**case, K=K).all_reduce().table()  # one rank: nothing to add
    for ranks_of in (2, 4):
        for rank in range(ranks_of):
            got = np.load(tmp_path / f"{ranks_of}-{rank}.npy")
            assert got.tolist() == wanted.tolist()


def test_views_are_those_of_float64():
    case = losses()
    stats = domain_reduce(**case, K=K)
    loss, ref_loss = case["loss"].double().numpy(), case["ref_loss"].double().numpy()
    used = case["valid"].numpy() & np.isfinite(loss) & np.isfinite(ref_loss)
    assert stats.present.tolist() == [True, True, False, True, True]
    for k in (0, 1, 3, 4):
        mine = used & (case["domain"].numpy() == k)
        excess = loss[mine] - ref_loss[mine]
        np.testing.assert_allclose(stats.mean()[k], loss[mine].mean(), rtol=1e-6)
        np.testing.assert_allclose(stats.variance()[k], loss[mine].var(), rtol=1e-6)
        np.testing.assert_allclose(stats.mean_excess()[k], excess.clip(0).mean(), rtol=1e-6)
        np.testing.assert_allclose(stats.mean_raw_excess()[k], excess.mean(), rtol=1e-6)
    views = stats.mean(), stats.mean_excess(), stats.mean_raw_excess(), stats.variance()
    assert all(view.dtype == np.float64 and np.isnan(view[2]) for view in views)


def test_losses_that_are_not_finite_and_those_that_are_cut():
    loss = torch.tensor([torch.nan, torch.inf, -torch.inf, 5000.0, -5000.0, 1024.0, 1.0])
    stats = domain_reduce(loss, torch.tensor([0, 0, 1, 1, 2, 2, 2]), 3)
    assert stats.nonfinite_i64.tolist() == [2, 1, 0]
    assert stats.count_i64.tolist() == [0, 1, 3]
    assert stats.clamped_i64.tolist() == [0, 1, 1]
    assert stats.sum_i64.tolist() == [0, 2**34, 2**24]
    assert stats.sumsq_i64.tolist() == [0, 2**40, 2**41 + 2**20]


def test_without_a_reference_the_excess_is_the_loss():
    stats = domain_reduce(torch.tensor([1.0, -2.0]), torch.tensor([0, 0]), 1)
    assert stats.raw_excess_i64.tolist() == [-(2**24)]
    assert stats.excess_i64.tolist() == [2**24]
    ref_loss = torch.tensor([0.5, -1.75])
    stats = domain_reduce(torch.tensor([1.0, -2.0]), torch.tensor([0, 0]), 1, ref_loss=ref_loss)
    assert (stats.mean_excess()[0], stats.mean_raw_excess()[0]) == (0.25, 0.125)


def test_no_tokens():
    stats = domain_reduce(torch.zeros(0), torch.zeros(0, dtype=torch.int32), 3)
    assert not stats.table().any()
    assert not stats.present.any()
    assert np.isnan(stats.mean()).all()


@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_a_domain_out_of_range(wrong):
    loss, domain = torch.ones(3), torch.tensor([0, wrong, 2])
    with pytest.raises(IndexError, match=f"domain {wrong} is out of range"):
        domain_reduce(loss, domain, 3)
    valid = torch.tensor([True, False, True])  # padding may name any
    assert domain_reduce(loss, domain, 3, valid=valid).count_i64.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": torch.ones(4, dtype=torch.bfloat16)}, "float32"),
        ({"ref_loss": torch.ones(4, dtype=torch.float64)}, "float32"),
        ({"domain": torch.zeros(4)}, "int16"),
        ({"valid": torch.ones(4)}, "bool"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, "one shape"),
        ({"domain": torch.zeros(5, dtype=torch.int64)}, "one shape"),
        ({"K": 0}, "1 to 65536"),
        ({"K": 65537}, "1 to 65536"),
    ],
)
def test_wrong_inputs(change, message):
    case = {"loss": torch.ones(4), "domain": torch.zeros(4, dtype=torch.int64), "K": 2}
    with pytest.raises(ValueError, match=message):
        domain_reduce(**case | change)
