import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools/bench_training.py"


def found_by(*more):
    line = [sys.executable, str(TOOL), "--vocab", "99", "--seq-len", "16", "--rows", "2"]
    line += ["--steps", "2", "--rounds", "1", *more]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_small_run():
    found = found_by()
    assert found["loop_seconds"] > 0
    assert found["share_of_bare_speed"] == found["bare_seconds"] / found["loop_seconds"]


def test_models_in_turns_and_as_one():
    found = found_by("--stacked", "3")
    assert found["stacked_speed"] == found["turns_seconds"] / found["stacked_seconds"]


def test_all_ids_and_few():
    found = found_by("--compact", "40")
    assert found["compact_speed"] == found["full_seconds"] / found["compact_seconds"]
