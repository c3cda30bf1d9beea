"""The keys of a recipe, their types, and the JSON Schema made from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, LiteralString

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from mixc.errors import Place, did_you_mean
from mixc.registry import METHODS, READERS, WRITERS

PRESETS = ("nano", "micro", "mini", "small", "base", "large")
ENGINES = ("auto", "fastokens", "gigatoken", "tokenizers")
REMOTE = ("s3", "gs", "https", "http", "hf")
WEIGHT_WORDS = ("solved", "natural", "uniform", "unimax")
RECIPE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LATER_KEYS = ("stages", "row_len", "packing", "document_weights", "provenance")
RESERVED_NAMES = ("manifest.json", "tokenizer.json", "holdout.arrow")
DOMAIN_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"

UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
QUANTITY = re.compile(r"([0-9][0-9_]{0,29})(?:\.([0-9]{1,15}))?([kKMBGT])")
QUANTITY_HELP = "write a whole number, or one with k, M, B or T: 200_000, 20M, 1.5B"
MAX_QUANTITY = 2**63 - 1


def wrong(code: LiteralString, message: str, hint: str | None = None) -> PydanticCustomError:
    """An error of a validator; its type is the error code, its help stands in the context."""
    return PydanticCustomError(code, "{message}", {"message": message, "help": hint})


def parse_quantity(value: object) -> object:
    """The whole number that `20M` or `1.5B` stands for. Other types are left to pydantic."""
    if not isinstance(value, str | float):
        return value
    match = QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise wrong("MX007", f"expected a quantity, found {value!r:.60}", QUANTITY_HELP)
    whole, fraction, unit = match[1].replace("_", ""), match[2] or "", match[3]
    number, rest = divmod(int(whole + fraction) * UNITS[unit], 10 ** len(fraction))
    if rest:
        raise wrong("MX007", f"expected a whole number, found {value}", QUANTITY_HELP)
    return number


def _matches(pattern: str, hint: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise wrong("MX007", f"{value!r:.80} is not a valid name", hint)
        return value

    return AfterValidator(check)


def _not_reserved(value: str) -> str:
    if value in RESERVED_NAMES:
        raise wrong("MX007", f"{value!r} is the name of a file of the store", "rename the domain")
    return value


def _check_field(value: str) -> str:
    if any(ch in '"\\' or not ch.isprintable() for ch in value) or not all(value.split(".")):
        hint = "name a plain field, or a nested one with dots: content.body"
        raise wrong("MX007", f"{value!r:.80} is not the name of a field", hint)
    return value


def _known(names: Collection[str], noun: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise wrong("MX008", f"unknown {noun} {value!r:.80}", did_you_mean(value, list(names)))
        return value

    return AfterValidator(check)


def _enum(names: Collection[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(names)})


def _quantity_schema(minimum: int) -> WithJsonSchema:
    number = {"type": "integer", "minimum": minimum, "maximum": MAX_QUANTITY}
    text = {"type": "string", "pattern": f"^{QUANTITY.pattern}$"}
    return WithJsonSchema({"anyOf": [number, text]})


def _check_local(value: str) -> str:
    if "://" in value:
        hint = "copy or mount the data on this machine"
        raise wrong("MX007", f"only local paths are supported, found {value!r:.80}", hint)
    if "\0" in value:
        raise wrong("MX007", "a path cannot hold a zero byte")
    return value


def _check_input(value: str) -> str:
    scheme, sign, rest = value.partition("://")
    if not sign:
        return _check_local(value)
    if scheme not in REMOTE or not rest:
        hint = "local paths, or URLs of " + ", ".join(f"{name}://" for name in REMOTE)
        raise wrong("MX007", f"inputs cannot come from {value!r:.80}", hint)
    return value


def _check_unique(values: tuple[str, ...]) -> tuple[str, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise wrong("MX007", f"{value!r} is named twice", "name each format once")
    return values


_SHARES = TypeAdapter(dict[str, Annotated[float, Field(ge=0)]], config=ConfigDict(strict=True))


def _check_weights(value: object) -> object:
    if isinstance(value, dict):
        return _SHARES.validate_python(value)
    if not isinstance(value, str):
        raise wrong(
            "MX007",
            "expected a word, a .json file or a mapping of domains to numbers",
            "words: " + ", ".join(WEIGHT_WORDS),
        )
    if value not in WEIGHT_WORDS and not value.endswith(".json"):
        raise wrong("MX008", f"unknown weights {value!r:.80}", did_you_mean(value, WEIGHT_WORDS))
    return _check_local(value)


Text = Annotated[str, Field(min_length=1)]
LocalPath = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(_check_local),
    WithJsonSchema({"type": "string", "minLength": 1, "not": {"pattern": "://"}}),
]
Quantity = Annotated[
    int, BeforeValidator(parse_quantity), Field(ge=0, le=MAX_QUANTITY), _quantity_schema(0)
]
PositiveQuantity = Annotated[
    int, BeforeValidator(parse_quantity), Field(gt=0, le=MAX_QUANTITY), _quantity_schema(1)
]
RecipeName = Annotated[
    str,
    _matches(RECIPE_NAME, "begin with a letter or digit; then letters, digits, . _ - (64 at most)"),
    WithJsonSchema({"type": "string", "pattern": f"^{RECIPE_NAME}$"}),
]
DomainName = Annotated[
    str,
    _matches(
        DOMAIN_NAME, "begin with a-z or a digit; then a-z, digits, . _ - (64 characters at most)"
    ),
    AfterValidator(_not_reserved),
    WithJsonSchema({"type": "string", "pattern": f"^{DOMAIN_NAME}$"}),
]
FieldName = Annotated[Text, AfterValidator(_check_field)]
Selected = Annotated[tuple[str | bool | int, ...], Field(strict=False, min_length=1)]
EngineName = Annotated[str, _known(ENGINES, "engine"), _enum(ENGINES)]
ReaderName = Annotated[str, _known(READERS, "reader"), _enum(READERS)]
MethodName = Annotated[str, _known(METHODS, "method"), _enum(METHODS)]
WriterName = Annotated[str, _known(WRITERS, "format"), _enum(WRITERS)]
PresetName = Annotated[str, _known(PRESETS, "preset"), _enum(PRESETS)]
# YAML has lists; frozen models hold tuples.
InputPath = Annotated[str, Field(min_length=1), AfterValidator(_check_input)]
Paths = Annotated[tuple[InputPath, ...], Field(strict=False, min_length=1)]
Formats = Annotated[
    tuple[WriterName, ...],
    Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_check_unique),
]
Weights = Annotated[
    str | dict[str, float],
    PlainValidator(_check_weights),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(WEIGHT_WORDS)},
                {"type": "string", "pattern": r"\.json$"},
                {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
            ]
        }
    ),
]


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
    learning_rate: float | None = Field(default=None, gt=0, description="by default the preset's")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to train")


class Solve(Strict):
    """How the weights are found. `recipe_model` adds a key for the options of each method."""

    method: MethodName = Field(description="the method; its options stand under its own name")
    proxy: Proxy = Field(default=Proxy(), description="the small model that is trained")

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
        description="parquet of doc_id and weight: how often documents appear in an epoch",
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
        for key in LATER_KEYS:
            if getattr(self.mixture, key) == Mixture.model_fields[key].default:
                del data["mixture"][key]
        data["workdir"] = self.workdir or f"build/{self.name}"
        if isinstance(solve := data["solve"], dict):
            data["solve"] = {
                key: value
                for key, value in solve.items()
                if key not in METHODS or key == solve["method"]
            }
        return data
