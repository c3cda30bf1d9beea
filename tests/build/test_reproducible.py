"""The same recipe gives the same bytes, whoever builds it, wherever, however often it is killed."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from build_helpers import (
    all_documents,
    flat,
    make_mixture,
    make_store,
    mixc,
    random_corpus,
    small_blocks,
    tree_hash,
    watch_blocks,
    write_corpus,
    write_document_weights,
)

from mixc import pipeline
from mixc.build.gather import block_digest
from mixc.errors import MixcError
from mixc.recipe import load

CORPUS = random_corpus(11, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 3, "formats": ["nanogpt", "megatron"]}
BLOCK_TOKENS = 16 * 9  # 14 blocks, the last one short
HELD = {"fraction": 0.1}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The hash of everything that one worker writes, in this process."""
    with small_blocks(BLOCK_TOKENS):
        folder = tmp_path_factory.mktemp("expected")
        make_mixture(folder, CORPUS, mixture=MIXTURE, holdout=HELD)
    return tree_hash(folder / "out")


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, expected, workers):
    path = write_corpus(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    with small_blocks(BLOCK_TOKENS):
        pipeline.run(load(path), workers=workers)
    assert tree_hash(tmp_path / "out") == expected


CHANGES = {
    "best_fit": {"packing": "best_fit"},
    "one more": {"row_len": "seq_len+1"},
    "weighted": {"document_weights": "w.parquet"},
    "weighted best_fit": {"document_weights": "w.parquet", "packing": "best_fit"},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_every_way_to_fill_rows_is_the_same_for_two_workers(tmp_path, changed):
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        mixture = MIXTURE | CHANGES[changed]
        store = make_store(folder, CORPUS, mixture=mixture, holdout=HELD)
        ids = {doc_id for doc_id, _ in all_documents(store, "code")}
        write_document_weights(folder / "w.parquet", dict.fromkeys(ids, 1.3))
        with small_blocks(BLOCK_TOKENS):
            pipeline.build_mixture(load(folder / "recipe.yaml"), workers=workers)
        found.append(tree_hash(folder / "out"))
    assert found[0] == found[1]


def test_the_surroundings_change_nothing(tmp_path, expected):
    write_corpus(tmp_path / "here", CORPUS, mixture=MIXTURE, holdout=HELD)
    write_corpus(tmp_path / "elsewhere/a b", CORPUS, mixture=MIXTURE, holdout=HELD)
    strange = {"PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"}
    runs = [
        ("here", "recipe.yaml", {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"}, 0o022),
        ("elsewhere", "a b/recipe.yaml", {**strange, "OMP_NUM_THREADS": "1"}, 0o077),
    ]
    for cwd, recipe, env, umask in runs:
        done = mixc(
            *("run", recipe, "--workers", 1),
            cwd=tmp_path / cwd,
            env=env,
            umask=umask,
            block_tokens=BLOCK_TOKENS,
        )
        assert done.returncode == 0, done.stderr
    assert tree_hash(tmp_path / "here/out") == expected
    assert tree_hash(tmp_path / "elsewhere/a b/out") == expected


BACKWARDS = """
import time
ticks = iter(range(1 << 60, 0, -(1 << 32)))
def back(scale):
    return lambda: next(ticks) / scale
time.time, time.monotonic, time.perf_counter = back(1e9), back(1e9), back(1e9)
time.time_ns = time.monotonic_ns = time.perf_counter_ns = lambda: next(ticks)
from mixc.__main__ import main
main()
"""


def test_a_clock_that_runs_backwards_changes_nothing(tmp_path, expected):
    """Nor do files from the past and the future."""
    path = write_corpus(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    for number, file in enumerate(sorted(tmp_path.rglob("*.json*"))):
        os.utime(file, (0, 0) if number % 2 else (1 << 33, 1 << 33))
    code = f"import mixc.build.plan as p; p._BLOCK_TOKENS = {BLOCK_TOKENS}" + BACKWARDS
    command = [sys.executable, "-c", code, "run", str(path), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tree_hash(tmp_path / "out") == expected


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
@pytest.mark.parametrize("when", ["1970-01-02", "2038-01-20", "@2026-03-29 01:59:59"])
def test_the_time_of_day_changes_nothing(tmp_path, expected, when):
    path = write_corpus(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    code = f"import mixc.build.plan as p; p._BLOCK_TOKENS = {BLOCK_TOKENS}; "
    code += "from mixc.__main__ import main; main()"
    command = ["faketime", when, sys.executable, "-c", code, "run", str(path), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tree_hash(tmp_path / "out") == expected


# ---- resuming after a kill ----


@pytest.fixture
def torn(tmp_path, expected):
    """A folder where a build of 14 blocks was killed: the store, a staged stream, a journal."""
    path = write_corpus(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    with small_blocks(BLOCK_TOKENS):
        mixture = pipeline.run(load(path), workers=1).mixture
    staging = tmp_path / "out/.mixc/mixture/staging" / mixture.manifest["key"]
    staging.mkdir(parents=True)
    shutil.copy(mixture.root / "nanogpt/train.bin", staging / "stream.bin")
    (staging / "tree").mkdir()
    (staging / "tree/.rows.parquet.1234.part").write_bytes(b"half of a file")
    blocks = [flat(mixture)[i : i + 9].reshape(-1) for i in range(0, 120, 9)]
    shutil.rmtree(mixture.root)
    return path, staging, blocks


def rebuilt_blocks(path, monkeypatch, workers=1):
    """Build; return the numbers of the blocks that were written, as the disk saw them."""
    written = []
    watch_blocks(monkeypatch, lambda _, offset: written.append(offset // (9 * 16 * 2)))
    with small_blocks(BLOCK_TOKENS):
        pipeline.build_mixture(load(path), workers=workers)
    return written


def journal(staging, entries):
    lines = [json.dumps({"block": number, "xxh3": digest}) for number, digest in entries]
    (staging / "blocks.jsonl").write_text("".join(line + "\n" for line in lines))


def test_staged_blocks_that_the_journal_names_are_kept(torn, tmp_path, expected, monkeypatch):
    path, staging, blocks = torn
    journal(staging, [(i, block_digest(block)) for i, block in enumerate(blocks) if i % 2])
    assert rebuilt_blocks(path, monkeypatch) == list(range(0, 14, 2))
    assert tree_hash(tmp_path / "out") == expected


def test_blocks_that_are_not_what_the_journal_says_are_made_again(
    torn, tmp_path, expected, monkeypatch
):
    path, staging, blocks = torn
    entries = [(i, block_digest(block)) for i, block in enumerate(blocks)]
    entries[3] = (3, "0" * 32)  # a wrong digest over right bytes
    journal(staging, entries)
    with (staging / "stream.bin").open("r+b") as stream:
        stream.seek(5 * 9 * 16 * 2 + 1)  # wrong bytes under a right digest
        stream.write(b"\xff")
    assert rebuilt_blocks(path, monkeypatch) == [3, 5]
    assert tree_hash(tmp_path / "out") == expected


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_an_error_in_any_worker_ends_the_run_and_keeps_what_is_done(
    tmp_path, expected, monkeypatch, workers
):
    path = write_corpus(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    pipeline.run(load(path, ["mixture.rows=1"]), workers=1)

    def fail(_, offset):
        if offset == 7 * 9 * 16 * 2:
            raise MixcError("MX043", "no more")

    watch_blocks(monkeypatch, fail)
    with small_blocks(BLOCK_TOKENS), pytest.raises(MixcError, match="no more"):
        pipeline.build_mixture(load(path), workers=workers)
    monkeypatch.undo()
    assert rebuilt_blocks(path, monkeypatch) == list(range(7, 14))
    assert tree_hash(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "tail",
    [
        b'{"block": 13, "xx',
        b'{"block": 13}\n',
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"block": "x"}\n',
        b"7\n",
    ],
)
def test_a_torn_journal_costs_only_the_torn_lines_block(
    torn, tmp_path, expected, monkeypatch, tail
):
    path, staging, blocks = torn
    journal(staging, [(i, block_digest(block)) for i, block in enumerate(blocks[:13])])
    with (staging / "blocks.jsonl").open("ab") as file:
        file.write(tail)
    assert rebuilt_blocks(path, monkeypatch) == [13]
    assert tree_hash(tmp_path / "out") == expected


def test_a_staged_stream_that_is_cut_short_is_filled_up(torn, tmp_path, expected, monkeypatch):
    path, staging, blocks = torn
    journal(staging, [(i, block_digest(block)) for i, block in enumerate(blocks)])
    with (staging / "stream.bin").open("r+b") as stream:
        stream.truncate(9 * 16 * 2 * 11)
    assert rebuilt_blocks(path, monkeypatch) == [11, 12, 13]
    assert tree_hash(tmp_path / "out") == expected


def test_staging_of_another_plan_is_thrown_away(torn, tmp_path, expected, monkeypatch):
    path, staging, blocks = torn
    journal(staging, [(i, block_digest(block)) for i, block in enumerate(blocks)])
    staging.rename(staging.with_name("f" * 32))
    assert rebuilt_blocks(path, monkeypatch) == list(range(14))
    assert tree_hash(tmp_path / "out") == expected
    assert not (tmp_path / "out/.mixc/mixture/staging").exists()


def test_a_mixture_built_in_between_leaves_no_trace(torn, tmp_path, expected, monkeypatch):
    path, staging, blocks = torn
    journal(staging, [(i, block_digest(block)) for i, block in enumerate(blocks)])
    pipeline.build_mixture(load(path, ["mixture.order.shuffle_block=2"]), workers=1)
    assert rebuilt_blocks(path, monkeypatch) == list(range(14))
    assert tree_hash(tmp_path / "out") == expected
