"""Ranged requests to web servers, and to Google Cloud Storage by its JSON API."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mixc.errors import MixcError
from mixc.readers.objects import (
    Limits,
    Passing,
    RemoteFile,
    Reply,
    check_status,
    failed,
    needed,
    range_header,
    split,
    words,
)

_GOOGLE = "https://storage.googleapis.com"
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"


class Web:
    """Files on web servers."""

    encoding = "identity"
    extra = "http"

    def __init__(self, limits: Limits) -> None:
        self._requests = needed("requests", self.extra)
        self._timeout = (limits.connect_s, limits.read_s)
        self._session = self._new_session()

    def _new_session(self) -> Any:
        return self._requests.Session()

    def request(self, url: str, start: int, stop: int) -> Reply:
        """Ask for bytes [start, stop) of a file. Raises `Passing`, MX027."""
        headers = {"Accept-Encoding": self.encoding} | range_header(start, stop)
        answer = self._get(url, headers=headers, stream=True)
        names = {name.lower(): value for name, value in answer.headers.items()}
        faults = (OSError, needed("urllib3", self.extra).exceptions.HTTPError)
        return Reply(answer.status_code, names, answer.raw, faults)

    def _get(self, url: str, **options: Any) -> Any:
        errors = self._requests.exceptions
        try:
            return self._session.get(url, timeout=self._timeout, **options)
        except errors.SSLError as error:
            raise failed(url, "the server's certificate does not hold") from error
        except (errors.ConnectionError, errors.Timeout, errors.ChunkedEncodingError) as error:
            raise Passing(words(error)) from error
        except (errors.RequestException, ValueError) as error:
            raise failed(url, "the URL cannot be asked for") from error

    def tag(self, headers: Mapping[str, str], size: int) -> str:
        """The ETag, else size and time of the last change."""
        if etag := headers.get("etag"):
            return etag
        changed = headers.get("last-modified")
        return f"{size} bytes of {changed}" if changed else ""

    def page(self, bucket: str, prefix: str, after: str) -> tuple[list[RemoteFile], str]:
        """Raises MX027: web servers have no lists."""
        raise failed(f"{bucket}/{prefix}{after}", "web servers have no lists")

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()


class Google(Web):
    """Objects of Google Cloud Storage, by its JSON API."""

    encoding = "gzip"  # with any other, objects stored with this encoding lose their ranges
    extra = "gs"

    def _new_session(self) -> Any:
        host = os.environ.get("STORAGE_EMULATOR_HOST", "")
        self._base = (host if "://" in host else f"http://{host}") if host else _GOOGLE
        try:
            if host:
                raise ImportError("another server's objects are public")
            google = importlib.import_module("google.auth")
            transport = importlib.import_module("google.auth.transport.requests")
            credentials, _ = google.default(scopes=[_GOOGLE_SCOPE])
        except ImportError:
            return self._requests.Session()
        except google.exceptions.DefaultCredentialsError:
            return self._requests.Session()
        return transport.AuthorizedSession(credentials, max_refresh_attempts=2)

    def _get(self, url: str, **options: Any) -> Any:
        try:
            return super()._get(url, **options)
        except (MixcError, Passing):
            raise
        except Exception as error:
            # google-auth is optional, so its errors cannot be named.
            raise Passing("the credentials could not be renewed") from error

    def request(self, url: str, start: int, stop: int) -> Reply:
        """Ask for bytes [start, stop) of an object. Raises `Passing`, MX027."""
        bucket, key = split(url)
        return super().request(f"{self._at(bucket)}/{quote(key, safe='')}?alt=media", start, stop)

    def _at(self, bucket: str) -> str:
        return f"{self._base.rstrip('/')}/storage/v1/b/{quote(bucket, safe='')}/o"

    def tag(self, headers: Mapping[str, str], size: int) -> str:  # noqa: ARG002
        """The object's generation."""
        return headers.get("x-goog-generation", "")

    def page(self, bucket: str, prefix: str, after: str) -> tuple[list[RemoteFile], str]:
        """A page of a list. Raises `Passing`, MX027."""
        fields = "items(name,size,generation),nextPageToken"
        params = {"prefix": prefix, "fields": fields} | ({"pageToken": after} if after else {})
        answer = self._get(self._at(bucket), params=params)
        check_status(answer.status_code, f"gs://{bucket}/{prefix}")
        try:
            found = answer.json()
            files = [
                RemoteFile(f"gs://{bucket}/{item['name']}", int(item["size"]), item["generation"])
                for item in found.get("items", ())
            ]
        except (ValueError, KeyError, AttributeError) as error:
            raise Passing("the reply is no list of objects") from error
        return files, found.get("nextPageToken", "")
