"""A few hundred damaged inputs for each target, and that the tool sees what goes wrong."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import fuzz
from fuzz_targets import HEAD, TARGETS

from mixc.readers import codecs

RUNS = 200


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_end_well_or_with_errors_of_ours(name, tmp_path, monkeypatch):
    monkeypatch.setattr(codecs, "BLOCK", codecs.BLOCK)  # targets change it
    run, finds = TARGETS[name].make(tmp_path), fuzz.Finds(name, None)
    for data in islice(fuzz.mutations(TARGETS[name], seed=1), RUNS):
        fuzz.try_input(run, data, finds)
    assert finds.seen == {}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name, tmp_path, monkeypatch):
    """Seeds that are all refused would test little. (What they are read as, other tests see.)"""
    monkeypatch.setattr(codecs, "BLOCK", codecs.BLOCK)
    run = TARGETS[name].make(tmp_path)
    accepted = 0
    for data in TARGETS[name].inputs():
        try:
            run(data)
        except fuzz.OURS:
            continue
        accepted += 1
    assert accepted


def test_inputs_depend_on_the_seed_alone():
    def some(seed):
        return list(islice(fuzz.mutations(TARGETS["csv"], seed), 300))

    assert some(1) == some(1)
    assert some(1) != some(2)
    assert max(map(len, some(1))) <= HEAD + TARGETS["csv"].longest


def test_exceptions_crashes_and_hangs_are_found(tmp_path):
    """The planted target raises, kills itself or sleeps, by an input's first byte."""
    line = [sys.executable, fuzz.__file__, "--target", "planted", "--engine", "mutate"]
    line += ["--runs", "12", "--minutes", "1", "--hang", "0.2", "--finds", tmp_path / "finds"]
    done = subprocess.run([*line, "--json", tmp_path / "out.json"], capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    (target,) = json.loads((tmp_path / "out.json").read_text())["targets"]
    assert target["runs"] >= 12
    causes = {where.split()[0]: name for name, where in target["finds"].items()}
    assert set(causes) == {"ZeroDivisionError", "SIGSEGV", "hang"}
    assert target["deaths"] >= 2
    kept = {cause: (tmp_path / "finds" / f"{name}.bin") for cause, name in causes.items()}
    firsts = {cause: path.read_bytes()[HEAD:][:1] for cause, path in kept.items()}
    assert firsts == {"ZeroDivisionError": b"e", "SIGSEGV": b"c", "hang": b"h"}
    assert "ZeroDivisionError" in kept["ZeroDivisionError"].with_suffix(".txt").read_text()
