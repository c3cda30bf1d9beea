"""A web server on loopback, and a proxy before it that fails in every way it can."""

import pytest
from fault_proxy import FaultProxy, Files, serving
from readers.remote_files import DATA


@pytest.fixture
def web():
    with serving(Files({"/a.bin": DATA, "/empty": b""})) as server:
        yield server


@pytest.fixture
def proxy(web):
    with serving(FaultProxy(web.url)) as server:
        yield server
