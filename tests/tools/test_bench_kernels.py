"""The benchmark of loss kernels, on shapes that take no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/bench_kernels.py"
PEERS = ("Liger", "cut-cross-entropy, compiled", "torch linear_cross_entropy")
GPU_PEERS = ("cut-cross-entropy", "cut-cross-entropy, no filter", "quack")


def run(*line, interpreted=False):
    command = [sys.executable, str(TOOL), "--device", "cpu", *map(str, line)]
    env = os.environ | {"TRITON_INTERPRET": "1" if interpreted else "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def found_by(tmp_path, *line, **how):
    out = tmp_path / "found.json"
    done = run(*line, "--out", out, **how)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_it_measures_ours_and_torchs_and_names_who_is_missing(tmp_path):
    names = ["mixc", "eager"]
    line = ["--shapes", "64x16x300", "--repeat", 2, "--only", *names, *GPU_PEERS]
    found, text = found_by(tmp_path, *line)
    assert found["versions"]["torch"] and found["date"] and found["device"]
    told = {(row["provider"], row["mode"]) for row in found["results"]}
    assert told == {(name, mode) for name in names for mode in ("forward", "backward", "full")}
    for row in found["results"]:
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert row["loss_error"] < 1e-5 and row["gradient_error"] < 1e-5
        gradients = 0 if row["mode"] == "forward" else 4 * 16 * (64 + 300) / 1e6
        assert row["beyond_mb"] == pytest.approx(max(0, row["memory_mb"] - gradients))
    assert list(found["missing"]) == list(GPU_PEERS)
    for name, why in found["missing"].items():
        assert "No module named" in why or "needs a CUDA device" in why
        assert any(line.startswith(f"| {name} ") and why in line for line in text.splitlines())


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_a_cpu_can_run_agrees(name, tmp_path):
    """By Triton's interpreter, where it is the peer's."""
    line = ["--shapes", "64x64x512", "--repeat", 1, "--modes", "full", "--only", name]
    found, _ = found_by(tmp_path, *line, interpreted=True)
    if name in found["missing"]:
        pytest.skip(f"{name}: {found['missing'][name]}")
    (row,) = found["results"]
    assert row["loss_error"] < 1e-5 and row["gradient_error"] < 1e-5
    assert found["interpreted"]


@pytest.mark.parametrize("shape", ["64x16", "ax1x2", "0x1x2"])
def test_a_wrong_shape_is_refused(shape):
    done = run("--shapes", shape)
    assert done.returncode == 2 and "a shape is" in done.stderr
