"""Servers on loopback: one of files with ranges, and a proxy that lets requests go wrong."""

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CLOSE_HARD = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST

# What the proxy can do to a request, other than to pass it on ("ok").
FAULTS = (
    "500",  # a status, with a page of its own
    "503",
    "429",
    "reset",  # no answer, the connection is reset
    "hang up",  # no answer, the connection is closed
    "cut",  # half of the body, then the connection is closed
    "cut hard",  # half of the body, then the connection is reset
    "short",  # half of the body under a Content-Length of half the body
    "empty",  # no body, under a Content-Length of 0
    "no range",  # the whole file where a range was asked for
    "stall",  # half of the body, then nothing
    "no answer",  # nothing
)


class Server(ThreadingHTTPServer):
    """A server that keeps count of its requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.requests: list[tuple[str, str | None]] = []  # (path, Range)
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """Clients that hang up are what this is about."""


class Files(Server):
    """Files by path. `respond` may answer instead: (status, headers, body), or None."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(_FileHandler)
        self.files, self.ranges = files, True
        self.headers: Callable[[bytes], dict[str, str]] = lambda body: {"ETag": f'"{hash(body)}"'}
        self.respond = lambda path, headers: None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        self.answer()

    do_HEAD = do_GET  # noqa: N815

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _FileHandler(_Handler):
    def answer(self) -> None:
        special = self.server.respond(self.path, self.headers)
        if special is not None:
            self.send(*special)
            return
        body = self.server.files.get(self.path.partition("?")[0])
        if body is None:
            self.send(404, {}, b"no such file")
            return
        asked = self.headers.get("Range") if self.server.ranges else None
        self.send(*part(body, self.server.headers(body), asked))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.headers["body"] = body.decode()
        self.do_GET()


def part(body: bytes, headers: dict[str, str], asked: str | None) -> tuple[int, dict, bytes]:
    """What a server answers to a Range header: status, headers, body."""
    if asked is None:
        return 200, headers, body
    first, last = asked.removeprefix("bytes=").split("-")
    start = int(first) if first else max(0, len(body) - int(last))
    stop = min(int(last) + 1, len(body)) if first and last else len(body)
    if start >= len(body):
        return 416, {"Content-Range": f"bytes */{len(body)}"}, b""
    place = f"bytes {start}-{stop - 1}/{len(body)}"
    return 206, headers | {"Content-Range": place}, body[start:stop]


class FaultProxy(Server):
    """Passes requests on to a server; `plan` says what goes wrong with each, then nothing."""

    def __init__(self, upstream: str, plan: Iterable[str] = ()) -> None:
        super().__init__(_FaultHandler)
        self.upstream = upstream.rpartition("/")[2]
        self.plan = iter(plan)
        self.done: list[str] = []
        self.only_ranges = False  # spare requests without a Range header
        self._lock = threading.Lock()

    def next_fault(self, *, ranged: bool) -> str:
        if self.only_ranges and not ranged:
            return "ok"
        with self._lock:
            fault = next(self.plan, "ok")
            self.done.append(fault)
            return fault


class _FaultHandler(_Handler):
    def answer(self) -> None:
        fault = self.server.next_fault(ranged="Range" in self.headers)
        if fault.isdigit():
            self.send(int(fault), {}, b"<Error><Code>SlowDown</Code></Error>")
        elif fault == "no answer":
            self.stall()
        elif fault in ("reset", "hang up"):
            self.drop(hard=fault == "reset")
        else:
            self.spoil(fault, *self.ask(without_range=fault == "no range"))

    def ask(self, *, without_range: bool) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=10)
        skipped = {"range"} if without_range else set()
        headers = {k: v for k, v in self.headers.items() if k.lower() not in skipped}
        upstream.request(self.command, self.path, headers.pop("body", None), headers)
        reply = upstream.getresponse()
        body = reply.read()
        upstream.close()
        left_out = ("transfer-encoding", "connection")
        return (
            reply.status,
            {k: v for k, v in reply.headers.items() if k.lower() not in left_out},
            body,
        )

    def spoil(self, fault: str, status: int, headers: dict[str, str], body: bytes) -> None:
        if self.command != "HEAD":
            headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
        half = body[: len(body) // 2]
        if fault in ("ok", "no range"):
            self.send(status, headers, body)
        elif fault in ("short", "empty"):
            self.send(status, headers, half if fault == "short" else b"")
        else:
            self.send(status, headers | {"Content-Length": str(len(body))}, half)
            self.wfile.flush()
            if fault == "stall":
                self.stall()
            self.drop(hard=fault == "cut hard")

    def stall(self) -> None:
        self.server.released.wait(20)
        self.close_connection = True

    def drop(self, *, hard: bool) -> None:
        if hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_HARD)
        self.connection.shutdown(socket.SHUT_RD if hard else socket.SHUT_RDWR)
        self.close_connection = True


@contextmanager
def serving(server: Server):
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
