"""Where rows, tokens and documents come from, on stdout."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any


def row(found: Mapping[str, Any]) -> None:
    """A row: each document span with its place of origin and its text."""
    print(f"row {found['row']} of domain {found['domain']}, epoch {found['epoch']},")
    print(f"row {found['stream_row']} of the domain's stream")
    for span in found["spans"]:
        stop = span["start"] + span["length"]
        print(f"\n--- document {span['document']} (id {span['doc_id']}), epoch {span['epoch']}")
        print(f"    tokens {span['start']} to {stop - 1} of {_origin(span)}")
        if "text" in span:
            print(shown(span["text"]))
    _not_shown(found)


def token(found: Mapping[str, Any]) -> None:
    """A token: its row and document, and the text around it between guillemets."""
    print(f"token {found['token']}: id {found['id']}, place {found['place']} of row {found['row']}")
    print(f"domain {found['domain']}, epoch {found['epoch']}")
    if found["padding"]:
        print("padding behind the row's last document")
        return
    print(f"document {found['document']} (id {found['doc_id']})")
    print(f"token {found['place_in_document']} of {_origin(found['source'])}")
    if "text" in found:
        parts = (shown(found[key]) for key in ("before", "text", "after"))
        print("\n{} »{}« {}".format(*parts))
    _not_shown(found)


def document(found: Mapping[str, Any]) -> None:
    """All copies of a document."""
    print(f"document id {found['doc_id']}")
    for copy in found["copies"]:
        print()
        for key, value in copy.items():
            print(f"{key.replace('_', ' ')}: {shown(str(value))}")


def _origin(found: Mapping[str, Any]) -> str:
    if "file" not in found:
        return "the document"
    own = f", id {shown(str(found['id']))}" if found.get("id") is not None else ""
    return f"{shown(found['file'])}, record {found['record']}{own}"


def _not_shown(found: Mapping[str, Any]) -> None:
    for what in found["not_shown"]:
        print(f"\nnot shown: {what}")


_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # embeddings, overrides and isolates


def shown(text: str) -> str:
    """Text of a corpus without what would steer a terminal."""
    return "".join(
        f"\\u{ord(c):04x}"
        if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or ord(c) in _BIDI
        else c
        for c in text
    )
