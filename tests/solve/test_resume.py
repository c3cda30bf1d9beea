"""A solve that is killed at any moment and run again writes the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from build_helpers import random_corpus, write_corpus

from mixc.recipe import load
from mixc.solve.stage import find
from mixc.solve.trainer import Running
from mixc.store.store import open_store
from mixc.tokenize.stage import tokenize

STEPS = 8
CORPUS = random_corpus(6, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})
PROXY = {"preset": "nano", "steps": STEPS, "batch_tokens": 512, "seq_len": 32, "device": "cpu"}
SECTIONS = {
    "solve": {"method": "doremi", "proxy": PROXY, "check": False},
    "mixture": {"weights": "solved", "rows": 20},
}


def start(recipe, events):
    """`mixc solve-weights`, with its state on the disk after every step."""
    options = ("--checkpoint-every", "0", "--events", str(events))
    line = [sys.executable, "-m", "mixc", "solve-weights", str(recipe), *options]
    threads = {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, env=os.environ | threads, stderr=subprocess.PIPE)


def seen(events):
    """The steps that were told of, as (training, step)."""
    if not events.exists():
        return []
    lines = [line for line in events.read_text().splitlines() if line.endswith("}")]
    return [(event["run"], event["step"]) for event in map(json.loads, lines)]


def outputs(out):
    found = {path.name: path.read_bytes() for path in out.glob("trajectory-*.parquet")}
    return found | {"weights.json": (out / "weights.json").read_bytes()}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """(recipe's path, what a solve without a kill wrote)."""
    recipe = write_corpus(tmp_path_factory.mktemp("resume"), CORPUS, **SECTIONS)
    tokenize(load(recipe), workers=1)
    process = start(recipe, recipe.parent / "whole.jsonl")
    assert process.wait() == 0, process.stderr.read()
    told = seen(recipe.parent / "whole.jsonl")
    assert [step for _, step in told] == 2 * list(range(STEPS))  # the reference, then the proxy
    return recipe, outputs(recipe.parent / "out")


def test_sigkill(solved, tmp_path):
    recipe, whole = solved
    out, events = recipe.parent / "out", tmp_path / "events.jsonl"
    (out / "weights.json").unlink()
    moments = (1, 5, STEPS + 4)
    for moment in moments:
        process = start(recipe, events)
        while len(seen(events)) < moment and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert (out / ".mixc/weights.json/staging").exists()
    process = start(recipe, events)
    assert process.wait() == 0, process.stderr.read()
    assert outputs(out) == whole
    assert not (out / ".mixc/weights.json/staging").exists()
    # A kill makes a step again, the one at which it struck, and no more.
    assert len(seen(events)) <= 2 * STEPS + len(moments)


@pytest.mark.parametrize("method", ["doge", "odm"])
@pytest.mark.parametrize("stop", [0, 3, STEPS - 1])
def test_a_stopped_method_goes_on_to_the_same_answer(solved, tmp_path, method, stop):
    recipe = load(solved[0], [f"solve.method={method}"])
    store = open_store(recipe.workdir_path / "store")

    def answer(running, staging):
        return find(recipe, store, tmp_path / staging, running).answer

    def stopping(event):
        if event.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(Running(0, (stopping,)), "stopped")
    steps = []
    resumed = answer(Running(0, (lambda event: steps.append(event.step),)), "stopped")
    assert steps == list(range(stop, STEPS))
    whole = answer(Running(), "whole")
    assert np.array_equal(resumed.weights, whole.weights)
    for name, values in whole.trajectory.items():
        assert np.array_equal(resumed.trajectory[name], values), name
