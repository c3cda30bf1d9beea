"""What a check finds, and the checks that stores and mixtures share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixc import progress
from mixc.errors import MixcError, Place
from mixc.store.hashes import FileRecord, check_file


@dataclass
class Report:
    """What was checked. `traced_rows` were compared, token by token, with the store.

    They stand in `traced_groups` of the provenance's `groups` row groups. `derived`: the ledger was
    derived again, for which a mixture without provenance needs its store.
    """

    kind: str
    path: Path
    files: int = 0
    bytes: int = 0
    documents: int = 0
    rows: int = 0
    formats: int = 0
    groups: int = 0
    traced_groups: int = 0
    traced_rows: int = 0
    derived: bool = True
    problems: list[MixcError] = field(default_factory=list)

    def wrong(self, message: str, path: Path | None = None) -> None:
        """Note damage in a file."""
        self.problems.append(MixcError("MX040", message, place=Place(str(path or self.path))))


def check_files(root: Path, files: list[FileRecord], report: Report) -> None:
    """Hash files again."""
    with progress.task("verify files", sum(file.bytes for file in files), "B") as task:
        for file in files:
            error = check_file(root, file, rehash=True)
            if error is not None:
                report.problems.append(error)
            report.files += 1
            report.bytes += file.bytes
            task.advance(file.bytes)


def files_of(formats: Mapping[str, Any], suffix: str) -> list[FileRecord]:
    """The files of formats, as a manifest lists them, whose names end with `suffix`."""
    listed = [FileRecord(**file) for one in formats.values() for file in one["files"]]
    return [file for file in listed if file.path.endswith(suffix)]


@contextmanager
def well_formed(path: Path, report: Report) -> Iterator[None]:
    """Note as damage what cannot even be read: anyone can seal a manifest, or hash a file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, OSError) as error:
        # Arrow's errors are among these.
        report.wrong(f"what stands there makes no sense: {type(error).__name__}: {error}", path)
