"""Every error a user can make, in the words they will read."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe.good_recipes import FULL, GOOD, complaints, snapshots

from mixc import recipe
from mixc.errors import MixcError, MixcErrors

WRONG = snapshots("wrong.txt")


@pytest.mark.parametrize("what", WRONG)
def test_what_the_user_reads(write, what):
    old, new, expected = WRONG[what]
    assert GOOD.count(old) == 1
    assert complaints(write(GOOD.replace(old, new))) == expected


def test_all_mistakes_at_once_in_the_order_of_the_lines(write):
    text = """\
nmae: pile
tokenizer: {path: t.json, hub: org/name}
domains:
  web: {paths: web.jsonl, format: jsonnl}
  code: {paths: [1, "ftp://b/x"]}
mixture:
  weights: {web: 1.0, cod: -1}
  tokens: 1 M
  formats: []
"""
    found = complaints(write(text))
    assert [line.split(": ", 1)[1] for line in found.splitlines() if line.startswith("error")] == [
        "missing key 'name'",
        "unknown key 'nmae'",
        "'hub' excludes 'path' in 'tokenizer'",
        "domains.web.paths: expected a list, found 'web.jsonl'",
        "domains.web.format: unknown reader 'jsonnl'",
        "domains.code.paths.0: expected text, found 1",
        "domains.code.paths.1: inputs cannot come from 'ftp://b/x'",
        "missing key 'seq_len' in 'mixture'",
        "mixture.weights: the domain 'code' is missing",
        "mixture.weights: unknown domain 'cod'",
        "mixture.weights.cod: expected at least 0, found -1",
        "mixture.tokens: expected a quantity, found '1 M'",
        "mixture.formats: expected at least one entry, found nothing",
    ]
    codes = [line[8:11] for line in found.splitlines() if line.startswith("error")]
    assert " ".join(codes) == "006 005 009 007 008 007 007 006 006 008 007 007 007"


def test_an_empty_recipe_lacks_every_required_key(write):
    found = complaints(write("# nothing yet\n"))
    assert [line for line in found.splitlines() if line.startswith("error")] == [
        f"error[MX006]: missing key '{key}'" for key in ("name", "tokenizer", "domains", "mixture")
    ]


@pytest.mark.parametrize("text", ["- name: pile\n", "pile\n", "3\n", "[]\n"])
def test_a_recipe_is_a_mapping(write, text):
    assert complaints(write(text)).startswith("error[MX007]: expected a mapping of keys, found")


def test_a_missing_recipe(write):
    path = Path("r.yaml")
    write("").unlink()
    assert complaints(path) == (
        "error[MX001]: cannot read the file: no such file or directory\n"
        " --> r.yaml\n"
        "help: check the path of the recipe"
    )


def keys_of(data, path=()):
    for key, value in data.items() if isinstance(data, dict) else ():
        yield (*path, key)
        yield from keys_of(value, (*path, key))


def test_no_key_can_be_misspelt_unnoticed(write):
    plain = recipe.load(write(FULL)).canonical()
    for path in keys_of(plain):
        spoiled = copy.deepcopy(plain)
        node = spoiled
        for key in path[:-1]:
            node = node[key]
        node[f"{path[-1]}?"] = node.pop(path[-1])
        assert f"{path[-1]}?" in complaints(write(json.dumps(spoiled)))


# Recipes are untrusted


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


CANONICAL = {
    "name": "a",
    "tokenizer": {"train": {"vocab_size": 300}},
    "domains": {"web": {"paths": ["w"], "format": "jsonl"}, "code": {"paths": ["c"]}},
    "holdout": {"fraction": 0.1, "max_tokens": "1M", "also": "x"},
    "solve": {"method": "doremi", "doremi": {"eta": 1}, "proxy": {"preset": "nano", "steps": 1}},
    "mixture": {
        "weights": {"web": 0.5, "code": 0.5},
        "tokens": "1M",
        "seq_len": 8,
        "order": {"shuffle_block": 1},
        "formats": ["nanogpt"],
    },
    "seed": 1,
}


@given(st.data())
def test_any_wrong_value_anywhere_is_an_error_of_ours(tmp_path_factory, data):
    plain = json.loads(json.dumps(CANONICAL))
    path = data.draw(st.sampled_from(list(keys_of(plain))))
    node = plain
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(JUNK)
    file = tmp_path_factory.getbasetemp() / "junk.yaml"
    file.write_text(json.dumps(plain), encoding="utf-8")
    try:
        made = recipe.load(file)
    except (MixcError, MixcErrors) as error:
        assert f" --> {file}:1:" in str(error)
    else:
        json.dumps(made.canonical())
