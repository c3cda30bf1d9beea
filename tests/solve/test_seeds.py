"""Several seeds of one method, and the answer that they make."""

import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_helpers import random_corpus, write_corpus

from mixc import pipeline
from mixc.recipe import load
from mixc.solve.problem import DocumentShares, Solution
from mixc.solve.seeds import combine, disagreement
from mixc.solve.stage import estimate
from mixc.tokenize.stage import tokenize

CORPUS = random_corpus(6, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})
PROXY = {"preset": "nano", "steps": 3, "batch_tokens": 256, "seq_len": 32, "device": "cpu"}


def solution(*weights):
    mix = np.array(weights)
    bits = {"proxy": np.array([1.0, weights[0]])}
    return Solution(mix, mix - 0.1, mix + 0.05, bits_per_byte=bits, tokens=10, flops=2.0)


def test_the_answer_is_the_mean_in_an_interval_over_all_seeds():
    found = combine([solution(0.2, 0.8), solution(0.6, 0.4)])
    assert found.weights == pytest.approx([0.4, 0.6])
    assert found.low == pytest.approx([0.1, 0.3])
    assert found.high == pytest.approx([0.65, 0.85])
    assert found.bits_per_byte["proxy"] == pytest.approx([1.0, 0.4])
    assert (found.tokens, found.flops) == (20, 4.0)


def test_schedules_and_documents_are_means_too():
    mixes = [np.array(mix) for mix in ([0.2, 0.8], [0.6, 0.4], [0.4, 0.6], [0.8, 0.2])]
    shares = [
        DocumentShares(np.array(ids, np.uint64), np.array(weights))
        for ids, weights in (([3, 9], [0.5, 2.0]), ([3, 5], [1.5, 3.0]))
    ]
    found = combine(
        [
            replace(solution(0.2, 0.8), schedule=((0.5, a), (1.0, b)), documents=documents)
            for a, b, documents in ((*mixes[:2], shares[0]), (*mixes[2:], shares[1]))
        ]
    )
    assert [end for end, _ in found.schedule] == [0.5, 1.0]
    assert np.array(found.schedule[0][1]) == pytest.approx([0.3, 0.7])
    assert np.array(found.schedule[1][1]) == pytest.approx([0.7, 0.3])
    assert found.documents.ids.tolist() == [3, 5, 9]
    assert found.documents.weights == pytest.approx([1.0, 3.0, 2.0])
    plain = combine([solution(0.2, 0.8), solution(0.6, 0.4)])
    assert plain.schedule is None
    assert plain.documents is None


def test_how_far_seeds_lie_apart():
    found = disagreement("ab", [solution(0.2, 0.8), solution(0.6, 0.4), solution(0.2, 0.8)])
    assert found["weights"][1] == {"a": 0.6, "b": 0.4}
    assert found["total_variation"] == pytest.approx({"mean": 0.8 / 3, "max": 0.4})
    assert disagreement("ab", [solution(0.2, 0.8)]) is None


def test_a_seed_of_several_is_a_recipe_of_that_seed(tmp_path):
    path = write_corpus(
        tmp_path,
        CORPUS,
        solve={"method": "doremi", "proxy": PROXY},
        mixture={"weights": "solved", "rows": 20},
        seed=4,
    )
    store = tokenize(load(path), workers=1)
    alone = [pipeline.solve_weights(load(path, [f"seed={seed}"])) for seed in (4, 5)]
    several = load(path, ["solve.seeds=2"])
    together = pipeline.solve_weights(several)
    manifest = together.manifest
    assert manifest["between_seeds"]["weights"] == [one.weights for one in alone]
    for name, weight in together.weights.items():
        assert weight == pytest.approx(np.mean([one.weights[name] for one in alone]), abs=1e-15)
        ends = [one.manifest["domains"][name] for one in alone]
        assert manifest["domains"][name]["low"] == min(end["low"] for end in ends)
        assert manifest["domains"][name]["high"] == max(end["high"] for end in ends)
    assert 0 < manifest["between_seeds"]["total_variation"]["max"] < 1
    assert manifest["provenance"]["seeds"] == [4, 5]
    assert manifest["cost"]["tokens"] == 2 * alone[0].manifest["cost"]["tokens"]
    assert manifest["cost"]["flops"] == pytest.approx(estimate(several, store)["flops"])
    assert math.fsum(together.weights.values()) == pytest.approx(1, abs=1e-12)
    table = pq.read_table(tmp_path / "out" / manifest["trajectory"]["path"])
    assert table["seed"].to_pylist() == 9 * [4] + 9 * [5]
    assert alone[0].manifest["between_seeds"] is None
