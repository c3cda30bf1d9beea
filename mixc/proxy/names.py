"""What small models tell domains apart by: their documents, whatever they are called.

An answer then does not hang on names: random streams are named by documents, and where two domains
are otherwise equal the documents decide which of them comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from mixc.store.store import Store


@dataclass(frozen=True, order=True)
class Name:
    """A hash of a domain's documents in their order, and how many domains before it have it too."""

    documents: str
    copy: int

    def __str__(self) -> str:
        return f"{self.documents}/{self.copy}"


def names_of(store: Store) -> dict[str, Name]:
    """A name for each domain, by what it is called.

    Domains of the same documents are numbered, so that they do not share their random streams.
    """
    names, copies = {}, Counter[str]()
    for domain in store.domains:
        digest = xxhash.xxh3_128()
        for shard in store.documents(domain):
            digest.update(np.ascontiguousarray(shard.doc_id).data)
        found = digest.hexdigest()
        names[domain] = Name(found, copies[found])
        copies[found] += 1
    return names


def order_of(names: Mapping[str, Name]) -> NDArray[np.int64]:
    """The domains' numbers in the order of these names, int64[K]."""
    each = list(names.values())
    return np.array(sorted(range(len(each)), key=each.__getitem__), np.int64)
