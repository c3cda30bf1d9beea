"""The commit protocol: the old output or the new one, and nothing between them."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import texts, tree, write_recipe

from mixc import pipeline
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store import commit
from mixc.tokenize.stage import tokenize
from mixc.verify import verify


def run(*words, **options):
    command = [sys.executable, "-m", "mixc", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# A whole folder


def make_tree(root, content):
    for name in ("manifest.json", "web/shard"):
        commit.write_file(root / name, content)


@pytest.mark.parametrize("exchange", ["renameat2", "fallback"])
def test_a_folder_takes_the_place_of_the_old_one(tmp_path, monkeypatch, exchange):
    if exchange == "fallback":
        monkeypatch.setattr(commit, "_exchange", lambda a, b: False)
    staged, final = tmp_path / "staging" / "tree", tmp_path / "store"
    for content in (b"one", b"two", b"three"):
        make_tree(staged, content)
        if content == b"two":
            commit.write_file(staged / "more", b"")
        commit.publish_tree(staged, final)
        assert (final / "web" / "shard").read_bytes() == content
        assert (final / "more").exists() == (content == b"two")
        assert not any((tmp_path / "staging").iterdir())


def test_the_exchange_is_one_step_here(tmp_path):
    """The fallback above is for other systems: this one exchanges."""
    make_tree(tmp_path / "a", b"a")
    make_tree(tmp_path / "b", b"b")
    assert commit._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "manifest.json").read_bytes() == b"b"
    with pytest.raises(FileNotFoundError):
        commit._exchange(tmp_path / "a", tmp_path / "gone")


def test_a_fallback_that_was_stopped_half_way_is_gone_on_with(tmp_path, monkeypatch):
    """The old folder has moved away, the new one has not come: a rerun publishes it."""
    monkeypatch.setattr(commit, "_exchange", lambda a, b: False)
    path = write_recipe(tmp_path, {"web": texts(1, 20)})
    first = tokenize(load(path), workers=1)
    rename = Path.rename

    def stop(self, target):
        if self.name == "tree" and Path(target).name == "store":
            raise OSError(errno.EIO, "stopped")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with pytest.raises(MixcError):
            tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
    assert not first.root.exists()
    again = tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
    assert verify(again.root).documents == 20
    assert not (tmp_path / "out/.mixc/store/staging").exists()


@pytest.mark.parametrize("name", ["store", "mixture"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, name):
    path = write_recipe(tmp_path, {"web": texts(1, 60)})
    thesis = tmp_path / "out" / name / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(MixcError, match="not mixc's") as caught:
        pipeline.run(load(path), workers=1)
    assert caught.value.code == "MX043"
    assert thesis.read_text() == "years of work"


def test_a_reader_keeps_a_writer_out(tmp_path):
    path = write_recipe(tmp_path, {"web": texts(1, 20)})
    store = tokenize(load(path), workers=1)
    with commit.reading(store.root), commit.reading(store.root):
        with pytest.raises(MixcError) as caught:
            tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
        assert caught.value.code == "MX042"
    tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)


def test_publishing_a_file(tmp_path):
    staged, final = tmp_path / "staging" / "w", tmp_path / "weights.json"
    for content in (b"one", b"two"):
        commit.write_file(staged, content)
        commit.publish_file(staged, final)
        assert final.read_bytes() == content
        assert not staged.exists()


def test_removing(tmp_path):
    keep = commit.write_file(tmp_path / "keep" / "file", b"")
    make_tree(tmp_path / "folder", b"")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "keep")
    (tmp_path / "link").symlink_to(tmp_path / "keep")
    for name in ("folder", "link", "gone"):
        commit.remove(tmp_path / name)
        assert not (tmp_path / name).exists()
    assert (tmp_path / "keep" / keep.path).exists()


@pytest.mark.parametrize(
    "name", ["", "store", "store/staging", "store/staging/tree", "store/engines/x.json"]
)
def test_a_link_in_the_control_folder_leads_nothing_outside(tmp_path, name):
    path = write_recipe(tmp_path, {"web": texts(1, 20)})
    outside = tmp_path / "outside"
    make_tree(outside / "staging/tree", b"precious")
    make_tree(outside / "store/staging/tree", b"precious")
    make_tree(outside / "tree", b"precious")
    before = tree(outside)
    link = tmp_path / "out" / ".mixc" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "tree/manifest.json" if name.endswith(".json") else outside)
    with pytest.raises(MixcError, match="a link stands where mixc keeps") as caught:
        tokenize(load(path), workers=1)
    assert (caught.value.code, caught.value.place.file) == ("MX043", str(link))
    assert tree(outside) == before
    assert not (tmp_path / "out/store").exists()
    link.unlink()
    assert verify(tokenize(load(path), workers=1).root).documents == 20


def test_an_output_that_is_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path):
    path = write_recipe(tmp_path, {"web": texts(1, 20)})
    store = tokenize(load(path, ["workdir=elsewhere"]), workers=1)
    before = tree(store.root)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/store").symlink_to(store.root)
    tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
    assert not (tmp_path / "out/store").is_symlink()
    assert tree(store.root) == before
    assert verify(tmp_path / "out/store").documents == 20


def test_a_shard_that_is_a_link_is_encoded_again(tmp_path):
    """A link must not pass from store to store: what it leads to is not ours to keep."""
    path = write_recipe(tmp_path, {"web": texts(1, 20)})
    store = tokenize(load(path), workers=1)
    (shard,) = store.root.glob("web/*.arrow")
    shard.rename(tmp_path / "moved.arrow")
    shard.symlink_to(tmp_path / "moved.arrow")
    assert verify(store.root).documents == 20
    tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
    (shard,) = store.root.glob("web/*.arrow")
    assert not shard.is_symlink()
    assert verify(store.root).documents == 20


# The lock


HOLD = """
import sys
from pathlib import Path
from mixc.store import commit
with commit.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_turned_away(tmp_path):
    path = write_recipe(tmp_path, {"web": texts(1, 20)})
    store = tokenize(load(path), workers=1)
    before = tree(store.root)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        found = run("tokenize", path, "-s", "holdout.fraction=0.3", "--json")
        assert found.returncode == 75
        assert f"error[MX042]: another run holds this output\n --> {store.root}" in found.stderr
        assert f"the last to write here was process {holder.pid} on " in found.stderr
        assert json.loads(found.stdout)["errors"][0]["code"] == "MX042"
        assert tree(store.root) == before
        assert verify(store.root).documents == 20  # whoever reads needs no lock

        holder.kill()  # a lock dies with its process, however that ends
        holder.wait()
    assert tokenize(load(path, ["holdout.fraction=0.3"]), workers=1).store_hash != store.store_hash


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".mixc" / "store").mkdir(parents=True)
    (tmp_path / ".mixc" / "store" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(MixcError) as caught, commit.locked(tmp_path / "store"):
        pass
    assert caught.value.code == "MX043"
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MixcError) as caught, commit.locked(tmp_path / "file" / "store"):
        pass
    assert (caught.value.code, caught.value.message) == ("MX043", "cannot write: not a directory")


# What the system refuses


@pytest.mark.parametrize(
    ("number", "message", "has_help"),
    [
        (errno.ENOSPC, "cannot write: no space left on device", True),
        (errno.EDQUOT, "cannot write: disk quota exceeded", True),
        (errno.EFBIG, "cannot write: file too large", True),
        (errno.EIO, "cannot write: input/output error", False),
        (errno.EROFS, "cannot write: read-only file system", False),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_what_the_system_says(tmp_path, monkeypatch, call, number, message, has_help):
    def refuse(*words, **options):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    commit.write_file(path, b"old")
    monkeypatch.setattr(*((Path, "rename") if call == "rename" else (os, call)), refuse)
    with pytest.raises(MixcError) as caught:
        commit.write_file(path, b"new")
    assert (caught.value.code, caught.value.message) == ("MX043", message)
    assert caught.value.place.file == str(path)
    assert bool(caught.value.help) == has_help
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_at_any_write_leaves_the_old_store(tmp_path, monkeypatch):
    """The n-th write of a run fails, for every n; then one run has room enough."""
    corpora = {"web": texts(1, 30), "code": texts(2, 30)}
    path = write_recipe(tmp_path, corpora)
    store = tokenize(load(path), workers=1)
    before = tree(store.root)
    expected = tokenize(load(path, ["holdout.fraction=0.3", "workdir=expected"]), workers=1)
    write = os.write
    state = {"left": 0}

    def fill(descriptor, data):
        state["left"] -= 1
        if state["left"] < 0:
            write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    write_recipe(tmp_path, {**corpora, "new": texts(3, 30)})
    failed = 0
    monkeypatch.setattr(os, "write", fill)
    while True:
        state["left"] = failed
        commit.remove(tmp_path / "out/.mixc/store/staging")  # nothing adopted: every write is made
        try:
            tokenize(load(path), workers=1)
            break
        except MixcError as error:
            assert (error.code, error.exit_code) == ("MX043", 1)
            assert "no space left on device" in error.message
            assert tree(store.root) == before
            failed += 1
    assert failed > 10
    monkeypatch.setattr(os, "write", write)
    assert verify(store.root).documents == 90

    write_recipe(tmp_path, corpora)
    again = tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
    assert again.store_hash == expected.store_hash


def test_a_limit_of_the_system_on_file_sizes(tmp_path):
    """The same through the command, with a real refusal of the kernel."""
    path = write_recipe(tmp_path, {"web": texts(1, 20)})
    store = tokenize(load(path), workers=1)
    before = tree(store.root)
    write_recipe(tmp_path, {"web": texts(1, 2000)})

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    found = run("tokenize", path, "--workers", "1", preexec_fn=limit)
    assert found.returncode == 1, found.stderr
    assert "error[MX043]: cannot write: file too large" in found.stderr
    assert "help: free some space and run again: finished work is kept" in found.stderr
    assert tree(store.root) == before
    assert run("tokenize", path, "--workers", "1").returncode == 0
    assert verify(store.root).documents == 2000
