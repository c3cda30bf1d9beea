"""Documents on their way to shards, and bad records on theirs into quarantine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mixc.errors import MixcError
from mixc.readers.records import BadRecord
from mixc.store import commit
from mixc.store.hashes import FileRecord
from mixc.store.shard import Documents, ShardRecord, write_shard

SHARD_BYTES = 256 << 20
SPLIT_HELP = "take some values, with only: {field: [values]}, or split by another field"
MAX_SPLITS = 1000  # each holds a file open while a unit is made
_MAX_ENTRIES = 10_000  # in quarantine, of one unit; the rest is counted


@dataclass
class _Growing:
    """A shard that is not full yet: its tokens are spooled, the other columns in memory."""

    spool: commit.Spool
    parts: list[Documents] = field(default_factory=list)

    def add(self, part: Documents) -> None:
        self.spool.append(np.ascontiguousarray(part.tokens).view(np.uint8).data)
        # A copy: an empty view would keep all the tokens alive.
        self.parts.append(replace(part, tokens=part.tokens[:0].copy()))

    def write(self, folder: Path) -> ShardRecord:
        parts = self.parts
        lengths = np.concatenate([part.lengths for part in parts])
        ids = [part.id for part in parts if part.id is not None]
        documents = Documents(
            tokens=parts[0].tokens,
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            doc_id=np.concatenate([part.doc_id for part in parts]),
            source=np.concatenate([part.source for part in parts]),
            row=np.concatenate([part.row for part in parts]),
            n_bytes=np.concatenate([part.n_bytes for part in parts]),
            id=pa.concat_arrays(ids) if ids else None,
        )
        return write_shard(folder, documents, self.spool)


class Shards:
    """The shards of a unit, by the value that splits its domain (or all under the empty one)."""

    def __init__(self, folder: Path) -> None:
        self.written: list[ShardRecord] = []
        self._folder = folder
        self._growing: dict[str, _Growing] = {}
        self._bytes = 0

    def add(self, split: str, part: Documents) -> None:
        """Take documents; what has gathered is written once it is a shard's worth."""
        if not len(part):
            return
        if split not in self._growing:
            if len(self._growing) == MAX_SPLITS:
                message = f"split_by makes more than {MAX_SPLITS} domains"
                raise MixcError("MX049", message, help=SPLIT_HELP)
            self._growing[split] = _Growing(commit.Spool(self._folder))
        self._growing[split].add(part)
        self._bytes += part.tokens.nbytes
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        for split in sorted(self._growing):
            record = self._growing[split].write(self._folder)
            self._growing.pop(split).spool.close()
            self.written.append(replace(record, split=split))
        self._bytes = 0

    def close(self) -> None:
        """Let go of what was not written."""
        while self._growing:
            self._growing.popitem()[1].spool.close()


class Quarantine:
    """The bad records of a unit: where each stood, what was wrong, and how it began."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[bytes] = []
        self._omitted = 0

    def add(self, name: str, bad: BadRecord) -> None:
        """Put a bad record in quarantine."""
        if len(self._lines) == _MAX_ENTRIES:
            self._omitted += 1
            return
        entry = {
            "file": name,
            "row": bad.row,
            "position": bad.position,
            "code": bad.code,
            "reason": bad.reason,
            "excerpt": bad.excerpt.decode(errors="backslashreplace"),
        }
        self._lines.append(json.dumps(entry).encode() + b"\n")

    def write(self) -> FileRecord | None:
        """Stage the entries as a JSONL file, if there are any."""
        if not self._lines:
            return None
        if self._omitted:
            self._lines.append(json.dumps({"omitted": self._omitted}).encode() + b"\n")
        unnamed = commit.write_file(self._folder / "unnamed.jsonl", b"".join(self._lines))
        name = f"{unnamed.xxh3[:16]}.bad.jsonl"
        commit.rename(self._folder / "unnamed.jsonl", self._folder / name)
        return replace(unnamed, path=name)
