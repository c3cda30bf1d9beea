"""`mixc solve-weights` on a tiny store: what it writes, and when it has nothing to do."""

import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_helpers import all_documents, every_held_id, random_corpus, write_corpus

from mixc import pipeline
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.registry import METHODS
from mixc.solve.stage import estimate, fresh, make_problem
from mixc.solve.weights import open_weights
from mixc.store.hashes import hash_file
from mixc.tokenize.stage import tokenize

STEPS = 4
CORPUS = random_corpus(6, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})
PROXY = {"preset": "nano", "steps": STEPS, "batch_tokens": 512, "seq_len": 32, "device": "cpu"}
SECTIONS = {
    "solve": {"method": "doremi", "proxy": PROXY, "check": False},
    "mixture": {"weights": "solved", "rows": 20},
    "seed": 4,
}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """(recipe's path, store, solved weights). Not to be changed."""
    path = write_corpus(tmp_path_factory.mktemp("solve"), CORPUS, **SECTIONS)
    store = tokenize(load(path), workers=1)
    return path, store, pipeline.solve_weights(load(path))


def test_the_weights_lie_on_the_simplex_inside_their_intervals(solved):
    _, store, weights = solved
    domains = weights.manifest["domains"]
    assert list(domains) == list(store.domains) == ["code", "prose", "web"]
    assert math.fsum(weights.weights.values()) == pytest.approx(1, abs=1e-12)
    for entry in domains.values():
        assert set(entry) == {"weight", "low", "high"}
        assert 0 < entry["low"] <= entry["weight"] <= entry["high"] < 1
    assert any(entry["low"] < entry["high"] for entry in domains.values())


def test_the_manifest(solved):
    path, store, weights = solved
    manifest = weights.manifest
    assert manifest["schema"] == "mixc.weights/1"
    assert (manifest["method"], manifest["variant"]) == ("doremi", "paper")
    assert manifest["options"]["eta"] == 1.0
    assert manifest["proxy"]["steps"] == STEPS
    provenance = manifest["provenance"]
    assert provenance["store_hash"] == store.store_hash
    assert (provenance["seeds"], provenance["overrides"]) == ([4], [])
    # Reference and proxy, 16 rows of 31 predicted tokens a step.
    assert manifest["cost"]["tokens"] == 2 * STEPS * 16 * 31
    expected = estimate(load(path), store)
    assert manifest["cost"]["flops"] == pytest.approx(expected["flops"])
    assert expected["proxy_tokens"] == STEPS * 16 * 31
    total = sum(one.training_tokens for one in store.domains.values())
    for name, domain in store.domains.items():
        assert manifest["baselines"]["natural"][name] == domain.training_tokens / total
        assert manifest["baselines"]["uniform"][name] == 1 / 3
    assert math.fsum(manifest["baselines"]["unimax"].values()) == pytest.approx(1)


def test_bits_per_byte_are_those_of_nearly_untrained_models(solved):
    _, store, weights = solved
    assert list(weights.manifest["bits_per_byte"]) == ["reference"]  # the proxy is no model to use
    for name, bits in weights.manifest["bits_per_byte"]["reference"].items():
        held = [one for one in store.held_out(name) if len(one)]
        tokens = sum(len(one.tokens) for one in held)
        size = sum(int(one.n_bytes.sum()) for one in held)
        uniform = math.log2(store.vocab_size) * tokens / size
        assert 0.5 * uniform < bits < 1.2 * uniform


def test_the_trajectory_leads_to_the_weights(solved):
    _, _, weights = solved
    record = weights.manifest["trajectory"]
    file = weights.path.parent / record["path"]
    assert (file.stat().st_size, hash_file(file)) == (record["bytes"], record["xxh3"])
    table = pq.read_table(file)
    assert table.num_rows == STEPS * 3
    assert table["step"].to_pylist() == np.repeat(np.arange(STEPS), 3).tolist()
    assert table["domain"].to_pylist() == ["code", "prose", "web"] * STEPS
    alpha = table["alpha"].to_numpy().reshape(STEPS, 3)
    assert alpha.sum(axis=1) == pytest.approx(1)
    assert alpha.mean(axis=0) == pytest.approx(list(weights.weights.values()), abs=1e-15)
    for name in ("clipped_excess", "excess", "present", "proxy_loss", "reference_loss"):
        assert np.isfinite(table[name].to_numpy()).all()
    losses = table["proxy_loss"].to_numpy().reshape(STEPS, 3)
    assert (losses == losses[:, :1]).all()  # a value a step, whatever the domain


def test_it_repeats_to_the_bit(solved, tmp_path):
    _, _, weights = solved
    path = write_corpus(tmp_path, CORPUS, **SECTIONS)
    tokenize(load(path), workers=1)
    again = pipeline.solve_weights(load(path))
    assert again.path.read_bytes() == weights.path.read_bytes()


def test_a_second_solve_and_a_build_find_it_fresh(solved):
    path, _, weights = solved
    inode = weights.path.stat().st_ino
    assert pipeline.solve_weights(load(path)).manifest == weights.manifest
    assert weights.path.stat().st_ino == inode
    mixture = pipeline.build_mixture(load(path), workers=1)
    built = {name: entry["weight"] for name, entry in mixture.manifest["domains"].items()}
    assert built == weights.weights


@pytest.mark.parametrize(
    "override",
    [
        "seed=5",
        "solve.doremi.eta=0.5",
        "solve.proxy.steps=7",
        "solve.method=unimax",
    ],
)
def test_weights_of_other_options_are_stale(solved, override):
    path, store, _ = solved
    changed = load(path, [override])
    assert fresh(load(path), store) is not None
    assert fresh(changed, store) is None
    with pytest.raises(MixcError) as raised:
        pipeline.build_mixture(changed, workers=1)
    assert raised.value.code == "MX045"


def test_weights_of_another_revision_of_a_method_are_stale(solved, monkeypatch):
    path, store, weights = solved
    used = weights.manifest["method"]
    for name, stale in ((used, True), ("natural", False)):
        assert name in METHODS
        with monkeypatch.context() as patch:
            patch.setitem(METHODS, name, replace(METHODS[name], revision=9))
            assert (fresh(load(path), store) is None) == stale


def test_what_the_weights_do_not_depend_on(solved):
    path, store, _ = solved
    for override in (
        "name=other",
        "mixture.rows=21",
        "mixture.max_epochs=2",
        "mixture.formats=[megatron]",
        "mixture.order.shuffle_block=2",
    ):
        assert fresh(load(path, [override]), store) is not None


def test_weights_depend_on_the_repeats_of_the_mixture(solved):
    path, store, weights = solved
    assert weights.manifest["kept_rows"] is None  # models see more than this mixture has
    large = load(path, ["mixture.rows=2000"])
    assert fresh(large, store) is None
    lab = make_problem(large, store).lab
    seen = STEPS * 16 * 32 / (2000 * 16)
    for name, rows in zip(store.domains, lab.kept_rows.tolist(), strict=True):
        assert rows == round(store.domains[name].training_tokens * seen / 32)
    off = "solve.match_repetition=false"
    assert make_problem(load(path, ["mixture.rows=2000", off]), store).lab.kept_rows is None
    with pytest.raises(MixcError, match="no fewer tokens than the mixture's 320") as raised:
        make_problem(load(path, ["solve.match_repetition=true"]), store)
    assert raised.value.code == "MX007"
    assert raised.value.place.file == "-s solve.match_repetition=true"


def test_kept_rows_are_told(tmp_path):
    path = write_corpus(tmp_path, CORPUS, **SECTIONS | {"mixture": {"rows": 2000}})
    store = tokenize(load(path), workers=1)
    weights = pipeline.solve_weights(load(path))
    kept = make_problem(load(path), store).lab.kept_rows.tolist()
    assert weights.manifest["kept_rows"] == dict(zip(store.domains, kept, strict=True))
    # Each kept row is scored by the reference once, as the run's cost has it.
    share = sum(min(count, rows) for count, rows in zip((22, 21, 21), kept, strict=True)) / 64
    assert weights.manifest["cost"]["plain_runs"] == pytest.approx(2 + share / 3, abs=0.01)
    assert share < 0.5


# ---- outputs that are cut, damaged or left by others ----


@pytest.fixture
def workdir(tmp_path):
    """A store, and weights that doremi found in one step."""
    path = write_corpus(tmp_path, CORPUS, **SECTIONS)
    recipe = load(path, ["solve.proxy.steps=1", "solve.proxy.batch_tokens=64"])
    tokenize(recipe, workers=1)
    return recipe, pipeline.solve_weights(recipe), tmp_path / "out"


def refused(recipe):
    with pytest.raises(MixcError) as raised:
        pipeline.build_mixture(recipe, workers=1)
    return raised.value.code


def test_a_trajectory_that_is_missing_cut_or_damaged_is_noticed(workdir):
    recipe, weights, out = workdir
    (file,) = out.glob("trajectory-*.parquet")
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", whole[:50] + b"?" + whole[51:]):
        file.write_bytes(damaged)
        assert refused(recipe) == "MX045"
    file.unlink()
    assert refused(recipe) == "MX045"
    assert pipeline.solve_weights(recipe).manifest == weights.manifest
    assert file.read_bytes() == whole


def test_damaged_weights_are_not_built_from_and_solved_again(workdir):
    recipe, weights, _ = workdir
    whole = weights.path.read_bytes()
    for damaged in (whole[:-1], b"", whole.replace(b'"low": 0', b'"low": 1')):
        weights.path.write_bytes(damaged)
        assert refused(recipe) == "MX040"
    assert pipeline.solve_weights(recipe).path.read_bytes() == whole


def test_the_old_trajectory_goes_when_new_weights_come(workdir):
    recipe, _, out = workdir
    (before,) = out.glob("trajectory-*.parquet")
    pipeline.solve_weights(load(recipe.file, ["solve.proxy.steps=2", *recipe.overrides[1:]]))
    (after,) = out.glob("trajectory-*.parquet")
    assert before.name != after.name
    weights = pipeline.solve_weights(load(recipe.file, ["solve.method=uniform"]))
    assert list(out.glob("trajectory-*.parquet")) == []
    assert weights.manifest["trajectory"] is None
    assert weights.manifest["cost"] == {"tokens": 0, "flops": 0.0}
    assert open_weights(weights.path).weights == dict.fromkeys(CORPUS, 1 / 3)
    assert not (out / ".mixc/weights.json/staging").exists()


def test_without_weights_or_a_solve_section(tmp_path):
    path = write_corpus(tmp_path, CORPUS, **SECTIONS)
    tokenize(load(path), workers=1)
    with pytest.raises(MixcError) as raised:
        pipeline.build_mixture(load(path), workers=1)
    assert raised.value.code == "MX041"
    with pytest.raises(MixcError) as raised:
        pipeline.solve_weights(load(path, ["solve=null", "mixture.weights=natural"]))
    assert raised.value.code == "MX009"


@pytest.fixture
def held_texts(tmp_path):
    """Documents that the store at `tmp_path/first` holds out."""
    store = tokenize(load(write_corpus(tmp_path / "first", CORPUS, **SECTIONS)), workers=1)
    held = every_held_id(store)
    found = [t[:-1] for name in CORPUS for i, t in all_documents(store, name) if i in held]
    assert len(found) == 10
    return found


ALSO = {"fraction": 0.1, "also": "../first/out/store/holdout.arrow"}


def test_a_domain_that_is_all_held_out_cannot_be_solved_for(held_texts, tmp_path):
    corpus = {"web": CORPUS["web"], "small": held_texts[:2]}
    path = write_corpus(tmp_path / "second", corpus, **SECTIONS, holdout=ALSO)
    store = tokenize(load(path), workers=1)
    assert store.domains["small"].training_tokens == 0
    with pytest.raises(MixcError) as raised:
        pipeline.solve_weights(load(path))
    assert raised.value.code == "MX051"
    assert "small" in raised.value.message
    # A build goes without it, and says that it was cut.
    mixture = pipeline.build_mixture(load(path, ["mixture.weights=uniform"]), workers=1)
    assert mixture.manifest["domains"]["small"]["rows"] == 0
    assert mixture.manifest["domains"]["small"]["capped"]
    assert mixture.manifest["domains"]["web"]["rows"] == 20


@pytest.mark.parametrize("weights", ["natural", "uniform", "unimax"])
def test_a_store_that_is_all_held_out_is_mx060(held_texts, tmp_path, weights):
    corpus = {"web": held_texts}
    path = write_corpus(tmp_path / "second", corpus, **SECTIONS, holdout=ALSO)
    tokenize(load(path), workers=1)
    with pytest.raises(MixcError) as raised:
        pipeline.build_mixture(load(path, [f"mixture.weights={weights}"]), workers=1)
    assert raised.value.code == "MX060"
