from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.domain_gram import split_halves
from mixc_kernels.grouped_dw import (
    LookupPart,
    ProductPart,
    SumPart,
    add_tokens,
    group_rows,
    token_groups,
)

DOMAINS, ROWS, WIDTH = 3, 7, 2


def whole(part, block, width=WIDTH):
    """All gradients [K, ROWS, width] of a part, `block` rows at a time."""
    blocks = []
    for first in range(0, ROWS, block):
        size = DOMAINS, min(block, ROWS - first), width
        out = torch.full(size, torch.nan, dtype=torch.float64)  # what was there before is lost
        part.put(out, first, fresh=True)
        part.put(out, first, fresh=False)
        blocks.append(out / 2)  # or added to
    return torch.cat(blocks, dim=1)


@st.composite
def batches(draw):
    """(domain of each row, tokens a row, random numbers, rows of a block)."""
    domain = draw(st.lists(st.integers(0, DOMAINS - 1), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return torch.tensor(domain), draw(st.integers(1, 3)), rng, draw(st.integers(1, ROWS))


def normals(rng, *size):
    return torch.from_numpy(rng.normal(size=size))


@settings(deadline=None)
@given(batches())
def test_rows_stand_by_domain(case):
    domain, length, _, _ = case
    groups = group_rows(domain, DOMAINS)
    tokens = domain.repeat_interleave(length).view(-1, length)
    ordered = groups.sorted(tokens).flatten()
    assert ordered.tolist() == sorted(tokens.flatten().tolist())
    runs = groups.runs(len(ordered))
    assert torch.equal(token_groups(runs, len(ordered), domain.device), ordered)
    assert sorted(k for run in runs for k in range(DOMAINS)[run.where]) == list(range(DOMAINS))


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(1, 3))
def test_halves_of_neighbours_are_one_run(rows, length):
    domain = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
    groups, tokens = group_rows(domain, len(rows), halves=True), sum(rows) * length
    halves = torch.from_numpy(split_halves(domain.numpy(), len(rows))).repeat_interleave(length)
    runs = groups.runs(tokens)
    assert torch.equal(token_groups(runs, tokens, domain.device), halves)
    changes = sum(a != b for a, b in pairwise(rows))
    assert len(runs) <= 2 * (changes + 1)
    numbers = torch.arange(tokens)[:, None]
    for run in runs:
        for number, group in enumerate(range(2 * len(rows))[run.where]):
            mine = torch.nonzero(halves == group)
            assert torch.equal(run.of(numbers)[number], mine)


@settings(deadline=None)
@given(batches())
def test_parts_are_sums_over_the_domains_tokens(case):
    domain, length, rng, block = case
    groups, count = group_rows(domain, DOMAINS), len(domain) * length
    runs = groups.runs(count)
    tokens = token_groups(runs, count, domain.device)
    x, dy, row = normals(rng, count, WIDTH), normals(rng, count, ROWS), normals(rng, count, WIDTH)
    ids = torch.from_numpy(rng.integers(ROWS, size=count))
    product = torch.zeros(DOMAINS, ROWS, WIDTH, dtype=torch.float64)
    lookup, total = torch.zeros_like(product), torch.zeros(DOMAINS, ROWS, 1, dtype=torch.float64)
    for n, k in enumerate(tokens.tolist()):
        product[k] += torch.outer(dy[n], x[n])
        lookup[k, ids[n]] += row[n]
        total[k, :, 0] += dy[n]
    torch.testing.assert_close(whole(ProductPart(x, dy, runs), block), product)
    torch.testing.assert_close(whole(LookupPart(ids, row, tokens), block), lookup)
    torch.testing.assert_close(whole(SumPart(add_tokens(dy, runs)), block, 1), total)


def test_rows_that_stand_by_domain_are_not_copied():
    x = torch.ones(4, 2)
    assert group_rows(torch.tensor([0, 0, 2, 2]), DOMAINS).sorted(x) is x
    assert group_rows(torch.tensor([0, 2, 0, 2]), DOMAINS).sorted(x) is not x


@pytest.mark.parametrize("wrong", [-1, DOMAINS])
def test_domains_out_of_range(wrong):
    with pytest.raises(ValueError, match="a domain is not in"):
        group_rows(torch.tensor([0, wrong]), DOMAINS)
