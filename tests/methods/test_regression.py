import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from build_helpers import random_corpus, write_corpus
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mixc import pipeline
from mixc.errors import MixcError
from mixc.methods.regression import Options, fit_swarm, run_count, solve
from mixc.recipe import load
from mixc.solve.problem import Problem
from mixc.solve.simplex import minimise
from mixc.tokenize.stage import tokenize

# ---- a planted law of five domains ----

K = 5
SLOPES = -np.array(
    [
        [3.0, 1.0, 0.2, 0.1, 0.1],
        [0.5, 2.0, 0.3, 0.1, 0.0],
        [0.2, 0.3, 4.0, 0.5, 0.1],
        [0.1, 0.1, 0.2, 2.5, 0.4],
        [0.3, 0.0, 0.1, 0.6, 1.5],
    ]
)
FLOORS, HEIGHTS = np.array([1.0, 1.2, 0.8, 1.5, 1.1]), np.array([0.2, 0.5, 0.3, 0.4, 0.4])
TOKENS = np.array([5, 4, 3, 2, 1]) * 10**6
NATURAL = TOKENS / TOKENS.sum()
NAMES = tuple("abcde")


def law(weights):
    return FLOORS + np.exp(HEIGHTS + SLOPES @ weights)


def best(cap=None):
    def mean(p):
        heights = np.exp(HEIGHTS + SLOPES @ p)
        return (FLOORS + heights).mean(), heights @ SLOPES / K

    return minimise(mean, np.full(K, 1 / K), cap=cap)[0]


@dataclass
class Run:
    bits_per_byte: np.ndarray
    tokens: int = 100
    flops: float = 5.0


class Lab:
    """Runs follow the law, with noise that depends on the mix and the seed alone."""

    order = np.arange(len(NATURAL))

    def __init__(self, noise, function=law):
        self.noise, self.function, self.asked = noise, function, []
        self.held_bytes = 1.0 * ~np.isnan(function(NATURAL))

    def need_holdout(self, what):
        pass

    def run_mix(self, weights, *, seed=None, label=None):
        self.asked.append((weights, seed))
        key = int.from_bytes(np.round(weights, 9).tobytes()[:8], "little") + seed
        losses = self.function(weights)
        return Run(losses + self.noise * np.random.default_rng(key).normal(size=len(losses)))

    def environment(self):
        return {"lab": "planted"}


def problem(noise=0.0, function=law, **fields):
    return Problem(NAMES, TOKENS, 0, Lab(noise, function), **fields)


@pytest.mark.parametrize(("noise", "runs"), [(0.003, 18), (0.003, 60), (0.01, 60)])
def test_a_planted_law_is_solved_within_its_interval(noise, runs):
    solution = solve(problem(noise), Options(runs=runs))
    truth = best()
    assert solution.weights.sum() == pytest.approx(1, abs=1e-9)
    assert (solution.low <= solution.weights).all() and (solution.weights <= solution.high).all()
    inside = (solution.low - 1e-3 <= truth) & (truth <= solution.high + 1e-3)
    assert inside.all()
    gap = law(NATURAL).mean() - law(truth).mean()
    assert law(solution.weights).mean() - law(truth).mean() < 0.02 * gap
    assert (solution.high - solution.low).max() < 0.3


def test_without_noise_or_pull_the_law_is_solved_exactly():
    found = solve(problem(), Options(family="log_linear", kl=0.0)).weights
    assert found == pytest.approx(best(), abs=1e-3)


def test_cost_trajectory_and_seeds():
    given = problem(0.01)
    options = Options(runs=9, seeds=2, family="log_linear")
    solution = solve(given, options)
    assert (solution.tokens, solution.flops) == (18 * 100, 18 * 5.0)
    assert run_count(given, options) == len(given.lab.asked) == 18
    assert run_count(given, Options()) == 18
    assert {seed for _, seed in given.lab.asked} == {0, 1}
    swarm, objective = solution.trajectory["swarm"], solution.trajectory["objective"]
    assert swarm.shape == (9, K)
    assert swarm[0] == pytest.approx(NATURAL)
    assert swarm[1] == pytest.approx(np.full(K, 1 / K))
    assert objective[0] == pytest.approx(law(NATURAL).mean(), abs=0.02)
    assert solution.environment == {"lab": "planted"}


def test_caps_on_epochs_hold_in_every_run_and_in_the_answer():
    given = problem(0.003, target_tokens=10**7, max_epochs=1.0)
    solution = solve(given, Options(runs=24))
    cap = np.minimum(1, TOKENS / 10**7)
    assert all((mix <= cap + 1e-9).all() for mix, _ in given.lab.asked)
    assert (solution.weights <= cap + 1e-9).all()
    assert law(solution.weights).mean() < law(best(cap)).mean() + 2e-3


def test_noise_alone_leaves_the_natural_mix_nearly_alone():
    flat = problem(0.01, lambda weights: np.full(K, 2.0))
    solution = solve(flat, Options(runs=18))
    pulled = np.abs(solution.weights - NATURAL).sum()
    free = np.abs(solve(flat, Options(runs=18, kl=0.0)).weights - NATURAL).sum()
    assert pulled < free
    assert (solution.low <= NATURAL + 1e-6).all() and (solution.high + 1e-6 >= NATURAL).all()


def test_what_predicts_no_run_moves_no_weight():
    """Losses that hang on the runs' numbers alone; few runs, so that a chance is soon believed."""
    rng = np.random.default_rng(2)
    chance = problem(0.0, lambda weights: 2 + 0.01 * rng.normal(size=K))
    solution = solve(chance, Options(runs=18, metric="c"))
    assert solution.weights == pytest.approx(NATURAL, abs=0.01)
    assert (solution.high - solution.low).sum() > 0.5  # and nobody knows better


@pytest.mark.parametrize("family", ["auto", "boosting"])
def test_where_no_run_differs_the_natural_mix_is_the_answer(family):
    same = problem(0.0, lambda weights: np.full(K, 2.0))
    solution = solve(same, Options(runs=18, family=family))
    assert solution.weights == pytest.approx(NATURAL, abs=1e-3)


def test_too_few_runs_for_trees_alone():
    with pytest.raises(MixcError, match="boosting needs 10 runs") as raised:
        solve(problem(), Options(runs=9, family="boosting"))
    assert raised.value.code == "MX051"


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("c", 2), ({"c": 1.0}, 2), ({"c": 2.0, "a": 0.0}, 2)],
)
def test_one_domain_is_best_served_by_itself(metric, expected):
    solution = solve(problem(), Options(runs=24, metric=metric, kl=0.0, family="log_linear"))
    assert solution.weights[expected] > 0.99


def test_the_worst_domain():
    mean = solve(problem(), Options(runs=24, kl=0.0, family="log_linear")).weights
    worst = solve(problem(), Options(runs=24, kl=0.0, family="log_linear", metric="worst"))
    assert law(worst.weights).max() < law(mean).max()


def test_a_metric_that_is_not_there():
    with pytest.raises(MixcError) as raised:
        solve(given := problem(), Options(runs=9, metric="aa"))
    assert raised.value.code == "MX007"
    assert not given.lab.asked  # it is said before the swarm is trained


def test_one_domain_alone_is_refused_before_the_swarm_is_trained():
    given = Problem(NAMES, np.array([0, 9, 0, 0, 0]), 0, Lab(0.0))
    with pytest.raises(MixcError, match="all text is that of 'b'") as raised:
        solve(given, Options())
    assert raised.value.code == "MX051"
    assert not given.lab.asked


def test_domains_that_hold_nothing_out_are_not_scored():
    def partly(weights):
        return np.where(np.arange(K) == 1, np.nan, law(weights))

    given = problem(0.0, partly)
    with pytest.raises(MixcError, match="'b', which holds nothing out"):
        solve(given, Options(runs=9, metric="b"))
    assert not given.lab.asked
    assert solve(problem(0.0, partly), Options(runs=9)).weights.sum() == pytest.approx(1)


@settings(deadline=None, max_examples=2, phases=[Phase.generate])
@given(st.permutations(range(K)))
def test_the_order_of_domains_changes_nothing(order):
    order = list(order)
    back = np.argsort(order)
    moved = Problem(
        tuple(NAMES[i] for i in order),
        TOKENS[order],
        0,
        Lab(0.0, lambda weights: law(weights[back])[order]),
    )
    options = Options(runs=18, draws=20)
    plain, other = solve(problem(), options), solve(moved, options)
    assert other.weights == pytest.approx(plain.weights[order], abs=1e-6)
    assert other.low == pytest.approx(plain.low[order], abs=1e-6)


def test_reuse_solves_for_what_changed_alone(tmp_path):
    before = {"a": 0.3, "b": 0.3, "c": 0.2, "gone": 0.2}
    (tmp_path / "before.json").write_text(json.dumps(before))
    given = problem(0.0, folder=tmp_path)
    options = Options(reuse="before.json", kl=0.0, family="log_linear")
    solution = solve(given, options)
    assert len(given.lab.asked) == run_count(given, options) == 12  # 3 parts: d, e and the rest
    for mix in [*(mix for mix, _ in given.lab.asked), solution.weights]:
        if mix[0] > 0:
            assert mix[:3] / mix[0] == pytest.approx([1, 1, 2 / 3])
    basis = np.c_[np.eye(K)[:, 3:], np.array([0.3, 0.3, 0.2, 0, 0]) / 0.8]
    truth, _ = minimise(
        lambda p: (
            law(basis @ p).mean(),
            np.exp(HEIGHTS + SLOPES @ basis @ p) @ SLOPES @ basis / K,
        ),
        np.full(3, 1 / 3),
    )
    assert solution.weights == pytest.approx(basis @ truth, abs=2e-3)


# ---- runs made elsewhere ----


def test_runs_of_others(tmp_path):
    rng = np.random.default_rng(0)
    mixes = rng.dirichlet(np.ones(K), 40)
    rows = [f"{i}," + ",".join(map(repr, mix.tolist())) for i, mix in enumerate(mixes)]
    (tmp_path / "r.csv").write_text("index," + ",".join(NAMES) + "\n" + "\n".join(rows))
    scores = [f"{i},{law(mix).mean()},{-law(mix)[0]}" for i, mix in enumerate(mixes)]
    (tmp_path / "m.csv").write_text("index,bpb,accuracy\n" + "\n".join(scores))
    given = Problem(NAMES, TOKENS, 0, None, folder=tmp_path)  # nothing is trained
    options = Options(ratios="r.csv", metrics="m.csv", metric="bpb", kl=0.0)
    assert run_count(given, options) == 0
    solution = solve(given, options)
    # The mean of laws is no law: the surface is another, of 40 runs.
    assert law(solution.weights).mean() < law(best()).mean() + 5e-3
    assert (solution.tokens, solution.flops) == (0, 0)
    higher = solve(given, options.model_copy(update={"metric": {"accuracy": -1.0}}))
    assert higher.weights[0] > 0.9


def test_fit_swarm_is_the_surface():
    mixes = np.random.default_rng(0).dirichlet(np.ones(K), 30)
    surface = fit_swarm(mixes, np.stack([law(mix) for mix in mixes]))
    assert surface.predict(mixes[:2]) == pytest.approx(
        np.stack([law(mix) for mix in mixes[:2]]), abs=1e-3
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"runs": 2},
        {"ratios": "r.csv"},
        {"metrics": "m.csv"},
        {"ratios": "r.csv", "metrics": "m.csv", "variant": "schedule"},
        {"ratios": "r.csv", "metrics": "m.csv", "reuse": "w.json"},
        {"variant": "schedule", "seeds": 2},
        {"changed": ["a"]},
        {"family": "trees"},
        {"kl": -1.0},
        {"metric": {}},
        {"metric": {"a": 0.0}},
        {"metric": {"a": float("nan")}},
        {"metric": {"a": 1e300}},
    ],
)
def test_options_that_exclude_each_other(bad):
    with pytest.raises(ValidationError):
        Options(**bad)


def test_the_options_are_read_without_scipy_sklearn_or_torch():
    code = (
        "import sys, mixc.methods.regression;"
        "sys.exit(bool({'scipy', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- on a tiny store ----

CORPUS = random_corpus(6, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})
PROXY = {"preset": "nano", "steps": 4, "batch_tokens": 512, "seq_len": 32, "device": "cpu"}
SECTIONS = {
    "solve": {"method": "regression", "proxy": PROXY, "regression": {"runs": 6, "draws": 20}},
    "mixture": {"weights": "solved", "rows": 20},
    "seed": 4,
}


def test_a_store_is_solved_and_the_runs_are_kept(tmp_path):
    path = write_corpus(tmp_path, CORPUS, **SECTIONS)
    tokenize(load(path), workers=1)
    unchecked = ["solve.check=false"]  # whose runs would be kept too
    solved = pipeline.solve_weights(load(path, unchecked))
    assert sum(solved.weights.values()) == pytest.approx(1)
    assert "schedule" not in solved.manifest
    assert solved.manifest["cost"]["tokens"] == 6 * 4 * 16 * 31
    kept = sorted((tmp_path / "out").rglob("solve/runs/*.json"))
    assert len(kept) == 6
    again = pipeline.solve_weights(load(path, [*unchecked, "solve.regression.kl=100.0"]))
    assert again.weights != solved.weights
    assert sorted((tmp_path / "out").rglob("solve/runs/*.json")) == kept


SCHEDULE = ["solve.regression.variant=schedule", "solve.regression.stages=2"]


def test_a_schedule_is_solved_and_built_as_stages(tmp_path):
    path = write_corpus(tmp_path, CORPUS, **SECTIONS)
    recipe = load(path, SCHEDULE)
    tokenize(recipe, workers=1)
    solved = pipeline.solve_weights(recipe)
    assert [until for until, _ in solved.schedule] == [0.5, 1.0]
    mean = dict.fromkeys(CORPUS, 0.0)
    for _, weights in solved.schedule:
        assert sum(weights.values()) == pytest.approx(1)
        mean = {name: mean[name] + weights[name] / 2 for name in CORPUS}
    assert mean == pytest.approx(solved.weights)
    mixture = pipeline.build_mixture(recipe, workers=1)
    stages = mixture.manifest["stages"]
    assert [stage["until"] for stage in stages] == [0.5, 1.0]
    for stage, (_, weights) in zip(stages, solved.schedule, strict=True):
        found = {name: one["weight"] for name, one in stage["domains"].items()}
        assert found == pytest.approx(weights)
    # A file of weights keeps its schedule.
    file = Path(recipe.workdir_path / "weights.json").rename(tmp_path / "mine.json")
    other = load(path, [f"mixture.weights={file.name}"])
    assert len(pipeline.mixture_stages(other, pipeline.current_store(other))) == 2
    twice = load(path, ["mixture.stages=[{until: 1.0, weights: mine.json}]"])
    with pytest.raises(MixcError) as raised:
        pipeline.mixture_stages(twice, pipeline.current_store(twice))
    assert raised.value.code == "MX009"


def test_a_stage_that_is_too_short(tmp_path):
    path = write_corpus(tmp_path, CORPUS, **SECTIONS)
    recipe = load(path, [*SCHEDULE, "solve.regression.stages=4"])
    tokenize(recipe, workers=1)
    with pytest.raises(MixcError) as raised:
        pipeline.solve_weights(recipe)
    assert raised.value.code == "MX051"


def test_a_domain_that_the_cap_leaves_no_rows_of_a_stage(tmp_path):
    path = write_corpus(tmp_path, CORPUS | {"few": ["x"]}, **SECTIONS)
    recipe = load(path, [*SCHEDULE, "mixture.max_epochs=1"])
    tokenize(recipe, workers=1)
    with pytest.raises(MixcError, match="max_epochs leaves a domain fewer than 4") as raised:
        pipeline.solve_weights(recipe)
    assert raised.value.code == "MX051"


def test_files_of_runs_make_weights_stale(tmp_path):
    path = write_corpus(tmp_path, CORPUS, **SECTIONS)
    mixes = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    rows = [f"{i},{a!r},{b!r},{c!r}" for i, (a, b, c) in enumerate(mixes.tolist())]
    (tmp_path / "r.csv").write_text("index,code,prose,web\n" + "\n".join(rows))
    losses = "index,loss\n" + "\n".join(f"{i},{row[0] ** 2}" for i, row in enumerate(mixes))
    (tmp_path / "m.csv").write_text(losses)
    files = ["solve.regression.ratios=r.csv", "solve.regression.metrics=m.csv"]
    recipe = load(path, files)
    tokenize(recipe, workers=1)
    first = pipeline.solve_weights(recipe)
    assert first.manifest["cost"]["tokens"] == 0
    assert pipeline.solve_weights(recipe).manifest == first.manifest
    (tmp_path / "m.csv").write_text(losses.replace("loss\n0,", "loss\n0,1"))
    with pytest.raises(MixcError) as raised:
        pipeline.build_mixture(recipe, workers=1)
    assert raised.value.code == "MX045"
    (tmp_path / "m.csv").unlink()
    with pytest.raises(MixcError) as raised:
        pipeline.solve_weights(recipe)
    assert raised.value.code == "MX041"
