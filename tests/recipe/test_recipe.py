"""What a good recipe becomes, and its canonical form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from recipe.good_recipes import FULL, GOOD

from mixc import recipe
from mixc.recipe import Recipe


def test_every_key(write):
    made = recipe.load(write(FULL))
    assert isinstance(made, Recipe)
    assert made.tokenizer.train is not None
    assert made.tokenizer.train.sample_bytes == 20_000_000
    assert made.domains["python"].paths == ("corpus/python/*.jsonl.zst", "more/*.jsonl")
    assert made.domains["prose.en"].text == "body"
    assert made.domains["prose.en"].max_document_bytes == 1_000_000
    assert made.holdout.max_tokens == 200_000
    assert made.solve is not None
    assert made.solve.proxy.batch_tokens == 16_000
    assert made.solve.options.model_dump() == {
        "variant": "paper",
        "eta": 1.0,
        "smoothing": 1e-3,
        "reference": "uniform",
        "scored": 0.25,
        "rounds": 1,
        "tolerance": 1e-3,
    }
    assert made.mixture.max_epochs == 4.0
    assert made.mixture.order.shuffle_block == 1
    assert made.mixture.formats == ("nanogpt", "megatron")


def test_defaults(write):
    made = recipe.load(write(GOOD))
    domain, holdout, mixture = made.domains["web"], made.holdout, made.mixture
    assert (domain.format, domain.text, domain.on_bad_record) == (None, "text", "error")
    assert domain.max_document_bytes == 64_000_000
    assert (holdout.fraction, holdout.max_tokens, holdout.also) == (0.01, 200_000, None)
    assert (mixture.rows, mixture.max_epochs, mixture.order.shuffle_block) == (None, None, 1024)
    assert made.solve is None
    solved = recipe.load(write(GOOD), ["solve={method: doremi}", "mixture.weights=solved"])
    assert solved.solve is not None
    assert solved.solve.proxy.model_dump() == {
        "preset": "nano",
        "steps": 200,
        "batch_tokens": 8192,
        "seq_len": 256,
        "learning_rate": None,
        "device": "auto",
        "precision": "auto",
        "compile": "auto",
        "vocab": "auto",
    }
    assert solved.solve.match_repetition == "auto"


def test_paths_are_relative_to_the_recipe_and_survive_a_change_of_folder(
    tmp_path, monkeypatch, write
):
    monkeypatch.chdir(tmp_path)
    write(FULL)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made = recipe.load(Path("../r.yaml"))
    monkeypatch.chdir("/")
    assert made.file == Path("../r.yaml")
    assert made.resolve("a/*.txt").resolve() == tmp_path / "a/*.txt"
    assert made.resolve("/abs") == Path("/abs")
    assert made.workdir_path.is_absolute()
    assert made.workdir_path.resolve() == tmp_path / "out/quickstart"
    assert made.also_path is not None
    assert made.also_path.resolve() == tmp_path.parent / "old/store"


def test_paths_of_a_tokenizer_and_of_weights(write, tmp_path):
    made = recipe.load(write(GOOD), ["mixture.weights=w/best.json"])
    assert made.resolve(made.tokenizer.path) == tmp_path / "t.json"
    assert made.mixture.asked_weights() == [(("mixture", "weights"), "w/best.json")]
    assert made.workdir_path == tmp_path / "build/pile"


def test_a_recipe_is_frozen(write):
    made = recipe.load(write(GOOD))
    with pytest.raises(ValueError, match="frozen"):
        made.seed = 2
    with pytest.raises(ValueError, match="frozen"):
        made.mixture.seq_len = 2


def test_weights_may_be_off_by_rounding(write):
    made = recipe.load(write(GOOD), ["mixture.weights={web: 0.3333333, code: 0.6666666}"])
    assert made.mixture.weights == {"web": 0.3333333, "code": 0.6666666}


def test_yaml_1_1_booleans_are_names(write):
    text = GOOD.replace("web:", "no:").replace("code:", "on:")
    assert list(recipe.load(write(text)).domains) == ["no", "on"]


def test_importing_recipe_imports_no_method_and_nothing_heavy():
    code = "import sys, mixc.recipe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "pyarrow", "numba", "tokenizers"}
    assert not [name for name in loaded if name.startswith("mixc.methods.")]


# The canonical form, which is hashed


def test_canonical_is_json_and_loads_to_itself(write):
    made = recipe.load(write(FULL))
    plain = made.canonical()
    again = recipe.load(write(json.dumps(plain)))
    assert again.canonical() == plain
    assert list(plain) == list(Recipe.model_fields)


def test_canonical_knows_values_not_spellings(write):
    spelled = GOOD.replace("1M", "1000k").replace("seed: 1", "workdir: build/pile\nseed: 0x1")
    made = recipe.load(write(GOOD))
    assert recipe.load(write(spelled)).canonical() == made.canonical()
    assert recipe.load(write(GOOD), ["seed=2"]).canonical() != made.canonical()


def test_later_keys_of_the_solve_change_the_hash_only_if_they_say_something(write):
    made = recipe.load(write(FULL)).canonical()
    for key, default, other in (
        ("match_repetition", "auto", "false"),
        ("seeds", 1, 2),
        ("proxy.vocab", "auto", 99),
        ("proxy.precision", "auto", "fp32"),
        ("proxy.compile", "auto", "false"),
    ):
        assert recipe.load(write(FULL), [f"solve.{key}={default}"]).canonical() == made
        assert recipe.load(write(FULL), [f"solve.{key}={other}"]).canonical() != made
    assert not {"match_repetition", "seeds"} & set(made["solve"])
    assert not {"vocab", "precision", "compile"} & set(made["solve"]["proxy"])


def test_canonical_forgets_the_file_and_the_options_of_other_methods(write):
    made = recipe.load(write(FULL), ["seed=7"])
    assert made.overrides == ("seed=7",)
    assert made.canonical() == recipe.load(write(FULL)).canonical()
    solve = made.canonical()["solve"]
    assert isinstance(solve, dict)
    assert list(solve) == ["method", "proxy", "doremi"]
    assert made.canonical() == recipe.load(write(FULL), ["solve.unimax.max_epochs=9"]).canonical()
