"""How often documents appear: weights by document, and systematic resampling by them.

J. E. Baker, "Reducing bias and inefficiency in the selection algorithm" (1987): the weights' sums
along an order, shifted by one random part of a document, give a copy at each whole number that
they pass. A document of weight w has floor(w) or floor(w) + 1 copies, w in the mean, and the copies
of all documents are their sum of weights to less than one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from mixc.errors import MixcError, Place
from mixc.rng import Stream
from mixc.store import commit
from mixc.store.hashes import FileRecord

FILE = "document_weights.parquet"
MOST = 1024.0
ONE = 1 << 24  # weights count in whole parts of it, so that sums are exact
Index = NDArray[np.int64]


@dataclass(frozen=True)
class DocumentWeights:
    """Weights of documents by id: `ids` uint64[n], rising; `units` int64[n], of 1/ONE each."""

    ids: NDArray[np.uint64]
    units: Index

    def of(self, ids: NDArray[np.uint64]) -> tuple[Index, NDArray[np.bool_]]:
        """The units of documents, int64[m], ONE where none is given; and where one is, bool[m]."""
        if not len(self.ids):
            return np.full(len(ids), ONE), np.zeros(len(ids), bool)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        given = self.ids[place] == ids
        return np.where(given, self.units[place], ONE), given

    def digest(self) -> str:
        """A hash of what they say."""
        state = xxhash.xxh3_128(self.ids.astype("<u8").data)
        state.update(self.units.astype("<i8").data)
        return state.hexdigest()

    def write(self, folder: Path) -> FileRecord:
        """Stage them as a file that `read_weights` reads."""
        table = pa.table({"doc_id": self.ids, "weight": self.units / ONE})
        with commit.create(folder / FILE) as file:
            pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")
        return file.record(FILE)


def read_weights(path: Path) -> DocumentWeights:
    """Read a parquet file of columns `doc_id` (uint64) and `weight` (0 to 1024).

    Raises MX041 if there is none, MX026 if it cannot be read, MX061 if a weight is missing or out
    of range, or a document named twice.
    """
    place = Place(str(path))
    try:
        table = pq.read_table(path, columns=["doc_id", "weight"], page_checksum_verification=True)
        if table["doc_id"].type != pa.uint64():
            raise ValueError(f"doc_id is {table['doc_id'].type}, not uint64")
        weights = table["weight"].cast(pa.float64()).to_numpy()  # null is NaN
        ids = table["doc_id"].to_numpy()
    except FileNotFoundError:
        raise MixcError("MX041", "there is no such file of weights", place=place) from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        message = f"the weights of documents cannot be read: {error}"
        hint = "give a parquet file of two columns: doc_id (uint64) and weight (double)"
        raise MixcError("MX026", message, place=place, help=hint) from error
    order = np.argsort(ids, kind="stable")
    ids, weights = ids[order], weights[order]
    if table["doc_id"].null_count:
        raise MixcError("MX061", "a weight names no document", place=place)
    if len(bad := np.flatnonzero(~((weights >= 0) & (weights <= MOST)))):
        message = f"the weight of document {ids[bad[0]]} is {weights[bad[0]]}, not 0 to {MOST:.0f}"
        raise MixcError("MX061", message, place=place)
    if len(twice := np.flatnonzero(ids[1:] == ids[:-1])):
        message = f"document {ids[twice[0]]} has two weights"
        raise MixcError("MX061", message, place=place, help="name each document once")
    return DocumentWeights(ids.astype(np.uint64), np.rint(weights * ONE).astype(np.int64))


def draw(units: Index, *, seed: int, domain: str, epoch: int) -> Index:
    """The documents of an epoch in order, int64[m], each as often as it is drawn.

    A first copy stands where it would without weights, were it alone; the others anywhere.
    """
    words = Stream(seed, "documents", domain, epoch).words(len(units))
    order = np.argsort(words, kind="stable")
    shift = int(Stream(seed, "weights", domain, epoch).words(1)[0]) % ONE
    copies = np.diff((np.cumsum(units[order]) + shift) // ONE, prepend=0)
    once, again = order[copies > 0], np.repeat(order, np.maximum(copies - 1, 0))
    more = Stream(seed, "copies", domain, epoch).words(len(again))
    keys = np.concatenate([words[once], more])
    return np.concatenate([once, again])[np.argsort(keys, kind="stable")]
