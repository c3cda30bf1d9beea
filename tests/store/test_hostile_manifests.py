"""Manifests under a right seal that an attacker, or another version of mixc, has written."""

import json

import pytest
from build_helpers import make_mixture, mixc, reseal
from helpers import texts, write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.build import mixture as mixtures
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.recipe_types import DOMAIN_NAME
from mixc.store import store as stores
from mixc.store.hashes import seal
from mixc.store.store import open_store
from mixc.tokenize.stage import tokenize
from mixc.verify import verify


@pytest.fixture
def store(tmp_path):
    """A store that may be changed."""
    return tokenize(load(write_recipe(tmp_path, {"web": texts(1, 9)})), workers=1)


def code_of(call, *words):
    with pytest.raises(MixcError) as caught:
        call(*words)
    return caught.value.code


def test_a_shard_of_other_tokens_than_the_stores_is_refused(store):
    """It would be read as ids of another size."""

    def widen(manifest):
        manifest["tokenizer"]["vocab_size"] = 70_000

    reseal(store.root / stores.MANIFEST, stores.SCHEMA, widen)
    with pytest.raises(MixcError, match="tokens are uint16, the store's uint32") as caught:
        list(open_store(store.root).documents("web"))
    assert caught.value.code == "MX040"


# Fault 20


@settings(max_examples=200, deadline=None)
@given(
    name=st.lists(
        st.sampled_from(
            ["..", ".", "", "a", "/", "//", "\\", "\0", "C:", "é", "a" * 300, "\ud800"]
        ),
        max_size=6,
    ).map("/".join)
    | st.text(max_size=20)
)
def test_whatever_a_manifest_names_nothing_outside_is_opened(small_store, tmp_path_factory, name):
    """The folder holds the manifest alone: a name is refused, or no such file is there."""
    root = tmp_path_factory.mktemp("names") / "store"
    root.mkdir()
    manifest = json.loads(json.dumps(small_store.manifest))
    manifest["files"][0]["path"] = name
    try:
        (root / stores.MANIFEST).write_bytes(seal(manifest))
    except UnicodeEncodeError:
        return
    assert code_of(lambda: open_store(root).check_sizes()) == "MX040"


NAMES = ["a", "a.b", "a..b", "0-_.", "a" * 64]
NO_NAMES = [
    "",
    ".",
    "..",
    ".a",
    "-a",
    "A",
    "a b",
    "a/b",
    "a\\b",
    "/a",
    "a\0",
    "a\n",
    "ä",
    "\uff41",
    "\u0131",
]
NO_NAMES += ["a" * 65, "C:", "a:b", "manifest.json", "tokenizer.json", "holdout.arrow"]


@pytest.mark.parametrize("name", [*NAMES, *NO_NAMES])
def test_domains_have_names_that_are_safe_as_folders(tmp_path, name):
    path = write_recipe(tmp_path, {"x": texts(1, 9)})
    path.write_text(path.read_text().replace("  x:\n", f"  {json.dumps(name)}:\n"))
    if name in NAMES:
        store = tokenize(load(path), workers=1)
        assert [one.name for one in store.root.iterdir() if one.is_dir()] == [name]
        assert verify(store.root).documents == 9
    else:
        assert code_of(load, path) in ("MX006", "MX007", "MX002", "MX004")
        assert not (tmp_path / "out").exists()


@given(st.from_regex(f"^{DOMAIN_NAME}$", fullmatch=True), st.text(max_size=12))
def test_a_split_makes_no_name_that_leads_elsewhere(source, value):
    name = stores.split_name(source, value)
    assert "/" not in name
    assert "\0" not in name
    assert name.startswith(source)
    assert name == name.lower().strip(" ")


# What a manifest lacks


def without(data, *keys):
    *way, last = keys
    for key in way:
        data = data[key]
    del data[last]


@pytest.mark.parametrize(
    "keys",
    [
        *[(key,) for key in ("key", "options_key", "store_hash", "tokenizer", "files", "domains")],
        *[("tokenizer", key) for key in ("sha256", "vocab_size", "eot_id", "key", "source")],
        ("sources",),
        ("sources", "web"),
        ("sources", "web", 0, "shards", 0, "values_offset"),
        ("domains", "web", "held_out"),
        ("files", 0, "xxh3"),
    ],
    ids=str,
)
def test_a_store_without_a_key_is_damaged_and_made_anew(tmp_path, store, keys):
    reseal(store.root / stores.MANIFEST, stores.SCHEMA, lambda data: without(data, *keys))
    assert code_of(open_store, store.root) == "MX040"
    assert code_of(verify, store.root) == "MX040"
    assert verify(tokenize(load(tmp_path / "recipe.yaml"), workers=1).root).documents == 9


@pytest.mark.parametrize("key", ["formats", "holdout", "provenance"])
def test_a_mixture_without_a_key_is_damaged(tmp_path, key):
    _, mixture = make_mixture(tmp_path, {"web": [[1, 2, 3]] * 30})
    reseal(mixture.root / mixtures.MANIFEST, mixtures.SCHEMA, lambda data: without(data, key))
    assert code_of(verify, mixture.root) == "MX040"


# Fault 33


@pytest.mark.parametrize("schema", ["mixc.store/1", "mixc.store/3", "mixc.store/2.1", "other/2"])
def test_a_store_of_another_version_is_named_and_not_read(tmp_path, store, schema):
    reseal(store.root / stores.MANIFEST, stores.SCHEMA, lambda data: data.update(schema=schema))
    with pytest.raises(MixcError) as caught:
        open_store(store.root)
    error = caught.value
    assert (error.code, error.exit_code) == ("MX044", 1)
    assert error.message == f"the manifest has schema '{schema}', this mixc reads 'mixc.store/2'"
    assert code_of(verify, store.root) == "MX044"
    # It is an output like any other: to tokenize makes it anew, and takes nothing from it.
    assert verify(tokenize(load(tmp_path / "recipe.yaml"), workers=1).root).documents == 9


def test_a_mixture_of_another_version_is_named_and_not_read(tmp_path):
    _, mixture = make_mixture(tmp_path, {"web": [[1, 2, 3]] * 30})
    path = mixture.root / mixtures.MANIFEST
    reseal(path, mixtures.SCHEMA, lambda data: data.update(schema="mixc.mixture/2"))
    done = mixc("verify", mixture.root)
    assert done.returncode == 1
    assert "error[MX044]: the manifest has schema 'mixc.mixture/2'" in done.stderr
    assert "help: rebuild it with this version, or use the version that wrote it" in done.stderr
