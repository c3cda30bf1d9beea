"""Gathering in two passes: the bytes of one, whatever is asked for; and when it is chosen."""

import os
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from build_helpers import (
    all_documents,
    make_store,
    random_corpus,
    small_blocks,
    tree_hash,
    watch_blocks,
    write_document_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc import pipeline
from mixc.build import buckets, medium
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store import commit, parts

CORPUS = random_corpus(13, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 3, "formats": ["nanogpt"]}
BLOCK_TOKENS = 16 * 9  # 14 blocks, the last one short
HELD = {"fraction": 0.1}
CHANGES = {
    "concat": {},
    "best_fit": {"packing": "best_fit"},
    "one more": {"row_len": "seq_len+1"},
    "weighted best_fit": {"document_weights": "w.parquet", "packing": "best_fit"},
    "a domain left out": {"weights": {"code": 0, "prose": 0.5, "web": 0.5}},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several buckets, and several windows: a shard each."""
    monkeypatch.setattr(buckets, "bucket_bytes", lambda _: 700)
    monkeypatch.setattr("mixc.build.stage.bucket_bytes", lambda _: 700)
    monkeypatch.setattr("mixc.tokenize.units._BUNDLE_FILES", 1)


def build(folder, gather, workers=1, **changes):
    mixture = MIXTURE | changes
    if not (folder / "out").exists():
        store = make_store(folder, CORPUS, mixture=mixture, holdout=HELD)
        ids = {doc_id for doc_id, _ in all_documents(store, "code")}
        write_document_weights(folder / "w.parquet", dict.fromkeys(ids, 1.3))
    with small_blocks(BLOCK_TOKENS):
        recipe = load(folder / "recipe.yaml")
        return pipeline.build_mixture(recipe, workers=workers, gather=gather)


@pytest.mark.parametrize("changed", CHANGES)
def test_two_passes_give_the_bytes_of_one(tmp_path, monkeypatch, changed):
    expected = tree_hash(build(tmp_path / "one", "one-pass", **CHANGES[changed]).root)
    # Whoever reads the store at random, does not read it in two passes.
    monkeypatch.setattr("mixc.build.buckets.from_store", None)
    for workers in (1, 2, 5):
        mixture = build(tmp_path / str(workers), "two-pass", workers, **CHANGES[changed])
        assert tree_hash(mixture.root) == expected


def test_the_store_is_read_once_and_in_its_order(tmp_path, monkeypatch):
    read, share_out = [], buckets.Buckets._share_out

    def spy(self, window):
        read.append(self._borders[window : window + 2].tolist())
        share_out(self, window)

    monkeypatch.setattr(buckets.Buckets, "_share_out", spy)
    build(tmp_path, "two-pass")
    assert len(read) > 2 and read == sorted(read)
    assert [first for first, _ in read[1:]] == [stop for _, stop in read[:-1]]


@pytest.mark.parametrize("when", ["asked", "bin", "stream.bin"])
@pytest.mark.parametrize("again", ["one-pass", "two-pass"])
def test_an_interrupted_build_goes_on_in_either_way(tmp_path, monkeypatch, when, again):
    """Interrupted while buckets are planned, filled, or put together."""
    expected = tree_hash(build(tmp_path / "one", "one-pass").root)
    left = [5]

    def told(path, _):
        left[0] -= path.name.endswith(when)
        if left[0] < 0:
            raise MixcError("MX043", "no space left")

    def failing(write):
        def call(path, *others):
            told(path, 0)
            return write(path, *others)

        return call

    with monkeypatch.context() as patch:
        watch_blocks(patch, told)
        for module, name in ((parts, "write_at"), (commit, "write_file")):
            patch.setattr(module, name, failing(getattr(module, name)))
        with pytest.raises(MixcError, match="no space left"):
            build(tmp_path / "two", "two-pass")
    mixture = build(tmp_path / "two", again)
    assert tree_hash(mixture.root) == expected
    assert not list((tmp_path / "two").rglob("buckets"))


def test_only_blocks_that_are_not_staged_go_through_buckets(tmp_path, monkeypatch):
    """What an earlier run has staged is not read again; what is damaged since is made again."""
    expected = tree_hash(build(tmp_path / "one", "one-pass").root)
    append, lines = commit.append_line, []

    def stop(path, line):
        append(path, line)
        lines.append(line)
        if len(lines) == 6:
            raise MixcError("MX043", "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(commit, "append_line", stop)
        with pytest.raises(MixcError, match="no space left"):
            build(tmp_path / "two", "two-pass")
    (stream,) = (tmp_path / "two").rglob("stream.bin")
    with stream.open("r+b") as file:  # of block 1, which then comes from the store
        file.seek(BLOCK_TOKENS * 2 + 10)
        file.write(b"\xff\xff\xff")
    asked, fill = [], buckets.Buckets.fill

    def spy(self, tasks, **options):
        tasks = list(tasks)
        asked.extend(task.number for task in tasks)
        fill(self, tasks, **options)

    monkeypatch.setattr(buckets.Buckets, "fill", spy)
    assert tree_hash(build(tmp_path / "two", "two-pass").root) == expected
    assert asked == list(range(6, 14))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_buckets_hold_what_they_may(sizes, most):
    """Short blocks may stand anywhere: decks end with one each."""
    builder = SimpleNamespace(seq_len=2, dtype=np.dtype(np.uint8))
    made = SimpleNamespace(_builder=builder, _size=most)
    tasks = [SimpleNamespace(labels=np.zeros(size, np.uint16)) for size in sizes]
    groups = list(buckets.Buckets._groups(made, tasks))
    assert [task for group in groups for task in group] == tasks
    for group in groups:
        assert len(group) == 1 or sum(2 * len(task.labels) for task in group) <= most


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 120))
def test_windows_hold_every_shard_once(sizes, most):
    shards = [np.zeros(size, np.uint8) for size in sizes]
    window, borders = buckets._windows(shards, most)
    assert borders[0] == 0 and borders[-1] == len(shards)
    for number, (first, stop) in enumerate(pairwise(borders)):
        assert (window[first:stop] == number).all()
        held = [size for size in sizes[first:stop] if size]
        assert sum(held) <= most or len(held) == 1


def test_what_is_chosen(tmp_path, monkeypatch):
    """Two passes where the store lies on what seeks, and memory cannot hold it."""
    chosen, find = [], medium.seeks
    assert find(tmp_path) in (True, False)

    def fill(self, tasks, **options):
        chosen.append(True)
        return real(self, tasks, **options)

    real = buckets.Buckets.fill
    monkeypatch.setattr(buckets.Buckets, "fill", fill)
    for slow, free, expected in [(True, 100, 1), (True, 1 << 30, 0), (False, 100, 0)]:
        monkeypatch.setattr(medium, "seeks", lambda _, slow=slow: slow)
        monkeypatch.setattr(medium, "free_memory", lambda free=free: free)
        folder = tmp_path / f"{slow}{free}"
        make_store(folder, CORPUS, mixture=MIXTURE, holdout=HELD)
        (*_, stage) = pipeline.plan(load(folder / "recipe.yaml"), workers=1)
        assert stage.details["gather"] == ("two-pass" if expected else "one-pass")
        assert ("buckets" in stage.details["disk"]) == bool(expected)
        chosen.clear()
        build(folder, "auto")
        assert len(chosen) == expected


MOUNTS = """\
22 1 {device} / / rw,relatime shared:1 - {kind} /dev/vda rw
23 1 0:99 / /elsewhere rw - nfs4 server:/ rw
"""


@pytest.mark.parametrize(
    ("kind", "turns", "expected"),
    [
        ("ext4", "0", False),
        ("ext4", "1", True),
        ("ext4", "", False),
        ("nfs4", "", True),
        ("lustre", "", True),
        ("fuse.s3fs", "", True),
        ("overlay", "", False),
    ],
)
def test_what_a_store_lies_on(tmp_path, monkeypatch, kind, turns, expected):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"

    def say(path):
        if path == "/proc/self/mountinfo":
            return MOUNTS.format(device=number, kind=kind)
        return turns if path.endswith("rotational") else ""

    monkeypatch.setattr(medium, "_read", say)
    assert medium.seeks(tmp_path) == expected


@pytest.mark.parametrize(
    ("group", "most", "expected"),
    [("0::/a\n", "5000\n", 5000), ("0::/a\n", "max\n", 8192000), ("1:cpu:/a\n", "", 8192000)],
)
def test_free_memory_is_what_the_control_group_leaves(monkeypatch, group, most, expected):
    said = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}
    said |= {"/proc/self/cgroup": group, "/sys/fs/cgroup/a/memory.max": most}
    monkeypatch.setattr(medium, "_read", lambda path: said.get(path, ""))
    assert medium.free_memory() == expected
