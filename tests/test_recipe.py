"""Recipes: every error a user can make, in the words they will read."""

import copy
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc import recipe
from mixc.errors import MixcError, MixcErrors
from mixc.recipe import Recipe
from mixc.recipe_types import parse_quantity
from mixc.registry import METHODS, READERS, WRITERS

GOOD = """\
name: pile
tokenizer: {path: t.json}
domains:
  web: {paths: [web.jsonl]}
  code: {paths: [code/*.jsonl]}
mixture:
  weights: natural
  tokens: 1M
  seq_len: 8
  formats: [nanogpt]
seed: 1
"""
FULL = """\
name: quickstart
workdir: out/quickstart
tokenizer: {train: {vocab_size: 8192, sample_bytes: 20M}}
domains:
  python: {paths: [corpus/python/*.jsonl.zst, more/*.jsonl], format: jsonl, on_bad_record: skip}
  prose.en: {paths: ["corpus/prose/**/*.parquet"], text: body, max_document_bytes: 1M}
holdout: {fraction: 0.02, max_tokens: 200_000, also: ../old/store}
solve:
  method: doremi
  doremi: {variant: paper, eta: 1, smoothing: 1.0e-3, reference: uniform}
  unimax: {max_epochs: 2}
  proxy:
    {preset: micro, steps: 150, batch_tokens: 16k, seq_len: 256, learning_rate: 1e-3, device: cpu}
mixture:
  weights: solved
  tokens: 20M
  seq_len: 1024
  max_epochs: 4
  order: {shuffle_block: 1}
  formats: [nanogpt, megatron]
seed: 7
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes r.yaml into the current folder, so that errors show a short path."""
    monkeypatch.chdir(tmp_path)

    def write_recipe(text: str) -> Path:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return Path("r.yaml")

    return write_recipe


def complaints(path: Path, *overrides: str) -> str:
    with pytest.raises((MixcError, MixcErrors)) as caught:
        recipe.load(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def snapshots(name):
    """Case -> (the lines of GOOD that change, what to, what the user reads)."""
    text = (Path(__file__).parent / "snapshots/recipes" / name).read_text(encoding="utf-8")
    cases = {}
    for case in ("\n" + text).split("\n=== ")[1:]:
        change, _, expected = case.partition("\n\n")
        name, *lines = change.splitlines()
        old, new = ("".join(x[2:] + "\n" for x in lines if x[0] == sign) for sign in "-+")
        cases[name] = (old, new, expected.rstrip("\n"))
    return cases


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


# What a good recipe becomes


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


# Quantities


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (0, 0),
        (200_000, 200_000),
        ("20M", 20_000_000),
        ("1.5B", 1_500_000_000),
        ("1.5G", 1_500_000_000),
        ("200k", 200_000),
        ("200K", 200_000),
        ("3T", 3_000_000_000_000),
        ("0.001k", 1),
        ("1_000M", 10**9),
        ("00.50k", 500),
    ],
)
def test_quantities(written, number):
    assert parse_quantity(written) == number


NO_QUANTITIES = "20 1.5 M 20m 1t 20MB 20MiB 2KK .5M 5.M -1M +1M 1e3M 1.0001k _1k \u0661M"


@pytest.mark.parametrize(
    "written", [1.5, 1e6, "", " 1M", "1 M", "1M\n", "9" * 40 + "k", *NO_QUANTITIES.split(" ")]
)
def test_what_is_no_quantity(written):
    with pytest.raises(ValueError, match="expected a"):
        parse_quantity(written)


@pytest.mark.parametrize(
    "written", ["-1", "true", "null", "[1]", "9223372036854775808", "10000000T"]
)
def test_quantities_out_of_range_or_of_another_type(write, written):
    assert "MX007" in complaints(write(GOOD), f"holdout.max_tokens={written}")


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from("kMBGT"))
def test_quantities_are_exact(whole, thousandths, unit):
    value = Fraction(f"{whole}.{thousandths:03}")
    value *= {"k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}[unit]
    assert parse_quantity(f"{whole}.{thousandths:03}{unit}") == value


# Overrides


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


# The JSON Schema


def test_the_schema_is_closed_and_describes_every_key():
    schema = recipe.json_schema()
    json.dumps(schema)
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            assert value.get("description"), key


def test_the_schema_names_required_keys_and_registered_names():
    schema = recipe.json_schema()
    assert schema["required"] == ["name", "tokenizer", "domains", "mixture"]
    of = schema["$defs"]
    assert of["Domain"]["required"] == ["paths"]
    assert of["Mixture"]["required"] == ["seq_len", "formats"]
    assert of["Solve"]["required"] == ["method"]
    assert of["Solve"]["properties"]["method"]["enum"] == list(METHODS)
    assert of["Mixture"]["properties"]["formats"]["items"]["enum"] == list(WRITERS)
    assert of["Domain"]["properties"]["format"]["anyOf"][0]["enum"] == list(READERS)


def test_the_schema_holds_the_options_of_every_method():
    schema = recipe.json_schema()
    solve = schema["$defs"]["Solve"]["properties"]
    for name, entry in METHODS.items():
        options = schema["$defs"][solve[name]["$ref"].rpartition("/")[2]]
        assert set(options["properties"]) == set(entry.load().Options.model_fields)


def test_the_schema_cannot_be_spoiled_by_callers():
    recipe.json_schema().clear()
    assert "properties" in recipe.json_schema()


@pytest.mark.parametrize("key", ["stage", "pack", "seeds", "nmae", "txt", "paths.0"])
def test_a_key_is_unknown_to_the_loader_exactly_if_the_schema_lacks_it(write, key):
    schema = recipe.json_schema()
    places = {"": schema, "mixture.": schema["$defs"]["Mixture"]}
    for prefix, section in places.items():
        assert key not in section["properties"]
        assert f"MX005]: unknown key '{key.split('.')[0]}'" in complaints(
            write(GOOD), f"{prefix}{key}=1"
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


def test_importing_recipe_imports_no_method_and_nothing_heavy():
    code = "import sys, mixc.recipe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "pyarrow", "numba", "tokenizers"}
    assert not [name for name in loaded if name.startswith("mixc.methods.")]


# Recipes are untrusted

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


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
