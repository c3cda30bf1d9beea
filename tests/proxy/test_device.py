import pytest
import torch

from mixc.errors import MixcError
from mixc.proxy.device import deterministic, pick_device


def test_settings_of_torch_are_put_back():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(RuntimeError, match="boom"), deterministic(torch.device("cuda")):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise RuntimeError("boom")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    with deterministic(torch.device("cuda")):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(MixcError, match="no CUDA device is here") as caught:
        pick_device("cuda")
    assert caught.value.code == "MX007"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
