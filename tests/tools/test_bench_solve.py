"""The tool that times whole solves."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import bench_solve
import planted

from mixc.recipe import load
from mixc.tokenize.stage import tokenize


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = planted.write_recipe(tmp_path_factory.mktemp("planted"), steps=6)
    tokenize(load(path), workers=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products: threads only get in each other's way
    yield path
    torch.set_num_threads(threads)


def test_costs_are_in_plain_runs_of_the_same_turn(recipe, monkeypatch):
    seconds = {"natural": 2.0, "uniform": 4.0, "doremi": 6.0, "odm": 3.0}

    def turn(bench, number):
        bench.operations.update(doremi=2.5, odm=1.0)
        slow = 10 if number == 0 else number  # the first does not count
        plain = (slow * seconds["natural"], slow * seconds["uniform"])
        return bench_solve.Turn(plain, {one: slow * seconds[one] for one in bench.methods})

    monkeypatch.setattr(bench_solve.Bench, "turn", turn)
    found = bench_solve.measure(recipe, ["doremi", "odm"], repeat=3)
    doremi, odm, second = found["rows"]
    assert [doremi[name] for name in ("median", "least", "most", "together")] == [2.0] * 4
    assert (odm["median"], odm["together"], second["median"]) == (1.0, 1.0, 2.0)
    assert (doremi["operations"], "operations" in second) == (2.5, False)
    assert found["plain_seconds"] == [2.0, 4.0, 4.0, 8.0, 6.0, 12.0]


def test_the_tool_itself(recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    command = ["bench_solve.py", str(recipe), "--methods", "doremi", "--repeat", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--set", "solve.proxy.steps=4", "--json", str(out)])
    before = sorted(recipe.parent.rglob("*"))
    bench_solve.main()
    assert sorted(recipe.parent.rglob("*")) == before  # nothing is left behind
    found = json.loads(out.read_text())
    row, second = found["rows"]
    assert row["what"] == "doremi" and row["operations"] == pytest.approx(2.08, abs=0.02)
    assert 0 < row["least"] <= row["median"] <= row["most"]
    assert row["least"] <= row["together"] <= row["most"]
    assert len(found["plain_seconds"]) == 4 and second["least"] > 0
    assert "| doremi" in capsys.readouterr().out
