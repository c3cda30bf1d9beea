"""Folders that the `datasets` library saved: which of their files hold the rows, in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mixc.errors import MixcError, Place


def saved_dataset_files(folder: Path) -> list[Path] | None:
    """The data files of a folder of `Dataset.save_to_disk`, or None if it is none.

    They are Arrow streams: the arrow reader takes them. Errors (MX035): a folder of several
    splits, and a list that names files which are not there or lie elsewhere.
    """
    splits = _json(folder / "dataset_dict.json").get("splits")
    if isinstance(splits, list):
        paths = ", ".join(f"{folder}/{name}" for name in splits)
        raise _unusable(folder, "the folder holds several splits", f"name one of them: {paths}")
    state = _json(folder / "state.json")
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        return None
    if state.get("_indices_files"):
        reason = "the dataset was saved with a list of indices, by an old version of `datasets`"
        raise _unusable(folder, reason, "load it and save it again with a newer version")
    return [_data_file(folder, entry) for entry in listed]


def _data_file(folder: Path, entry: Any) -> Path:
    name = entry.get("filename") if isinstance(entry, dict) else None
    # The list is data of others: it may not lead out of its folder.
    if not isinstance(name, str) or Path(name).name != name or "\0" in name or name == "..":
        raise _unusable(folder, f"state.json lists {entry!r}, which is no file of the folder")
    if not (folder / name).is_file():
        raise _unusable(folder, f"state.json lists '{name}', which is not there")
    return folder / name


def _json(path: Path) -> dict[str, Any]:
    """A JSON object of a small file; an empty one if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _unusable(folder: Path, reason: str, help: str = "save the dataset again") -> MixcError:
    return MixcError("MX035", reason, place=Place(str(folder)), help=help)
