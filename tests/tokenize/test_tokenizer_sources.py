"""Where the tokenizer comes from: trained on the corpora, from the hub, or a file."""

import json
import os
import subprocess
import sys

from helpers import (
    EOT,
    documents_of,
    texts,
    tokenizer_json,
    tree,
    word_tokenizer_json,
    write_jsonl,
    write_recipe,
)
from tokenizers import Tokenizer

from mixc.recipe import load
from mixc.store.store import open_store
from mixc.tokenize.stage import tokenize


def mixc(*words, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "mixc", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_training_depends_on_nothing_but_the_corpora(tmp_path):
    """Two processes, other numbers of threads, other seeds of Python's own hashes."""
    trees = []
    for threads in ("1", "4"):
        path = write_recipe(
            tmp_path / threads,
            {"web": texts(1, 200), "code": texts(2, 100)},
            tokenizer={"train": {"vocab_size": 400}},
        )
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        code, _, err = mixc("tokenize", path, "--workers", threads, **environment)
        assert code == 0, err
        trees.append(tree(path.parent / "out" / "store"))
    assert trees[0] == trees[1]
    store = open_store(tmp_path / "1/out/store")
    assert (store.vocab_size, store.eot_id) == (400, 0)
    assert store.manifest["tokenizer"]["eot"] == EOT


def test_a_trained_tokenizer_can_spell_every_byte(tmp_path):
    recipe = {"train": {"vocab_size": 257, "sample_bytes": 100}}
    path = write_recipe(tmp_path, {"web": ["\x00\x7f漢字🙂 à", "b"]}, tokenizer=recipe)
    store = tokenize(load(path), workers=1)
    assert store.vocab_size == 257
    tokenizer = Tokenizer.from_str((store.root / "tokenizer.json").read_text())
    tokens = documents_of(store, "web")[0][0]
    assert len(tokens) == len("\x00\x7f漢字🙂 à".encode()) + 1
    assert tokenizer.decode(tokens[:-1]) == "\x00\x7f漢字🙂 à"


def test_a_trained_tokenizer_is_trained_again_when_the_corpora_change(tmp_path):
    recipe = {"train": {"vocab_size": 300}}
    path = write_recipe(tmp_path, {"web": texts(1, 50)}, tokenizer=recipe)
    first = tokenize(load(path), workers=1).manifest["tokenizer"]
    same = tokenize(load(path, ["holdout.fraction=0.3"]), workers=1).manifest["tokenizer"]
    assert same == first
    write_jsonl(tmp_path / "corpus/web.jsonl", ["zebra crossing"] * 50)
    other = tokenize(load(path), workers=1).manifest["tokenizer"]
    assert other["sha256"] != first["sha256"]


def test_a_tokenizer_of_the_hub(tmp_path):
    """From the cache of Hugging Face, as a run without a network finds it."""
    repository = tmp_path / "hf/hub/models--org--name"
    (repository / "refs").mkdir(parents=True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "tokenizer.json").write_bytes(tokenizer_json())
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}

    path = write_recipe(tmp_path, {"web": texts(1, 20)}, tokenizer={"hub": "org/name"})
    code, _, err = mixc("tokenize", path, **offline)
    assert code == 0, err
    store = open_store(tmp_path / "out/store")
    assert store.manifest["tokenizer"]["source"] == "hub:org/name"
    assert (store.root / "tokenizer.json").read_bytes() == tokenizer_json()

    before = tree(store.root)
    code, out, err = mixc("tokenize", path, "-s", "tokenizer.hub=org/gone", "--json", **offline)
    assert code == 1
    assert json.loads(out)["errors"] == [
        {
            "code": "MX030",
            "message": "cannot get the tokenizer from the hub: LocalEntryNotFoundError",
            "place": "hub:org/gone",
            "help": "check the name and the network, or give tokenizer.path a local tokenizer.json",
        }
    ]
    assert tree(store.root) == before


def test_the_end_of_text_may_be_named(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(word_tokenizer_json(["?", "a", "STOP"]))
    recipe = {"path": "tokenizer.json", "eot": "STOP"}
    path = write_recipe(tmp_path, {"web": ["a a", "a"]}, tokenizer=recipe)
    store = tokenize(load(path), workers=1)
    assert [one[0] for one in documents_of(store, "web")] == [[1, 1, 2], [1, 2]]
    assert store.manifest["tokenizer"]["eot"] == "STOP"
    assert store.eot_id == 2
