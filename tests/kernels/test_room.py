from types import SimpleNamespace

import torch
from mixc_kernels.room import room


def test_a_gpu_gives_a_share_of_all_its_memory(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30)
    )
    assert room(torch.device("cuda", 0), 7, 16) == 5 << 30
    assert room(torch.device("cpu"), 7, 16) == 7
