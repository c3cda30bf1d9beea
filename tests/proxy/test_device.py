import pytest
import torch

from mixc.errors import MixcError
from mixc.proxy import device
from mixc.proxy.device import (
    computing_in,
    deterministic,
    few_threads,
    pick_device,
    pick_precision,
    shall_compile,
)


def test_settings_of_torch_are_put_back():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(RuntimeError, match="boom"), deterministic(torch.device("cuda")):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert not torch.utils.deterministic.fill_uninitialized_memory
            raise RuntimeError("boom")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
    with deterministic(torch.device("cuda")):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


def test_few_numbers_are_for_few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for numbers, wanted in ((0, 1), (1 << 16, 1), (1 << 17, 2), (1 << 20, 3)):
            with few_threads(numbers):
                assert torch.get_num_threads() == wanted
            assert torch.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="boom"), few_threads(1):
            raise RuntimeError("boom")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(MixcError, match="no CUDA device is here") as caught:
        pick_device("cuda")
    assert caught.value.code == "MX007"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")


def test_bf16_is_refused_where_a_cpu_would_imitate_it(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx2", "fma"})
    assert pick_precision("auto", cpu) == pick_precision("fp32", cpu) == torch.float32
    with pytest.raises(MixcError, match="none of amx_bf16, avx512_bf16") as caught:
        pick_precision("bf16", cpu)
    assert caught.value.code == "MX007"
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx512_bf16"})
    assert pick_precision("bf16", cpu) == torch.bfloat16
    assert pick_precision("auto", cpu) == torch.float32


@pytest.mark.parametrize(("name", "there"), [("auto", True), ("auto", False), ("bf16", False)])
def test_bf16_on_cuda_where_it_is(monkeypatch, name, there):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there)
    if name == "bf16":
        with pytest.raises(MixcError, match="too old"):
            pick_precision(name, torch.device("cuda"))
    else:
        expected = torch.bfloat16 if there else torch.float32
        assert pick_precision(name, torch.device("cuda")) == expected


def test_autocast_makes_products_alone_lower():
    a = torch.ones(4, 4)
    with computing_in(torch.bfloat16, torch.device("cpu")):
        assert (a @ a).dtype == torch.bfloat16
        assert (a + a).dtype == torch.float32
    with computing_in(torch.float32, torch.device("cpu")):
        assert (a @ a).dtype == torch.float32


def test_models_are_compiled_where_it_pays():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [shall_compile("auto", cuda, steps) for steps in (10, 10_000)] == [False, True]
    assert not shall_compile("auto", cpu, 10_000)
    assert shall_compile(True, cpu, 1)
    assert not shall_compile(False, cuda, 10_000)
