"""Inputs on object stores and web servers: `s3://`, `gs://`, `http://` and `https://`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import BinaryIO, cast

from mixc.errors import MixcError, Place
from mixc.readers.objects import Limits, Objects, RemoteFile, scheme_of, shown, split
from mixc.readers.ranges import RangeFile, patiently, probe
from mixc.readers.s3 import S3
from mixc.readers.web import Google, Web

__all__ = ["LIMITS", "Limits", "RemoteFile", "find_remote", "is_remote", "open_remote", "shown"]

LIMITS = Limits()
_MAGIC = "*?["


def is_remote(path: str) -> bool:
    """Whether a path of a recipe is a URL that `find_remote` takes."""
    return scheme_of(path) is not None


def find_remote(pattern: str, limits: Limits = LIMITS) -> list[RemoteFile]:
    """The objects that a URL or a glob names, sorted by URL.

    Globs are for `s3://` and `gs://`, and match as those of local paths do: `*`, `?` and `[]`
    within one part of a key, `**` as a whole part for any number of parts, and none of them a
    leading dot. A glob may match nothing. Raises MX007 (a pattern that cannot be asked for),
    MX027 (missing, denied, unreachable, or without a version), MX037 (a package is missing).
    """
    kind = scheme_of(pattern)
    if kind is None:
        raise _wrong(pattern, "it is no URL of a remote file", "s3://, gs://, http:// or https://")
    if "@" in pattern.partition("://")[2].partition("/")[0]:
        help = "keep credentials where they belong: in ~/.netrc, or in the environment"
        raise _wrong(pattern, "it holds a user or a password", help)
    if kind in ("http", "https"):
        _check_web(pattern)
    else:
        # Schemes are case-blind; one spelling makes one name.
        pattern = f"{kind}://{pattern.partition('://')[2]}"
        _check_bucket(pattern)
    objects = _connect(pattern, limits)
    try:
        if kind in ("s3", "gs") and _is_glob(split(pattern)[1]):
            return _glob(objects, pattern, limits)
        return [probe(objects, pattern, limits)]
    finally:
        objects.close()


def open_remote(file: RemoteFile, limits: Limits = LIMITS) -> BinaryIO:
    """A seekable file of an object, read by ranges; close it. The first read connects.

    Reading raises MX027 once a request failed `len(limits.waits) + 1` times, or is refused, and
    MX029 if the object is no longer the one that `file` says. Not for use across a fork.
    """
    return cast("BinaryIO", RangeFile(file, _connect(file.url, limits), limits))


def _connect(url: str, limits: Limits) -> Objects:
    """The store of a URL; no request is made yet."""
    kinds: dict[str | None, Callable[[Limits], Objects]] = {"s3": S3, "gs": Google}
    return kinds.get(scheme_of(url), Web)(limits)


def _is_glob(text: str) -> bool:
    return any(ch in text for ch in _MAGIC)


def _check_web(url: str) -> None:
    rest = url.partition("://")[2]
    host, _, path = rest.partition("/")
    if _is_glob(host) or any(ch in path.partition("?")[0] for ch in "*["):
        help = "web servers have no lists: name each file, or use s3:// or gs://"
        raise _wrong(url, "a glob over http", help)
    if not host or not path:
        raise _wrong(url, "it names no file", "write https://host/path/to/file.jsonl")


def _check_bucket(url: str) -> None:
    bucket, key = split(url)
    if not bucket or not key or key.endswith("/"):
        help = "name an object, or match several: s3://bucket/folder/*.jsonl.zst"
        raise _wrong(url, "it names no object", help)
    if _is_glob(bucket):
        raise _wrong(url, "a glob over buckets", "name the bucket")


def _wrong(url: str, reason: str, help: str) -> MixcError:
    return MixcError("MX007", f"cannot use this URL: {reason}", place=Place(shown(url)), help=help)


def _glob(objects: Objects, pattern: str, limits: Limits) -> list[RemoteFile]:
    bucket, key = split(pattern)
    parts = key.split("/")
    prefix = key[: min(key.index(ch) for ch in _MAGIC if ch in key)]
    found: list[RemoteFile] = []
    after = ""
    while True:
        token = after
        files, after = patiently(lambda: objects.page(bucket, prefix, token), pattern, limits)  # noqa: B023
        found += [file for file in files if _matches(split(file.url)[1].split("/"), parts)]
        if not after:
            return sorted(found, key=lambda file: file.url)


def _matches(key: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not key:
        return not pattern and not key
    if pattern[0] == "**":
        below = not key[0].startswith(".") and _matches(key[1:], pattern)
        rest = pattern[1:]
        # As a last part it stands for what is below, which must be a name.
        return below or (_matches(key, rest) if rest else len(key) == 1 and _named(key[0], "*"))
    return _named(key[0], pattern[0]) and _matches(key[1:], pattern[1:])


def _named(name: str, pattern: str) -> bool:
    hidden = name.startswith(".") and not pattern.startswith(".")
    return bool(name) and not hidden and fnmatchcase(name, pattern)
