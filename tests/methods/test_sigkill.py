"""Every method that trains: a solve that SIGKILL ends, run again, comes to the same answer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import every_method
import pyarrow.parquet as pq
import pytest
import torch

from mixc import pipeline
from mixc.solve.trainer import Running


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return every_method.make_recipe(tmp_path_factory.mktemp("sigkill"))


def solve_anew(recipe):
    """What weights.json and the trajectory hold, and the steps that were trained."""
    (recipe.workdir_path / "weights.json").unlink(missing_ok=True)
    steps = []
    solved = pipeline.solve_weights(recipe, Running(0, (steps.append,)))
    table = {}
    if (record := solved.manifest["trajectory"]) is not None:
        table = pq.read_table(solved.path.parent / record["path"]).to_pydict()
    return (solved.path.read_bytes(), json.dumps(table)), len(steps)


def kill_after(recipe, events, steps):
    """Start a solve, its state on the disk after every step, and kill it after so many steps."""
    line = [sys.executable, "-m", "mixc", "solve-weights", str(recipe.file), "--events", events]
    line += ["--checkpoint-every", "0", *(f"-s{one}" for one in recipe.overrides)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(line, env=os.environ | threads, stderr=subprocess.PIPE)
    while _lines(events) < steps and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()


def _lines(path):
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("name", every_method.TRAINING)
def test_a_killed_method_goes_on_to_the_same_answer(recipe, tmp_path, name):
    mine, events = every_method.load_for(recipe, name), tmp_path / "events.jsonl"
    whole, steps = solve_anew(mine)
    (mine.workdir_path / "weights.json").unlink()
    shutil.rmtree(mine.workdir_path / "solve", ignore_errors=True)  # runs that were kept
    kill_after(mine, events, steps * 2 // 3)
    done = _lines(events)
    assert steps // 2 < done < steps
    found, more = solve_anew(mine)
    assert found == whole
    assert steps - done <= more <= steps - done + 1  # the step at which it struck, at most
