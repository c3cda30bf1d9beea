import pytest
import torch
from mixc_kernels.domain_reduce import domain_reduce
from mixc_kernels.domain_reduce_triton import reduce_table


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("given", [False, True])
def test_the_kernel_gives_the_bits_of_the_cpu(dtype, given):
    torch.manual_seed(0)
    loss, ref_loss = 12 * torch.rand(2, 2500)
    loss[:8] = torch.tensor([torch.nan, torch.inf, -torch.inf, 2e3, -2e3, 1e-30, -0.0, 2**-25])
    ref_loss[3:6] = torch.tensor([torch.nan, 5e3, 1e-40])
    domain = torch.randint(4, (2500,), dtype=dtype) * 2  # every second one is empty
    valid = torch.rand(2500) < 0.8
    valid[:8] = True
    options = {"ref_loss": ref_loss, "valid": valid} if given else {"ref_loss": None, "valid": None}
    wanted = domain_reduce(loss, domain, 7, **options, clip=-1.5).table()
    got = reduce_table(loss, domain, 7, options["ref_loss"], -3 << 23, options["valid"])
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("tokens", [0, 1, 1024, 16384, 16385])
def test_any_number_of_tokens(tokens):
    loss = torch.arange(tokens) / 1000
    domain = torch.arange(tokens) % 2
    got = reduce_table(loss, domain, 2, None, 0, None)
    assert torch.equal(got, domain_reduce(loss, domain, 2).table())


def test_strided_inputs_and_domains_that_are_not_there():
    loss, domain = torch.rand(40)[::2], torch.arange(40, dtype=torch.int32)[::2]
    got = reduce_table(loss, domain, 8, None, 0, (torch.arange(40) < 30)[::2])
    assert got[1].tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
