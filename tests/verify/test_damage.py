"""Damage to bytes: whatever is flipped, cut or missing is found and named."""

import pytest
from build_helpers import mixc
from verify.forging import expect_damage, problems

from mixc.build.mixture import open_mixture
from mixc.verify import verify


def test_a_whole_mixture_and_its_store(original):
    report = verify(original / "mixture")
    assert (report.kind, report.rows, report.traced_rows) == ("mixture", 13, 13)
    listed = open_mixture(original / "mixture").files()
    assert (report.files, report.bytes) == (len(listed), sum(one.bytes for one in listed))
    report = verify(original / "store")
    assert (report.kind, report.documents, report.rows) == ("store", 50, 0)


FILES = [
    "mixture.json",
    "rows.parquet",
    "nanogpt/train.bin",
    "megatron/train.idx",
    "nanogpt/val.bin",
    "megatron/val.idx",
    "holdout/code/nanogpt/val.bin",
    "holdout/web/megatron/val.idx",
]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(out, name):
    path = out / "mixture" / name
    whole = path.read_bytes()
    # Every byte of small files, about 250 of large ones; the bit changes from byte to byte.
    for at in range(0, len(whole), max(1, len(whole) // 250)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        expect_damage(out / "mixture", name)
    path.write_bytes(whole)
    verify(out / "mixture")


@pytest.mark.parametrize("name", FILES)
def test_a_cut_emptied_lengthened_or_missing_file_is_found(out, name):
    path = out / "mixture" / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole + b"\0", whole[1:]):
        path.write_bytes(damaged)
        expect_damage(out / "mixture", name)
    path.unlink()
    if name == "mixture.json":  # without a manifest there is no mixture
        assert problems(out / "mixture")[0][0] == "MX070"
    else:
        expect_damage(out / "mixture", name)


def test_the_files_of_two_formats_are_damaged_together(out):
    # nanogpt/train.bin and megatron/train.bin are one file in the original, two in the copy.
    mixture = out / "mixture"
    (mixture / "megatron/train.bin").unlink()
    (mixture / "megatron/train.bin").hardlink_to(mixture / "nanogpt/train.bin")
    with (mixture / "nanogpt/train.bin").open("r+b") as file:
        file.write(b"\xff\xff")
    assert len(problems(mixture)) == 2


def test_everything_that_is_wrong_is_named_at_once(out):
    (out / "mixture/rows.parquet").unlink()
    (out / "mixture/megatron/train.idx").write_bytes(b"")
    found = [place for _, _, place in problems(out / "mixture")]
    assert [place.rsplit("/", 1)[1] for place in found] == ["train.idx", "rows.parquet"]


def test_a_folder_that_holds_neither(tmp_path):
    assert problems(tmp_path)[0][0] == "MX070"


def test_the_command_line_exits_with_3_and_names_the_file(out):
    done = mixc("verify", out / "mixture")
    assert done.returncode == 0
    assert "13 of them traced to the store token by token" in done.stdout
    path = out / "mixture/rows.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = mixc("verify", out / "mixture")
    assert done.returncode == 3
    assert "error[MX040]" in done.stderr
    assert "rows.parquet" in done.stderr
