import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from mixc_kernels.watch_uses import UnknownUseError, WatchUses
from torch import nn


def seen_of(watch, losses, **options):
    seen = []
    gradient = torch.ones_like(losses)
    watch.backward(losses, gradient, lambda *one: seen.append(one), **{"retain": False, **options})
    return seen


def test_each_use_reports_what_was_read_and_what_came_back():
    table, weight, bias, gain = (
        nn.Parameter(torch.arange(float(n)).view(size) + 1)
        for n, size in ((6, (3, 2)), (4, (2, 2)), (2, (2,)), (2, (2,)))
    )
    ids = torch.tensor([[2, 0], [1, 1]])
    with WatchUses([table, weight, bias, gain]) as watch:
        x = F.embedding(ids, table)
        y = F.linear(x, weight, bias=bias)
        z = F.rms_norm(y, (2,), weight=gain)
    assert list(watch.uses.values()) == [1, 1, 1, 1]
    seen = seen_of(watch, z)
    assert [(one[0].parameter, one[0].kind) for one in seen] == [
        (gain, "gain"),
        (weight, "product"),
        (bias, "sum"),
        (table, "lookup"),
    ]
    for (_, given, _), wanted in zip(seen, (y, x, x, ids), strict=True):
        assert torch.equal(given, wanted)
    assert torch.equal(seen[0][2], torch.ones_like(z))
    assert torch.equal(seen[0][0].read(y), F.rms_norm(y, (2,)))
    assert torch.equal(seen[1][2] @ weight, seen[3][2])
    assert all(p.grad is None for p in (table, weight, bias, gain))


def test_it_goes_backwards_as_often_as_asked():
    weight = nn.Parameter(torch.ones(2, 2))
    with WatchUses([weight]) as watch:
        y = F.linear(torch.ones(3, 2), weight)
    first = seen_of(watch, y, retain=True)
    assert torch.equal(first[0][2], seen_of(watch, y)[0][2])
    with pytest.raises(RuntimeError, match="second time"):
        seen_of(watch, y)


def test_only_watched_parameters_are_seen():
    ours, theirs = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    with WatchUses([ours]) as watch:
        y = F.linear(F.linear(torch.ones(3, 2), theirs), ours)
        with torch.no_grad():
            F.linear(y, ours)
    assert watch.uses == {ours: 1}
    assert len(seen_of(watch, y, retain=True)) == 1
    with pytest.raises(RuntimeError, match="by what recorded it"):
        y.sum().backward()


def test_a_use_by_another_way_is_named():
    weight = nn.Parameter(torch.ones(2, 2))
    with WatchUses([weight]) as watch:
        y = F.linear(torch.ones(3, 2), weight) @ weight
    with pytest.raises(UnknownUseError) as caught:
        seen_of(watch, y)
    assert caught.value.parameter is weight and weight.grad is None
