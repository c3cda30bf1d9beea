"""The commit protocol: the only code that creates, renames or syncs a file of an output.

An output is a file or a folder in the recipe's workdir. Beside it, `.mixc/<output>/` holds its
lock and its staging folder, on the same filesystem. Everything is written in staging, synced,
then published by one rename, the commit:

- `publish_tree`: a whole folder (store, mixture), exchanged with the old one in one step;
- `publish_file`: one file (weights.json).

Staging survives a kill; whoever runs next adopts from it what it can prove whole by hash.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import xxhash

from mixc.errors import MixcError, Place
from mixc.store.hashes import FileRecord

CONTROL = ".mixc"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_SYNC_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_PIECE, _BEGIN = 1 << 20, 1 << 23
_SYNC_FILE_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _SYNC_FILE_RANGE is not None:
    _SYNC_FILE_RANGE.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says while an output is written into MX043."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise MixcError(
            "MX043",
            f"cannot write: {os.strerror(error.errno or errno.EIO).lower()}",
            place=Place(str(error.filename or path)),
            help="free some space and run again: finished work is kept" if full else None,
        ) from error


def staging_of(output: Path) -> Path:
    """Where an output is staged. Whoever writes there holds its lock."""
    return output.parent / CONTROL / output.name / "staging"


@contextmanager
def locked(output: Path) -> Iterator[Path]:
    """Hold an output for one run and yield its staging folder. A second run raises MX042.

    Raises MX043 if a link stands where something is staged: it would lead the work elsewhere.
    """
    with _lock(output, fcntl.LOCK_EX) as descriptor:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        staging = staging_of(output)
        for folder, folders, files in os.walk(staging.parent):
            refuse_links(Path(folder, name) for name in (*folders, *files))
        with writing(staging):
            staging.mkdir(exist_ok=True)
        yield staging


@contextmanager
def reading(output: Path) -> Iterator[None]:
    """Keep an output as it is while a later stage reads it. Raises MX042 if a run writes it."""
    with _lock(output, fcntl.LOCK_SH):
        yield


@contextmanager
def _lock(output: Path, kind: int) -> Iterator[int]:
    control = output.parent / CONTROL / output.name
    refuse_links((control.parent, control))
    with writing(control):
        control.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(control / "lock", flags, 0o644)
    try:
        _take(descriptor, output, kind)
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise MX043 if one of them is a symbolic link: it would lead the work elsewhere."""
    for path in paths:
        if path.is_symlink():
            raise MixcError(
                "MX043",
                "a link stands where mixc keeps its own files",
                place=Place(str(path)),
                help="remove the link; mixc makes none there",
            )


def _take(descriptor: int, output: Path, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        raise MixcError(
            "MX042",
            "another run holds this output",
            place=Place(str(output)),
            help=f"wait for it, or stop it; the last to write here was {owner}",
        ) from None


def check_ours(output: Path, manifest: str) -> None:
    """Refuse to replace a folder that is not an output of ours. Raises MX043."""
    if output.exists() and not (output / manifest).exists() and any(output.iterdir()):
        raise MixcError(
            "MX043",
            f"the folder is not mixc's: it holds files, but no {manifest}",
            place=Place(str(output)),
            help="move it away, or choose another workdir",
        )


class StagedFile:
    """A staged file written in order, hashed on the way. A sink that pyarrow accepts."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._hash = xxhash.xxh3_128()
        self.size = self._begun = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`, however many system calls it takes."""
        if self.closed:
            raise ValueError("the staged file is closed")
        view = memoryview(data).cast("B")
        self._hash.update(view)
        done = 0
        while done < len(view):
            done += os.write(self._descriptor, view[done:])
        self.size += len(view)
        if self.size - self._begun >= _BEGIN:
            start_sync(self._descriptor, self._begun, self.size - self._begun)
            self._begun = self.size
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Nothing is buffered here."""

    def close(self) -> None:
        """No more may be written. The descriptor is `create`'s to close."""
        self.closed = True

    def record(self, path: str) -> FileRecord:
        """The file as a manifest lists it, under the name `path`."""
        return FileRecord(path, self.size, self._hash.hexdigest())


class Spool:
    """Bytes on their way into a staged file, on the disk instead of in memory, without a name."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._path = folder / f".spool.{os.getpid()}.part"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            self._path.unlink()

    def append(self, data: memoryview) -> None:
        """Add bytes at the end."""
        with writing(self._path):
            done = 0
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        self.size += len(data)

    def stand_in(self) -> pa.Buffer:
        """A buffer of the spool's size that stands for it; its memory is never touched."""
        return pa.py_buffer(mmap.mmap(-1, max(self.size, 1)))[: self.size]

    def pieces(self) -> Iterator[bytes]:
        """All bytes, a piece at a time."""
        start = 0
        while start < self.size:
            with writing(self._path):
                piece = os.pread(self._descriptor, min(_PIECE, self.size - start), start)
                if not piece:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            start += len(piece)
            yield piece

    def close(self) -> None:
        """Give the space back."""
        os.close(self._descriptor)


class _Spliced:
    """A sink for pyarrow that writes a spool's bytes where it is handed the stand-in."""

    def __init__(self, file: StagedFile, spool: Spool, stand_in: pa.Buffer) -> None:
        self._file, self._spool, self._address = file, spool, stand_in.address
        self.closed = False

    def write(self, data: bytes | pa.Buffer) -> int:
        """Write data, or the spool for its stand-in."""
        if getattr(data, "address", None) != self._address:
            return self._file.write(data)
        return sum(self._file.write(piece) for piece in self._spool.pieces())

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is buffered here."""

    def close(self) -> None:
        """The staged file is `create`'s to close."""
        self.closed = True


@contextmanager
def create(path: Path) -> Iterator[StagedFile]:
    """Write a staged file; it appears under its name when it is whole and synced."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(unfinished, flags, 0o644)
    file = StagedFile(descriptor)
    try:
        with writing(path):
            yield file
            os.fsync(descriptor)
            unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        file.close()  # whoever still holds it must not write to a descriptor that is another's
        os.close(descriptor)


@contextmanager
def create_by_path(path: Path) -> Iterator[Path]:
    """Let a library write a staged file by itself; it appears under its name when it is synced."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        sync(unfinished)
        rename(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def arrow_file(
    file: StagedFile, schema: pa.Schema, spliced: tuple[Spool, pa.Buffer] | None = None
) -> pa.ipc.RecordBatchFileWriter:
    """A writer of an Arrow IPC file into a staged file.

    `spliced`: a spool, and the stand-in in whose place its bytes are written.
    """
    sink = file if spliced is None else _Spliced(file, *spliced)
    # Without this option Arrow refuses arrays of 2^31 values, which one huge document may make.
    options = pa.ipc.IpcWriteOptions(allow_64bit=True)
    return pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema, options=options)


def rename(staged: Path, named: Path) -> None:
    """Give a staged file the name that its content makes."""
    with writing(named):
        staged.rename(named)


def write_file(path: Path, data: bytes) -> FileRecord:
    """Stage a small file in one go."""
    with create(path) as file:
        file.write(data)
    return file.record(path.name)


def start_sync(descriptor: int, offset: int, size: int) -> None:
    """Let the disk begin with a part of a file, so that less is left to wait for in `sync`."""
    if _SYNC_FILE_RANGE is not None:  # a hint: `fsync` meets its errors
        _SYNC_FILE_RANGE(descriptor, offset, size, _SYNC_WRITE)


def append_line(path: Path, line: bytes) -> None:
    """Append one line to a staged journal. A torn line before it is the reader's to ignore."""
    with writing(path), path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        file.write((b"\n" if torn else b"") + line + b"\n")


def link(source: Path, target: Path) -> None:
    """Give a staged file a second name: formats of equal bytes share one file."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.hardlink_to(source)


def try_link(source: Path, target: Path) -> bool:
    """`link`, unless the file system will not: across devices, or of another user's files."""
    try:
        link(source, target)
    except MixcError:
        return False
    return True


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish_file(staged: Path, final: Path) -> None:
    """Put a staged file in the place of `final`, in one step."""
    with writing(final):
        staged.rename(final)
        sync(final.parent)


def publish_tree(staged: Path, final: Path) -> None:
    """Put a staged folder, every file of it synced, in the place of `final`, in one step.

    Where the filesystem cannot exchange two names, the old folder moves away first: for a
    moment there is none, but never a mixed one.
    """
    with writing(final):
        for folder, _, _ in os.walk(staged):
            sync(Path(folder))
        if not final.exists():
            staged.rename(final)
        elif not _exchange(staged, final):
            retired = staged.with_name(staged.name + ".retired")
            final.rename(retired)
            staged.rename(final)
            retired.rename(staged)
        sync(final.parent)
    remove(staged)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    code = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(b))


def remove(path: Path) -> None:
    """Remove a staged file or folder, if it is there."""
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
