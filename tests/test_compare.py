"""`mixc compare` on a tiny store: who is in the league, what it cost, and what is kept."""

import json

import pytest
from build_helpers import random_corpus, write_corpus

from mixc import pipeline
from mixc.compare import compare_mixes
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.solve.trainer import Running
from mixc.tokenize.stage import tokenize

PROXY = {"preset": "nano", "steps": 3, "batch_tokens": 256, "seq_len": 32, "device": "cpu"}
CORPUS = random_corpus(8, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    sections = {"solve": {"method": "natural", "proxy": PROXY}, "seed": 4}
    path = write_corpus(tmp_path_factory.mktemp("compare"), CORPUS, **sections)
    tokenize(load(path), workers=1)
    return path


def test_mixes_methods_and_files_meet_in_one_league(path):
    weights = {"code": 0.5, "prose": 0.25, "web": 0.25}
    (path.parent / "mine.json").write_text(json.dumps(weights))
    recipe = load(path)
    found = compare_mixes(recipe, ["natural", "mine.json", "doremi", "natural"], seeds=2)
    mixes = found["mixes"]
    assert set(mixes) == {"natural", "mine.json", "doremi"}
    assert mixes["mine.json"]["weights"] == weights
    assert found["seeds"] == [4, 5] and found["runs"] == 6
    assert found["tokens"] == 6 * 3 * 8 * 31
    assert mixes["natural"]["solve_flops"] == 0 < mixes["doremi"]["solve_flops"]
    assert mixes["mine.json"]["solve_flops"] is None
    means = [entry["mean"] for entry in mixes.values()]
    assert means == sorted(means)
    assert all(set(entry["bits_per_byte"]) == set(CORPUS) for entry in mixes.values())
    kept = sorted((recipe.workdir_path / "solve/runs").iterdir())
    assert len(kept) == 6
    heard = []
    again = compare_mixes(
        recipe,
        ["natural", "mine.json", "doremi"],
        seeds=2,
        running=Running(listeners=(heard.append,)),
    )
    assert again == found and heard == []  # no model is trained again
    assert sorted((recipe.workdir_path / "solve/runs").iterdir()) == kept


def test_answers_depend_on_their_options_and_a_damaged_one_is_found_again(path, capsys):
    def steps(*overrides):
        heard = []
        running = Running(listeners=(lambda event: heard.append(event.run),))
        compare_mixes(load(path, overrides), ["doge"], seeds=1, running=running)
        return heard

    assert steps().count("doge") == 3 and steps() == []
    assert steps("solve.doge.mu=0.5").count("doge") == 3
    for kept in (load(path).workdir_path / "solve/answers").iterdir():
        kept.write_bytes(b"{}")
    assert steps().count("doge") == 3
    assert "is not used" in capsys.readouterr().err


def test_solved_weights_take_part_once_they_are_there(path):
    with pytest.raises(MixcError) as raised:
        compare_mixes(load(path, ["solve.method=temperature"]), ["solved"], seeds=1)
    assert raised.value.code == "MX041"
    pipeline.solve_weights(load(path))
    found = compare_mixes(load(path), ["solved", "natural"], seeds=1)["mixes"]
    assert found["solved"]["bits_per_byte"] == found["natural"]["bits_per_byte"]


def test_a_schedule_is_trained_on_as_it_changes(path):
    odm = ["solve.method=odm", "solve.odm.variant=official", "solve.check=false"]
    solved = pipeline.solve_weights(load(path, odm))
    mean = solved.weights
    (path.parent / "mean.json").write_text(json.dumps(mean))
    (path.parent / "kept.json").write_bytes(solved.path.read_bytes())
    names = ["solved", "odm", "kept.json", "mean.json"]
    mixes = compare_mixes(load(path, odm), names, seeds=1)["mixes"]
    bits = {name: entry["bits_per_byte"] for name, entry in mixes.items()}
    assert bits["solved"] == bits["odm"] == bits["kept.json"] != bits["mean.json"]
    assert all(entry["weights"] == mean for entry in mixes.values())
    assert mixes["solved"]["solve_flops"] == mixes["odm"]["solve_flops"] > 0


def test_a_recipe_that_does_not_say_what_to_train(path):
    with pytest.raises(MixcError) as raised:
        compare_mixes(load(path, ["solve=null", "mixture.weights=natural"]), ["natural"], seeds=1)
    assert raised.value.code == "MX009"


def test_a_name_that_is_no_mix(path):
    with pytest.raises(MixcError) as raised:
        compare_mixes(load(path), ["unifrom"], seeds=1)
    assert raised.value.code == "MX008" and "uniform" in raised.value.help


def test_a_file_that_weighs_other_domains(path):
    (path.parent / "other.json").write_text('{"code": 0.5, "elsewhere": 0.5}')
    with pytest.raises(MixcError) as raised:
        compare_mixes(load(path), ["other.json"], seeds=1)
    assert raised.value.code == "MX061" and "elsewhere" in raised.value.message
