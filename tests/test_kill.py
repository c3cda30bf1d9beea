"""SIGKILL at random moments: the old output or the new one, and a rerun gives the same bytes."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import write_recipe

from mixc.build.mixture import open_mixture
from mixc.solve.weights import open_weights
from mixc.store.store import open_store
from mixc.verify import verify

MOMENTS = 20
OUTPUTS = {"tokenize": "store", "solve-weights": "weights.json", "build-mixture": "mixture"}


def command(name, recipe, *options):
    workers = [] if name == "solve-weights" else ["--workers", "2"]
    return [sys.executable, "-m", "mixc", name, str(recipe), *workers, *options]


def complete(name, recipe, *options):
    start = time.monotonic()
    done = subprocess.run(command(name, recipe, *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


def fingerprint(workdir):
    """A hash of every file of every output; control files and unlisted ones do not count.

    Nor do those that are kept for later solves: there may be more of them after a kill.
    """
    state, weights = hashlib.sha256(), ""
    if (workdir / "weights.json").exists():
        weights = (workdir / "weights.json").read_text()
    for path in sorted(workdir.rglob("*")):
        unlisted = path.name.startswith("trajectory-") and path.name not in weights
        aside = {".mixc", "solve"} & set(path.relative_to(workdir).parts)
        if path.is_file() and not aside and not unlisted:
            state.update(str(path.relative_to(workdir)).encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    source = random.Random(0)
    words = ["".join(source.choices("etaoinshrdlu", k=source.randint(1, 8))) for _ in range(2000)]
    domains = {
        name: [" ".join(source.choices(words, k=400)) for _ in range(250)]
        for name in ("books", "code", "web")
    }
    return write_recipe(
        tmp_path_factory.mktemp("kill"),
        domains,
        holdout={"fraction": 0.02, "max_tokens": 2000},
        solve={
            "method": "doremi",
            "proxy": {"steps": 6, "batch_tokens": 512, "seq_len": 64, "device": "cpu"},
        },
        mixture={
            "weights": "solved",
            "rows": 3000,
            "seq_len": 128,
            "formats": ["nanogpt", "megatron"],
        },
    )


@pytest.fixture(scope="module")
def stages(recipe):
    """For each command: the work done before it in an older version, and the time it takes."""
    workdir, seconds = recipe.parent / "build/out", {}
    older = ["-s", "seed=1", "-s", "holdout.fraction=0.05", "-s", f"workdir={workdir}"]
    newer = ["-s", f"workdir={workdir}"]
    before = {}
    for name in OUTPUTS:
        complete(name, recipe, *older)
    for name in OUTPUTS:
        before[name] = recipe.parent / f"before-{name}"
        shutil.copytree(workdir, before[name])
        seconds[name] = complete(name, recipe, *newer)
    return workdir, before, seconds, newer


def check_old_or_new(workdir, old):
    """Whatever stands there is whole, and is one of the two states."""
    for name, reader in (("store", open_store), ("weights.json", open_weights)):
        reader(workdir / name)
        assert reader(old / name)
    verify(workdir / "store")
    if (workdir / "mixture").exists():
        open_mixture(workdir / "mixture")
        verify(workdir / "mixture")


@pytest.mark.parametrize("name", list(OUTPUTS))
def test_killed_and_run_again(recipe, stages, name):
    workdir, before, seconds, options = stages
    shutil.rmtree(workdir)
    shutil.copytree(before[name], workdir)
    old = fingerprint(workdir)
    complete(name, recipe, *options)
    new = fingerprint(workdir)
    assert new != old
    moments = random.Random(name)
    for _ in range(MOMENTS):
        shutil.rmtree(workdir)
        shutil.copytree(before[name], workdir)
        process = subprocess.Popen(
            command(name, recipe, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Start-up is a good part of a run this short: most moments fall behind it.
        time.sleep(seconds[name] * moments.uniform(0.25, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert fingerprint(workdir) in (old, new)
        check_old_or_new(workdir, before[name])
        complete(name, recipe, *options)
        assert fingerprint(workdir) == new


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_workers_end_with_their_parent(recipe, tmp_path):
    process = subprocess.Popen(
        command("tokenize", recipe, "-s", f"workdir={tmp_path}"), stderr=subprocess.DEVNULL
    )
    workers: list[int] = []
    while process.poll() is None and len(workers) < 2:
        workers = children(process.pid)
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert workers, "the run ended before it had workers"
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
