"""The benchmark of builds: its store, and one small run beside cp."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import bench_build
from bench import token_store

from mixc import pipeline
from mixc.store.store import open_store
from mixc.verify import verify

TOOL = Path(bench_build.__file__)


def test_the_store_is_one_that_mixtures_are_built_from(tmp_path):
    recipe = token_store.make_recipe(
        tmp_path, gigabytes=0.001, domains=10, seq_len=256, formats=["nanogpt"]
    )
    token_store.make_store(recipe, 0.001)
    store = open_store(tmp_path / "work/store")
    assert len(store.domains) == 10
    assert sum(one.tokens for one in store.domains.values()) == pytest.approx(5e5, rel=0.2)
    mixture = pipeline.build_mixture(recipe, workers=2)
    assert mixture.manifest["tokens"] == pytest.approx(5e5, rel=0.01)
    epochs = [one["epochs"] for one in mixture.manifest["domains"].values()]
    assert min(epochs) < 1 < max(epochs)
    for root in (store.root, mixture.root):
        assert not verify(root).problems


def test_lengths_of_documents_are_those_of_the_web():
    documents = next(token_store._documents(np.random.default_rng(0), 1 << 22, 9))
    assert 350 < np.median(documents.lengths) < 500
    assert 600 < documents.lengths.mean() < 1000


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed")
def test_a_small_run(tmp_path):
    line = [sys.executable, str(TOOL), "--venvs", str(tmp_path / "none"), "--gigabytes", "0.001"]
    line += ["--seq-len", "256", "--only", "cp", "--repeat", "2", "--workers", "1"]
    line += ["--work", str(tmp_path), "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["writes"]) == {"mixc", "cp", "cp and sync"}
    assert all(len(runs) == 2 for runs in found["writes"].values())
    assert "| cp and sync" in done.stdout and "to mixc's wall" in done.stdout
    assert not list(tmp_path.glob("tmp*"))
