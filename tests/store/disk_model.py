"""A disk that loses what was not synced: the system calls of a run, and what may be left of them.

The model is harsher than filesystems are. Of a file, only what was written before its last fsync
is sure; the rest is there, lost or torn. Of a folder, only the entries at its last fsync are sure;
each change since then (a name made, moved or removed) may have reached the disk or not, whatever
became of the changes before it. One call (a rename, an exchange) is one change.
"""

import ctypes
import itertools
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mixc.store import parts


@dataclass
class File:
    """What a file holds as running programs see it, and what of it is surely on the disk."""

    now: bytearray
    sure: bytes


@dataclass
class Folder:
    """Entries, likewise; `changes` are (number of the call, name, file or None)."""

    now: dict[str, object] = field(default_factory=dict)
    sure: dict[str, object] = field(default_factory=dict)
    changes: list[tuple[int, str, object]] = field(default_factory=list)


def from_disk(path):
    """The state of a disk on which all is synced."""
    if not path.is_dir():
        return File(bytearray(path.read_bytes()), path.read_bytes())
    entries = {one.name: from_disk(one) for one in path.iterdir()}
    return Folder(dict(entries), dict(entries))


class Disk:
    """Replays calls, one by one."""

    def __init__(self, root):
        self.root = from_disk(root)
        self._numbers = itertools.count()

    def _at(self, parts):
        node = self.root
        for part in parts:
            node = node.now[part]
        return node

    def _change(self, number, parts, node):
        folder = self._at(parts[:-1])
        folder.now.pop(parts[-1], None)
        if node is not None:
            folder.now[parts[-1]] = node
        folder.changes.append((number, parts[-1], node))

    def do(self, call, *words):
        """One call: its name and arguments. Paths are tuples of names."""
        number = next(self._numbers)
        if call == "create":
            self._change(number, words[0], File(bytearray(), b""))
        elif call == "mkdir":
            self._change(number, words[0], Folder())
        elif call == "link":
            self._change(number, words[1], self._at(words[0]))
        elif call == "remove":
            self._change(number, words[0], None)
        elif call == "rename":
            node = self._at(words[0])
            self._change(number, words[0], None)
            self._change(number, words[1], node)
        elif call == "exchange":
            one, other = self._at(words[0]), self._at(words[1])
            self._change(number, words[0], other)
            self._change(number, words[1], one)
        elif call == "write":
            node, offset, data = words
            node.now[len(node.now) :] = bytes(max(0, offset - len(node.now)))
            node.now[offset : offset + len(data)] = data
        elif call == "resize":
            node, size = words
            node.now[:] = node.now[:size].ljust(size, b"\0")
        elif call == "sync":
            self._sync(words[0])

    @staticmethod
    def _sync(node):
        if isinstance(node, File):
            node.sure = bytes(node.now)
        else:
            node.sure, node.changes = dict(node.now), []

    def left(self, kept, torn, leave_out=None):
        """The tree after power was lost, {path: bytes}, without the folder `leave_out` at its top.

        `kept(number)` says whether a change that was not synced reached the disk; `torn(file)`
        gives the bytes of a file that was.
        """
        found = {}

        def walk(node, path):
            if isinstance(node, File):
                found[path] = torn(node)
                return
            entries = dict(node.sure)
            for number, name, child in node.changes:
                if kept(number):
                    entries.pop(name, None)
                    if child is not None:
                        entries[name] = child
            for name, child in entries.items():
                if path or name != leave_out:
                    walk(child, f"{path}/{name}" if path else name)

        walk(self.root, "")
        return found


class Recorder:
    """Calls of this process below a folder, in their order. Paths are relative to it."""

    def __init__(self, root):
        self.root, self.calls = Path(root), []
        self._open = {}  # descriptor -> offset
        self.kind = {}  # descriptor -> file or folder

    def _parts(self, path):
        path = Path(path)
        return path.relative_to(self.root).parts if path.is_relative_to(self.root) else None

    def add(self, call, *words):
        """Note a call."""
        self.calls.append((call, *words))

    def opened(self, descriptor, path, existed, flags):
        """A file or folder was opened; perhaps that made or emptied it."""
        self._open.pop(descriptor, None)
        self.kind[descriptor] = "folder" if Path(path).is_dir() else "file"
        parts = self._parts(path)
        if parts is None:
            return
        if flags & os.O_CREAT and not existed:
            self.add("create", parts)
        elif flags & os.O_TRUNC:
            self.add("resize", ("open", parts), 0)
        self.add("open", descriptor, parts)
        self._open[descriptor] = 0

    def written(self, descriptor, data, offset=None):
        """Bytes were written, at the place where the last ones ended or at an offset."""
        if descriptor in self._open:
            at = self._open[descriptor] if offset is None else offset
            self.add("write", descriptor, at, bytes(data))
            if offset is None:
                self._open[descriptor] += len(data)

    def on(self, call, descriptor, *words):
        """Something happened to an open file."""
        if descriptor in self._open:
            self.add(call, descriptor, *words)

    def moved(self, call, *paths):
        """Something happened to names."""
        names = [self._parts(path) for path in paths]
        if None not in names:
            self.add(call, *names)


@contextmanager
def recorded(root, monkeypatch, commit):
    """Record what this process does below a folder through `os` and the commit protocol."""
    record = Recorder(root)

    def after(name, note, module=os):
        real = getattr(module, name)

        def call(*words, **options):
            result = real(*words, **options)
            note(result, *words, **options)
            return result

        patch.setattr(module, name, call)

    def open_(path, flags, *rest, **options):
        existed = os.path.lexists(path)
        descriptor = real_open(path, flags, *rest, **options)
        record.opened(descriptor, path, existed, flags)
        return descriptor

    def rmtree(path):
        for folder, _, files in os.walk(path, topdown=False):
            for name in files:
                record.moved("remove", Path(folder, name))
            record.moved("remove", folder)
        with monkeypatch.context() as quiet:
            quiet.setattr(os, "open", real_open)
            quiet.setattr(os, "unlink", real_unlink)
            real_rmtree(path)

    real_open, real_rmtree, real_unlink = os.open, shutil.rmtree, os.unlink
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        patch.setattr(shutil, "rmtree", rmtree)
        after("write", lambda n, fd, data: record.written(fd, data[:n]))
        after("pwrite", lambda n, fd, data, at: record.written(fd, data[:n], at))
        after("_write_vectors", lambda n, fd, *at: record.written(fd, held(*at)[:n], at[1]), parts)
        after("fsync", lambda _, fd: record.on("sync", fd, record.kind.get(fd)))
        after("ftruncate", lambda _, fd, size: record.on("resize", fd, size))
        after("mkdir", lambda _, path, *mode, **__: record.moved("mkdir", path))
        after("unlink", lambda _, path, **__: record.moved("remove", path))
        after("rename", lambda _, old, new, **__: record.moved("rename", old, new))
        after("link", lambda _, old, new, **__: record.moved("link", old, new))
        after("_exchange", lambda ok, a, b: ok and record.moved("exchange", a, b), commit)
        yield record


def held(vectors, *_):
    """What stands in memory where vectors say."""
    return b"".join(ctypes.string_at(int(address), int(size)) for address, size in vectors)


def replay(before, calls):
    """Yield the disk after each call: `before` is where all was synced."""
    disk = Disk(before)
    files = {}  # descriptor -> what it is open on
    yield disk
    for call, *words in calls:
        if call == "open":
            files[words[0]] = disk._at(words[1])
            continue
        if call in ("write", "sync", "resize"):
            target = words[0]
            node = disk._at(target[1]) if isinstance(target, tuple) else files[target]
            disk.do(call, node, *words[1:])
        else:
            disk.do(call, *words)
        yield disk
