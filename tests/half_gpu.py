"""A GPU's products of half operands on a CPU, for tests."""

import torch


def multiply_half(monkeypatch, *modules):
    """Modules take half operands as they are; torch writes float32 sums of them, as on a GPU."""
    mm, addmm = torch.mm, torch.addmm

    def own_if_half(x, wide):
        return x.dtype if x.dtype in (torch.bfloat16, torch.float16) else wide

    def mm_to(a, b, *, out, out_dtype=None):
        return mm(a, b, out=out) if out_dtype is None else mm(a.float(), b.float(), out=out)

    def addmm_to(c, a, b, *, out, out_dtype):
        assert c.dtype == out_dtype == torch.float32
        return addmm(c, a.float(), b.float(), out=out)

    for module in modules:
        monkeypatch.setattr(module, "operand_type", own_if_half)
    monkeypatch.setattr(torch, "mm", mm_to)
    monkeypatch.setattr(torch, "addmm", addmm_to)
