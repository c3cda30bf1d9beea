"""The ten-domain experiment, on a few kilobytes, and what it says of made-up leagues."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from helpers import texts

from mixc.solve.check import Comparison

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.append(str(TOOLS))

import experiment_tables as tables  # noqa: E402
from experiment_tables import Answer  # noqa: E402

DOMAINS = ("docs-en", "docs-en-copy", "noise", "web")
MIXES = {
    "natural": (0.2, 0.2, 0.3, 0.3),
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "odm": (0.1, 0.1, 0.4, 0.4),
}
FOLDERS = {"code_c", "code_python", "html_raw", "literature", "formal_math"}
FOLDERS |= {"docs_en", "docs_de", "docs_ru"}
SMALL = """--size 0.002 --steps 2 --batch-tokens 160 --seq-len 16 --vocab 300 --holdout 50
    --swarm 1 --seeds 2 --methods odm regression
    --set solve.regression.family=log_linear --set solve.regression.draws=20"""
ALONE = {"natural": 0.25, "uniform": 0.33, "odm": 0.2}


def answers():
    full = {
        name: Answer(dict(zip(DOMAINS, mix, strict=True)), plain_runs=float(name == "odm"))
        for name, mix in MIXES.items()
    }
    return full, {name: Answer({"docs-en": share}) for name, share in ALONE.items()}


def league(odm):
    """Losses of 3 seeds, in all domains alike; `odm` is that of the solved mix, seed by seed."""
    seeds = np.array([[4.0, 4.1, 4.2], [4.05, 4.2, 4.2], odm])
    bits = np.repeat(seeds[:, :, None], len(DOMAINS), axis=2)
    weights = np.array(list(MIXES.values()))
    return Comparison(tuple(MIXES), DOMAINS, (0, 1, 2), weights, bits, tokens=0, flops=0.0)


def test_a_mix_that_beats_both_simple_ones_is_named():
    said = tables.verdict(league([3.5, 3.6, 3.7]), ["odm"])
    assert "beyond doubt: odm; " in said
    assert "odm is better than natural and uniform" in said


@pytest.mark.parametrize("odm", [[3.0, 4.1, 4.9], [4.4, 4.5, 4.6]])
def test_where_no_method_is_better_it_says_none(odm):
    said = tables.verdict(league(odm), ["odm"])
    assert "beyond doubt: none; " in said
    assert "natural" in said.split("of the best, ")[1]


def test_noise_and_the_pair_are_held_against_natural_and_the_domain_alone():
    full, single = answers()
    said = tables.verdicts(league([3.5, 3.6, 3.7]), full, single, ["natural", "uniform"])
    assert "- noise gets less than its natural 0.300: by none; not by odm" in said
    assert "- the pair gets no more than docs-en alone: by odm; not by none" in said
    table = tables.full_table(league([3.5, 3.6, 3.7]), full, single)
    first, last = table.splitlines()[2], table.splitlines()[-1]
    assert "`odm`" in first and "0.500 (0.500 to 0.500)" in first and "0.200 (0.200) yes" in first
    assert "`uniform`" in last and "0.500 (0.330) no" in last


def test_without_the_single_domain_nothing_is_said_of_the_pair():
    full, _ = answers()
    found = league([3.5, 3.6, 3.7])
    assert "the pair" not in tables.verdicts(found, full, {}, ["natural", "uniform"])
    assert "yes" not in tables.full_table(found, full, {})


def test_the_noise_and_the_copy_do_not_count_in_text_alone():
    found = league([3.5, 3.6, 3.7])
    found.bits[:, :, 1:3] = 100.0
    assert tables.text_alone(found).mean("odm") == pytest.approx([3.5, 3.6, 3.7])


def corpus(folder):
    """A file for each folder that the experiment reads."""
    for seed, name in enumerate(sorted(FOLDERS)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(seed, 80, words=20))
        path = folder / name / "000.jsonl.zst"
        path.parent.mkdir(parents=True)
        path.write_bytes(zstandard.compress(lines.encode()))
    return folder


def test_all_parts_run_and_run_again_from_what_is_there(tmp_path):
    line = [sys.executable, str(TOOLS / "experiment.py"), str(corpus(tmp_path / "corpus"))]
    line += [str(tmp_path / "out"), *SMALL.split()]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for head in ("bits/byte, all domains", "bits/byte, docs-ru", "pair (docs-en alone)"):
        assert head in done.stdout
    found = json.loads((tmp_path / "out/experiment.json").read_text())["parts"]
    assert {"odm", "regression", "natural", "temperature"} <= set(found["full"]["answers"])
    assert found["full"]["answers"]["odm"]["schedule"]
    assert found["single"]["domains"] is None
    aimed = found["target"]
    assert aimed["domains"] == ["docs-ru"]
    assert all("docs-ru" not in one["weights"] for one in aimed["answers"].values())
    again = subprocess.run(line, capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout
    assert "train" not in again.stderr
