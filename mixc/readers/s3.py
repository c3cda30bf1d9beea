"""Ranged requests to S3, and to stores that speak its language."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

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


class S3:
    """Objects of S3 and of stores that speak its language."""

    def __init__(self, limits: Limits) -> None:
        # One client a process: making one takes a while, and one does not survive a fork.
        self._client = _s3_client(os.getpid(), limits)
        self._errors = needed("botocore.exceptions", "s3")

    def request(self, url: str, start: int, stop: int) -> Reply:
        """Ask for bytes [start, stop) of an object. Raises `Passing`, MX027."""
        bucket, key = split(url)
        try:
            answer = self._call(
                "get_object", url, Bucket=bucket, Key=key, **range_header(start, stop)
            )
        except self._errors.ClientError as error:
            return Reply(_status(error), {}, None)
        about = answer["ResponseMetadata"]
        # botocore's wrapper has no read1; the stream in it does.
        stream = getattr(answer["Body"], "_raw_stream", answer["Body"])
        broken = needed("urllib3", "s3").exceptions.HTTPError
        faults = (OSError, broken, self._errors.BotoCoreError)
        return Reply(about["HTTPStatusCode"], about["HTTPHeaders"], stream, faults)

    def _call(self, name: str, url: str, **options: Any) -> Any:
        errors = self._errors
        try:
            return getattr(self._client, name)(**options)
        except errors.SSLError as error:
            raise failed(url, "the server's certificate does not hold") from error
        except (errors.ConnectionError, errors.HTTPClientError) as error:
            raise Passing(words(error)) from error
        except errors.BotoCoreError as error:
            reason = f"the request cannot be made ({type(error).__name__})"
            raise failed(url, reason) from error

    def tag(self, headers: Mapping[str, str], size: int) -> str:  # noqa: ARG002
        """The ETag."""
        return headers.get("etag", "").strip('"')

    def page(self, bucket: str, prefix: str, after: str) -> tuple[list[RemoteFile], str]:
        """A page of a list. Raises `Passing`, MX027."""
        url = f"s3://{bucket}/{prefix}"
        more = {"ContinuationToken": after} if after else {}
        try:
            found = self._call("list_objects_v2", url, Bucket=bucket, Prefix=prefix, **more)
        except self._errors.ClientError as error:
            check_status(_status(error), url)
            raise AssertionError from error
        files = [
            RemoteFile(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
            for item in found.get("Contents", ())
        ]
        return files, found.get("NextContinuationToken", "")

    def close(self) -> None:
        """The client lives as long as the process."""


def _status(error: Any) -> int:
    """The status of a ClientError; 500 where a success turned out to be none."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status if status >= 300 else 500


@cache
def _s3_client(process: int, limits: Limits) -> Any:  # noqa: ARG001 (a key of the cache)
    boto3, botocore = needed("boto3", "s3"), needed("botocore", "s3")
    session = boto3.Session()
    options: dict[str, Any] = {
        "retries": {"total_max_attempts": 1},
        "connect_timeout": limits.connect_s,
        "read_timeout": limits.read_s,
        "max_pool_connections": 32,
    }
    if session.get_credentials() is None:
        options["signature_version"] = botocore.UNSIGNED
    return session.client("s3", config=needed("botocore.config", "s3").Config(**options))
