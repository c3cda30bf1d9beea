"""One file of an output: whole under its name, or not there."""

import errno
import fcntl
import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.store import commit, parts
from mixc.store.hashes import hash_file


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_appears_whole_under_its_name(tmp_path):
    path = tmp_path / "deep" / "folder" / "file"
    with commit.create(path) as file:
        file.write(b"abc")
        file.write(memoryview(b"de"))
        assert not path.exists()
        assert file.tell() == 5
    assert path.read_bytes() == b"abcde"
    assert file.record("x") == commit.FileRecord("x", 5, hash_file(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 & ~current_umask()
    assert list(path.parent.iterdir()) == [path]


def test_an_error_on_the_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    commit.write_file(path, b"old")
    with pytest.raises(RuntimeError), commit.create(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_library_may_write_a_file_by_its_path(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in ("old", "new"):
        with commit.create_by_path(path) as unfinished:
            assert unfinished.parent == path.parent  # one filesystem, for the rename
            unfinished.write_text(text)
        assert path.read_text() == text
    with pytest.raises(RuntimeError), commit.create_by_path(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new"
    with pytest.raises(MixcError) as raised, commit.create_by_path(path):
        pass  # a library that wrote nothing
    assert raised.value.code == "MX043"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_no_link_leads_a_library_elsewhere(tmp_path):
    (tmp_path / "other").write_text("theirs")
    with commit.create_by_path(tmp_path / "file") as unfinished:
        pass_over = unfinished
        unfinished.write_text("")
    pass_over.symlink_to(tmp_path / "other")
    with commit.create_by_path(tmp_path / "file") as unfinished:
        unfinished.write_text("ours")
    assert (tmp_path / "other").read_text() == "theirs"


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    write, pwrite, calls = os.write, os.pwrite, []

    def one_byte(descriptor, data):
        calls.append(1)
        return write(descriptor, data[:1])

    monkeypatch.setattr(os, "write", one_byte)
    record = commit.write_file(tmp_path / "a", b"0123456789" * 5)
    assert (tmp_path / "a").read_bytes() == b"0123456789" * 5
    assert (record.bytes, record.xxh3) == (50, hash_file(tmp_path / "a"))
    assert len(calls) == 50

    monkeypatch.setattr(os, "pwrite", lambda d, data, at: pwrite(d, data[:1], at))
    parts.reserve(tmp_path / "b", 20)
    parts.write_at(tmp_path / "b", 5, memoryview(b"abcdefghij"))
    assert (tmp_path / "b").read_bytes() == bytes(5) + b"abcdefghij" + bytes(5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=40),
    st.sampled_from([1, 70]),
    st.integers(1, 60),
)
def test_bytes_of_many_places_are_written_end_to_end(spans, times, most):
    """More than go in one call, and calls that write less than they were given."""
    spans, held = spans * times, np.arange(100, dtype=np.uint8)
    sizes = np.array([size for _, size in spans], np.int64)
    addresses = np.array([held.ctypes.data + start for start, _ in spans], np.uint64)
    written = parts._write_vectors

    def short(descriptor, vectors, offset, path):
        vectors[0, 1] = min(vectors[0, 1], most)
        return written(descriptor, vectors[:1], offset, path)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "reserved")
        parts.reserve(path, 10 + int(sizes.sum()))
        if times == 1:
            patch.setattr(parts, "_write_vectors", short)
        told = []
        parts.write_from(path, 10, addresses, sizes, None, lambda part: told.append(part.copy()))
        expected = b"".join(bytes(held[start : start + size]) for start, size in spans)
        assert path.read_bytes() == bytes(10) + expected
        if times != 1:  # it is told of all that is copied, in order
            assert np.concatenate([np.zeros((0, 2)), *told])[:, 1].sum() == sizes.sum()


def test_memory_that_is_not_there_is_an_error_and_no_death(tmp_path):
    parts.reserve(tmp_path / "reserved", 10)
    held = np.arange(10, dtype=np.uint8)
    addresses, names = np.array([held.ctypes.data, 0], np.uint64), [Path("held"), Path("gone")]
    with pytest.raises(MixcError, match=r"MX040.*cannot be read") as caught:
        sizes = np.array([5, 5])
        parts.write_from(tmp_path / "reserved", 0, addresses, sizes, names.__getitem__)
    assert caught.value.place.file == "gone"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9000), st.integers(0, 20_000), st.booleans())
def test_a_part_goes_past_the_page_cache_and_leaves_the_others_alone(offset, size, refused):
    """Wherever it begins and ends; through the cache, where sectors are larger than we think."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "reserved")
        before = np.random.default_rng(0).bytes(offset + size + 5000)
        path.write_bytes(before)
        if not parts.Window.fits(path):
            pytest.skip("this filesystem has no way past the page cache")
        pwrite, past = os.pwrite, []

        def noted(descriptor, data, at):
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                past.append((at, at + len(data)))
                if refused:
                    raise OSError(errno.EINVAL, "no")
            return pwrite(descriptor, data, at)

        patch.setattr(os, "pwrite", noted)
        window = parts.Window(20_000)
        for value in (1, 2):  # one after the other through the same memory
            window.room(offset, size)[:] = bytes([value]) * size
            window.write(path, offset, size)
        expected = before[:offset] + bytes([2]) * size + before[offset + size :]
        assert path.read_bytes() == expected
        sectors = -(-offset // 4096) * 4096, (offset + size) // 4096 * 4096
        assert past == ([sectors] * 2 if sectors[0] < sectors[1] else [])


def test_a_disk_that_fails_past_the_page_cache_is_an_error(tmp_path, monkeypatch):
    parts.reserve(tmp_path / "reserved", 8192)
    if not parts.Window.fits(tmp_path / "reserved"):
        pytest.skip("this filesystem has no way past the page cache")

    def fail(*_):
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(MixcError, match="MX043"):
        parts.Window(8192).write(tmp_path / "reserved", 0, 8192)


def test_not_every_file_can_be_written_past_the_page_cache(tmp_path, monkeypatch):
    assert not parts.Window.fits(tmp_path / "none")
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    parts.reserve(tmp_path / "reserved", 1)
    assert not parts.Window.fits(tmp_path / "reserved")


@pytest.mark.parametrize("there", [b"", b"whole\n", b"whole\ntorn by a ki", b"torn"])
def test_a_torn_line_of_a_journal_takes_no_other_with_it(tmp_path, there):
    path = tmp_path / "journal"
    path.write_bytes(there)
    for line in (b"next", b"last"):
        commit.append_line(path, line)
    assert path.read_bytes().splitlines() == [*there.splitlines(), b"next", b"last"]
    assert path.read_bytes().endswith(b"last\n")


def test_a_name_that_is_a_link_elsewhere_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    folder = tmp_path / "staging"
    folder.mkdir()
    (folder / f".file.{os.getpid()}.part").symlink_to(outside)
    with pytest.raises(MixcError) as caught:
        commit.write_file(folder / "file", b"new")
    assert caught.value.code == "MX043"
    (folder / "reserved").symlink_to(outside)
    for write in (
        lambda: parts.reserve(folder / "reserved", 3),
        lambda: parts.write_at(folder / "reserved", 0, memoryview(b"new")),
    ):
        with pytest.raises(MixcError):
            write()
    (folder / "file").symlink_to(outside)  # this one is replaced, as a name
    (folder / f".file.{os.getpid()}.part").unlink()
    commit.write_file(folder / "file", b"new")
    assert not (folder / "file").is_symlink()
    assert outside.read_bytes() == b"precious"
