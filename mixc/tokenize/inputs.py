"""Which files a recipe's domains name, and what is in them by hash."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mixc import progress
from mixc.errors import MixcError, Place, located, raise_all
from mixc.readers import remote
from mixc.readers.records import Source
from mixc.readers.saved_dataset import saved_dataset_files
from mixc.registry import READERS, reader_for
from mixc.store.commit import CONTROL
from mixc.store.hashes import hash_file, key_of

if TYPE_CHECKING:  # workers do without pydantic
    from mixc.recipe import Domain, Recipe

HUB = "hub"  # the reader of what is no file
_READABLE = "make it a readable file, or take it out of the domain's paths"


@dataclass(frozen=True)
class Input:
    """An input file. `name` is its path as outputs show it: relative to the recipe's folder, or
    a URL. `digest` is its XXH3-128; of a remote file, what its server calls its content.
    """

    domain: str
    path: Path
    name: str
    reader: str
    bytes: int
    digest: str = ""
    remote: remote.RemoteFile | None = None
    stamp: tuple[int, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether its bytes are on this machine, to be hashed."""
        return self.remote is None and self.reader != HUB

    @property
    def url(self) -> str:
        """Where it is, if it is not local."""
        return str(self.path) if self.remote is None else self.remote.url

    def source(self) -> Source:
        """The file as readers take it."""
        if self.remote is None:
            return Source(self.path, self.name)
        return Source(self.path, self.name, opener=partial(remote.open_remote, self.remote))


def find(recipe: Recipe) -> list[Input]:
    """Every input file, by domain and name.

    Raises, all at once: MX012 (no file), MX013 (a file in two domains), MX014 (no reader for
    a name), MX027 (not a readable regular file).
    """
    inputs: list[Input] = []
    errors: list[MixcError] = []
    owner: dict[str, str] = {}
    for domain, options in sorted(recipe.domains.items()):
        place = recipe.place("domains", domain, "paths")
        try:
            found_here = list(_inputs(recipe, domain, options, place))
        except MixcError as error:
            errors.append(error)
            continue
        if not found_here:
            errors.append(_no_files(domain, options.paths, place))
        for found in found_here:
            if isinstance(found, MixcError):
                errors.append(found)
                continue
            name = found.name
            file = os.path.realpath(found.path) if found.is_local else found.url
            if owner.get(file) == domain:
                continue  # the same file under two names
            first = owner.setdefault(file, domain)
            if first != domain:
                message = f"'{name}' belongs to two domains: '{first}' and '{domain}'"
                help = "a file's tokens would be counted twice: narrow one of the patterns"
                errors.append(MixcError("MX013", message, place=place, help=help))
            inputs.append(found)
    raise_all(errors)
    return inputs


def hashed(inputs: Sequence[Input]) -> list[Input]:
    """The inputs with their hashes: sizes and times can lie, bytes cannot."""
    total = sum(item.bytes for item in inputs if not item.digest)
    with (
        progress.task("hash inputs", total, "B") as task,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        done = []
        for item in pool.map(_hashed, inputs):
            done.append(item)
            task.advance(item.bytes if item.is_local else 0)
    return done


def _hashed(item: Input) -> Input:
    if item.digest:
        return item
    try:
        stamp = stamp_of(item.path)
        return replace(item, digest=hash_file(item.path), stamp=stamp)
    except OSError as error:
        message = f"cannot read the file: {(error.strerror or str(error)).lower()}"
        raise MixcError("MX027", message, place=Place(item.name), help=_READABLE) from error


def stamp_of(path: Path) -> tuple[int, ...]:
    """What changes with a file: no proof that it is the same, but soon told. Raises OSError."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _inputs(
    recipe: Recipe, domain: str, options: Domain, place: Place
) -> Iterator[Input | MixcError]:
    """The inputs that a domain's patterns name, by name; errors of single files among them."""
    local = [path for path in options.paths if "://" not in path]
    for name, reader in sorted(_match(recipe, local).items()):
        yield _input(recipe, domain, options, name, reader, place)
    for pattern in sorted(set(options.paths) - set(local)):
        with located(place):
            yield from _remote_inputs(domain, options, pattern, place)


def _remote_inputs(
    domain: str, options: Domain, pattern: str, place: Place
) -> Iterator[Input | MixcError]:
    if pattern.startswith("hf://"):
        for shard in READERS[HUB].load().resolve(pattern):
            path, key = Path(shard.locator), key_of(shard.locator)
            yield Input(domain, path, shard.name, HUB, shard.size, key)
        return
    for file in remote.find_remote(pattern):
        name = remote.shown(file.url)  # without a signature
        reader = options.format or reader_for(name)
        if reader is None:
            yield _no_reader(domain, name, place)
        else:
            key = key_of([name, file.size, file.tag])
            yield Input(domain, Path(), name, reader, file.size, key, file)


def _match(recipe: Recipe, patterns: Sequence[str]) -> dict[str, str | None]:
    """The files that patterns match, each with its reader if the place says it."""
    folder = recipe.folder
    ours = [recipe.workdir_path / name for name in ("store", "mixture", CONTROL)]
    names: dict[str, str | None] = {}
    for pattern in patterns:
        found = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 (root_dir)
        for name in found:
            path = folder / name
            if any(path.is_relative_to(own) for own in ours):
                continue  # what mixc itself has written
            if not path.is_dir():
                names.setdefault(_tidy(name), None)
                continue
            # A pattern with ** also matches folders. One may be a dataset, saved as such.
            for file in saved_dataset_files(path) or ():
                names[_tidy(os.path.join(name, file.relative_to(path)))] = "arrow"  # noqa: PTH118
    return names


def _tidy(name: str) -> str:
    return Path(os.path.normpath(name)).as_posix()


def _no_files(domain: str, patterns: Sequence[str], place: Place) -> MixcError:
    return MixcError(
        "MX012",
        f"domain '{domain}' matched no files",
        place=place,
        help="patterns are relative to the recipe's folder: " + ", ".join(patterns),
    )


def _no_reader(domain: str, name: str, place: Place) -> MixcError:
    return MixcError(
        "MX014",
        f"no reader for '{name}' in domain '{domain}'",
        place=place,
        help=f"say format: {' | '.join(READERS)} in the domain",
    )


def _input(
    recipe: Recipe, domain: str, options: Domain, name: str, reader: str | None, place: Place
) -> Input | MixcError:
    path = recipe.folder / name
    reader = options.format or reader or reader_for(name)
    if reader is None:
        return _no_reader(domain, name, place)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        with path.open("rb"):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        return MixcError(
            "MX027", f"cannot open '{name}': {reason.lower()}", place=place, help=_READABLE
        )
    return Input(domain, path, name, reader, status.st_size)
