"""Several runs on one output at once, and readers of it meanwhile."""

import os
import subprocess
import sys

from build_helpers import tree_hash
from helpers import texts, write_recipe

from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store import commit
from mixc.store.store import open_store
from mixc.tokenize.stage import tokenize
from mixc.verify import verify

ROUNDS, WRITERS, FILES = 20, 3, 5

WRITE = """
import sys
from pathlib import Path
from mixc.errors import MixcError
from mixc.store import commit
root, name, rounds, files = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.stdin.read()  # all begin at once
done = refused = 0
while done < rounds:
    try:
        with commit.locked(root) as staging:
            for number in range(files):
                commit.write_file(staging / "tree" / f"part{number}", f"{name} {done}".encode())
            commit.publish_tree(staging / "tree", root)
            commit.remove(staging)
        done += 1
    except MixcError as error:
        assert error.code == "MX042", error
        refused += 1
print(done, refused)
"""


def read_all(root):
    """The distinct contents of an output's files, read through one opened folder; None: moved on.

    The folder may be replaced and removed meanwhile, but what is read of it is of one piece.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = set()
        for number in range(FILES):
            with open(os.open(f"part{number}", os.O_RDONLY, dir_fd=folder), "rb") as file:
                found.add(file.read())
        return found
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)


def test_writers_take_turns_and_readers_see_whole_outputs(tmp_path):
    root = tmp_path / "store"
    with commit.locked(root) as staging:
        for number in range(FILES):
            commit.write_file(staging / "tree" / f"part{number}", b"first")
        commit.publish_tree(staging / "tree", root)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, root, str(name), str(ROUNDS), str(FILES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in range(WRITERS)
    ]
    for writer in writers:
        writer.stdin.close()
    whole = set()
    while any(writer.poll() is None for writer in writers):
        found = read_all(root)  # raises if there is a moment without an output
        if found is not None:
            assert len(found) == 1
            whole |= found
    for writer in writers:
        assert writer.returncode == 0, writer.stderr.read()
        assert writer.stdout.read().split()[0] == str(ROUNDS)
        writer.stdout.close()
        writer.stderr.close()
    assert len(read_all(root)) == 1
    assert len(whole) > 1
    assert not (tmp_path / ".mixc/store/staging").exists()


def test_commands_at_once(tmp_path):
    """One at least succeeds, the others do or exit 75; the bytes are those of one run alone."""
    path = write_recipe(tmp_path, {"web": texts(1, 60), "code": texts(2, 60)})
    alone = tokenize(load(path, ["workdir=alone"]), workers=1).root
    command = [sys.executable, "-m", "mixc", "tokenize", str(path), "--workers", "1"]
    runs = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {run: run.communicate(timeout=120)[1] for run in runs}
    codes = [run.returncode for run in runs]
    assert 0 in codes
    assert set(codes) <= {0, 75}, said
    assert all("error[MX042]" in said[run] for run in runs if run.returncode == 75)
    assert tree_hash(tmp_path / "out/store") == tree_hash(alone)


def test_a_reader_of_an_output_that_is_replaced_never_takes_new_bytes_for_old(tmp_path):
    """A store that was opened before: what is gone is an error, what is there is its own."""
    path = write_recipe(tmp_path, {"web": texts(1, 30), "code": texts(2, 30)})
    opened = tokenize(load(path), workers=1)
    mapped = next(opened.documents("web"))
    tokens = mapped.tokens.tolist()
    write_recipe(tmp_path, {"web": texts(3, 30), "code": texts(2, 30)})
    tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
    assert mapped.tokens.tolist() == tokens  # still mapped, though its name is gone
    for read in (lambda: next(opened.documents("web")), lambda: opened.held_ids):
        try:
            read()
        except MixcError as error:
            assert error.code == "MX040"
        else:
            raise AssertionError("a file of another store was read")
    assert next(opened.documents("code")).tokens is not None  # named by content: the same bytes
    assert verify(tmp_path / "out/store").documents == 60
    assert open_store(tmp_path / "out/store").store_hash != opened.store_hash


AGAIN = """
import sys
from pathlib import Path
from mixc.recipe import load
from mixc.tokenize.stage import tokenize
for turn in range(8):
    share = 0.1 if turn % 2 else 0.3
    tokenize(load(Path(sys.argv[1]), [f"holdout.fraction={share}"]), workers=1)
"""


def test_a_store_opened_while_it_is_made_anew_is_the_old_one_or_the_new_one(tmp_path):
    path = write_recipe(tmp_path, {"web": texts(1, 30)})
    stores = [
        tokenize(load(path, [f"holdout.fraction={share}"]), workers=1) for share in (0.3, 0.1)
    ]
    root, seen = stores[0].root, set()
    with subprocess.Popen([sys.executable, "-c", AGAIN, path], stderr=subprocess.DEVNULL) as run:
        while run.poll() is None:
            seen.add(open_store(root).store_hash)
    assert run.returncode == 0
    assert seen == {store.store_hash for store in stores}
