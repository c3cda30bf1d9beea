"""Object stores and web servers: what they hold, and one ranged request.

S3 is asked through boto3, the web and Google's JSON API through requests, all with the libraries'
own retries off. pyarrow.fs and fsspec would open all three alike, but show no headers: here
version, range and length are checked in the reply that brings the bytes, and a retry goes on in
the middle.

Credentials and endpoints come from the usual places: the AWS environment and configuration
(AWS_ENDPOINT_URL, AWS_PROFILE, ...), Google's application default credentials
(STORAGE_EMULATOR_HOST names another server), ~/.netrc and HTTPS_PROXY. Without credentials,
requests are anonymous. Nothing is opened before the first request.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mixc.errors import MixcError, Place

_SCHEME = re.compile(r"(s3|gs|https?)://", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """Patience and memory. Times are seconds, sizes bytes.

    `waits` lie between the tries of one request, so there is one try more than waits. A try that
    brought `progress` bytes starts the count anew. A reader holds `piece * (1 + ahead)` bytes.
    """

    connect_s: float = 10.0
    read_s: float = 30.0
    try_s: float = 120.0
    waits: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    progress: int = 1 << 18
    piece: int = 8 << 20
    ahead: int = 2
    least: int = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """An object of a store. `tag` stands for its content: another content has another tag."""

    url: str
    size: int
    tag: str


class Passing(Exception):  # noqa: N818 (a fault of the moment, not an error yet)
    """What may pass if it is tried again. Its text is for people."""


@dataclass
class Reply:
    """What a server said. Names of headers are lower case; `body` is a stream, or None."""

    status: int
    headers: Mapping[str, str]
    body: Any
    faults: tuple[type[Exception], ...] = (OSError,)

    def read(self, most: int) -> bytes:
        """Some bytes of the body, without waiting for all of them. Raises `Passing`."""
        try:
            # read1 hands on what has arrived; read would wait for a trickle to fill the block.
            return bytes(getattr(self.body, "read1", self.body.read)(most))
        except self.faults as error:
            raise Passing(words(error)) from error

    def close(self) -> None:
        """Hang up, or give the connection back where the body was read to its end."""
        if self.body is not None:
            self.body.close()


class Objects(Protocol):
    """One kind of store."""

    def request(self, url: str, start: int, stop: int) -> Reply:
        """Ask for bytes [start, stop) of an object, for all of it if there are none.

        Raises `Passing`; MX027 where no request can be made.
        """

    def tag(self, headers: Mapping[str, str], size: int) -> str:
        """What a reply says about the version of the object; empty if nothing."""

    def page(self, bucket: str, prefix: str, after: str) -> tuple[list[RemoteFile], str]:
        """A page of the objects under a prefix, and what to ask for the next one ('': none)."""

    def close(self) -> None:
        """Let go of the connections."""


def scheme_of(url: str) -> str | None:
    """The scheme of a remote URL in lower case, or None for everything else."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else None


def split(url: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` or `gs://` URL; the key is taken as it is written."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key


def shown(url: str) -> str:
    """A URL as messages and outputs may show it: without what could be a credential."""
    scheme, mark, rest = url.partition("://")
    if scheme_of(url) not in ("s3", "gs"):
        rest = re.split("[?#]", rest)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def words(error: Exception) -> str:
    """A library's error in words of ours. Theirs may show headers and signed URLs."""
    return "timed out" if "timeout" in repr(error).lower() else "the connection broke"


def failed(url: str, reason: str, *, at: int | None = None, help: str | None = None) -> MixcError:
    """MX027 for a URL; `at` is the byte that was wanted."""
    place = Place(shown(url), detail="" if at is None else f"at byte {at}")
    help = help or "check the URL, the network and the credentials, then run again"
    return MixcError("MX027", f"cannot read the file: {reason}", place=place, help=help)


def range_header(start: int, stop: int) -> dict[str, str]:
    """The header that asks for bytes [start, stop); none if there are none."""
    return {"Range": f"bytes={start}-{stop - 1}"} if stop > start else {}


def needed(module: str, extra: str) -> Any:
    """Import a package that only some recipes need. Raises MX037."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        message = f"reading such inputs needs the package '{package}'"
        raise MixcError("MX037", message, help=f"pip install 'mixc[{extra}]'") from error


def check_status(status: int, url: str, at: int | None = None) -> None:
    """Raise `Passing` or MX027 unless a server gave what it was asked for."""
    if 200 <= status < 300:
        return
    if status in (408, 425, 429) or status >= 500:
        raise Passing(f"status {status}")
    reasons = {401: "access is denied", 403: "access is denied"}
    reasons |= {404: "it is not there", 410: "it is not there"}
    raise failed(url, f"{reasons.get(status, 'the server refuses')} (status {status})", at=at)
