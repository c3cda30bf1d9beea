"""Tables that were costly to find, kept on disk for later runs.

A table is one Arrow file, named by its hash, in a folder named by its key: all that it depends on.
A key may have any number of tables; they are only ever added. One file is written at a time, so
whatever is there is whole or, by its name, known to be damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mixc import progress
from mixc.proxy import ranks
from mixc.store import commit
from mixc.store.hashes import canonical, hash_file, key_of

_KEY = b"mixc.key"


def keep(folder: Path, key: dict[str, Any], table: pa.RecordBatch) -> pa.RecordBatch:
    """Add a table to those of a key (plain data), and give it back as it is mapped from disk.

    Of several ranks the first writes, and the others get back what they gave.
    """
    if not ranks.first():
        return table
    table = table.replace_schema_metadata({_KEY: canonical(key)})
    place = folder / key_of(key)
    unnamed = place / f"{os.getpid()}.unnamed"  # no other process's, and no table yet
    with commit.create(unnamed) as file, commit.arrow_file(file, table.schema) as writer:
        writer.write_batch(table)
    path = place / f"{file.record('').xxh3}.arrow"
    commit.rename(unnamed, path)
    return _mapped(path)


def kept(folder: Path, key: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The tables of a key, mapped from disk.

    A file whose hash is not its name is damaged, and one that says another key is not ours:
    people are told, and it is removed, so that what it held is found anew.
    """
    for path in sorted((folder / key_of(key)).glob("*.arrow")):
        table = _open(path) if hash_file(path) == path.stem else None
        if table is not None and (table.schema.metadata or {}).get(_KEY) == canonical(key):
            yield table
        else:
            why = "damaged" if table is None else "of something else"
            progress.say(f"the cached table {path.name} is {why}: what it held is found anew")
            commit.remove(path)


def _open(path: Path) -> pa.RecordBatch | None:
    try:
        return _mapped(path)
    except (pa.ArrowException, OSError):
        return None


def _mapped(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
