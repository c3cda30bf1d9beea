"""Data sets of the Hugging Face hub, streamed by the `datasets` library.

An input is `hf://[ORG/]NAME[?KEY=VALUE[&KEY=VALUE...]]`, with the keys

- `config`: the configuration; by default the data set's own default,
- `split`: by default `train`,
- `revision`: a branch, a tag or a commit; by default `main`.

`resolve` asks the hub which commit the revision is, and names the shards as of that commit; a
shard is one of the pieces that `datasets` streams independently, most often a file. What a shard
needs to be read stands in its `locator`, in plain text: the same URL with the commit as its
revision, then `#INDEX-of-COUNT`.

Formats that hold plain tables are read and no others; `datasets` runs no code of a data set.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from mixc.errors import MixcError, Place, did_you_mean
from mixc.readers.columns import Columns
from mixc.readers.records import BadRecord, ReadOptions, Record, Source

_KEYS = ("config", "split", "revision")
_BUILDERS = ("parquet", "json", "csv", "arrow", "text")
_ROWS = 1024
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
# A Path makes one slash of two.
_URL = re.compile(rf"hf:/{{1,2}}((?:{_NAME}/)?{_NAME})(?:\?([^#]*))?(?:#(\d+)-of-(\d+))?", re.ASCII)
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_PLACE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_QUERY = re.compile(r"(\w+://)(?:[^/\s'\"@]*@)?([^\s'\"?]*)\?[^\s'\"]*")


@dataclass(frozen=True)
class HubShard:
    """One piece of a split. `size` is its bytes of text and fields, roughly; 0 if unknown.

    `name` is what outputs call it: it stays when the data set changes. `tag` stands for the
    content: it changes with every commit.
    """

    repo: str
    config: str
    split: str
    revision: str
    commit: str
    index: int
    count: int
    size: int = 0

    @property
    def name(self) -> str:
        """The shard's URL as the recipe wrote it, with its number."""
        return self._url(self.revision)

    @property
    def locator(self) -> str:
        """All that `read` needs, as the `path` of a Source."""
        return self._url(self.commit)

    @property
    def tag(self) -> str:
        """The commit and the shard's number."""
        return f"{self.commit}/{self.index}-of-{self.count}"

    def _url(self, revision: str) -> str:
        keys = {"config": self.config, "split": self.split, "revision": revision}
        query = urlencode({key: value for key, value in keys.items() if value}, quote_via=quote)
        return f"hf://{self.repo}?{query}#{self.index:05d}-of-{self.count:05d}"


def parse(text: str) -> HubShard:
    """An input's URL, or a shard's locator. Raises MX007.

    Of a URL without a shard, `count` and `commit` are empty.
    """
    match = _URL.fullmatch(text)
    if match is None or ".." in match[1] or "--" in match[1]:
        help = "write hf://ORG/NAME, or hf://ORG/NAME?config=...&split=...&revision=..."
        raise MixcError("MX007", "cannot use this URL of the hub", place=Place(text), help=help)
    try:
        pairs = parse_qsl(match[2] or "", keep_blank_values=True, strict_parsing=bool(match[2]))
    except ValueError:
        pairs = [(str(match[2]), "")]
    keys = dict(pairs)
    for key, value in pairs:
        if key not in _KEYS or not value or len(keys) < len(pairs):
            message = f"cannot use '{key}={value}' in this URL of the hub"
            remedy = did_you_mean(key, _KEYS) if key not in _KEYS else "give each key one value"
            raise MixcError("MX007", message, place=Place(text), help=remedy)
    config, split = keys.get("config", ""), keys.get("split", "train")
    revision = keys.get("revision", "")
    index, count = int(match[3] or 0), int(match[4] or 0)
    return HubShard(match[1], config, split, revision, revision if count else "", index, count)


def resolve(url: str) -> list[HubShard]:
    """The shards of a split, in order, as of the commit that the hub reports now.

    Raises MX007 (a URL that cannot be used), MX027 (no such data set, configuration or split, or
    the hub cannot be reached), MX037 (`datasets` is missing).
    """
    wanted = parse(url)
    _datasets()
    try:
        hub = importlib.import_module("huggingface_hub")
        info = hub.HfApi().dataset_info(wanted.repo, revision=wanted.revision or None)
        commit = str(info.sha)
        builder, stream = _open(wanted, commit)
        count = stream.num_shards
        split = (builder.info.splits or {}).get(wanted.split)
        size = 0 if split is None else int(split.num_bytes or 0) // max(count, 1)
    except MixcError:
        raise
    except Exception as error:  # whatever the library and what it calls may raise
        help = "check the URL; for a private data set, HF_TOKEN; and that the hub can be reached"
        message = f"cannot open the data set: {_first_line(error)}"
        raise MixcError("MX027", message, place=Place(url), help=help) from error
    return [
        HubShard(
            wanted.repo, wanted.config, wanted.split, wanted.revision, commit, index, count, size
        )
        for index in range(count)
    ]


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the text of each row of the shard that `source.path` locates.

    A position is the bytes of the wanted columns of the tables before its own. Raises MX026 if
    there is no such column of strings, MX027 once the hub cannot be read.
    """
    source.by_row = True
    row = position = 0
    for table in _tables(source):
        columns = Columns(table.schema, source, options)
        if position >= source.skip_to:
            for batch in table.to_batches():
                yield from columns.records(batch, row, position)
                row += batch.num_rows
        else:
            row += table.num_rows
        position += table.select(columns.top).nbytes
        source.consumed = position


def _tables(source: Source) -> Iterator[Any]:
    """The rows of a shard, as Arrow tables of at most `_ROWS`."""
    shard = parse(str(source.path))
    _datasets()
    try:
        stream = _open(shard, shard.commit)[1]
        if stream.num_shards != shard.count:
            raise source.damaged("MX029", f"it has {stream.num_shards} shards")
        piece = stream.shard(num_shards=shard.count, index=shard.index)
        yield from piece.with_format("arrow").iter(batch_size=_ROWS)
    except MixcError:
        raise
    except Exception as error:  # whatever the library and what it calls may raise
        raise source.damaged("MX027", _first_line(error)) from error


def _datasets() -> Any:
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        message = "reading data sets of the hub needs the package 'datasets'"
        raise MixcError("MX037", message, help="pip install 'mixc[hub]'") from error
    library.disable_progress_bars()
    library.utils.logging.set_verbosity_error()
    hub = importlib.import_module("huggingface_hub")
    hub.utils.logging.set_verbosity_error()
    _check_all_ranges()
    return library


@cache
def _check_all_ranges() -> None:
    """Once a process: the library makes new clients, after errors and forks, by this factory."""
    http = importlib.import_module("huggingface_hub.utils._http")

    def client() -> Any:
        made = http.default_client_factory()
        hooks = made.event_hooks
        made.event_hooks = hooks | {"response": [*hooks["response"], _check_range]}
        return made

    http.set_client_factory(client)


def _check_range(response: Any) -> None:
    """Have a reply that holds other bytes than those asked for tried again.

    The library takes any body for the range; lines would go missing without a word.
    """
    asked = _RANGE.fullmatch(response.request.headers.get("range", ""))
    if asked is None or response.status_code not in (200, 206):
        return
    headers = response.headers
    start, last, length = int(asked[1]), int(asked[2]), headers.get("content-length")
    whole = start == 0 and length == str(last + 1)
    place = _PLACE.fullmatch(headers.get("content-range", ""))
    if response.status_code == 206 and place is not None:
        stop = min(last + 1, int(place[3]))
        whole = int(place[1]) == start and length in (None, str(stop - start))
        whole = whole and int(place[2]) == stop - 1
    if not whole:
        library = sys.modules[type(response).__module__.partition(".")[0]]
        raise library.ReadTimeout("the reply holds other bytes", request=response.request)


def _open(shard: HubShard, commit: str) -> tuple[Any, Any]:
    """The library's builder and stream of a split at a commit."""
    builder = _datasets().load_dataset_builder(
        shard.repo, name=shard.config or None, revision=commit
    )
    kind = builder.info.builder_name
    if kind not in _BUILDERS:
        help = "data sets of these formats can be read: " + ", ".join(_BUILDERS)
        place = Place(f"hf://{shard.repo}")
        raise MixcError("MX027", f"cannot read data of the format '{kind}'", place=place, help=help)
    if builder.hash is None and commit not in str(builder.base_path):
        raise OSError("the hub cannot be reached")  # the library fell back on its cache
    # A data set's card may set these. Rows must not go missing, nor whole row groups be held.
    for option, value in (("on_bad_files", "error"), ("batch_size", _ROWS)):
        if hasattr(builder.config, option):
            setattr(builder.config, option, value)
    return builder, builder.as_streaming_dataset(split=shard.split)


def _first_line(error: Exception) -> str:
    """What a library says, without the queries of URLs: they may hold a signature."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _QUERY.sub(r"\1\2", text)[:300]
