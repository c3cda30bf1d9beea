"""The compiled mixture as it stands on disk: its manifest, files and ledger."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.build import provenance
from mixc.build.plan import ALGORITHM
from mixc.errors import MixcError, Place
from mixc.registry import WRITERS
from mixc.rows.packing import Layout
from mixc.rows.stream import DomainStream
from mixc.rows.weights import FILE as WEIGHTS_FILE
from mixc.rows.weights import DocumentWeights, read_weights
from mixc.store import store
from mixc.store.hashes import FileRecord, check_file, check_names, unseal
from mixc.store.store import Store
from mixc.writers.sequences import StreamSpec

MANIFEST = "mixture.json"
SCHEMA = "mixc.mixture/1"


@dataclass(frozen=True)
class Mixture:
    """An opened mixture."""

    root: Path
    manifest: dict[str, Any]

    def files(self) -> list[FileRecord]:
        """Every file of the mixture but the manifest."""
        held = self.manifest["holdout"]
        groups = [self.manifest["formats"], held["formats"]]
        groups += [domain["formats"] for domain in held["domains"].values()]
        listed = [record for group in groups for one in group.values() for record in one["files"]]
        if "document_weights" in self.manifest:
            listed.append(self.manifest["document_weights"]["file"])
        return [
            *(FileRecord(**record) for record in listed),
            *provenance.listed(self.manifest["provenance"]),
        ]

    def whole(self) -> bool:
        """Whether every file is there in its size."""
        return not any(check_file(self.root, record, rehash=False) for record in self.files())

    @property
    def row_len(self) -> int:
        """Tokens in a row; earlier manifests say seq_len alone."""
        return int(self.manifest.get("row_len", self.manifest["seq_len"]))

    @property
    def layout(self) -> Layout:
        """How its rows were laid out; earlier manifests say nothing, and mean concat."""
        said = self.manifest
        packing, weighted = said.get("packing", "concat"), "document_weights" in said
        return Layout(self.row_len, said["seed"], packing, weighted)

    def streams(self, source: Store) -> dict[str, DomainStream]:
        """The streams of its domains, over the store that it was built from."""
        names = self.manifest["domains"]
        return dict(zip(names, self.layout.open(source, names, self.document_weights), strict=True))

    @property
    def document_weights(self) -> DocumentWeights | None:
        """The weights of documents that it was built with, if it was."""
        return read_weights(self.root / WEIGHTS_FILE) if self.layout.weighted else None

    @property
    def spec(self) -> StreamSpec:
        """What the formats hold."""
        said = self.manifest
        return StreamSpec(
            np.dtype(said["dtype"]),
            said["tokenizer"]["vocab_size"],
            said["eot_id"],
            self.row_len,
            said["rows"],
            tuple(said["domains"]),
            extra=self.row_len - said["seq_len"],
        )

    def read(self, first: int, count: int, *, of: str | None = None) -> NDArray[Any]:
        """Rows `first` to `first + count`, [count, row_len], of one of its formats."""
        formats = self.manifest["formats"]
        name = of or next(iter(formats))
        files = [self.root / file["path"] for file in formats[name]["files"]]
        rows: NDArray[Any] = WRITERS[name].load().read(files, self.spec, first, count)
        return rows


def libraries() -> dict[str, str]:
    """Versions of what decides on bytes of files: formats are reused from no other."""
    found = {}
    for name in ("pyarrow", "zstandard", "array_record"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def kind_of(path: Path) -> str:
    """`store` or `mixture`, by the manifest in the folder. Raises MX070 if there is neither."""
    for kind, name in (("store", store.MANIFEST), ("mixture", MANIFEST)):
        if (path / name).is_file():
            return kind
    raise MixcError(
        "MX070",
        "neither a store nor a mixture",
        place=Place(str(path)),
        help=f"name a folder that holds {store.MANIFEST} or {MANIFEST}",
    )


def open_mixture(root: Path) -> Mixture:
    """Open a mixture. Raises MX041 if there is none, MX040 if it is damaged."""
    try:
        mixture = Mixture(root, unseal(root / MANIFEST, SCHEMA))
    except MixcError as error:
        if error.code == "MX041":
            error.message, error.help = "there is no mixture here", "run `mixc build-mixture` first"
        raise
    try:
        check_names(root / MANIFEST, mixture.files())
    except (KeyError, TypeError, AttributeError) as error:
        place = Place(str(root / MANIFEST))
        raise MixcError("MX040", f"the manifest lacks {error}", place=place) from error
    return mixture


def check_algorithm(mixture: Mixture) -> None:
    """Raise MX044 if rows were laid out by another version: they cannot be derived again."""
    algorithm = mixture.manifest.get("algorithm", 1)
    if algorithm != ALGORITHM:
        raise MixcError(
            "MX044",
            f"the rows were laid out by algorithm {algorithm}, this mixc has {ALGORITHM}",
            place=Place(str(mixture.root / MANIFEST)),
            help="use the version that built it, mixc "
            f"{mixture.manifest.get('mixc_version', 'unknown')}, or build it again with this one",
        )


def make_ledger(
    domains: Mapping[str, tuple[int, int]],
    taken: Mapping[str, Mapping[int, int]],
    row_tokens: Mapping[str, int] | None = None,
    drawn: Mapping[str, Mapping[int, int]] | None = None,
) -> dict[str, Any]:
    """Where every token went, by domain and epoch.

    `domains` gives (tokens read, tokens held out); `taken[domain][epoch]` the tokens that stand
    in rows. In each epoch that was begun: read = in_rows + held_out + left, and what is left
    was cut by no row or stands in rows of the deck that the mixture did not need. Rows that are
    padded have `row_tokens` in all: padding + what stands in them. Where documents have weights,
    `drawn[domain][epoch]` counts the tokens of each as often as it is drawn, and
    drawn = in_rows + left.
    """
    ledger = {}
    for name, (read, held) in domains.items():
        by_epoch, epochs = taken.get(name, {}), []
        for number in range(max(by_epoch, default=-1) + 1):
            size = read - held if drawn is None else drawn[name].get(number, 0)
            in_rows = by_epoch.get(number, 0)
            epochs.append({"in_rows": in_rows, "left": size - in_rows})
            if drawn is not None:
                epochs[-1]["drawn"] = size
        ledger[name] = {"read": read, "held_out": held, "epochs": epochs}
        if row_tokens is not None:
            ledger[name]["padding"] = row_tokens[name] - sum(by_epoch.values())
    return ledger


def check_ledger(ledger: Mapping[str, Any], row_tokens: Mapping[str, int]) -> list[str]:
    """What does not add up, in words; nothing if all does.

    `row_tokens` is what each domain's rows hold: rows * row_len.
    """
    wrong = []
    for name, entry in ledger.items():
        for number, epoch in enumerate(entry["epochs"]):
            if epoch["left"] < 0 or epoch["in_rows"] < 0:
                wrong.append(f"domain '{name}', epoch {number}: more tokens used than there are")
            size = epoch.get("drawn", entry["read"] - entry["held_out"])
            if size != epoch["in_rows"] + epoch["left"]:
                wrong.append(f"domain '{name}', epoch {number}: the tokens do not add up")
        in_rows = sum(epoch["in_rows"] for epoch in entry["epochs"]) + entry.get("padding", 0)
        if in_rows != row_tokens[name] or entry.get("padding", 0) < 0:
            wrong.append(f"domain '{name}': {row_tokens[name]} tokens in rows, {in_rows} traced")
    return wrong
