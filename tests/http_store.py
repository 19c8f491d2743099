"""A web server on loopback that serves a folder with ranges, and misbehaves on request."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fsspec.asyn import sync

from pipeline.data import remote

Fault = str
"""What happens to a request: `500`, `404`, `403`, `drop` (the connection ends within the body), `stall` (no byte for
longer than anybody waits), `short` (fewer bytes than asked for), `whole` (the range is ignored), `shifted` (another
range than asked for, and said so), `flip` (one bit of the body is wrong)."""


class StoreServer:
    """Serves `folder` at `url`; `fault(path, attempt)` says what goes wrong with the n-th request for a tar's range."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Callable[[str, int], Fault | None] = lambda path, attempt: None
        self.requests: list[tuple[str, str]] = []
        """Path and range of each request."""
        self.etag = "first"
        self.release = threading.Event()
        """Ends the stalls."""
        self.lock = threading.Lock()
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def of_tars(self) -> list[tuple[str, str]]:
        """Requests for tars so far."""
        with self.lock:
            return [request for request in self.requests if request[0].endswith(".tar")]


@contextmanager
def serve(folder: Path) -> Iterator[StoreServer]:
    """Serve a folder on a free port."""
    store = StoreServer(folder)
    thread = threading.Thread(target=store.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.release.set()
        close_connections()
        store.server.shutdown()
        store.server.server_close()
        thread.join(10)


def close_connections() -> None:
    """Close what this process keeps open to web servers: other tests count descriptors."""
    for (_, scheme), filesystem in list(remote._filesystems.items()):
        if scheme == "http" and filesystem._session is not None:
            sync(filesystem.loop, filesystem._session.close)
    remote._filesystems.clear()


def _handler(store: StoreServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 20
        disable_nagle_algorithm = True

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            path, wanted = unquote(self.path), self.headers.get("Range", "")
            with store.lock:
                store.requests.append((path, wanted))
                store.attempts[path, wanted] += 1
                attempt = store.attempts[path, wanted]
            fault = store.fault(path, attempt) if path.endswith(".tar") else None
            try:
                content = (store.folder / path.lstrip("/")).read_bytes()
            except OSError:
                return self._fail(404)
            if fault is not None and fault.isdecimal():
                return self._fail(int(fault))
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            if match is None or fault == "whole":
                return self._send(200, content, {})
            start, stop = int(match[1]), int(match[2]) + 1
            if start >= len(content):
                return self._fail(416, {"Content-Range": f"bytes */{len(content)}"})
            if fault == "shifted":
                start, stop = start - 1, stop - 1
            body = content[start:stop]
            headers = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(content)}"}
            if fault == "flip":
                middle = len(body) // 2
                body = body[:middle] + bytes([body[middle] ^ 4]) + body[middle + 1 :]
            if fault == "stall":
                store.release.wait(30)
            if fault == "short":
                return self._send(206, body[: len(body) // 2], headers)
            return self._send(206, body, headers, cut=fault == "drop")

        def _fail(self, status: int, headers: dict[str, str] | None = None) -> None:
            self._send(status, b"no", headers or {})

        def _send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "ETag": store.etag}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def handle(self) -> None:
            with suppress(OSError):  # the client left
                super().handle()

    return Handler
