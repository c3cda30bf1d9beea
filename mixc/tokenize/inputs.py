"""Which files a recipe's domains name, and what is in them by hash."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixc import progress
from mixc.errors import MixcError, Place, raise_all
from mixc.recipe import Domain, Recipe
from mixc.registry import READERS, reader_for
from mixc.store.commit import CONTROL
from mixc.store.hashes import hash_file

_READABLE = "make it a readable file, or take it out of the domain's paths"


@dataclass(frozen=True)
class Input:
    """An input file. `name` is its path as outputs show it: relative to the recipe's folder."""

    domain: str
    path: Path
    name: str
    reader: str
    bytes: int
    xxh3: str = ""


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
        names = _match(recipe, options.paths)
        if not names:
            errors.append(_no_files(domain, options.paths, place))
        for name in names:
            found = _input(recipe, domain, options, name, place)
            if isinstance(found, MixcError):
                errors.append(found)
                continue
            file = os.path.realpath(found.path)
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
    done = []
    with progress.task("hash inputs", sum(item.bytes for item in inputs), "B") as task:
        for item in inputs:
            try:
                done.append(Input(**{**item.__dict__, "xxh3": hash_file(item.path)}))
            except OSError as error:
                message = f"cannot read the file: {(error.strerror or str(error)).lower()}"
                raise MixcError("MX027", message, place=Place(item.name), help=_READABLE) from error
            task.advance(item.bytes)
    return done


def _match(recipe: Recipe, patterns: Sequence[str]) -> list[str]:
    folder = recipe.folder
    ours = [recipe.workdir_path / name for name in ("store", "mixture", CONTROL)]
    names: set[str] = set()
    for pattern in patterns:
        found = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 (root_dir)
        for name in found:
            path = folder / name
            # A pattern with ** also matches folders, and what mixc itself has written.
            if not path.is_dir() and not any(path.is_relative_to(own) for own in ours):
                names.add(Path(os.path.normpath(name)).as_posix())
    return sorted(names)


def _no_files(domain: str, patterns: Sequence[str], place: Place) -> MixcError:
    return MixcError(
        "MX012",
        f"domain '{domain}' matched no files",
        place=place,
        help="patterns are relative to the recipe's folder: " + ", ".join(patterns),
    )


def _input(
    recipe: Recipe, domain: str, options: Domain, name: str, place: Place
) -> Input | MixcError:
    path = recipe.folder / name
    reader = options.format or reader_for(name)
    if reader is None:
        return MixcError(
            "MX014",
            f"no reader for '{name}' in domain '{domain}'",
            place=place,
            help=f"say format: {' | '.join(READERS)} in the domain",
        )
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
