"""The check that ends a solve, in weights.json, on a tiny store."""

import pytest
from build_helpers import random_corpus, write_corpus

from mixc import pipeline
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.report import tables
from mixc.solve.stage import estimate, fresh
from mixc.solve.trainer import Trainer
from mixc.tokenize.stage import tokenize

CORPUS = random_corpus(6, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})
PROXY = {"preset": "nano", "steps": 3, "batch_tokens": 256, "seq_len": 32, "device": "cpu"}
SECTIONS = {
    "solve": {"method": "doremi", "proxy": PROXY, "check": {"seeds": 2}},
    "mixture": {"weights": "solved", "rows": 20},
    "seed": 4,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = write_corpus(tmp_path_factory.mktemp("checked"), CORPUS, **SECTIONS)
    tokenize(load(path), workers=1)
    return path


@pytest.fixture(scope="module")
def solved(path):
    return pipeline.solve_weights(load(path)).manifest


def test_the_answer_stands_beside_the_simple_mixes(solved):
    check = solved["check"]
    assert set(check["mixes"]) == {"doremi", "natural", "uniform", "unimax"}
    assert check["seeds"] == [4, 5]
    for entry in check["mixes"].values():
        bits = [value for value in entry["bits_per_byte"].values() if value is not None]
        assert entry["mean"] == pytest.approx(sum(bits) / len(bits))
        assert entry["worst"] == pytest.approx(max(bits))
    assert check["verdict"]["outcome"] in ("better", "tie", "worse")


def test_costs_are_told_apart(path, solved):
    cost = solved["cost"]
    run = 3 * 8 * 31  # tokens that a model predicts
    assert cost["tokens"] == 2 * run
    # The reference, the proxy, and a forward pass over every fourth row.
    assert cost["plain_runs"] == pytest.approx(2 + 1 / 4 / 3)
    assert cost["check"]["tokens"] == 4 * 2 * run
    whole = ["solve.doremi.scored=1", "solve.check=false"]
    alone = pipeline.solve_weights(load(path, whole)).manifest
    assert alone["cost"]["plain_runs"] == pytest.approx(7 / 3)


def test_people_are_told_what_it_cost(path, solved, capsys):
    free = pipeline.solve_weights(load(path, ["solve.method=natural"])).manifest
    for manifest, said in [(solved, "cost: 2.08 plain runs of the small model"), (free, None)]:
        tables.weights("weights.json", manifest)
        shown = [line for line in capsys.readouterr().out.splitlines() if "cost:" in line]
        assert [line.partition(",")[0] for line in shown] == ([said] if said else [])
        assert not said or f"; the check {manifest['cost']['check']['flops']:.2g}" in shown[0]


@pytest.mark.parametrize(("method", "seed"), [("doremi", 21), ("ir_dro", 22)])
def test_a_reference_on_a_simple_mix_is_its_run_in_the_check(path, method, seed, monkeypatch):
    trained, plain = [], Trainer.train

    def train(self, name, *args, **kwargs):
        trained.append(name.partition("-")[0])
        return plain(self, name, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", train)
    # Another seed for each: runs that one solve kept would serve the other.
    settings = [f"solve.method={method}", f"seed={seed}", "solve.check.seeds=1"]
    mixes = pipeline.solve_weights(load(path, settings)).manifest["check"]["mixes"]
    different = {tuple(entry["bits_per_byte"].values()) for entry in mixes.values()}
    assert trained.count("reference") == 1
    assert trained.count("mix") == len(different) - 1  # without natural


def test_on_a_tie_the_simple_mix_may_be_the_answer(path, solved):
    # Three steps tell nothing apart.
    assert solved["answer"] == "doremi" and solved["check"]["verdict"]["as_good"]
    found = pipeline.solve_weights(load(path, ["solve.check.on_tie=simple"])).manifest
    first = found["check"]["verdict"]["as_good"][0]
    assert found["answer"] == first
    weights = {name: entry["weight"] for name, entry in found["domains"].items()}
    assert weights == found["baselines"][first]
    assert found["not_taken"] == solved["domains"]


def test_doubts_are_of_the_answer_that_is_taken(path):
    # One run at such a rate ends on one domain, whichever that is.
    loud = ["solve.doremi={eta: 1e5, scored: 1, smoothing: 0}"]
    kept = pipeline.solve_weights(load(path, loud)).manifest
    assert any("nearly all of the weight" in doubt for doubt in kept["doubts"])
    taken = pipeline.solve_weights(load(path, [*loud, "solve.check.on_tie=simple"])).manifest
    assert taken["answer"] in taken["baselines"]
    assert taken["doubts"] == []


def test_another_mixture_is_checked_anew_as_unimax_is_another(path, solved):
    store = pipeline.current_store(load(path))
    assert pipeline.solve_weights(load(path)).manifest == solved
    assert fresh(load(path), store)
    assert fresh(load(path, ["mixture.max_epochs=3"]), store) is None
    assert fresh(load(path, ["mixture.formats=[olmo]"]), store)


def test_the_check_is_foreseen(path, solved):
    store = pipeline.current_store(load(path))
    foreseen = estimate(load(path), store)["check_flops"]
    assert foreseen == pytest.approx(solved["cost"]["check"]["flops"])
    assert estimate(load(path, ["solve.check=false"]), store)["check_flops"] == 0
    assert estimate(load(path, ["solve.method=natural"]), store)["check_flops"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["solve.method=doremi"],
        ["solve.method=mixmin", "solve.check=false"],
        ["solve.method=skill_it", "solve.check=false"],
        ["solve.method=aioli", "solve.check=false"],
        ["solve.method=regression", "solve.check=false"],
    ],
)
def test_where_nothing_is_held_out_nothing_is_trained_in_vain(words, unheld):
    path, trained = unheld
    with pytest.raises(MixcError) as raised:
        pipeline.solve_weights(load(path, words))
    assert raised.value.code == "MX051" and "holdout.fraction" in raised.value.help
    assert trained == []


@pytest.fixture
def unheld(tmp_path, monkeypatch):
    """A recipe whose store holds nothing out, and the steps of all trainings to come."""
    path = write_corpus(tmp_path, CORPUS, **SECTIONS, holdout={"fraction": 0.0})
    tokenize(load(path), workers=1)
    trained = []
    monkeypatch.setattr("mixc.proxy.train.train", lambda *_, **__: trained.append(1))
    return path, trained


def test_weights_of_rounds_or_of_a_schedule_are_not_said_to_drift(path):
    rounds = ["solve.doremi.rounds=3", "solve.doremi.eta=50", "solve.doremi.tolerance=1e-9"]
    for words in (rounds, ["solve.method=odm", "solve.odm.variant=official"]):
        found = pipeline.solve_weights(load(path, [*words, "solve.check=false"])).manifest
        assert not any("settled" in doubt for doubt in found["doubts"])


def test_a_check_that_is_not_wanted_trains_nothing(path):
    found = pipeline.solve_weights(load(path, ["solve.check=false"])).manifest
    assert found["check"] is None and "check" not in found["cost"]


def test_methods_that_train_nothing_are_not_checked(path):
    found = pipeline.solve_weights(load(path, ["solve.method=temperature"])).manifest
    assert found["check"] is None and found["doubts"] == []
    assert found["cost"] == {"tokens": 0, "flops": 0.0}


@pytest.mark.parametrize("method", ["mixmin", "skill_it", "aioli", "mixing_law"])
def test_methods_of_many_models_solve(method, path):
    words = [f"solve.method={method}", "solve.check=false", "solve.proxy.steps=20"]
    if method == "mixing_law":
        words.append("solve.mixing_law.runs=6")
    if method == "aioli":
        words += ["solve.aioli.rounds=2", "solve.aioli.sweeps=1"]
    found = pipeline.solve_weights(load(path, words)).manifest
    weights = [entry["weight"] for entry in found["domains"].values()]
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    for entry in found["domains"].values():
        assert entry["low"] <= entry["weight"] + 1e-12
        assert entry["high"] >= entry["weight"] - 1e-12
    run, runs = 20 * 8 * 31, {"mixmin": 3, "skill_it": 4, "aioli": 1, "mixing_law": 6}
    assert found["cost"]["tokens"] == runs[method] * run
    if method in ("skill_it", "aioli"):
        assert found["schedule"][-1]["until"] == 1
