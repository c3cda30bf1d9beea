"""Sequences to files in every format of a plan; a file under two names is hashed once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixc.build.plan import BuildPlan
from mixc.build.reuse import Reuse
from mixc.registry import WRITERS
from mixc.store import commit
from mixc.store.hashes import FileRecord, hash_file
from mixc.writers.sequences import Folder, Sequences

_Entries = Mapping[str, Mapping[str, Any]]


class Exporter:
    """Stages formats under `tree`, `known` being the hashes of files that they may link.

    `reuse`: the mixture that is there. A format is taken from it, where its manifest has an entry
    that the caller knows to be of the same sequences, and its files are as they were.
    """

    def __init__(
        self,
        plan: BuildPlan,
        tree: Path,
        known: Mapping[Path, str],
        reuse: Reuse | None,
        *,
        workers: int,
    ) -> None:
        self._formats, self._tree, self._reuse = plan.formats, tree, reuse
        self._workers = workers
        self._hashes = {path.stat().st_ino: xxh3 for path, xxh3 in known.items()}

    def __call__(
        self, prefix: str, sequences: Sequences, split: str, there: _Entries
    ) -> dict[str, Any]:
        """Stage sequences in every format. `there`: entries of the mixture that is there."""
        return {
            name: {
                "files": [
                    one.as_dict() for one in self._files(name, prefix, sequences, split, there)
                ]
            }
            for name in self._formats
        }

    def _files(
        self, name: str, prefix: str, sequences: Sequences, split: str, there: _Entries
    ) -> list[FileRecord]:
        path = self._tree / prefix / name
        if (found := self._taken_over(there.get(name))) is not None:
            return found
        folder = Folder(path, self._workers)
        files = WRITERS[name].load().write(sequences, folder, split)
        return [self._record(path / file, folder.hashes.get(file)) for file in files]

    def _taken_over(self, entry: Mapping[str, Any] | None) -> list[FileRecord] | None:
        """The files of a format, linked from the mixture that is there, if they can be."""
        found = None if self._reuse is None else self._reuse.files(entry)
        if self._reuse is None or found is None:
            return None
        root = self._reuse.mixture.root
        if all(commit.try_link(root / one.path, self._tree / one.path) for one in found):
            return found
        for one in found:
            commit.remove(self._tree / one.path)
        return None

    def _record(self, path: Path, xxh3: str | None) -> FileRecord:
        status = path.stat()
        if status.st_ino not in self._hashes:
            self._hashes[status.st_ino] = xxh3 or hash_file(path)
        name = path.relative_to(self._tree).as_posix()
        return FileRecord(name, status.st_size, self._hashes[status.st_ino])
