"""Two processes that torchrun starts find what one finds."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_helpers import random_corpus, write_corpus

from mixc.recipe import load
from mixc.tokenize.stage import tokenize

CORPUS = random_corpus(6, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})
# 15 rows of a batch: the ranks' shares are not equal.
PROXY = {"preset": "nano", "steps": 4, "batch_tokens": 480, "seq_len": 32, "device": "cpu"}
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = write_corpus(
        tmp_path_factory.mktemp("ranks"),
        CORPUS,
        solve={"method": "doremi", "proxy": PROXY, "check": False},
        mixture={"weights": "solved", "rows": 20},
    )
    tokenize(load(path), workers=1)
    return path


def solve(recipe, *runner, options=()):
    """Run `mixc solve-weights` anew; what it printed, its manifest and its alpha [T, K]."""
    out = recipe.parent / "out"
    (out / "weights.json").unlink(missing_ok=True)
    line = [sys.executable, "-m", *runner, "mixc", "solve-weights", str(recipe), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*line, *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "weights.json").read_text())
    table = pq.read_table(out / manifest["trajectory"]["path"])
    return done.stdout, manifest, table["alpha"].to_numpy().reshape(4, 3)


def test_two_ranks_find_what_one_finds(recipe, tmp_path):
    _, alone, alpha = solve(recipe)
    printed, together, shared = solve(
        recipe, *TORCHRUN, options=("--events", str(tmp_path / "events"))
    )
    assert np.abs(shared - alpha).max() < 1e-6
    assert np.ptp(alpha, axis=1).min() > 1e-4  # which is not all the same
    assert together["cost"] == alone["cost"]
    assert together["provenance"]["environment"]["processes"] == "2"
    assert json.loads(printed)["domains"] == together["domains"]  # one rank prints
    assert len((tmp_path / "events").read_text().splitlines()) == 8  # and tells
    line = [sys.executable, "-m", *TORCHRUN, "mixc", "solve-weights", str(recipe), "--json"]
    again = subprocess.run(line, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["key"] == together["key"]
    assert "train" not in again.stderr  # all ranks find the weights that are there
