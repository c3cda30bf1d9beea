"""The store that a mixture was built from, if it is at hand."""

from __future__ import annotations

from pathlib import Path

from mixc.build.mixture import Mixture
from mixc.errors import MixcError, Place
from mixc.store.store import Store, open_store


def store_of(mixture: Mixture, given: Path | None = None) -> Store | None:
    """The store of a mixture: the one given, or the one beside it if it is its own.

    Raises MX041 if none is where one was given, MX045 if it is another store.
    """
    try:
        store = open_store(given or mixture.root.parent / "store")
    except MixcError:
        if given is not None:
            raise
        return None
    if store.store_hash == mixture.manifest["store_hash"]:
        return store
    if given is not None:
        raise MixcError(
            "MX045",
            "the mixture was not built from this store",
            place=Place(str(given)),
        )
    return None
