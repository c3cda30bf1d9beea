import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mixc.errors import MixcError
from mixc.proxy import events
from mixc.proxy.events import Clock, Event, json_lines, movers, tracker

EVENT = Event("proxy", 3, 10, 2.5, 64, 1000.0, 1.5, {"web": 0.7, "code": 0.3})


def test_json_lines_hold_all_of_an_event(tmp_path, capsys):
    write = json_lines(str(tmp_path / "events.jsonl"))
    write(EVENT)
    write(EVENT)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == 2 * [vars(EVENT)]
    json_lines("-")(EVENT)
    assert json.loads(capsys.readouterr().err) == vars(EVENT)


def test_the_weights_that_moved_most_are_shown_first():
    weights = {"a": 0.25, "b": 0.05, "c": 0.41, "d": 0.29}
    assert movers(weights, 2) == "b 0.05 (-0.20), c 0.41 (+0.16)"


def test_time_left_is_that_of_the_steps_that_are_left(monkeypatch):
    now = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(events.time, "monotonic", lambda: next(now))
    clock = Clock(10)
    assert clock.tick(4, 50) == (25.0, 10.0)  # begun at step 4 of 10, two seconds a step
    assert clock.tick(5, 50) == (25.0, 8.0)


@pytest.mark.parametrize("target", ["mlflow:x", "wandb", "wandb:", ""])
def test_unknown_trackers(target):
    with pytest.raises(MixcError) as raised:
        tracker(target)
    assert raised.value.code == "MX008"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing(name, monkeypatch):
    for module in ("tensorboard", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MixcError, match=f"package {name}") as raised:
        tracker(f"{name}:x")
    assert raised.value.code == "MX037"


def test_trackers_get_loss_speed_and_weights(monkeypatch):
    seen = []
    session = SimpleNamespace(log=seen.append)
    fake = SimpleNamespace(init=lambda project: seen.append(project) or session)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker("wandb:mine")(EVENT)
    assert seen == [
        "mine",
        {
            "proxy/step": 3,
            "proxy/loss": 2.5,
            "proxy/tokens_per_second": 1000.0,
            "proxy/weight/web": 0.7,
            "proxy/weight/code": 0.3,
        },
    ]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(monkeypatch, capsys):
    calls = []

    def fail(values):
        calls.append(values)
        raise RuntimeError("no network")

    session = SimpleNamespace(log=fail)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda project: session))
    write = tracker("wandb:mine")
    write(EVENT)
    write(EVENT)
    assert len(calls) == 1
    assert capsys.readouterr().err == "wandb failed, and gets no more events: no network\n"


def test_no_torch_is_loaded():
    code = "import sys, mixc.proxy.events, mixc.solve.trainer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
