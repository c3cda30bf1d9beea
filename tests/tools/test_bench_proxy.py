"""The benchmark of methods' steps: that its ways agree, and one small run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import bench_proxy

from mixc.proxy.presets import Shape

TOOL = Path(bench_proxy.__file__)


def test_all_ways_give_the_same_products_and_gradient():
    case = bench_proxy.make_case(Shape(2, 16, 2, 32), 40, domains=3, tokens=16, seq_len=8)
    assert case.batch.tokens.shape == (6, 9) and case.batch.domain.tolist() == [0, 0, 1, 1, 2, 2]
    products, gradients = [], []
    for provider in bench_proxy.PARTS["doge"].values():
        for parameter in case.model.parameters():
            parameter.grad = None
        products.append(provider(case)())
        parts = [p.grad.flatten().numpy() for p in case.model.parameters()]
        gradients.append(np.concatenate(parts))
    # A plain step has no products, and a step of DoGE's others.
    assert [one is None for one in products] == [True, False, False, False, True, False, False]
    for one in products:
        if one is not None:
            np.testing.assert_allclose(one, products[-1], rtol=1e-4, atol=1e-7)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=1e-4, atol=1e-6)


def test_a_small_run(tmp_path):
    line = [sys.executable, str(TOOL), "--preset", "nano", "--layers", "1", "--vocab", "64"]
    line += ["--domains", "2", "--tokens", "8", "--seq-len", "8", "--repeat", "2"]
    line += ["--json", str(tmp_path / "found.json")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["part"], row["step"]) for row in found["rows"]] == [
        (part, name) for part, steps in bench_proxy.PARTS.items() for name in steps
    ]
    assert all(len(row["cpu"]) == len(row["wall"]) == 2 for row in found["rows"])
    assert set(found["versions"]) == {"mixc", "torch", "numpy"} and found["date"]
    assert done.stdout == bench_proxy.render(found) + "\n"
    assert "| DomainGrads " in done.stdout and "tokens / CPU s" in done.stdout


def test_arguments():
    options = bench_proxy.parse(["--only", "doge,training", "--layers", "4"])
    assert options.only == ["doge", "training"]
    assert (options.shape.layers, options.shape.width) == (4, 192)
    for wrong in (["--only", "dog"], ["--domains", "7"]):
        with pytest.raises(SystemExit):
            bench_proxy.parse(wrong)
