import os

import pytest
from helpers import write_jsonl, write_recipe

from mixc.errors import MixcError
from mixc.recipe import load
from mixc.tokenize.inputs import find, hashed


def names(folder, **paths):
    recipe = load(write_recipe(folder, {name: {"paths": list(p)} for name, p in paths.items()}))
    return [(item.domain, item.name, item.reader) for item in find(recipe)]


@pytest.fixture
def corpora(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "deep/d.txt", ".hidden.jsonl"):
        write_jsonl(tmp_path / "data" / name, ["x"])
    return tmp_path


def test_files_come_by_domain_and_name_each_once(corpora):
    found = names(
        corpora, z=["data/*.jsonl", "data/a.jsonl", "./data/../data/b.jsonl"], a=["**/d*"]
    )
    assert found == [
        ("a", "data/deep/d.txt", "text"),
        ("z", "data/a.jsonl", "jsonl"),
        ("z", "data/b.jsonl", "jsonl"),
    ]


def test_a_pattern_of_all_folders_leaves_folders_out(corpora):
    found = names(corpora, web=["data/**"])
    assert [name for _, name, _ in found] == [
        "data/a.jsonl",
        "data/b.jsonl",
        "data/deep/d.txt",
        "data/deep/er/c.jsonl",
    ]


def test_a_file_under_two_names_is_counted_once(corpora):
    (corpora / "data/link.jsonl").symlink_to("a.jsonl")
    absolute = str(corpora / "data/a.jsonl")
    assert len(names(corpora, web=["data/a.jsonl", "data/link.jsonl", absolute])) == 1


def test_the_recipe_s_folder_counts_not_the_current_one(corpora, monkeypatch):
    monkeypatch.chdir("/")
    assert len(names(corpora, web=["data/a.jsonl"])) == 1


def test_hashes_are_of_the_bytes(corpora):
    recipe = load(write_recipe(corpora, {"web": {"paths": ["data/*.jsonl"]}}))
    a, b = hashed(find(recipe))
    assert a.xxh3 == b.xxh3 != ""
    os.truncate(b.path, b.bytes - 1)
    assert hashed([b])[0].xxh3 != a.xxh3
    b.path.unlink()
    with pytest.raises(MixcError) as caught:
        hashed([a, b])
    assert (caught.value.code, str(caught.value.place)) == ("MX027", "data/b.jsonl")
