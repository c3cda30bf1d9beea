"""What tests of remote files share: bytes, little patience, and how to read a file."""

import hashlib

import pytest
from fault_proxy import FAULTS

from mixc.errors import MixcError
from mixc.readers.remote import Limits, find_remote, open_remote

QUICK = Limits(connect_s=1, read_s=0.3, try_s=2, waits=(0.001,) * 5, piece=1 << 16, least=256)
LOUD = [fault for fault in FAULTS if fault not in ("stall", "no answer")]
DATA = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(6000))  # 192 kB


def found(server, name="/a.bin", limits=QUICK):
    """A file of a web server."""
    (file,) = find_remote(server.url + name, limits)
    return file


def read_all(file, limits=QUICK, block=10_000):
    """Its bytes, read block by block."""
    with open_remote(file, limits) as raw:
        return b"".join(iter(lambda: raw.read(block), b""))


def error_of(call, *args):
    """The error that a call ends with."""
    with pytest.raises(MixcError) as caught:
        call(*args)
    return caught.value
