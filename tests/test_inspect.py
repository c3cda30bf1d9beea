import shutil

import pytest
from build_helpers import (
    all_documents,
    every_held_id,
    flat,
    make_mixture,
    mixc,
    random_corpus,
    read_rows,
    small_blocks,
    text_of,
)
from helpers import EOT

from mixc.errors import MixcError
from mixc.inspect import inspect
from mixc.report.sources import shown

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


def origin(name, number):
    """The file and record of a domain's document: the even documents, then the odd ones."""
    total = len(CORPUS[name])
    written = [*range(0, total, 2), *range(1, total, 2)][number]
    return {"file": f"corpus/{name}/{written % 2}.jsonl", "record": written // 2}


def spell(tokens):
    return " ".join(EOT if token == 300 else f"a{token}" for token in tokens)


def test_every_row(built):
    store, mixture = built
    documents = {name: all_documents(store, name) for name in CORPUS}
    rows, tokens = read_rows(mixture), flat(mixture).tolist()
    for number in range(13):
        data = inspect(mixture.root, row=number)
        name, spelled = data["domain"], []
        for span in rows[number]["spans"]:
            found = documents[name][span["document"]][1]
            piece = found[span["start"] : span["start"] + span["length"]]
            span |= {**origin(name, span["document"]), "text": spell(piece)}
            spelled += piece
        assert data == {
            "kind": "row",
            **rows[number],
            "tokens": tokens[number],
            "text": spell(spelled),
            "not_shown": [],
        }
        assert data["row"] == number


def test_every_token(built):
    store, mixture = built
    documents = {name: all_documents(store, name) for name in CORPUS}
    rows, tokens = read_rows(mixture), flat(mixture).reshape(-1).tolist()
    for number in range(0, len(tokens), 5):
        data = inspect(mixture.root, token=number)
        token = tokens[number]
        assert (data["kind"], data["token"], data["id"]) == ("token", number, token)
        assert (data["row"], data["place"]) == divmod(number, 16)
        assert data["domain"] == rows[data["row"]]["domain"]
        doc_id, found = documents[data["domain"]][data["document"]]
        assert data["doc_id"] == doc_id
        assert data["source"] == origin(data["domain"], data["document"])
        at = data["place_in_document"]
        assert found[at] == token
        assert data["text"] == spell([token])
        assert data["before"] == spell(found[max(0, at - 48) : at])
        assert data["after"] == spell(found[at + 1 : at + 49])
        spans = rows[data["row"]]["spans"]
        (span,) = [
            one
            for i, one in enumerate(spans)
            if 0 <= data["place"] - sum(two["length"] for two in spans[:i]) < one["length"]
        ]
        assert (span["document"], span["epoch"]) == (data["document"], data["epoch"])
        assert span["start"] <= at < span["start"] + span["length"]


def test_what_is_not_there(built, tmp_path):
    store, mixture = built
    for row in (-1, 13, 10**30):
        assert code_of(mixture.root, row=row) == "MX070"
    for token in (-1, 13 * 16, 10**30):
        assert code_of(mixture.root, token=token) == "MX070"
    for doc in (-1, 7, 1 << 64):
        assert code_of(store.root, doc=doc) == "MX070"
    assert code_of(store.root, row=0) == "MX070"
    assert code_of(store.root, token=0) == "MX070"
    assert code_of(mixture.root, doc=7) == "MX070"
    assert code_of(tmp_path) == "MX070"
    assert code_of(tmp_path / "no such folder") == "MX070"


def test_a_mixture_that_moved_says_what_it_cannot_show(built, tmp_path):
    store, mixture = built
    moved = shutil.copytree(mixture.root, tmp_path / "moved" / "mixture")
    data = inspect(moved, row=3)
    (why,) = data["not_shown"]
    assert why.startswith("files, records and text: ")
    assert str(tmp_path / "moved/store") in why
    assert "text" not in data
    assert all("file" not in span and "text" not in span for span in data["spans"])
    data = inspect(moved, token=30)
    assert data["source"] == {} and "text" not in data and data["not_shown"] == [why]
    for asked in ({"row": 3}, {"token": 30}):
        assert inspect(moved, **asked, store=store.root) == inspect(mixture.root, **asked)
    assert code_of(moved, row=3, store=tmp_path) == "MX041"


def test_text_is_not_spelled_by_another_tokenizer(built, tmp_path):
    _, mixture = built
    other, _ = make_mixture(tmp_path, CORPUS, words=400, mixture=MIXTURE)
    shutil.rmtree(tmp_path / "out/mixture")
    moved = shutil.copytree(mixture.root, tmp_path / "out/mixture")
    assert "text" in inspect(moved, row=3)["not_shown"][0]
    assert code_of(moved, row=3, store=other.root) == "MX045"


def test_another_store_of_the_same_tokenizer_spells_but_names_no_files(built, tmp_path):
    _, mixture = built
    make_mixture(tmp_path, CORPUS, holdout={"fraction": 0.4}, mixture=MIXTURE)
    shutil.rmtree(tmp_path / "out/mixture")
    moved = shutil.copytree(mixture.root, tmp_path / "out/mixture")
    data, whole = inspect(moved, row=3), inspect(mixture.root, row=3)
    assert data["text"] == whole["text"]
    assert all("file" not in span for span in data["spans"])
    assert data["not_shown"][0].startswith("files and records: ")
    data, whole = inspect(moved, token=50), inspect(mixture.root, token=50)
    assert data["text"] == whole["text"] and data["source"] == {}
    assert whole["before"].endswith(data["before"]) and whole["after"].startswith(data["after"])


def test_people_read_rows_and_tokens(built, tmp_path):
    _, mixture = built
    data = inspect(mixture.root, row=3)
    printed = mixc("inspect", mixture.root, "--row", 3).stdout
    for span in data["spans"]:
        assert f"of {span['file']}, record {span['record']}\n{span['text']}\n" in printed
    data = inspect(mixture.root, token=50)
    printed = mixc("inspect", mixture.root, "--token", 50).stdout
    assert f"place {data['place']} of row 3" in printed
    assert f"{data['source']['file']}, record {data['source']['record']}" in printed
    assert f"{data['before']} »{data['text']}« {data['after']}" in printed
    moved = shutil.copytree(mixture.root, tmp_path / "mixture")
    assert "not shown: files, records and text" in mixc("inspect", moved, "--row", 3).stdout
    assert mixc("inspect", mixture.root, "--row", 3, "--token", 3).returncode == 2
    document = mixc("inspect", built[0].root, "--doc", data["doc_id"], "--decode").stdout
    assert data["source"]["file"] in document and data["text"] in document


def test_text_cannot_steer_the_terminal():
    assert shown("a\tb\n\x1b[31m\u202e\x00é\u200d") == "a\tb\n\\u001b[31m\\u202e\\u0000é\u200d"


def test_padding_is_told_from_the_document_before_it(tmp_path):
    _, mixture = make_mixture(tmp_path, CORPUS, mixture=MIXTURE | {"packing": "best_fit"})
    told = 0
    for row, entry in enumerate(read_rows(mixture)):
        held = sum(span["length"] for span in entry["spans"])
        for place in (held - 1, held, 15):
            data = inspect(mixture.root, token=16 * row + min(place, 15))
            assert data["padding"] == (min(place, 15) >= held)
            assert ("document" in data) != data["padding"]
            told += data["padding"]
    assert told > 0
    row = next(
        n for n, one in enumerate(read_rows(mixture)) if sum(s["length"] for s in one["spans"]) < 16
    )
    printed = mixc("inspect", mixture.root, "--token", 16 * row + 15).stdout
    assert "padding behind the row's last document" in printed
