"""Every method that trains, on a tiny store: its answer, its files, and a run that is killed."""

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_helpers import random_corpus, write_corpus

from mixc import pipeline
from mixc.errors import MixcError
from mixc.proxy import train as train_module
from mixc.recipe import load
from mixc.rows.weights import read_weights
from mixc.solve.stage import estimate, make_problem, run_method
from mixc.tokenize.stage import tokenize
from mixc.verify import verify

STEPS, NAMES = 3, ["code", "prose", "web"]
CORPUS = random_corpus(6, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})
PROXY = {"preset": "nano", "steps": STEPS, "batch_tokens": 256, "seq_len": 32, "device": "cpu"}
SECTIONS = {
    "solve": {"method": "doremi", "proxy": PROXY},
    "mixture": {"weights": "solved", "rows": 20},
    "seed": 4,
}
RUNS = [
    ("doremi", {}),
    ("doremi", {"variant": "official", "rounds": 2}),
    ("doge", {}),
    ("doge", {"gradient": "adam", "target": ["web"]}),
    ("doge", {"variant": "official"}),
    ("doge", {"variant": "official", "target": ["web"], "train_target": True}),
    ("odm", {"warmup": 0.4, "stages": 3}),
    ("odm", {"variant": "official", "initial": "uniform"}),
    ("ir_dro", {}),
    ("ir_dro", {"rule": "mid_rank", "most_documents": 9}),
    ("tracin_we", {"checkpoints": 2, "batches": 2}),
    ("tracin_we", {"checkpoints": 2, "layers": ["middle", "all"], "aggregation": "rank"}),
    ("tracin_we", {"checkpoints": 2, "weights": "documents", "target": ["web"]}),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = write_corpus(tmp_path_factory.mktemp("runs"), CORPUS, **SECTIONS)
    return path, tokenize(load(path), workers=1)


def recipe_of(path, name, options):
    given = [f"solve.{name}.{key}={str(value).lower()}" for key, value in options.items()]
    return load(path, [f"solve.method={name}", *given])


def solved(path, store, name, options, staging=None):
    recipe = recipe_of(path, name, options)
    return run_method(name, make_problem(recipe, store, staging), recipe.solve.options)


class KilledError(Exception):
    """What a test throws where a machine would have failed."""


@pytest.fixture
def counted(monkeypatch):
    """The steps so far; one more than `counted.most` of them cannot be made."""
    plain, steps = train_module._update, Steps()

    def counting(options, state, losses, scalar):
        if steps.most is not None and len(steps) == steps.most:
            raise KilledError
        steps.append(state.step)
        plain(options, state, losses, scalar)

    monkeypatch.setattr(train_module, "_update", counting)
    monkeypatch.setattr("mixc.proxy.checkpoint.Checkpoint.due", lambda _: True)
    return steps


class Steps(list):
    most = None


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_the_answer_and_a_run_that_is_killed_comes_to_the_same(
    store, tmp_path, counted, name, options
):
    path, opened = store
    whole = solved(path, opened, name, options)
    check_answer(whole, options)
    total, counted.most = len(counted), 2 * len(counted) - 2  # before the last step but one
    with pytest.raises(KilledError):
        solved(path, opened, name, options, tmp_path)
    counted.most = None
    found = solved(path, opened, name, options, tmp_path)
    assert len(counted) == 2 * total  # nothing was trained twice
    assert np.array_equal(found.weights, whole.weights)
    for key, values in whole.trajectory.items():
        assert np.array_equal(found.trajectory[key], values, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("doge", {}, 1e-6),
        ("doge", {"variant": "official", "gradient": "adam"}, 1e-6),
        ("ir_dro", {}, 1e-6),
        ("ir_dro", {"most_documents": 9}, 0.1),
        ("tracin_we", {"checkpoints": 2, "layers": ["middle", "all"]}, 1e-6),
        ("tracin_we", {"checkpoints": 9, "weights": "documents"}, 1e-6),
    ],
)
def test_what_is_computed_beside_the_training_is_foreseen(store, name, options, error):
    path, opened = store
    foreseen = estimate(recipe_of(path, name, options), opened)
    assert foreseen["flops"] == pytest.approx(solved(path, opened, name, options).flops, rel=error)


def check_answer(found, options):
    """Weights on the simplex, in their intervals; a target alone has none."""
    assert found.weights.sum() == pytest.approx(1, abs=1e-9)
    assert (found.weights >= 0).all()
    assert (found.low <= found.weights + 1e-12).all()
    assert (found.weights <= found.high + 1e-12).all()
    assert found.tokens >= STEPS * 8 * 31
    assert found.flops > 0
    for values in found.trajectory.values():
        assert values.shape[1:] in {(), (3,)}
    if options.get("target") and not options.get("train_target"):
        assert found.weights[NAMES.index("web")] == 0
        assert (found.weights[:2] > 0).all()


def test_rounds_of_doremi_end_when_the_answer_stands(store):
    path, opened = store
    one = solved(path, opened, "doremi", {"rounds": 3, "tolerance": 1.0})
    two = solved(path, opened, "doremi", {"rounds": 2, "tolerance": 1e-9})
    assert len(one.trajectory["alpha"]) == STEPS
    assert len(two.trajectory["alpha"]) == 2 * STEPS
    assert two.trajectory["round"].tolist() == STEPS * [1] + STEPS * [2]
    assert (two.tokens, two.flops) == (2 * one.tokens, pytest.approx(2 * one.flops))
    assert np.array_equal(two.trajectory["alpha"][:STEPS], one.trajectory["alpha"])
    assert two.weights == pytest.approx(two.trajectory["alpha"][STEPS:].mean(axis=0))


def test_t14_the_order_of_domains_in_the_recipe_changes_nothing(store, tmp_path):
    path, opened = store
    turned = {name: CORPUS[name] for name in reversed(CORPUS)}
    other = write_corpus(tmp_path, turned, **SECTIONS)
    again = tokenize(load(other), workers=1)
    for name in ("doremi", "doge", "odm"):
        found, same = solved(path, opened, name, {}), solved(other, again, name, {})
        assert np.array_equal(found.weights, same.weights)


def test_the_options_of_all_methods_are_read_without_torch():
    code = "import sys, mixc.recipe as r; r.recipe_model(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- what stands in weights.json, and what builds make of it ----


def test_odm_writes_its_schedule(store):
    path, _ = store
    recipe = recipe_of(path, "odm", {"warmup": 0.4, "stages": 3})
    weights = pipeline.solve_weights(recipe)
    schedule = weights.manifest["schedule"]
    assert [stage["until"] for stage in schedule] == [0.5, 1.0]  # two steps after the warm-up
    for name, weight in weights.weights.items():
        assert np.mean([stage["weights"][name] for stage in schedule]) == pytest.approx(weight)


def test_documents_weights_go_into_the_mixture(store):
    path, _ = store
    options = {"temperature": 0.05, "largest": 3}
    recipe = recipe_of(path, "ir_dro", options)
    weights = pipeline.solve_weights(recipe)
    file = weights.path.parent / weights.manifest["documents"]["path"]
    table = pq.read_table(file).to_pydict()
    assert len(table["doc_id"]) == len(set(table["doc_id"]))
    assert max(table["weight"]) <= 3 + 1e-9
    assert len(set(table["weight"])) > 10
    assert len(read_weights(file).ids) == len(table["doc_id"])
    given = [f"solve.ir_dro.{key}={value}" for key, value in options.items()]
    with_them = load(path, ["solve.method=ir_dro", *given, "mixture.document_weights=solved"])
    mixture = pipeline.build_mixture(with_them, workers=1)
    assert "document_weights" in mixture.manifest
    verify(mixture.root)
    # A file that is damaged makes the weights stale.
    file.write_bytes(b"PAR1")
    with pytest.raises(MixcError) as raised:
        pipeline.build_mixture(with_them, workers=1)
    assert raised.value.code == "MX045"


def test_a_method_without_documents_weights_says_so(store):
    path, _ = store
    recipe = load(path, ["solve.method=uniform", "mixture.document_weights=solved"])
    pipeline.solve_weights(recipe)
    with pytest.raises(MixcError) as raised:
        pipeline.build_mixture(recipe, workers=1)
    assert raised.value.code == "MX061"
    with pytest.raises(MixcError) as raised:
        load(path, ["solve=null", "mixture.weights=natural", "mixture.document_weights=solved"])
    assert raised.value.code == "MX009"
