"""Power is lost at any moment: what was not synced may be gone, and outputs are old or new."""

import random
import shutil

import pytest
from build_helpers import tree_hash
from helpers import texts, write_recipe
from store.disk_model import recorded, replay

from mixc import pipeline
from mixc.recipe import load
from mixc.store import commit

OUTPUTS = ("store/", "mixture/", "weights.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An older state of all outputs, the calls that a run makes on it, and the new state."""
    folder = tmp_path_factory.mktemp("power")
    path = write_recipe(
        folder,
        {"web": texts(1, 12), "code": texts(2, 12)},
        solve={"method": "temperature"},
        mixture={"weights": "solved", "rows": 8, "formats": ["nanogpt", "megatron"]},
    )
    older = ["holdout.fraction=0.4", "seed=1", "solve.temperature.temperature=2.0"]
    pipeline.run(load(path, older), workers=1)
    out = folder / "out"
    shutil.copytree(out, folder / "before")
    with pytest.MonkeyPatch.context() as patch, recorded(out, patch, commit) as record:
        pipeline.run(load(path), workers=1)
    return path, folder / "before", record.calls, outputs(on_disk(out))


def on_disk(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def outputs(tree):
    """The files of each output, control files and unlisted trajectories left out."""
    return {
        output: {name: data for name, data in tree.items() if name.startswith(output)}
        for output in OUTPUTS
    }


def losses(seed):
    """What may be left: nothing unsynced, all of it, names without their data, and any mixture."""

    def torn(file):
        return bytes(file.now[: len(file.now) // 2])

    def zeros(file):
        return file.sure if file.now == file.sure else bytes(len(file.now))

    yield lambda _: False, lambda file: file.sure
    yield lambda _: True, lambda file: bytes(file.now)
    yield lambda _: True, lambda file: file.sure
    yield lambda _: True, zeros
    for share in (0.2, 0.5, 0.8):
        draw = random.Random(f"{seed} {share}")
        kept = {}

        def keep(number, kept=kept, draw=draw, share=share):
            return kept.setdefault(number, draw.random() < share)

        yield keep, lambda file: file.sure if file.now == file.sure else torn(file)


def bad_states(before, calls, new):
    """(call number, output) where an output would be neither the old one nor the new one."""
    old = outputs(on_disk(before))
    found = []
    for number, disk in enumerate(replay(before, calls)):
        for kept, torn in losses(number):
            left = outputs(disk.left(kept, torn, leave_out=".mixc"))
            found += [
                (number, name) for name in OUTPUTS if left[name] not in (old[name], new[name])
            ]
    return found


def test_the_recording_is_whole(run):
    """Replayed to its end it gives what the disk holds, and all of the outputs is synced."""
    _, before, calls, new = run
    *_, disk = replay(before, calls)
    assert outputs(disk.left(lambda _: True, lambda file: bytes(file.now))) == new
    assert outputs(disk.left(lambda _: False, lambda file: file.sure)) == new
    assert {call for call, *_ in calls} >= {"create", "write", "sync", "rename", "exchange", "link"}


def test_the_old_output_or_the_new_one_is_left(run):
    _, before, calls, new = run
    assert len(calls) > 200
    assert bad_states(before, calls, new) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_missing_sync_would_be_found(run, kind):
    """The same calls without the syncs of files, or of folders, leave bad states."""
    _, before, calls, new = run
    thinned = [call for call in calls if call[0] != "sync" or call[2] != kind]
    assert len(thinned) < len(calls)
    assert bad_states(before, thinned, new)


def test_a_run_after_it_gives_the_same_bytes(run, tmp_path):
    """From what is left, staging and all, the next run makes what an undisturbed one makes."""
    path, before, calls, _ = run
    expected = tree_hash(path.parent / "out")
    steps = sum(1 for _ in replay(before, calls))
    moments = set(random.Random(5).sample(range(steps), 4))
    states = []
    for number, disk in enumerate(replay(before, calls)):
        if number in moments:
            states += [disk.left(kept, torn) for kept, torn in losses(number)][2:6:3]
    assert len(states) == 8
    for number, state in enumerate(states):
        workdir = tmp_path / str(number)
        for name, data in state.items():
            (workdir / name).parent.mkdir(parents=True, exist_ok=True)
            (workdir / name).write_bytes(data)
        pipeline.run(load(path, [f"workdir={workdir}"]), workers=1)
        assert tree_hash(workdir) == expected
