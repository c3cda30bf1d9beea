import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers import texts, write_jsonl, write_recipe

from mixc.errors import MixcError
from mixc.recipe import load
from mixc.tokenize.inputs import find, hashed
from mixc.tokenize.stage import tokenize
from mixc.verify import verify


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
    assert a.digest == b.digest != ""
    os.truncate(b.path, b.bytes - 1)
    again = replace(b, digest="")
    assert hashed([again])[0].digest != a.digest
    b.path.unlink()
    with pytest.raises(MixcError) as caught:
        hashed([a, again])
    assert (caught.value.code, str(caught.value.place)) == ("MX027", "data/b.jsonl")


CAPABILITIES = "-dac_override,-dac_read_search"


def test_files_that_may_not_be_read_are_all_named_at_once(tmp_path):
    """As root the test must give up the right to read everything."""
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"data/{name}.jsonl", texts(1, 3))
    path = write_recipe(tmp_path, {"web": {"paths": ["data/*.jsonl"]}})
    command = [sys.executable, "-m", "mixc", "tokenize", str(path)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed")
        drop = ["setpriv", f"--inh-caps={CAPABILITIES}", f"--bounding-set={CAPABILITIES}"]
        command = [*drop, *command]
    for name in ("a", "c"):
        (tmp_path / f"data/{name}.jsonl").chmod(0)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    for name in ("a", "c"):
        assert f"error[MX027]: cannot open 'data/{name}.jsonl': permission denied" in done.stderr
    assert done.stderr.count("error[") == 2


def test_files_may_have_any_name_that_the_system_allows(tmp_path):
    """Not UTF-8, of one look but other bytes, with ends of lines or codes of terminals in them."""
    (tmp_path / "data").mkdir()
    odd = [b"\xff", "caf\u00e9".encode(), "cafe\u0301".encode(), b"A", b"a", b"x\ny", b"\x1b[31m"]
    odd += [b"'", b" ", b"-s", b"$(x)", b"*", b"\xf0\x9f\x99\x82", b"n" * 249]
    for number, name in enumerate(odd):
        file = os.path.join(os.fsencode(tmp_path), b"data", name + b".jsonl")
        with open(file, "w") as sink:
            sink.write(f'{{"text": "document {number}"}}\n' * 2)
    path = write_recipe(tmp_path, {"web": {"paths": ["data/*.jsonl"], "on_bad_record": "skip"}})
    store = tokenize(load(path), workers=1)
    assert verify(store.root).documents == 2 * len(odd)
    assert {item["path"] for one in store.sources["web"] for item in one.inputs} == {
        os.fsdecode(b"data/" + name + b".jsonl") for name in odd
    }
    numbers = [str(int(i)) for i in next(store.documents("web")).doc_id]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "mixc", "inspect", str(store.root), "--doc", numbers[-1]]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
