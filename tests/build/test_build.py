"""The whole build, checked against the bytes that it wrote and the store that it read."""

import itertools
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xxhash
from build_helpers import (
    MISSING,
    all_documents,
    every_held_id,
    flat,
    make_mixture,
    make_store,
    past_the_page_cache,
    random_corpus,
    read_rows,
    small_blocks,
    tijdeman,
    worst_error,
    write_corpus,
    write_document_weights,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixc import pipeline
from mixc.build import blocks, gather, stage
from mixc.build.counts import row_counts
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.registry import WRITERS
from mixc.store import parts
from mixc.tokenize.stage import tokenize
from mixc.verify import verify


@st.composite
def builds(draw):
    """(corpus, overrides of the recipe, tokens of a block)."""
    names = draw(st.sampled_from([["a"], ["a", "b"], ["web", "code", "x.y-z"], list("abcdef")]))
    # Ids below 3 make equal documents, and so duplicates and leaks, likely.
    words = draw(st.sampled_from([3, 300]))
    sizes = {name: (draw(st.integers(1, 25)), draw(st.integers(0, 15))) for name in names}
    corpus = random_corpus(draw(st.integers(0, 2**32)), sizes, words=words)
    parts = draw(st.lists(st.integers(0, 5), min_size=len(names), max_size=len(names)))
    assume(any(parts))
    weights = {name: part / sum(parts) for name, part in zip(names, parts, strict=True)}
    mixture = {
        "weights": weights,
        "rows": draw(st.integers(1, 60)),
        "seq_len": draw(st.integers(1, 20)),
        "max_epochs": draw(st.sampled_from([None, 0.4, 1, 2.5, 4])),
        "order": {"shuffle_block": draw(st.sampled_from([1, 2, 7, 1024]))},
        "packing": draw(st.sampled_from(["concat", "best_fit"])),
    }
    holdout = {"fraction": draw(st.sampled_from([0, 0.1, 0.5]))}
    overrides = {"mixture": mixture, "holdout": holdout, "seed": draw(st.integers(0, 99))}
    return corpus, overrides, draw(st.sampled_from([1, 64, 1 << 24]))


def traced(store, mixture):
    """Check every token of every row against the store; count each token read, by domain."""
    documents = {name: all_documents(store, name) for name in store.domains}
    seen = {name: Counter() for name in store.domains}
    tokens = flat(mixture).tolist()
    rows = read_rows(mixture)
    assert [row["row"] for row in rows] == list(range(len(tokens)))
    for row, found in zip(rows, tokens, strict=True):
        copied = []
        for span in row["spans"]:
            doc_id, document = documents[row["domain"]][span["document"]]
            assert doc_id == span["doc_id"]
            stop = span["start"] + span["length"]
            assert 0 <= span["start"] < stop <= len(document)
            copied += document[span["start"] : stop]
            for at in range(span["start"], stop):
                seen[row["domain"]][span["epoch"], span["document"], at] += 1
        padding = [store.eot_id] * (len(found) - len(copied))
        assert copied + padding == found
        assert not padding or mixture.manifest["packing"] == "best_fit"
        assert row["epoch"] == row["spans"][-1]["epoch"]
    return documents, seen, Counter(row["domain"] for row in rows)


def drawn_copies(store, mixture):
    """A function of (domain, epoch): how often each document is drawn, by its number."""
    streams = mixture.streams(store)

    @cache
    def copies(name, epoch):
        stream = streams[name]
        return Counter(stream.training[stream.epoch_order(epoch)].tolist())

    return copies


def check_ledger(store, mixture):
    documents, seen, rows = traced(store, mixture)
    held, manifest = every_held_id(store), mixture.manifest
    copies = drawn_copies(store, mixture)
    for name, entry in manifest["ledger"].items():
        # In an epoch each token is read once at most for each copy, and none that is held out.
        for (epoch, number, _), times in seen[name].items():
            assert times <= copies(name, epoch)[number]
        assert not {documents[name][number][0] for _, number, _ in seen[name]} & held
        read = sum(len(tokens) for _, tokens in documents[name])
        held_out = sum(len(tokens) for doc_id, tokens in documents[name] if doc_id in held)
        training = [i for i, (doc_id, _) in enumerate(documents[name]) if doc_id not in held]
        in_rows: Counter[int] = Counter()
        for (epoch, _, _), times in seen[name].items():
            in_rows[epoch] += times
        assert (entry["read"], entry["held_out"]) == (read, held_out)
        assert len(entry["epochs"]) == max(in_rows, default=-1) + 1
        for number, epoch in enumerate(entry["epochs"]):
            assert epoch["in_rows"] == in_rows[number]
            assert epoch["left"] >= 0
            size = sum(copies(name, number)[i] * len(documents[name][i][1]) for i in training)
            assert epoch.get("drawn", read - held_out) == size
            assert size == epoch["in_rows"] + epoch["left"]
            assert ("drawn" in epoch) == mixture.layout.weighted
        domain = manifest["domains"][name]
        assert domain["rows"] == rows[name]
        assert domain["tokens"] == rows[name] * manifest["row_len"]
        assert domain["tokens"] == sum(in_rows.values()) + entry.get("padding", 0)
        assert ("padding" in entry) == (manifest["packing"] == "best_fit")


def check_plan(store, mixture, options):
    """The rows of each domain are those of the weights, under the cap."""
    manifest, names = mixture.manifest, sorted(store.domains)
    training = np.array([store.domains[name].training_tokens for name in names])
    cap, length = options["max_epochs"], options["seq_len"]
    streams = list(mixture.streams(store).values())
    if mixture.layout.plain:
        most = training * cap // length if cap else np.where(training, options["rows"], 0)
    else:
        most = np.array([one.rows_within(cap or np.inf, options["rows"]) for one in streams])
    weights = np.array([options["weights"][name] for name in names])
    counts = row_counts(weights, options["rows"], most.astype(np.int64))
    for i, name in enumerate(names):
        entry = manifest["domains"][name]
        assert entry["rows"] == counts.rows[i]
        assert entry["capped"] == counts.capped[i]
        assert entry["weight"] == weights[i]
        assert entry["realised"] == counts.rows[i] / options["rows"]
        assert entry["epochs"] == pytest.approx(streams[i].epochs_of(entry["rows"]))
        assert entry["epochs"] <= (cap or np.inf)
        if mixture.layout.plain:
            assert entry["epochs"] == pytest.approx(entry["tokens"] / max(training[i], 1))


def check_order(mixture):
    manifest = mixture.manifest
    names = list(manifest["domains"])
    labels = np.array([names.index(row["domain"]) for row in read_rows(mixture)])
    counts = np.bincount(labels, minlength=len(names))
    block, total = manifest["order"]["shuffle_block"], len(labels)
    ends = sorted({*range(block, total + 1, block), total})
    error = worst_error(labels, counts, ends)
    assert manifest["order"]["max_prefix_error"] == float(error)
    assert error <= tijdeman(counts)


def stream_hash(mixture):
    """The hash of the stream as DESIGN defines it, from train.bin."""
    rows, step = flat(mixture), mixture.manifest["block_rows"]
    digests = [
        xxhash.xxh3_128_digest(rows[start : start + step].tobytes())
        for start in range(0, len(rows), step)
    ]
    return xxhash.xxh3_128_hexdigest(b"".join(digests))


@settings(max_examples=40, deadline=None)
@given(builds())
def test_every_token_is_accounted_for(build):
    corpus, overrides, block_tokens = build
    with tempfile.TemporaryDirectory() as folder, small_blocks(block_tokens):
        try:
            store, mixture = make_mixture(folder, corpus, **overrides)
        except MixcError as error:
            assert error.code == "MX060"
            return
        check_ledger(store, mixture)
        check_plan(store, mixture, overrides["mixture"])
        check_order(mixture)
        assert mixture.manifest["stream_hash"] == stream_hash(mixture)
        report = verify(mixture.root, full=True)
        assert report.traced_rows == report.rows == overrides["mixture"]["rows"]


@settings(max_examples=40, deadline=None)
@given(builds(), st.lists(st.sampled_from([0, 0.3, 1, 1, 1.5, 4]), min_size=1, max_size=20))
def test_every_token_is_accounted_for_under_documents_weights(build, weights):
    corpus, overrides, block_tokens = build
    with tempfile.TemporaryDirectory() as folder, small_blocks(block_tokens):
        overrides["mixture"]["document_weights"] = "w.parquet"
        store = make_store(folder, corpus, **overrides)
        ids = sorted({doc_id for name in store.domains for doc_id, _ in all_documents(store, name)})
        listed = dict(zip(ids, weights * len(ids), strict=False))
        write_document_weights(Path(folder) / "w.parquet", listed)
        try:
            mixture = pipeline.build_mixture(load(Path(folder) / "recipe.yaml"), workers=1)
        except MixcError as error:
            assert error.code in ("MX060", "MX061")
            return
        check_ledger(store, mixture)
        check_plan(store, mixture, overrides["mixture"])
        check_order(mixture)
        assert mixture.manifest["document_weights"]["documents"] == len(listed)
        report = verify(mixture.root, full=True)
        assert report.traced_rows == report.rows == overrides["mixture"]["rows"]


BUILD = {"rows": 40, "seq_len": 16, "formats": ["nanogpt", "megatron"]}
CORPUS = random_corpus(5, {"code": (30, 20), "prose": (20, 40), "web": (60, 12)})


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_blocks_are_cut_anywhere_without_a_trace(tmp_path, packing):
    make_store(tmp_path, CORPUS, mixture=BUILD | {"packing": packing, "rows": 80})
    trees = []
    for tokens in (1, 16 * 7, 1 << 24):
        with small_blocks(tokens):
            recipe = load(tmp_path / "recipe.yaml", [f"name=blocks-{tokens}", "workdir=out"])
            mixture = pipeline.build_mixture(recipe, workers=1)
        trees.append((flat(mixture).tolist(), read_rows(mixture), mixture.manifest["ledger"]))
    assert trees[0] == trees[1] == trees[2]


def test_the_manifest_says_what_was_built(tmp_path):
    overrides = {"mixture": BUILD, "name": "said", "seed": 3}
    store, mixture = make_mixture(tmp_path, CORPUS, **overrides)
    manifest = mixture.manifest
    assert manifest["schema"] == "mixc.mixture/1"
    assert (manifest["name"], manifest["seed"]) == ("said", 3)
    assert (manifest["rows"], manifest["seq_len"], manifest["tokens"]) == (40, 16, 640)
    assert (manifest["dtype"], manifest["eot_id"]) == ("uint16", 300)
    assert manifest["tokenizer"] == {
        "sha256": store.manifest["tokenizer"]["sha256"],
        "vocab_size": 301,
    }
    assert manifest["store_hash"] == store.store_hash
    assert manifest["overrides"] == []
    total = sum(domain.training_tokens for domain in store.domains.values())
    for name, entry in manifest["domains"].items():
        assert entry["weight"] == store.domains[name].training_tokens / total
    assert list(manifest["formats"]) == ["megatron", "nanogpt"]


def test_the_stream_hash_does_not_depend_on_the_format(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture=BUILD)
    hashes = set()
    for formats in ("[nanogpt]", "[megatron]", "[megatron, nanogpt]"):
        outputs = pipeline.run(load(path, [f"mixture.formats={formats}"]), workers=1)
        hashes.add(outputs.mixture.manifest["stream_hash"])
        assert set(outputs.mixture.manifest["formats"]) == set(formats.strip("[]").split(", "))
    assert len(hashes) == 1


def test_tokens_are_rounded_down_to_whole_rows(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture={**BUILD, "rows": None, "tokens": 16 * 9 + 15})
    mixture = pipeline.run(load(path), workers=1).mixture
    assert (mixture.manifest["rows"], mixture.manifest["tokens"]) == (9, 16 * 9)


def test_best_fit_cuts_no_document_that_fits_in_a_row(tmp_path):
    store, mixture = make_mixture(tmp_path, CORPUS, mixture=BUILD | {"packing": "best_fit"})
    lengths = {d: [len(tokens) for _, tokens in all_documents(store, d)] for d in store.domains}
    for row in read_rows(mixture):
        for span in row["spans"]:
            length = lengths[row["domain"]][span["document"]]
            assert span["length"] == min(16, length - span["start"])
            assert span["start"] % 16 == 0
    padding = {name: entry["padding"] for name, entry in mixture.manifest["ledger"].items()}
    assert 0 < sum(padding.values()) < mixture.manifest["tokens"] / 4
    check_ledger(store, mixture)
    check_order(mixture)
    assert verify(mixture.root).traced_rows == 40


def test_documents_appear_as_often_as_they_weigh(tmp_path):
    options = BUILD | {"document_weights": "w.parquet", "max_epochs": 1, "rows": 60}
    options |= {"weights": {"code": 0, "prose": 0, "web": 1}, "packing": "best_fit"}
    store = make_store(tmp_path, CORPUS, mixture=options, holdout={"fraction": 0})
    ids = [doc_id for doc_id, _ in all_documents(store, "web")]
    write_document_weights(tmp_path / "w.parquet", {ids[0]: 0, ids[1]: 3, ids[2]: 2, 12345: 9})
    mixture = pipeline.build_mixture(load(tmp_path / "recipe.yaml", ["seed=4"]), workers=1)
    assert mixture.manifest["document_weights"].items() >= {"documents": 4, "known": 3}.items()
    check_ledger(store, mixture)
    # The whole epoch: as many rows as the domain has room for.
    room = mixture.streams(store)["web"].rows_within(1, 10**6)
    recipe = load(tmp_path / "recipe.yaml", ["seed=4", f"mixture.rows={room}"])
    whole = pipeline.build_mixture(recipe, workers=1)
    begun = Counter(s["doc_id"] for row in read_rows(whole) for s in row["spans"] if not s["start"])
    assert [begun[doc_id] for doc_id in ids[:4]] == [0, 3, 2, 1]
    assert whole.manifest["ledger"]["web"]["epochs"][0]["left"] == 0


def test_rows_of_one_token_more_share_none(tmp_path):
    formats = [name for name in WRITERS if name not in MISSING]
    options = BUILD | {"row_len": "seq_len+1", "formats": formats}
    store, mixture = make_mixture(tmp_path, CORPUS, mixture=options)
    manifest = mixture.manifest
    assert (manifest["seq_len"], manifest["row_len"], manifest["tokens"]) == (16, 17, 40 * 17)
    assert flat(mixture).shape == (40, 17)
    for name in formats:
        assert np.array_equal(mixture.read(0, 40, of=name), flat(mixture))
    assert "--block_size=16 " not in manifest["formats"]["nanogpt"]["how_to_load"]
    assert "--block_size=16\n" in manifest["formats"]["nanogpt"]["how_to_load"]
    check_ledger(store, mixture)
    check_order(mixture)
    assert verify(mixture.root, full=True).traced_rows == 40


@pytest.mark.parametrize(
    ("formats", "warm", "cold"),
    [(["nanogpt", "mds"], 0, 4), (["nanogpt"], 5, 5)],
    ids=["through the page cache", "past it"],
)
def test_a_store_that_is_read_from_the_disk_gives_the_same_bytes(
    tmp_path, monkeypatch, formats, warm, cold
):
    """Of 5 blocks, pages are fetched before those for which the last one had to wait.

    For what goes past the page cache, always, unless it was read ahead.
    """
    if len(formats) == 1 and not past_the_page_cache(tmp_path):
        pytest.skip("this filesystem has no way past the page cache")
    asked, found = [], []
    populate = gather.populate
    monkeypatch.setattr(gather, "populate", lambda *which: (asked.append(1), populate(*which))[1])
    build = BUILD | {"formats": formats}
    for name, faults in (("warm", itertools.repeat(0)), ("cold", itertools.count())):
        asked.clear()
        with pytest.MonkeyPatch.context() as patch, small_blocks(16 * 9):
            patch.setattr(gather, "_major_faults", lambda faults=faults: next(faults))
            found.append(make_mixture(tmp_path / name, CORPUS, mixture=build)[1])
        assert len(asked) == (warm if name == "warm" else cold)
    assert np.array_equal(flat(found[0]), flat(found[1]))


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_go_past_the_page_cache_and_stand_until_the_next(tmp_path, monkeypatch, workers):
    """Blocks of some sectors at odd places; whoever takes them takes its time."""
    if not past_the_page_cache(tmp_path):
        pytest.skip("this filesystem has no way past the page cache")
    corpus = random_corpus(3, {"web": (400, 400)})
    mixture = {"rows": 10_001, "seq_len": 17, "formats": ["nanogpt"], "max_epochs": 40}
    path = write_corpus(tmp_path, corpus, mixture=mixture)
    tokenize(load(path), workers=1)
    direct, torn, write_past, build = [], [], parts._write_past, stage.build_blocks

    def slowly(*given, **how):
        for done in build(*given, **how):
            time.sleep(0.02)
            torn.append(gather.block_digest(done.tokens) != done.digest)
            yield done

    def noted(path, offset, data):
        direct.append((offset % 4096, len(data) % 4096))
        return write_past(path, offset, data)

    monkeypatch.setattr(parts, "_write_past", noted)
    monkeypatch.setattr(stage, "build_blocks", slowly)
    with small_blocks(20_000):
        mixture = pipeline.build_mixture(load(path), workers=workers)
    assert len(direct) == len(torn) == 9
    assert set(direct) == {(0, 0)} and not any(torn)
    assert verify(mixture.root, full=True).traced_rows == 10_001


def test_a_format_says_whether_it_takes_the_stream_as_its_file(tmp_path):
    formats = [name for name in WRITERS if name not in MISSING]
    _, mixture = make_mixture(tmp_path, CORPUS, mixture=BUILD | {"formats": formats})
    stream = mixture.root / "nanogpt/train.bin"
    for name in formats:
        files = [mixture.root / one["path"] for one in mixture.manifest["formats"][name]["files"]]
        takes = any(stream.samefile(one) for one in files)
        assert getattr(WRITERS[name].load(), "LINKS", False) == takes, name


def test_what_cannot_be_fetched_from_the_disk_is_named(tmp_path, monkeypatch):
    if not past_the_page_cache(tmp_path):
        pytest.skip("this filesystem has no way past the page cache")
    monkeypatch.setattr(gather, "populate", lambda addresses, _: len(addresses) - 1)
    with pytest.raises(MixcError, match="cannot be read any more") as caught:
        make_mixture(tmp_path, CORPUS, mixture=BUILD)
    assert caught.value.code == "MX040"
    assert Path(caught.value.place.file).parent.parent == tmp_path / "out/store"
    assert not (tmp_path / "out/mixture").exists()


WHOLE = BUILD | {"rows": 400, "weights": "natural", "max_epochs": 40}  # all domains are used whole


def test_what_was_read_ahead_is_not_asked_for_again(tmp_path, monkeypatch):
    if not past_the_page_cache(tmp_path):
        pytest.skip("this filesystem has no way past the page cache")
    build = WHOLE | {"formats": ["nanogpt"]}
    _, mixture = make_mixture(tmp_path / "asked", CORPUS, mixture=build)
    monkeypatch.setattr(gather, "populate", lambda *_: pytest.fail("it was asked for"))
    _, ahead = make_mixture(tmp_path / "ahead", CORPUS, mixture=build)
    monkeypatch.setattr(blocks.Builder, "read_ahead", lambda *_, **__: None)
    with pytest.raises(pytest.fail.Exception):
        make_mixture(tmp_path / "page by page", CORPUS, mixture=build)
    assert np.array_equal(flat(ahead), flat(mixture))


def test_what_cannot_be_read_ahead_is_named_where_it_is_needed(tmp_path, monkeypatch):
    if not past_the_page_cache(tmp_path):
        pytest.skip("this filesystem has no way past the page cache")
    asked = []
    monkeypatch.setattr(blocks, "populate", lambda addresses, _: asked.append(len(addresses)) or 0)
    monkeypatch.setattr(gather, "populate", lambda addresses, _: len(addresses) - 1)
    with pytest.raises(MixcError, match="cannot be read any more") as caught:
        make_mixture(tmp_path, CORPUS, mixture=WHOLE | {"formats": ["nanogpt"]})
    assert caught.value.code == "MX040" and asked
    assert Path(caught.value.place.file).parent.parent == tmp_path / "out/store"
    assert not (tmp_path / "out/mixture").exists()


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_domains_that_are_used_whole_are_read_ahead(tmp_path, monkeypatch, share):
    read, ahead = [], blocks.Builder.read_ahead

    def spy(builder, domains, **how):
        read.extend(domains)
        ahead(builder, domains, **how)

    monkeypatch.setattr(blocks.Builder, "read_ahead", spy)
    weights = {"code": share, "prose": 1 - share, "web": 0}
    make_mixture(tmp_path, CORPUS, mixture=BUILD | {"weights": weights})
    assert read == (["prose"] if share == 0.2 else ["code"])
    read.clear()
    more = [*BUILD["formats"], "mds"]
    recipe = load(tmp_path / "recipe.yaml", [f"mixture.formats=[{', '.join(more)}]"])
    assert "mds" in pipeline.build_mixture(recipe, workers=1).manifest["formats"]
    assert read == []  # nothing of the store is gathered
