"""The benchmark of loss kernels, on shapes that take no time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/bench_kernels.py"


def run(*line):
    command = [sys.executable, str(TOOL), "--device", "cpu", *map(str, line)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_measures_ours_and_torchs_and_names_who_is_missing(tmp_path):
    out = tmp_path / "found.json"
    only = ["mixc", "eager", "cut-cross-entropy"]
    done = run("--shapes", "64x16x300", "--repeat", 2, "--only", *only, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["versions"]["torch"] and found["date"] and found["device"]
    told = {(row["provider"], row["mode"]) for row in found["results"]}
    assert told == {(name, mode) for name in only[:2] for mode in ("forward", "backward", "full")}
    for row in found["results"]:
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert row["memory_mb"] >= 0 and row["loss_error"] < 1e-5
    assert list(found["missing"]) == only[2:]
    assert "cut-cross-entropy: not measured" in done.stdout and "64x16x300" in done.stdout


@pytest.mark.parametrize("shape", ["64x16", "ax1x2", "0x1x2"])
def test_a_wrong_shape_is_refused(shape):
    done = run("--shapes", shape)
    assert done.returncode == 2 and "a shape is" in done.stderr
