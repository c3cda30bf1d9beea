"""What a build takes over from the mixture that is there, and that nobody could tell."""

import json
import os
from pathlib import Path

import pytest
from build_helpers import make_store, mixc, random_corpus, small_blocks, tree_hash, write_corpus
from helpers import identity

from mixc import pipeline
from mixc.build import gather
from mixc.build import stage as build_stage
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store import commit, parts

CORPUS = random_corpus(12, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 3, "formats": ["nanogpt", "mds"]}
BLOCK_TOKENS = 16 * 9  # 14 blocks, the last one short
HELD = {"fraction": 0.1}
FIRST, SECOND, THIRD = (
    {"code": 0.2, "prose": 0.3, "web": 0.5},
    {"code": 0.5, "prose": 0.3, "web": 0.2},
    {"code": 0.6, "prose": 0.2, "web": 0.2},
)


def stages(*weights):
    ends = [(i + 1) / len(weights) for i in range(len(weights))]
    return [{"until": end, "weights": one} for end, one in zip(ends, weights, strict=True)]


@pytest.fixture
def gathered(monkeypatch):
    """The numbers of the blocks that are gathered from the store."""
    numbers, write = [], gather._write

    def spy(builder, task, *others):
        numbers.append(task.number)
        return write(builder, task, *others)

    monkeypatch.setattr(gather, "_write", spy)
    return numbers


@pytest.fixture
def one_name(monkeypatch):
    """A file system that says of every file that it has one name."""
    stat = Path.stat

    def say(path, **options):
        found = stat(path, **options)
        names = [name for name in dir(found) if name.startswith("st_")]
        fields = [*found[:3], 1, *found[4:]]
        return os.stat_result(fields, {name: getattr(found, name) for name in names})

    monkeypatch.setattr(Path, "stat", say)


def killed(*_, **__):
    raise KeyboardInterrupt


def build(folder, **changes):
    """Build with a changed recipe, over what is there."""
    path = write_corpus(folder, CORPUS, mixture=MIXTURE | changes, holdout=HELD)
    with small_blocks(BLOCK_TOKENS):
        return pipeline.build_mixture(load(path), workers=1)


def first_build(folder, **changes):
    make_store(folder, CORPUS, mixture=MIXTURE | changes, holdout=HELD)
    return build(folder, **changes)


def from_scratch(folder, **changes):
    return tree_hash(first_build(folder, **changes).root)


@pytest.mark.parametrize("before", [["nanogpt", "mds"], ["mds"], ["parquet", "webdataset"]])
def test_a_format_is_added_without_gathering_anything(tmp_path, gathered, before):
    first_build(tmp_path / "a", formats=before)
    after = ["nanogpt", "megatron", *before, "hf"]
    after = list(dict.fromkeys(after))
    gathered.clear()
    mixture = build(tmp_path / "a", formats=after)
    assert gathered == []
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", formats=after)


def test_the_files_of_formats_that_stay_are_taken_over_as_they_are(tmp_path):
    old = first_build(tmp_path).root
    names = ["nanogpt/train.bin", "mds/train/shard.00000.mds", "holdout/web/mds/val/index.json"]
    before = {name: identity(old / name) for name in names}
    new = build(tmp_path, formats=["mds", "nanogpt", "olmo"]).root
    assert {name: identity(new / name) for name in names} == before
    assert identity(new / "olmo/train/part-00000.npy") == before["nanogpt/train.bin"]


def test_the_stages_that_stay_are_not_gathered_again(tmp_path, gathered):
    first_build(tmp_path / "a", stages=stages(FIRST, SECOND))
    gathered.clear()
    mixture = build(tmp_path / "a", stages=stages(FIRST, THIRD))
    # Block 6 holds the rows 54 to 62, and the stages meet at row 60.
    assert gathered and set(gathered) <= set(range(6, 14))
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", stages=stages(FIRST, THIRD))


@pytest.mark.parametrize("name", ["nanogpt/train.bin", "mds/train/shard.00000.mds"])
@pytest.mark.parametrize("formats", [["nanogpt", "mds"], ["mds"]])
def test_damage_is_not_taken_over(tmp_path, gathered, name, formats):
    old = first_build(tmp_path / "a", formats=formats).root
    if not (old / name).exists():
        pytest.skip("this format is not there")
    data = bytearray((old / name).read_bytes())
    data[-40] ^= 1
    (old / name).write_bytes(data)
    gathered.clear()
    mixture = build(tmp_path / "a", formats=[*formats, "olmo"])
    # Formats are read where that is easiest; the last block is the damaged one.
    assert gathered == ([13] if name.startswith("nanogpt") or formats == ["mds"] else [])
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", formats=[*formats, "olmo"])


@pytest.mark.parametrize("how", ["cut", "removed"])
def test_what_is_missing_is_made_again(tmp_path, how):
    old = first_build(tmp_path / "a").root
    for path in (old / "nanogpt/train.bin", old / "mds/train/shard.00000.mds"):
        if how == "cut":
            path.write_bytes(path.read_bytes()[:-3])
        else:
            path.unlink()
    mixture = build(tmp_path / "a", formats=["mds", "nanogpt", "olmo"])
    wanted = from_scratch(tmp_path / "b", formats=["mds", "nanogpt", "olmo"])
    assert tree_hash(mixture.root) == wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_len": 8, "rows": 240},
        {"row_len": "seq_len+1"},
        {"packing": "best_fit"},
    ],
)
def test_other_rows_are_gathered(tmp_path, gathered, changes):
    first_build(tmp_path / "a")
    gathered.clear()
    mixture = build(tmp_path / "a", **changes)
    assert len(gathered) == -(-mixture.manifest["rows"] // mixture.manifest["block_rows"])
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("__version__", "0.0.0"), ("ALGORITHM", 0), ("libraries", lambda: {"pyarrow": "0"})],
)
def test_another_version_takes_nothing_over(tmp_path, gathered, monkeypatch, name, value):
    first_build(tmp_path)
    gathered.clear()
    monkeypatch.setattr(f"mixc.build.reuse.{name}", value)
    build(tmp_path, formats=["nanogpt"])
    assert len(gathered) == 14


def test_what_links_lead_to_is_not_taken_over(tmp_path):
    """`verify` reads through a link; a new mixture would have a link to nowhere."""
    old = first_build(tmp_path / "a", formats=["nanogpt", "megatron"]).root
    (old / "megatron/train.bin").unlink()
    (old / "megatron/train.bin").symlink_to("../nanogpt/train.bin")
    (old / "nanogpt").rename(tmp_path / "elsewhere")
    (old / "nanogpt").symlink_to(tmp_path / "elsewhere")
    mixture = build(tmp_path / "a", formats=["megatron", "nanogpt"])
    wanted = from_scratch(tmp_path / "b", formats=["megatron", "nanogpt"])
    assert tree_hash(mixture.root) == wanted
    assert not any(path.is_symlink() for path in mixture.root.rglob("*"))


@pytest.mark.parametrize("formats", [["nanogpt", "mds", "olmo"], ["mds", "hf"]])
def test_where_files_cannot_be_linked_they_are_written(tmp_path, gathered, monkeypatch, formats):
    old, link = first_build(tmp_path / "a").root, commit.link

    def across_devices(source, target):
        if source.is_relative_to(old):
            raise MixcError("MX043", "cannot write: invalid cross-device link")
        link(source, target)

    gathered.clear()
    monkeypatch.setattr(commit, "link", across_devices)
    mixture = build(tmp_path / "a", formats=formats)
    assert gathered == []
    monkeypatch.undo()
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", formats=formats)


@pytest.mark.parametrize("wrong", [bytes(64), b"\xff" * 12, b"\x00\x00\x00\x00\xf0\xff\xff\xff"])
def test_a_header_that_makes_no_sense_is_no_error(tmp_path, gathered, wrong):
    old = first_build(tmp_path / "a", formats=["mds"]).root
    with (old / "mds/train/shard.00000.mds").open("r+b") as file:
        file.write(wrong)
    gathered.clear()
    mixture = build(tmp_path / "a", formats=["mds", "olmo"])
    assert len(gathered) == 14
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", formats=["mds", "olmo"])


def test_what_is_published_is_never_written_to(tmp_path, monkeypatch):
    """Not even to mend it: it may be mapped, or linked from elsewhere."""
    old = first_build(tmp_path).root
    path = old / "nanogpt/train.bin"
    data = bytearray(path.read_bytes())
    data[100:164] = bytes(64)
    path.write_bytes(data)

    monkeypatch.setattr(build_stage, "Exporter", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, formats=["nanogpt", "mds", "olmo"])
    assert path.read_bytes() == data


def test_not_even_if_it_changes_after_it_was_hashed(tmp_path, monkeypatch):
    """A disk may rot at any moment. The run after that finds it, and gathers anew."""
    path = first_build(tmp_path / "a").root / "nanogpt/train.bin"
    link, rotten = commit.try_link, []

    def rot(source, target):
        if source == path and not rotten:
            data = bytearray(path.read_bytes())
            data[700] ^= 1
            path.write_bytes(data)
            rotten.append(bytes(data))
        return link(source, target)

    after = ["nanogpt", "mds", "olmo"]
    with monkeypatch.context() as patch, pytest.raises(MixcError, match="changed") as caught:
        patch.setattr(commit, "try_link", rot)
        build(tmp_path / "a", formats=after)
    assert caught.value.code == "MX040"
    assert caught.value.place.file == str(tmp_path / "a/out/mixture")
    assert path.read_bytes() == rotten[0]
    mixture = build(tmp_path / "a", formats=after)
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", formats=after)


@pytest.mark.parametrize("when", ["linked", "published"])
def test_nor_by_the_run_after_a_kill(tmp_path, monkeypatch, one_name, when):
    """The killed run had the published stream among what it staged."""
    after, publish = ["nanogpt", "mds", "olmo"], commit.publish_tree
    if when == "linked":
        first_build(tmp_path / "a")
    else:
        make_store(tmp_path / "a", CORPUS, mixture=MIXTURE, holdout=HELD)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if when == "linked":
            patch.setattr(build_stage, "Exporter", killed)
        else:
            patch.setattr(commit, "publish_tree", lambda *paths: (publish(*paths), killed()))
        build(tmp_path / "a", formats=after)
    path = tmp_path / "a/out/mixture/nanogpt/train.bin"
    data = path.read_bytes()[:-3]
    path.write_bytes(data)
    with path.open("rb") as reader:
        mixture = build(tmp_path / "a", formats=after)
        assert reader.read() == data
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", formats=after)


def test_a_stream_that_is_there_takes_no_new_place(tmp_path, monkeypatch):
    """Where files are compressed, to reserve one may be to write to it."""
    first_build(tmp_path)
    monkeypatch.setattr(parts, "reserve", None)
    build(tmp_path, formats=["nanogpt", "mds", "olmo"])


@pytest.mark.parametrize(("formats", "expected"), [(["mds", "olmo"], True), (["mds"], False)])
def test_a_stream_that_is_published_is_on_the_disk(
    tmp_path, monkeypatch, one_name, formats, expected
):
    make_store(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    synced, sync = [], commit.sync
    monkeypatch.setattr(commit, "sync", lambda path: (synced.append(path.name), sync(path)))
    build(tmp_path, formats=formats)
    assert ("stream.bin" in synced) == expected


def test_what_the_disk_did_not_keep_of_a_stream_reaches_no_format(tmp_path, monkeypatch):
    """Memory forgets what it could not write back, and reads what stood on the disk before."""
    make_store(tmp_path / "a", CORPUS, mixture=MIXTURE, holdout=HELD)
    sequences = build_stage.staged_sequences

    def forget(path, *others, **more):
        with path.open("r+b") as file:
            file.seek(700)
            file.write(bytes(512))
        return sequences(path, *others, **more)

    with monkeypatch.context() as patch, pytest.raises(MixcError, match="did not keep") as caught:
        patch.setattr(build_stage, "staged_sequences", forget)
        build(tmp_path / "a", formats=["mds"])
    assert caught.value.code == "MX040"
    assert not (tmp_path / "a/out/mixture").exists()
    mixture = build(tmp_path / "a", formats=["mds"])
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", formats=["mds"])


def test_the_plan_says_what_is_taken_over(tmp_path):
    first_build(tmp_path, stages=stages(FIRST, SECOND))

    def said(**changes):
        path = write_corpus(tmp_path, CORPUS, mixture=MIXTURE | changes, holdout=HELD)
        done = mixc("plan", path, "--json", block_tokens=BLOCK_TOKENS)
        return json.loads(done.stdout)["stages"][-1]["details"]

    same = said(stages=stages(FIRST, SECOND), formats=["olmo", "mds"])
    assert (same["blocks"], same["reused_blocks"], same["reused_formats"]) == (14, 14, ["mds"])
    half = said(stages=stages(FIRST, THIRD))
    assert 6 <= half["reused_blocks"] < 14
    assert half["reused_formats"] == []
    assert said(seq_len=8, rows=240)["reused_blocks"] == 0


def test_a_kill_while_blocks_are_taken_over_changes_nothing(tmp_path, gathered, monkeypatch):
    first_build(tmp_path / "a", formats=["mds"], stages=stages(FIRST, SECOND))
    changes = {"formats": ["mds", "nanogpt"], "stages": stages(FIRST, THIRD)}

    def killed(path, offset, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mixc.store.parts.write_at", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "a", **changes)
    gathered.clear()
    mixture = build(tmp_path / "a", **changes)
    assert gathered and set(gathered) <= set(range(6, 14))
    assert tree_hash(mixture.root) == from_scratch(tmp_path / "b", **changes)
