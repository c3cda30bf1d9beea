"""Decks kept beside a mixture: the same bytes, and a change of weights gathers little."""

import json
import subprocess
import sys

import pytest
from build_helpers import (
    all_documents,
    make_store,
    mixc,
    random_corpus,
    small_blocks,
    tree_hash,
    write_corpus,
    write_document_weights,
)

from mixc import pipeline
from mixc.build import blocks, buckets, gather
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store import commit

CORPUS = random_corpus(14, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 9, "formats": ["nanogpt"]}
BLOCK_TOKENS = 16 * 9
HELD = {"fraction": 0.1}
FIRST, SECOND = {"code": 0.2, "prose": 0.3, "web": 0.5}, {"code": 0.4, "prose": 0.3, "web": 0.3}
CHANGES = {
    "concat": {},
    "best_fit": {"packing": "best_fit"},
    "one more": {"row_len": "seq_len+1"},
    "weighted": {"document_weights": "w.parquet"},
}


@pytest.fixture
def gathered(monkeypatch):
    """Rows that are gathered from the store, by the number of their domain and where they stand."""
    found, sources = [], blocks.from_store

    def spy(builder, task, rows):
        if builder.path.parent.parent.name == "decks":
            found.append((int(task.labels[0]), task.first, len(task.labels)))
        else:
            found.append("stream")
        return sources(builder, task, rows)

    monkeypatch.setattr("mixc.build.stage.from_store", spy)
    return found


def build(folder, *, decks=True, workers=1, **changes):
    mixture = MIXTURE | {"weights": FIRST} | changes
    if not (folder / "out").exists():
        store = make_store(folder, CORPUS, mixture=mixture, holdout=HELD)
        ids = {doc_id for doc_id, _ in all_documents(store, "code")}
        write_document_weights(folder / "w.parquet", dict.fromkeys(ids, 1.3))
    path = write_corpus(folder, CORPUS, mixture=mixture, holdout=HELD)
    with small_blocks(BLOCK_TOKENS):
        return pipeline.build_mixture(load(path), workers=workers, decks=decks)


def from_scratch(folder, **changes):
    return tree_hash(build(folder, decks=False, **changes).root)


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("workers", [1, 5])
def test_decks_change_nothing(tmp_path, changed, workers):
    changes = CHANGES[changed]
    mixture = build(tmp_path / "decks", workers=workers, **changes)
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "none", **changes)


def test_a_change_of_weights_gathers_what_no_mixture_had(tmp_path, gathered):
    build(tmp_path / "a")
    assert "stream" not in gathered
    assert sum(rows for _, _, rows in gathered) == 120
    gathered.clear()
    mixture = build(tmp_path / "a", weights=SECOND)
    # 48 rows of code where 24 were: from the block on that was not full; nothing of the others.
    assert gathered == [(0, first, min(9, 48 - first)) for first in range(18, 48, 9)]
    gathered.clear()
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", weights=SECOND)
    gathered.clear()
    build(tmp_path / "a", weights=FIRST)
    assert gathered == []


def test_a_mixture_without_decks_leaves_them(tmp_path, gathered):
    build(tmp_path)
    build(tmp_path, decks=False, weights=SECOND)
    gathered.clear()
    build(tmp_path, weights=FIRST)
    assert gathered == []


def test_decks_of_other_rows_make_room(tmp_path):
    build(tmp_path)
    (old,) = (tmp_path / "out/decks").iterdir()
    build(tmp_path, seq_len=8, rows=240)
    (new,) = (tmp_path / "out/decks").iterdir()
    assert old.name != new.name


def test_what_is_not_ours_stays(tmp_path):
    """Whoever keeps slides in a folder of that name keeps them."""
    (tmp_path / "out/decks" / ("0" * 32)).mkdir(parents=True)
    for name in ("slides.txt", "0" * 32 + "/slides.txt"):
        (tmp_path / "out/decks" / name).write_text("mine")
    make_store(tmp_path, CORPUS, mixture=MIXTURE | {"weights": FIRST}, holdout=HELD)
    build(tmp_path)
    assert len(list((tmp_path / "out/decks").rglob("slides.txt"))) == 2


@pytest.mark.parametrize("where", ["decks", "key", "file"])
def test_links_are_not_followed(tmp_path, where):
    build(tmp_path)
    (folder,) = (tmp_path / "out/decks").iterdir()
    link = {"decks": folder.parent, "key": folder, "file": folder / "0.bin"}[where]
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MixcError, match="link") as caught:
        build(tmp_path, weights=SECOND)
    assert caught.value.code == "MX043"


@pytest.mark.parametrize("how", ["changed", "cut", "gone", "journal"])
def test_damage_is_noticed(tmp_path, gathered, how):
    build(tmp_path / "a")
    (folder,) = (tmp_path / "a/out/decks").iterdir()
    path = folder / "2.bin"
    data = bytearray(path.read_bytes())
    if how == "changed":
        data[700] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:700])
    elif how == "gone":
        path.unlink()
    else:
        lines = '{"domain": 77, "block": 0, "rows": 9, "xxh3": ""}\n{"domain": 2, "block": -1\n[]\n'
        lines += '{"domain": 1e999, "block": 0, "rows": 9, "xxh3": ""}\n'
        huge = '{"domain": 1, "block": 3, "rows": 999999999999, "xxh3": "0"}\n'
        (folder / "blocks.jsonl").write_text(lines + huge)
    gathered.clear()
    mixture = build(tmp_path / "a", weights=SECOND)
    assert any(domain == 2 for domain, _, _ in gathered)
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", weights=SECOND)


def sizes_of(folder):
    return {path.name: path.stat().st_size for path in folder.rglob("decks/*/*.bin")}


def test_rows_that_a_mixture_does_not_need_are_neither_read_nor_lost(
    tmp_path, gathered, monkeypatch
):
    build(tmp_path)
    sizes, read, staged = sizes_of(tmp_path), [], gather._staged

    def spy(builder, task):
        read.extend(task.labels if builder.path.parent.parent.name == "decks" else [])
        return staged(builder, task)

    gathered.clear()
    monkeypatch.setattr(gather, "_staged", spy)
    build(tmp_path, rows=60)  # of the domains' 24, 36 and 60 rows half, in blocks of 9
    assert (read.count(0), read.count(1), read.count(2)) == (18, 18, 36)
    assert sizes_of(tmp_path) == sizes
    read.clear()
    build(tmp_path)
    assert len(read) == 120
    assert gathered == []


@pytest.mark.parametrize(("block", "when"), [(1, 0), (5, 1)])
def test_a_block_that_the_journal_lost_takes_no_other_with_it(tmp_path, gathered, block, when):
    """`when`: in which of two mixtures it is gathered again, of half the rows and of all."""
    build(tmp_path / "a")
    sizes, (path,) = sizes_of(tmp_path), tmp_path.rglob("decks/*/blocks.jsonl")
    lines = [line for line in path.read_text().splitlines() if f'2, "block": {block}' not in line]
    path.write_text("\n".join(lines))
    for number, rows in enumerate([60, 120]):
        gathered.clear()
        mixture = build(tmp_path / "a", rows=rows)
        assert gathered == ([(2, 9 * block, 9)] if number == when else [])
        assert sizes_of(tmp_path) == sizes
    gathered.clear()
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b")


def test_a_kill_while_decks_are_filled_loses_what_was_under_way(tmp_path, gathered, monkeypatch):
    append, lines = commit.append_line, []

    def stop(path, line):
        append(path, line)
        lines.append(line)
        if len(lines) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commit, "append_line", stop)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "a")
    gathered.clear()
    mixture = build(tmp_path / "a")
    assert len(gathered) == 14 - 7  # blocks of 24, 36 and 60 rows by 9: 3, 4 and 7 of them
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b")


def test_decks_are_filled_in_two_passes_too(tmp_path, monkeypatch):
    monkeypatch.setattr("mixc.build.stage.bucket_bytes", lambda _: 700)
    monkeypatch.setattr("mixc.build.stage.from_store", None)
    monkeypatch.setattr(buckets, "from_store", None)
    path = write_corpus(tmp_path / "a", CORPUS, mixture=MIXTURE | {"weights": FIRST}, holdout=HELD)
    make_store(tmp_path / "a", CORPUS, mixture=MIXTURE | {"weights": FIRST}, holdout=HELD)
    with small_blocks(BLOCK_TOKENS):
        recipe = load(path)
        mixture = pipeline.build_mixture(recipe, workers=2, decks=True, gather="two-pass")
    monkeypatch.undo()
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b")


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
from mixc.__main__ import main
main()
"""


def test_there_may_be_more_decks_than_a_process_may_open_files(tmp_path):
    corpus = random_corpus(3, {f"d{number:02}": (6, 9) for number in range(60)})
    make_store(tmp_path, corpus, mixture=MIXTURE, holdout=HELD)
    line = [sys.executable, "-c", FEW_FILES, "build-mixture", tmp_path / "recipe.yaml", "--decks"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("decks/*/*.bin"))) == 60


def test_from_the_command_line(tmp_path):
    store = make_store(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    line = ["build-mixture", tmp_path / "recipe.yaml", "--json"]
    for more in (["--engine", "ray", "--decks"], ["--engine", "ray", "--gather", "two-pass"]):
        done = mixc(*line, *more)
        assert done.returncode == 2 and "need --engine local" in done.stderr
    done = mixc(*line, "--decks", "--gather", "two-pass")
    assert json.loads(done.stdout)["rows"] == 120
    (folder,) = (tmp_path / "out/decks").iterdir()
    assert len(list(folder.glob("*.bin"))) == len(store.domains)
    done = mixc("plan", *line[1:], "-s", "mixture.rows=150")
    assert json.loads(done.stdout)["stages"][-1]["details"]["deck_rows"] == 120
    done = mixc("plan", *line[1:], "-s", "seed=1", "--decks", "--gather", "two-pass")
    said = json.loads(done.stdout)["stages"][-1]["details"]
    assert said["gather"] == "two-pass" and "decks" in said["disk"]
