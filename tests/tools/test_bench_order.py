"""The benchmark of orders: our side of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/bench_order.py"


@pytest.mark.parametrize("block", ["1", "1024"])
def test_it_says_how_long_an_order_takes_and_how_exact_it_is(block):
    line = [sys.executable, str(TOOL), "--rows", "20000", "--domains", "7", "--block", block]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["seconds"] > 0 and 0 < said["error"] <= 1 - 1 / 12


def test_without_the_peers_folder_it_says_what_it_needs():
    done = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--venvs is needed" in done.stderr
