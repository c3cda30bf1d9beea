"""The tool that plans mixtures far larger than the machine."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools/plan_scale.py"


def planned(*options):
    line = [sys.executable, str(TOOL), *options]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_largest_mixture_of_the_design_fits_its_head_node():
    done = planned("--tokens", "15e12", "--documents", "1e9", "--domains", "1000")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["tokens"] > 14.99e12
    assert 20 < said["build_memory_gib"] < 64
    assert said["disk_tb"]["stream"] > 29.9


def test_a_mixture_that_does_not_fit_says_so():
    done = planned("--tokens", "1e9", "--documents", "1e6", "--domains", "5", "--most-gib", "0.1")
    assert done.returncode == 1
    assert json.loads(done.stdout)["build_memory_gib"] > 0.1


def test_the_order_is_laid_out_if_asked_for():
    small = ("--tokens", "1e8", "--documents", "1e5", "--domains", "7", "--seq-len", "1024")
    done = planned(*small, "--order")
    said = json.loads(done.stdout)
    assert said["ordered_rows"] == said["rows"] == 97_656
