"""A stride of the crash sweep: no fault at a write-side call leaves a bad state."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import texts, write_recipe

TOOL = Path(__file__).parents[2] / "tools" / "crash_sweep.py"

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (".mixc/mixture/lock", False),
        ("decks/0/0.bin", False),
        ("trajectory-0.parquet", False),
        ("trajectory-1.parquet", True),
        ("mixture/holdout/decks/nanogpt/val.bin", True),
        ("store/.mixc/0.arrow", True),
        ("store/decks/trajectory-0.parquet", True),
    ],
)
@pytest.mark.parametrize("folder", ["workdir", "decks/.mixc"])
def test_what_counts_is_told_by_where_it_stands_in_the_workdir(tmp_path, folder, name, counts):
    fingerprint = runpy.run_path(str(TOOL))["fingerprint"]
    workdir = tmp_path / folder
    (workdir / name).parent.mkdir(parents=True)
    (workdir / "weights.json").write_text("trajectory-1.parquet")
    before = fingerprint(workdir)
    (workdir / name).write_bytes(b"more")
    assert (fingerprint(workdir) != before) == counts


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(
        tmp_path_factory.mktemp("sweep"),
        {"web": texts(1, 40), "code": texts(2, 40)},
        solve={"method": "temperature"},
        mixture={"weights": "solved", "rows": 60, "formats": ["nanogpt", "megatron"]},
    )


@pytest.mark.parametrize(
    ("command", "older", "fault", "stride", "also"),
    [
        ("tokenize", "holdout.fraction=0.3", "kill", 17, []),
        ("tokenize", "holdout.fraction=0.3", "EIO", 17, []),
        ("solve-weights", "solve.temperature.temperature=2.0", "kill", 5, []),
        ("build-mixture", "seed=1", "kill", 29, []),
        ("build-mixture", "seed=1", "ENOSPC", 41, []),
        ("build-mixture", "mixture.rows=50", "kill", 31, ["--decks", "--gather=two-pass"]),
    ],
)
def test_no_fault_leaves_a_bad_state(recipe, command, older, fault, stride, also):
    line = [sys.executable, TOOL, recipe, command, "--older", older]
    line += ["--fault", fault, "--stride", str(stride), *(f"--also={one}" for one in also)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tried, rest = done.stdout.removeprefix(f"{command}: ").split(" ", 1)
    assert int(tried) >= 3
    assert rest == f"faults ({fault}) injected, 0 bad states\n"
