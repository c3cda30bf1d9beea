import shutil

import pytest
from build_helpers import (
    all_documents,
    every_held_id,
    flat,
    make_mixture,
    random_corpus,
    read_rows,
    small_blocks,
    text_of,
)
from helpers import EOT

from mixc.errors import MixcError
from mixc.inspect import inspect

CORPUS = random_corpus(9, {"code": (20, 15), "web": (30, 10)})
CORPUS["web"].append(CORPUS["code"][3])  # one text in both domains
MIXTURE = {"rows": 13, "seq_len": 16, "formats": ["nanogpt"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store of two files a domain, and a mixture of five blocks."""
    with small_blocks(16 * 3):
        return make_mixture(tmp_path_factory.mktemp("inspect"), CORPUS, files=2, mixture=MIXTURE)


def code_of(path, **options):
    with pytest.raises(MixcError) as raised:
        inspect(path, **options)
    return raised.value.code


def test_a_store(built):
    store, _ = built
    data = inspect(store.root)
    assert (data["kind"], data["path"]) == ("store", str(store.root))
    assert (data["store_hash"], data["dtype"]) == (store.store_hash, "uint16")
    assert data["tokenizer"]["eot"] == EOT
    held = every_held_id(store)
    for name, documents in CORPUS.items():
        entry, stored = data["domains"][name], all_documents(store, name)
        texts = [text_of(one) for one in documents]
        assert entry["documents"] == len(documents)
        assert entry["tokens"] == sum(len(one) + 1 for one in documents)
        assert entry["text_bytes"] == sum(map(len, texts))
        assert entry["bytes_per_token"] == entry["text_bytes"] / entry["tokens"]
        assert entry["held_documents"] == sum(doc_id in held for doc_id, _ in stored)
        assert entry["held_tokens"] == sum(len(one) for doc_id, one in stored if doc_id in held)
        assert (entry["source"], entry["shards"]) == (name, 1)
        lengths = [len(one) + 1 for one in documents]
        assert sum(entry["lengths"].values()) == len(documents)
        for top, count in entry["lengths"].items():
            assert sum(int(top) // 2 < n <= int(top) for n in lengths) == count
        spread = entry["tokens_per_document"]
        assert (spread["min"], spread["max"]) == (min(lengths), max(lengths))
        assert sorted(lengths)[0] <= spread["median"] <= spread["p99"] <= sorted(lengths)[-1]
        assert entry["duplicates"] == len(texts) - len(set(texts))
        others = {text_of(one) for other in CORPUS if other != name for one in CORPUS[other]}
        assert entry["elsewhere"] == sum(text in others for text in texts) > 0
        source = data["sources"][name]
        assert (source["files"], source["documents"], source["skipped"]) == (2, len(texts), {})
        assert (source["not_selected"], source["replaced"], source["quarantine"]) == (0, 0, [])
        assert len(source["engines"]) == 1


def test_a_document(built):
    store, _ = built
    held = every_held_id(store)
    for name, documents in CORPUS.items():
        # Files are read one after the other: the even documents, then the odd ones.
        order = [*range(0, len(documents), 2), *range(1, len(documents), 2)]
        for number, (doc_id, tokens) in enumerate(all_documents(store, name)):
            data = inspect(store.root, doc=doc_id, decode=True)
            assert (data["kind"], data["doc_id"]) == ("document", doc_id)
            copies = [one for one in data["copies"] if one["domain"] == name]
            assert copies == [
                {
                    "domain": name,
                    "document": number,
                    "file": f"corpus/{name}/{order[number] % 2}.jsonl",
                    "record": order[number] // 2,
                    "tokens": len(tokens),
                    "text_bytes": len(text_of(documents[order[number]])),
                    "held_out": doc_id in held,
                    "text": f"{text_of(documents[order[number]])} {EOT}",
                }
            ]


def test_a_text_that_stands_in_two_domains(built):
    store, _ = built
    ids = {name: {doc_id for doc_id, _ in all_documents(store, name)} for name in CORPUS}
    (both,) = ids["code"] & ids["web"]
    copies = inspect(store.root, doc=both)["copies"]
    assert [copy["domain"] for copy in copies] == ["code", "web"]
    assert "text" not in copies[0]


def test_a_mixture(built):
    _, mixture = built
    data = inspect(mixture.root)
    assert (data["kind"], data["path"]) == ("mixture", str(mixture.root))
    for name in ("name", "rows", "tokens", "seq_len", "domains", "order", "ledger", "stream_hash"):
        assert data[name] == mixture.manifest[name]
    lines = data["formats"]["nanogpt"]["how_to_load"]
    assert f"{mixture.root}/nanogpt/train.bin" in lines
    assert "PATH" not in lines


def test_every_row(built):
    store, mixture = built
    documents = {name: all_documents(store, name) for name in CORPUS}
    rows, tokens = read_rows(mixture), flat(mixture).tolist()
    for number in range(13):
        data = inspect(mixture.root, row=number, decode=True)
        text = data.pop("text")
        assert data == {"kind": "row", **rows[number], "tokens": tokens[number]}
        assert data["row"] == number
        spelled = []
        for span in data["spans"]:
            found = documents[data["domain"]][span["document"]][1]
            spelled += found[span["start"] : span["start"] + span["length"]]
        assert text == " ".join(EOT if token == 300 else f"a{token}" for token in spelled)


def test_what_is_not_there(built, tmp_path):
    store, mixture = built
    for row in (-1, 13, 10**30):
        assert code_of(mixture.root, row=row) == "MX070"
    for doc in (-1, 7, 1 << 64):
        assert code_of(store.root, doc=doc) == "MX070"
    assert code_of(store.root, row=0) == "MX070"
    assert code_of(mixture.root, doc=7) == "MX070"
    assert code_of(tmp_path) == "MX070"
    assert code_of(tmp_path / "no such folder") == "MX070"


def test_a_mixture_that_moved_shows_its_rows_but_cannot_spell_them(built, tmp_path):
    _, mixture = built
    moved = shutil.copytree(mixture.root, tmp_path / "moved" / "mixture")
    assert inspect(moved, row=3) == inspect(mixture.root, row=3)
    assert code_of(moved, row=3, decode=True) == "MX041"


def test_text_is_not_spelled_by_another_tokenizer(built, tmp_path):
    _, mixture = built
    make_mixture(tmp_path, CORPUS, words=400, mixture=MIXTURE)
    shutil.rmtree(tmp_path / "out/mixture")
    shutil.copytree(mixture.root, tmp_path / "out/mixture")
    assert code_of(tmp_path / "out/mixture", row=3, decode=True) == "MX070"
