"""Hashes of files and of plain data, and manifests that notice a change of any bit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from mixc.errors import MixcError, Place

_CHUNK = 1 << 20
_SEAL = "manifest_xxh3"


@dataclass(frozen=True)
class FileRecord:
    """A file as manifests list it. `xxh3` is the XXH3-128 of its bytes, as `xxhsum -H2` prints."""

    path: str
    bytes: int
    xxh3: str

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return asdict(self)


def hash_file(path: Path) -> str:
    """XXH3-128 of a file, 32 hex digits."""
    state = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def canonical(data: object) -> bytes:
    """Plain data as JSON bytes that depend on the data alone."""
    return (json.dumps(data, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def key_of(data: object) -> str:
    """A 32-digit key of plain data."""
    return xxhash.xxh3_128_hexdigest(canonical(data))


def seal(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest, with a hash of itself inside."""
    return canonical({**manifest, _SEAL: key_of(manifest)})


def unseal(path: Path, schema: str) -> dict[str, Any]:
    """Read a sealed manifest of one schema (`mixc.store/1`).

    Raises MX041 if there is none, MX040 if a bit of it has changed, MX044 if it was written by
    another version of the format.
    """
    place = Place(str(path))
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MixcError("MX041", "there is no manifest here", place=place) from None
    except OSError as error:
        raise _unreadable("the manifest", error, place) from error
    try:
        data = json.loads(raw)
        del data[_SEAL]
        name = data["schema"]
        whole = raw == seal(data)  # the seal too, or the bytes differ
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MixcError("MX040", "the manifest is damaged", place=place) from None
    if not whole:
        raise MixcError("MX040", "the manifest is damaged: its hash does not match", place=place)
    if name != schema:
        raise MixcError(
            "MX044",
            f"the manifest has schema {name!r}, this mixc reads '{schema}'",
            place=place,
            help="rebuild it with this version, or use the version that wrote it",
        )
    return dict(data)


def check_names(manifest: Path, records: Iterable[FileRecord]) -> None:
    """Raise MX040 if a manifest names a file outside its folder, or what no file can be called."""
    for record in records:
        name = PurePosixPath(record.path)
        if name.is_absolute() or ".." in name.parts or not _can_be_a_name(record.path):
            raise MixcError(
                "MX040", f"the manifest names {record.path!r}", place=Place(str(manifest))
            )


def _can_be_a_name(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def check_file(root: Path, record: FileRecord, *, rehash: bool) -> MixcError | None:
    """Compare a file with its record: its size always, its hash if `rehash`."""
    path = root / record.path
    place = Place(str(path))
    try:
        size = path.stat().st_size
    except OSError:
        return MixcError("MX040", "a file of the manifest is missing", place=place)
    if size != record.bytes:
        message = f"the file holds {size} bytes, its manifest says {record.bytes}"
        return MixcError("MX040", message, place=place)
    try:
        if rehash and hash_file(path) != record.xxh3:
            return MixcError("MX040", "the file is damaged: its hash does not match", place=place)
    except OSError as error:
        return _unreadable("the file", error, place)
    return None


def _unreadable(what: str, error: OSError, place: Place) -> MixcError:
    reason = (error.strerror or str(error)).lower()
    return MixcError("MX040", f"{what} cannot be read: {reason}", place=place)
