import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools/bench_training.py"


def test_a_small_run():
    line = [sys.executable, str(TOOL), "--vocab", "99", "--seq-len", "16", "--rows", "2"]
    line += ["--steps", "2", "--rounds", "1"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loop_seconds"] > 0
    assert found["share_of_bare_speed"] == found["bare_seconds"] / found["loop_seconds"]
