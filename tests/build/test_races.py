"""Several builds of one mixture at once, and trainers that read it meanwhile."""

import json
import os
import subprocess
import sys

import xxhash
from build_helpers import make_store, random_corpus, tree_hash

from mixc import pipeline
from mixc.recipe import load

CORPUS = random_corpus(15, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 3, "formats": ["nanogpt", "mds"]}
CHANGES = (["seed=1"], ["seed=1", 'mixture.formats=["nanogpt"]'], ["mixture.rows=90"], [])


def start(path, *changes):
    sets = [word for change in changes for word in ("-s", change)]
    line = [sys.executable, "-m", "mixc", "build-mixture", str(path), "--workers", "2", *sets]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def look(root):
    """The key of what stands there, each file hashed through one opened folder; None: moved on."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open(os.open("mixture.json", os.O_RDONLY, dir_fd=folder)) as file:
            said = json.load(file)
        for entry in said["formats"].values():
            for one in entry["files"]:
                with open(os.open(one["path"], os.O_RDONLY, dir_fd=folder), "rb") as file:
                    assert xxhash.xxh3_128_hexdigest(file.read()) == one["xxh3"]
        return said["key"]
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)


def test_a_trainer_that_looks_while_builds_commit_sees_one_of_them_whole(tmp_path):
    make_store(tmp_path, CORPUS, mixture=MIXTURE)
    root = pipeline.build_mixture(load(tmp_path / "recipe.yaml"), workers=1).root
    seen = {look(root)}
    for changes in CHANGES:
        build = start(tmp_path / "recipe.yaml", *changes)
        while build.poll() is None:
            seen.add(look(root))  # raises if there is a moment without a mixture
        assert build.returncode == 0, build.stderr.read()
        build.stderr.close()
        seen.add(look(root))
    assert len(seen - {None}) == len(CHANGES)


def test_builds_at_once(tmp_path):
    """One at least succeeds, the others do or exit 75; the bytes are those of one build alone."""
    for name in ("a", "b"):
        make_store(tmp_path / name, CORPUS, mixture=MIXTURE)
    alone = pipeline.build_mixture(load(tmp_path / "a/recipe.yaml"), workers=1).root
    runs = [start(tmp_path / "b/recipe.yaml") for _ in range(3)]
    said = {run: run.communicate(timeout=120)[1] for run in runs}
    codes = [run.returncode for run in runs]
    assert 0 in codes and set(codes) <= {0, 75}, said
    assert all("error[MX042]" in said[run] for run in runs if run.returncode == 75)
    assert tree_hash(tmp_path / "b/out/mixture") == tree_hash(alone)
