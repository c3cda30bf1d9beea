"""Everything that can be wrong with what goes in, in the words that users read.

The expected texts stand in `snapshots/inputs/wrong.txt`, a case after `=== `, then the exit
code. `$TMP` is the recipe's folder.
"""

import gzip
import io
import lzma
import os
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from helpers import killed_unit, texts, tokenizer_json, tree, word_tokenizer_json, write_recipe

from mixc.errors import MixcError, MixcErrors
from mixc.readers import jsonl
from mixc.recipe import load
from mixc.tokenize import stage
from mixc.verify import verify

GOOD = b'{"text":"good"}\n'


def corpus(name, data, **options):
    """A case of one file in the domain `web`, after a good one."""

    def make(folder):
        folder.joinpath("data").mkdir()
        folder.joinpath("data/a.jsonl").write_bytes(GOOD * 2)
        folder.joinpath("data", name).write_bytes(data)
        paths = ["data/a.jsonl", f"data/{name}"]
        return write_recipe(folder, {"web": {"paths": paths, **options}})

    return make


def tokenizer(raw, **options):
    """A case of one tokenizer over a good corpus."""

    def make(folder):
        folder.joinpath("t.json").write_bytes(raw)
        return write_recipe(folder, {"web": texts(1, 5)}, tokenizer={"path": "t.json", **options})

    return make


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def special(kind):
    """A case of something at the place of a file that is none."""

    def make(folder):
        path = folder / "data" / "x.jsonl"
        path.parent.mkdir()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("gone.jsonl")
        return write_recipe(folder, {"web": {"paths": ["data/x.jsonl"]}})

    return make


def several(folder):
    (folder / "data").mkdir()
    os.mkfifo(folder / "data/pipe.jsonl")
    for name in ("a.jsonl", "b.dat"):
        (folder / "data" / name).write_bytes(GOOD)
    domains = {"all": ["data/*"], "none": ["dat/*.jsonl"], "web": ["data/a.jsonl"]}
    return write_recipe(folder, {name: {"paths": paths} for name, paths in domains.items()})


def two_domains(folder):
    (folder / "data").mkdir()
    (folder / "data/a.jsonl").write_bytes(GOOD)
    (folder / "data/b.jsonl").symlink_to("a.jsonl")
    web, code = {"paths": ["data/a.jsonl"]}, {"paths": ["data/b.jsonl"]}
    return write_recipe(folder, {"web": web, "code": code})


def no_tokenizer(folder):
    return write_recipe(folder, {"web": texts(1, 5)}, tokenizer={"path": "gone.json"})


def no_holdout_list(folder):
    return write_recipe(folder, {"web": texts(1, 5)}, holdout={"also": "../old/store"})


def good(folder):
    return write_recipe(folder, {"web": texts(1, 5), "code": texts(2, 5)})


LINES = GOOD * 50
CASES = {
    "no files matched": lambda folder: write_recipe(folder, {"web": {"paths": ["w/*", "*.gz"]}}),
    "a file in two domains": two_domains,
    "no reader for a name": corpus("table.dat", b"text\n"),
    "not a regular file: a pipe": special("fifo"),
    "a folder with the name of a file": special("folder"),
    "a link to nothing": special("link"),
    "several of these at once": several,
    "broken JSON": corpus("b.jsonl", GOOD + b'{"text": "half a li'),
    "missing field": corpus("b.jsonl", GOOD + b'\n{"body": "x"}\n'),
    "a field that is no text": corpus("b.jsonl", GOOD + b'{"text": ["x"]}\n'),
    "invalid UTF-8": corpus("b.jsonl", GOOD + b'{"text": "\xff\xfe"}\n'),
    "lone surrogate": corpus("b.jsonl", GOOD + b'{"text": "\\ud83d"}\n'),
    "empty document": corpus("b.jsonl", GOOD + b'{"text": ""}\n'),
    "oversize document": corpus("b.jsonl", b'{"text": "12345678901"}', max_document_bytes=10),
    "oversize line": corpus("b.jsonl", GOOD + b"x" * 66_000, max_document_bytes=10),
    "invalid UTF-8 in a text file": corpus("b.txt", b"caf\xe9"),
    "empty text file": corpus("b.txt", b""),
    "oversize text file": corpus("b.txt", b"12345678901", max_document_bytes=10),
    "cut gz": corpus("b.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9]),
    "damaged gz": corpus("b.jsonl.gz", gzip.compress(LINES, mtime=0)[:-8] + bytes(8)),
    "cut zst": corpus("b.jsonl.zst", zstandard.compress(LINES)[:-3]),
    "cut xz": corpus("b.jsonl.xz", lzma.compress(LINES)[:-9]),
    "no gz at all": corpus("b.jsonl.gz", LINES),
    "parquet without the column": corpus("b.parquet", parquet(pa.table({"x": [1], "y": ["a"]}))),
    "parquet of numbers": corpus("b.parquet", parquet(pa.table({"text": [1]}))),
    "parquet with a null": corpus("b.parquet", parquet(pa.table({"text": ["a", None]}))),
    "cut parquet": corpus("b.parquet", parquet(pa.table({"text": ["a"]}))[:-1]),
    "a file with no documents": corpus("b.jsonl", b"\n\n"),
    "a file with bad records alone": corpus(
        "b.jsonl", b'{\n{"text":""}\n{}\n{}\n', on_bad_record="skip"
    ),
    "tokenizer not there": no_tokenizer,
    "tokenizer not JSON": tokenizer(b"vocabulary:"),
    "tokenizer of other JSON": tokenizer(b"{}"),
    "tokenizer without an end of text": tokenizer(
        word_tokenizer_json(["a"], eot="<the end of it>")
    ),
    "eot not in the vocabulary": tokenizer(tokenizer_json(), eot="</s>"),
    "no earlier holdout list": no_holdout_list,
    "an input that changes while it is read": corpus("b.jsonl", GOOD),
    "an input that vanishes while it is read": corpus("b.jsonl", GOOD),
    "half a line because somebody writes it": corpus("b.jsonl", GOOD + b'{"text": "half a li'),
    "a worker is killed": good,
}


def append(path):
    with path.open("ab") as file:
        file.write(b' and the rest"}\n')


WHILE_READ = {
    "an input that changes while it is read": append,
    "an input that vanishes while it is read": partial(Path.unlink, missing_ok=True),
    "half a line because somebody writes it": append,
}


@pytest.fixture
def happen(monkeypatch):
    """Makes happen what goes wrong only in the middle of a run."""
    read = jsonl.read

    def arrange(what):
        def change_then_read(source, options):
            if source.name == "data/b.jsonl":
                WHILE_READ[what](source.path)
            yield from read(source, options)

        if what in WHILE_READ:
            monkeypatch.setattr(jsonl, "read", change_then_read)
        if what == "a worker is killed":
            monkeypatch.setattr(stage, "tokenize_unit", killed_unit)

    return arrange


def snapshots():
    """Case -> (exit code, text)."""
    text = (Path(__file__).parent / "snapshots/inputs/wrong.txt").read_text(encoding="utf-8")
    cases = {}
    for case in ("\n" + text).split("\n=== ")[1:]:
        head, _, expected = case.partition("\n\n")
        name, code = head.splitlines()
        cases[name] = (int(code.removeprefix("exit ")), expected.rstrip("\n"))
    return cases


WRONG = snapshots()


def test_every_case_has_its_text():
    assert list(WRONG) == list(CASES)
    assert len({expected for _, expected in WRONG.values()}) > len(WRONG) - 4


@pytest.mark.parametrize("earlier", [False, True], ids=["fresh", "over a store"])
@pytest.mark.parametrize("what", CASES)
def test_what_the_user_reads(tmp_path, happen, what, earlier):
    store = tmp_path / "out" / "store"
    if earlier:
        stage.tokenize(load(write_recipe(tmp_path, {"old": texts(9, 8)})), workers=1)
    before = tree(store)
    recipe = load(CASES[what](tmp_path))
    happen(what)
    with pytest.raises((MixcError, MixcErrors)) as caught:
        stage.tokenize(recipe, workers=2)
    found = str(caught.value).replace(str(tmp_path), "$TMP")
    assert (caught.value.exit_code, found) == WRONG[what]

    assert store.exists() == earlier
    assert tree(store) == before
    if earlier:
        assert verify(store).documents == 8
