"""The keys of a recipe and their types."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr

from mixc.errors import Place
from mixc.recipe_types import (
    DomainName,
    EngineName,
    FieldName,
    Formats,
    LocalPath,
    MethodName,
    Paths,
    PositiveQuantity,
    PresetName,
    Quantity,
    ReaderName,
    RecipeName,
    Selected,
    Text,
    Weights,
    wrong,
)
from mixc.registry import METHODS

# Keys that came after the first release: one that says nothing new changes no recipe's hash.
LATER_KEYS = (
    "stages",
    "row_len",
    "packing",
    "document_weights",
    "provenance",
    "seeds",
    "check",
    "precision",
    "compile",
    "match_repetition",
    "vocab",
)


class Strict(BaseModel):
    """The base of every section: frozen, without unknown keys, without conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Train(Strict):
    """Train a tokenizer on a sample of the domains."""

    vocab_size: int = Field(ge=257, le=2**24, description="how many tokens it shall have")
    sample_bytes: PositiveQuantity = Field(
        default=50_000_000, description="bytes of text to train on"
    )


class Tokenizer(Strict):
    """Where the tokenizer comes from: exactly one of `train`, `path` and `hub`."""

    train: Train | None = Field(default=None, description="train one on these domains")
    path: LocalPath | None = Field(default=None, description="a tokenizer.json")
    hub: Text | None = Field(default=None, description="a repository of the Hugging Face hub")
    eot: Text | None = Field(default=None, description="the end-of-text token, with path or hub")
    special_tokens: Literal["text", "encode", "error"] = Field(
        default="text",
        description="special tokens spelled in a document: ordinary text, their ids, or an error",
    )
    engine: EngineName = Field(
        default="auto", description="what encodes; auto: the fastest that proves exact"
    )
    verify: float = Field(
        default=0.002,
        ge=0,
        le=1,
        description="share of the text that is compared with the reference engine",
    )


class Domain(Strict):
    """One corpus, and how to read it."""

    paths: Paths = Field(description="files or globs, relative to the recipe, or URLs")
    format: ReaderName | None = Field(
        default=None, description="the reader; by default by file name"
    )
    text: FieldName = Field(
        default="text", description="the field that holds a record's text; dots lead inwards"
    )
    id: FieldName | None = Field(
        default=None, description="a field whose value is kept as the document's own id"
    )
    only: dict[FieldName, Selected] = Field(
        default={}, description="take records alone whose fields have one of these values"
    )
    split_by: FieldName | None = Field(
        default=None, description="make one domain, <name>.<value>, per value of this field"
    )
    on_bad_record: Literal["error", "skip"] = Field(
        default="error", description="stop at a bad record, or count it and put it in quarantine"
    )
    invalid_unicode: Literal["error", "replace", "skip"] | None = Field(
        default=None,
        description="invalid UTF-8 and lone surrogates; replace: by U+FFFD; default on_bad_record",
    )
    allow_empty_files: bool = Field(
        default=False, description="let a file without a single document pass"
    )
    max_document_bytes: PositiveQuantity = Field(
        default=64_000_000, lt=2**32, description="a longer document is a bad record"
    )
    max_file_bytes: PositiveQuantity = Field(
        default=2**50, description="cap on what a file may hold once decompressed"
    )
    max_expansion: int = Field(
        default=1000, ge=1, description="cap on decompressed bytes for each byte of a file"
    )


class Holdout(Strict):
    """Documents kept out of every mixture, chosen for each domain by content hash."""

    fraction: float = Field(default=0.01, ge=0, le=0.5, description="share of a domain's documents")
    max_tokens: Quantity = Field(default=200_000, description="at most so many tokens of a domain")
    also: LocalPath | None = Field(
        default=None, description="an earlier store whose holdout to keep out"
    )


class Proxy(Strict):
    """The small model that a method may train."""

    preset: PresetName = Field(default="nano", description="the size of the model")
    steps: int = Field(default=200, ge=1, description="training steps")
    batch_tokens: PositiveQuantity = Field(default=8192, description="tokens of a step")
    seq_len: int = Field(default=256, ge=2, le=65536, description="tokens in a row")
    learning_rate: float | None = Field(
        default=None, gt=0, description="at width 96; falls as 1 / width"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to train")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="of matrix products; auto: bf16 on CUDA devices that have it, else fp32",
    )
    compile: Literal["auto"] | bool = Field(
        default="auto", description="compile the model; auto: on CUDA devices, for long runs"
    )
    vocab: Literal["auto", "full"] | Annotated[int, Field(ge=64)] = Field(
        default="auto",
        description="ids it tells apart; auto: fewer where its output would dominate",
    )


class Check(Strict):
    """The check that ends a solve: small models on the answer and on the simple mixes."""

    seeds: int = Field(default=3, ge=1, le=100, description="models for each mix")
    on_tie: Literal["keep", "simple"] = Field(
        default="keep", description="where a simple mix is as good: keep the answer, or take that"
    )


class Solve(Strict):
    """How the weights are found. `recipe_model` adds a key for the options of each method."""

    method: MethodName = Field(description="the method; its options stand under its own name")
    proxy: Proxy = Field(default=Proxy(), description="the small model that is trained")
    seeds: int = Field(
        default=1,
        ge=1,
        le=100,
        description="solve so many times, under seed, seed + 1, ..., and take the mean",
    )
    match_repetition: Literal["auto"] | bool = Field(
        default="auto", description="it sees so few rows that it repeats them as the mixture does"
    )

    check: Literal[False] | Check = Field(
        default=Check(),
        description="hold the answer of a method that trains against natural, uniform and unimax",
    )

    @property
    def options(self) -> Strict:
        """The options of the chosen method."""
        chosen = getattr(self, self.method)
        assert isinstance(chosen, Strict)
        return chosen


class Order(Strict):
    """How rows follow each other."""

    shuffle_block: int = Field(
        default=1024, ge=1, le=2**20, description="rows shuffled together; 1: none"
    )


class Stage(Strict):
    """A part of the mixture with weights of its own."""

    until: float = Field(gt=0, le=1, description="the part of the rows at which it ends; last: 1")
    weights: Weights = Field(description="as the mixture's weights")
    ramp: bool = Field(
        default=False, description="go linearly from the weights of the stage before to these"
    )


def _check_stages(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    ends = [stage.until for stage in stages]
    if ends and (ends[-1] != 1 or any(a >= b for a, b in pairwise(ends))):
        raise wrong("MX007", "the stages' 'until' must rise, and the last be 1.0")
    return stages


Stages = Annotated[tuple[Stage, ...], Field(strict=False), AfterValidator(_check_stages)]


class Mixture(Strict):
    """What to build. Exactly one of `tokens` and `rows`."""

    weights: Weights = Field(
        default="solved",
        description="solved, natural, uniform, unimax, a .json file, or domain: share",
    )
    tokens: PositiveQuantity | None = Field(
        default=None, description="tokens of the mixture; or rows"
    )
    rows: PositiveQuantity | None = Field(
        default=None, description="rows of the mixture; or tokens"
    )
    seq_len: int = Field(ge=1, le=2**20, description="tokens in a row")
    row_len: Literal["seq_len", "seq_len+1"] = Field(
        default="seq_len",
        description="seq_len+1: one token more in each row, the true next one, as a target alone",
    )
    max_epochs: float | None = Field(default=None, gt=0, description="passes over a domain at most")
    packing: Literal["concat", "best_fit"] = Field(
        default="concat",
        description="concat: documents end to end; best_fit: whole documents, and padding",
    )
    document_weights: LocalPath | None = Field(
        default=None,
        description="how often documents appear in an epoch: parquet of doc_id, weight; or solved",
    )
    order: Order = Field(default=Order(), description="how rows follow each other")
    stages: Stages = Field(
        default=(),
        description="weights that change along the rows; weights is where a first ramp begins",
    )
    provenance: bool = Field(
        default=True,
        description="write where each row comes from; false: it is derived from the store if asked",
    )
    formats: Formats = Field(description="the trainers' formats to write")

    def asked_weights(self) -> list[tuple[tuple[str | int, ...], str | dict[str, float]]]:
        """The weights that count, in order, and the keys that they stand under."""
        found: list[tuple[tuple[str | int, ...], str | dict[str, float]]] = [
            (("mixture", "stages", i, "weights"), stage.weights)
            for i, stage in enumerate(self.stages)
        ]
        if not self.stages or self.stages[0].ramp:
            found.insert(0, (("mixture", "weights"), self.weights))
        return found

    @property
    def row_count(self) -> int:
        """Rows of the mixture; tokens that fill no row are left off."""
        return self.rows or (self.tokens or 0) // self.row_tokens

    @property
    def row_tokens(self) -> int:
        """Tokens in a row."""
        return self.seq_len + (self.row_len == "seq_len+1")


def _drop_later(section: Strict, plain: dict[str, Any]) -> None:
    """Leave out of a section's plain data the later keys that say nothing new."""
    for key, field in type(section).model_fields.items():
        if key in LATER_KEYS and getattr(section, key) == field.default:
            del plain[key]


class Recipe(Strict):
    """A recipe, as `mixc.recipe.load` returns it."""

    name: RecipeName = Field(description="the name of the mixture")
    workdir: LocalPath | None = Field(
        default=None, description="for all outputs; default build/<name>"
    )
    tokenizer: Tokenizer = Field(description="exactly one of train, path and hub")
    domains: dict[DomainName, Domain] = Field(
        min_length=1,
        description="the corpora, by name",
        json_schema_extra={"additionalProperties": False},
    )
    holdout: Holdout = Field(default=Holdout(), description="documents kept for validation")
    solve: Solve | None = Field(default=None, description="how the weights are found")
    mixture: Mixture = Field(description="what to build")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="the seed of everything random")

    _file: Path = PrivateAttr(Path("recipe.yaml"))
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _overrides: tuple[str, ...] = PrivateAttr(())
    _places: Callable[[tuple[str | int, ...]], Place] | None = PrivateAttr(None)

    @property
    def file(self) -> Path:
        """The recipe's file, as the user named it."""
        return self._file

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `-s` overrides, as the user wrote them."""
        return self._overrides

    def overrides_of(self, *sections: str) -> list[str]:
        """The overrides that set a key of these sections, as manifests record them."""
        return [text for text in self._overrides if re.split(r"[.=]", text)[0].strip() in sections]

    @property
    def folder(self) -> Path:
        """The folder of the recipe's file: what its relative paths are relative to."""
        return self._folder

    def set_origin(
        self,
        file: Path,
        overrides: tuple[str, ...],
        places: Callable[[tuple[str | int, ...]], Place],
    ) -> None:
        """Note where the recipe came from, and where each of its values was written."""
        self._file, self._folder, self._overrides = file, file.absolute().parent, overrides
        self._places = places

    def place(self, *keys: str | int) -> Place:
        """Where the value under these keys was written, for errors that turn up later."""
        return Place(str(self._file)) if self._places is None else self._places(keys)

    def resolve(self, path: str) -> Path:
        """A path or glob of the recipe, made absolute by the folder of the recipe's file."""
        return self._folder / path

    @property
    def workdir_path(self) -> Path:
        """The folder of all outputs."""
        return self.resolve(self.workdir or f"build/{self.name}").resolve()

    @property
    def also_path(self) -> Path | None:
        """The earlier store whose holdout is kept out too, if the recipe names one."""
        return None if self.holdout.also is None else self.resolve(self.holdout.also)

    def canonical(self) -> dict[str, Any]:
        """All keys as plain data for hashing: defaults filled in, paths as written.

        Options of methods that are not chosen are left out, so that a new method in the registry
        changes no recipe's hash.
        """
        data: dict[str, Any] = self.model_dump(mode="json")
        # A key that says nothing new must change no recipe's hash.
        _drop_later(self.mixture, data["mixture"])
        data["workdir"] = self.workdir or f"build/{self.name}"
        if self.solve is not None:
            solve = data["solve"]
            _drop_later(self.solve, solve)
            _drop_later(self.solve.proxy, solve["proxy"])
            data["solve"] = {
                key: value
                for key, value in solve.items()
                if key not in METHODS or key == solve["method"]
            }
        return data
