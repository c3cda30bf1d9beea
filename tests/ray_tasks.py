"""Tasks for `engine/test_ray.py`, in a file that the workers of a cluster can import."""

import os
import signal
from pathlib import Path

from mixc.errors import MixcError, Place


def context(offset):
    return offset


def no_context(offset):
    raise MixcError("MX040", "the shard is damaged", place=Place("shard"), help="make it anew")


def add(offset, task, report):
    report(1.0)
    if task == "wrong":
        raise MixcError("MX020", "not JSON", place=Place("file", 3), help="mend it")
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(task, str) and task.startswith("/"):  # dies where no file stands yet
        if not Path(task).exists():
            Path(task).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return offset
    return offset + task


def count_calls(offset, task, report):
    """How often this was called with the file `task`."""
    with Path(task).open("ab") as file:
        file.write(b".")
    return Path(task).stat().st_size
