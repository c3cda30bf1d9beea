"""What the system itself refuses, through the command line: disks, calls, descriptors."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
from build_helpers import tree_hash
from helpers import texts, write_recipe

from mixc import pipeline
from mixc.recipe import load
from mixc.tokenize.stage import tokenize
from mixc.verify import verify

MIXC = [sys.executable, "-m", "mixc"]


def can(*command):
    """Whether a tool is here and is allowed to do its work."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(
    not can("unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"),
    reason="unshare cannot mount a tmpfs here",
)
needs_strace = pytest.mark.skipif(
    not can("strace", "-o", "/dev/null", "true"), reason="strace does not work here"
)


def strace(*injections, paths=()):
    """A command before a command: calls of it fail. `paths`: only calls on these files."""
    line = ["strace", "-f", "-o", "/dev/null"]
    for one in injections:
        line += ["-e", f"inject={one}"]
    for path in paths:
        line += ["-P", str(path)]
    return line


def run(*words, before=(), **options):
    line = [*before, *MIXC, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)


# Fault 3

FULL = """
set -e
mount -t tmpfs -o size=$1 none "$2/out"
cp -r "$2/old/." "$2/out"
set +e
"$3" -m mixc tokenize "$2/recipe.yaml" --workers 1 2> "$2/said"
echo $?
set -e
cp -r "$2/out/store" "$2/after"
mount -o remount,size=64m "$2/out"
"$3" -m mixc tokenize "$2/recipe.yaml" --workers 1 > /dev/null 2>&1
cp -r "$2/out/store" "$2/again"
"""


@needs_mounts
def test_a_disk_that_is_full(tmp_path):
    """A real one. The old store stays; with more room, a rerun gives the undisturbed bytes."""
    old = tokenize(load(write_recipe(tmp_path, {"web": texts(1, 20)})), workers=1)
    (tmp_path / "out").rename(tmp_path / "old")
    path = write_recipe(tmp_path, {"web": texts(2, 6000)})
    expected = tokenize(load(path, ["workdir=expected"]), workers=1)
    size = (tmp_path / "corpus/web.jsonl").stat().st_size
    assert size > 400_000
    (tmp_path / "out").mkdir()
    line = ["unshare", "-rm", "sh", "-c", FULL, "sh", "200k", tmp_path, sys.executable]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
    said = (tmp_path / "said").read_text()
    assert "error[MX043]: cannot write: no space left on device" in said
    assert "help: free some space and run again: finished work is kept" in said
    assert verify(tmp_path / "after").documents == 20
    assert tree_hash(tmp_path / "after") == tree_hash(tmp_path / "old/store")
    assert tree_hash(tmp_path / "again") == tree_hash(expected.root)
    assert old.store_hash != expected.store_hash


# Fault 4


@needs_strace
def test_a_shard_or_a_manifest_that_the_disk_cannot_read_is_damaged(tmp_path):
    root = tokenize(load(write_recipe(tmp_path, {"web": texts(1, 20)})), workers=1).root
    for file, what in (
        (next(root.glob("web/*")), "the file"),
        (root / "manifest.json", "the mani"),
    ):
        done = run("verify", root, before=strace("read,pread64:error=EIO", paths=[file]))
        assert done.returncode == 3, done.stderr
        assert f"error[MX040]: {what}" in done.stderr
        assert f"cannot be read: input/output error\n --> {file}" in done.stderr
    assert verify(root).documents == 20


@needs_strace
@pytest.mark.parametrize("first", [1, 3], ids=["hashing", "tokenizing"])
def test_a_corpus_that_the_disk_cannot_read(tmp_path, first):
    """No other cause is named, and nothing is made. To hash a file this small takes two reads."""
    path = write_recipe(tmp_path, {"web": texts(1, 20)})
    corpus = tmp_path / "corpus/web.jsonl"
    fault = strace(f"read,pread64:error=EIO:when={first}+", paths=[corpus])
    done = run("tokenize", path, "--workers", "1", before=fault)
    assert done.returncode == 1, done.stderr
    assert "error[MX027]: cannot read the file: " in done.stderr
    assert "nput/output error\n --> corpus/web.jsonl" in done.stderr
    assert not (tmp_path / "out/store").exists()


# Fault 5

CALLS = "write,pwrite64,pwritev,fsync,ftruncate,fallocate"


@needs_strace
def test_calls_that_are_interrupted_are_made_again(tmp_path):
    path = write_recipe(tmp_path, {"web": texts(1, 40)}, mixture={"rows": 40, "seq_len": 16})
    pipeline.run(load(path, ["workdir=expected"]), workers=1)
    fault = strace(f"{CALLS}:error=EINTR:when=1+3")
    for command in ("tokenize", "build-mixture"):
        done = run(command, path, "--workers", "1", before=fault)
        assert done.returncode == 0, done.stderr
    assert tree_hash(tmp_path / "out") == tree_hash(tmp_path / "expected")


def few_descriptors(number):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def test_too_few_descriptors(tmp_path):
    """A unit that is split holds a file open for each of its domains: 60 under a limit of 40."""
    lines = [json.dumps({"text": f"hello {i}", "k": f"v{i}"}) + "\n" for i in range(60)]
    (tmp_path / "c.jsonl").write_text("".join(lines))
    path = write_recipe(tmp_path, {"web": {"paths": ["c.jsonl"], "split_by": "k"}})
    done = run("tokenize", path, "--workers", "1", preexec_fn=few_descriptors(40))
    assert done.returncode == 1
    assert "error[MX043]: cannot write: too many open files" in done.stderr
    assert not (tmp_path / "out/store").exists()
    assert verify(tokenize(load(path), workers=1).root).documents == 60


def test_workers_that_cannot_be_started(tmp_path):
    path = write_recipe(tmp_path, {"a": texts(1, 9), "b": texts(2, 9)})
    done = run("tokenize", path, "--workers", "2", preexec_fn=few_descriptors(12))
    assert done.returncode == 1
    assert "error[MX046]: a worker process cannot be started: too many open files" in done.stderr
    assert "Traceback" not in done.stderr
