"""Overrides on the command line: `-s key=value`."""

import pytest
from recipe.good_recipes import FULL, GOOD, complaints, snapshots

from mixc import recipe


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("mixture.tokens=20M", ("mixture", "tokens"), 20_000_000),
        ("name=no", ("name",), "no"),
        ("name='3'", ("name",), "3"),
        ("domains.prose.en.text=a=b", ("domains", "prose.en", "text"), "a=b"),
        ("domains.python.paths.1=x.jsonl", ("domains", "python", "paths", 1), "x.jsonl"),
        ("domains.python.paths=[a, 'b*']", ("domains", "python", "paths"), ["a", "b*"]),
        ("domains.new={paths: [n]}", ("domains", "new", "paths"), ["n"]),
        ("domains.new.paths=[n]", ("domains", "new", "paths"), ["n"]),
        ("solve.doremi.eta=2", ("solve", "doremi", "eta"), 2.0),
        ("workdir=", ("workdir",), "build/quickstart"),
        (" mixture . seq_len = 4 ", ("mixture", "seq_len"), 4),
    ],
)
def test_overrides(write, override, keys, value):
    made = recipe.load(write(FULL), [override])
    found = made.canonical()
    for key in keys:
        found = found[key]
    assert found == value
    assert made.overrides == (override,)


def test_later_overrides_win(write):
    made = recipe.load(write(GOOD), ["mixture.order.shuffle_block=2", "seed=1", "seed=2"])
    assert (made.seed, made.mixture.order.shuffle_block) == (2, 2)
    made = recipe.load(write(GOOD), ["holdout.fraction=0.3", "holdout={max_tokens: 5}"])
    assert (made.holdout.fraction, made.holdout.max_tokens) == (0.01, 5)


def test_overrides_can_make_a_recipe_whole(write):
    text = GOOD.replace("name: pile\n", "").replace("mixture:", "holdout:\nmixture:")
    assert "missing key 'name'" in complaints(write(text), "holdout.fraction=0.1")
    made = recipe.load(write(text), ["holdout.fraction=0.1", "name=heap"])
    assert (made.name, made.holdout.fraction) == ("heap", 0.1)


BAD_OVERRIDES = snapshots("overrides.txt")


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_bad_overrides(write, override):
    assert complaints(write(GOOD), override) == BAD_OVERRIDES[override][2]


def test_errors_of_overrides_follow_those_of_the_file_in_their_order(write):
    found = complaints(write(GOOD.replace("seq_len", "sequence")), "zzz=1", "seed=x", "a")
    places = [line for line in found.splitlines() if line.startswith(" -->")]
    assert places == [
        " --> r.yaml:6:1",
        " --> r.yaml:9:3",
        " --> -s zzz=1",
        " --> -s seed=x",
        " --> -s a",
    ]
