"""A remote object as a file: ranged reads that survive faults, and read-ahead."""

from __future__ import annotations

import io
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from mixc.errors import MixcError, Place
from mixc.readers.objects import (
    Limits,
    Objects,
    Passing,
    RemoteFile,
    Reply,
    check_status,
    failed,
    shown,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 1 << 17
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The reader was closed, or went elsewhere, while bytes were fetched for it."""


class Patience:
    """The tries of one request."""

    def __init__(self, url: str, limits: Limits, stop: threading.Event) -> None:
        self._url, self._limits, self._stop, self._tries = url, limits, stop, 0

    def pause(self, fault: Passing, at: int | None = None, got: int = 0) -> None:
        """Wait before the next try. Raises MX027 after the last one, `Stopped` if told to."""
        waits = self._limits.waits
        if got >= self._limits.progress:
            self._tries = 0
        if self._tries >= len(waits):
            reason = f"{fault} ({len(waits) + 1} tries)"
            raise failed(self._url, reason, at=at, help="run again when the server answers")
        # Readers that failed together shall not come back together.
        spread = zlib.crc32(f"{self._url} {at} {threading.get_native_id()}".encode()) / 2**32
        if self._stop.wait(waits[self._tries] * (0.5 + spread / 2)):
            raise Stopped
        self._tries += 1


def patiently(ask: Callable[[], T], url: str, limits: Limits) -> T:
    """What `ask` returns, however often it must be tried. Raises MX027."""
    patience = Patience(url, limits, threading.Event())
    while True:
        try:
            return ask()
        except Passing as fault:
            patience.pause(fault)


def probe(objects: Objects, url: str, limits: Limits) -> RemoteFile:
    """Size and tag of an object, by a request for its first byte. Raises MX027.

    Some servers answer to nothing but GET, and a signed URL allows nothing else.
    """

    def ask() -> RemoteFile:
        with closing(objects.request(url, 0, 1)) as reply:
            if reply.status != 416:
                return _described(objects, reply, url, limits)
        # An empty object has no first byte.
        with closing(objects.request(url, 0, 0)) as reply:
            return _described(objects, reply, url, limits)

    return patiently(ask, url, limits)


def _described(objects: Objects, reply: Reply, url: str, limits: Limits) -> RemoteFile:
    check_status(reply.status, url)
    size = _size(reply)
    if size is None:
        raise failed(url, "the server does not say how long it is")
    if reply.status == 200 and size > limits.piece:
        help = "copy the file to an object store, or to this machine"
        raise failed(url, "the server gives no ranges of bytes", help=help)
    tag = objects.tag(reply.headers, size)
    if not tag:
        help = "copy the file to where an ETag or Last-Modified tells its versions apart"
        raise failed(url, "the server does not say which version it is", help=help)
    return RemoteFile(url, size, tag)


def _size(reply: Reply) -> int | None:
    match = _RANGE.fullmatch(reply.headers.get("content-range", ""))
    if match and reply.status == 206:
        return int(match[3])
    length = reply.headers.get("content-length", "")
    return int(length) if reply.status == 200 and length.isdecimal() else None


def fetch(
    objects: Objects,
    file: RemoteFile,
    start: int,
    view: memoryview,
    limits: Limits,
    stop: threading.Event,
) -> None:
    """Fill `view` with the bytes of an object from `start` on.

    Each try goes on where the last one broke off. Raises MX027 once patience is at an end, MX029
    if the object is no longer the one that `file` says, `Stopped` if `stop` is set.
    """
    patience, done = Patience(file.url, limits, stop), 0
    while done < len(view):
        got, fault = _try(objects, file, start + done, view[done:], limits, stop)
        done += got
        if done < len(view):
            patience.pause(fault or Passing("the body was cut short"), start + done, got)


def _try(
    objects: Objects,
    file: RemoteFile,
    start: int,
    view: memoryview,
    limits: Limits,
    stop: threading.Event,
) -> tuple[int, Passing | None]:
    """How many bytes came, and the fault that ended them."""
    end, got = time.monotonic() + limits.try_s, 0
    try:
        with closing(objects.request(file.url, start, start + len(view))) as reply:
            skip = _check(objects, reply, file, start, limits)
            while got < len(view):
                block = reply.read(min(_BLOCK, skip + len(view) - got))
                if not block:
                    raise Passing("the body was cut short")
                if stop.is_set():
                    raise Stopped
                fresh, skip = block[skip:], max(0, skip - len(block))
                view[got : got + len(fresh)] = fresh
                got += len(fresh)
                if got < len(view) and time.monotonic() > end:
                    raise Passing("timed out")
    except Passing as fault:
        return got, fault
    return got, None


def _check(objects: Objects, reply: Reply, file: RemoteFile, start: int, limits: Limits) -> int:
    """Whether a reply holds the very object's bytes from `start` on. How many to skip first."""
    if reply.status in (412, 416):
        raise _changed(file, start)
    check_status(reply.status, file.url, start)
    size = _size(reply)
    if size is None:
        raise Passing("the reply does not say which bytes it holds")
    if size != file.size or objects.tag(reply.headers, size) != file.tag:
        raise _changed(file, start)
    if reply.status == 200:
        if file.size > limits.piece:
            raise Passing("the server gave no range of bytes")
        return start
    match = _RANGE.fullmatch(reply.headers["content-range"])
    if match is None or int(match[1] or -1) != start:
        raise Passing("the reply holds other bytes")
    return 0


def _changed(file: RemoteFile, at: int) -> MixcError:
    return MixcError(
        "MX029",
        "the file changed while it was read",
        place=Place(shown(file.url), detail=f"at byte {at}"),
        help="run again once nothing writes to it",
    )


class RangeFile(io.BufferedIOBase):
    """A remote object as a binary file. Raises MX027 and MX029 when it is read.

    A read gives all that it is asked for, short only at the end of the object. Who reads on from
    the object's beginning gets pieces that were fetched ahead, by threads that live until `close`.
    A read elsewhere costs one request, of at least `limits.least` bytes; who reads on from there
    gets ever more with each, and then pieces too. Not for two threads, nor across a fork.
    """

    def __init__(self, file: RemoteFile, objects: Objects, limits: Limits) -> None:
        super().__init__()
        self._file, self._objects, self._limits = file, objects, limits
        self._workers: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._at = self._end = self._start = self._run = 0
        self._held = memoryview(b"")
        self._ahead: deque[tuple[int, Future[memoryview]]] = deque()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte. Costs nothing by itself."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes; all that are left if `size` is negative or None."""
        left = max(0, self._file.size - self._at)
        buffer = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(buffer)
        return bytes(buffer)

    def read1(self, size: int = -1, /) -> bytes:
        """As `read`."""
        return self.read(size)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer, short only at the end of the object."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._file.size - self._at))
        done = 0
        while done < wanted:
            got = self._some(view[done:wanted])
            done += got
            self._at += got
            self._end = self._at
        return done

    def close(self) -> None:
        """Stop what is under way and let go of all memory. Threads end with their request."""
        if not self.closed:
            self._drop()
            if self._workers is not None:
                self._workers.shutdown(wait=False, cancel_futures=True)
            self._objects.close()
        super().close()

    def _some(self, view: memoryview) -> int:
        """Copy some of the next bytes into `view`, fetching them if need be."""
        if not self._in(self._start, len(self._held)) and not self._next_piece():
            self._drop()
            if self._at != self._end:
                self._run = self._at
            run = self._at - self._run
            if self._run == 0 or run >= self._limits.piece:
                self._start = self._at
                self._top_up()
                self._next_piece()
            elif len(view) >= max(run, self._limits.least):
                fetch(self._objects, self._file, self._at, view, self._limits, self._stop)
                return len(view)
            else:
                length = max(run, self._limits.least)
                self._hold(self._at, self._piece(self._at, length, self._stop))
        begin = self._at - self._start
        part = self._held[begin : begin + len(view)]
        view[: len(part)] = part
        return len(part)

    def _in(self, start: int, length: int) -> bool:
        return start <= self._at < start + length

    def _next_piece(self) -> bool:
        """Hold the piece fetched ahead that the next byte lies in; False if there is none."""
        while self._ahead and not self._in(self._ahead[0][0], self._limits.piece):
            if self._at < self._ahead[0][0]:
                return False
            self._ahead.popleft()[1].cancel()
        if not self._ahead:
            return False
        self._held = memoryview(b"")
        start, piece = self._ahead.popleft()
        self._hold(start, piece.result())
        self._top_up()
        return True

    def _hold(self, start: int, piece: memoryview) -> None:
        self._start, self._held = start, piece

    def _top_up(self) -> None:
        """Have pieces fetched ahead of the one that is held."""
        limits = self._limits
        if self._workers is None:
            self._workers = ThreadPoolExecutor(limits.ahead, thread_name_prefix="mixc-read-ahead")
        start = self._ahead[-1][0] + limits.piece if self._ahead else self._start + len(self._held)
        while len(self._ahead) < limits.ahead and start < self._file.size:
            future = self._workers.submit(self._piece, start, limits.piece, self._stop)
            self._ahead.append((start, future))
            start += limits.piece

    def _drop(self) -> None:
        """Forget what is held and fetched ahead."""
        self._stop.set()
        self._stop = threading.Event()
        for _, piece in self._ahead:
            piece.cancel()
        self._ahead.clear()
        self._hold(0, memoryview(b""))

    def _piece(self, start: int, length: int, stop: threading.Event) -> memoryview:
        view = memoryview(bytearray(min(length, self._file.size - start)))
        fetch(self._objects, self._file, start, view, self._limits, stop)
        return view
