"""A web server on loopback that serves a folder, with range requests, and misbehaves when it is told to."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Server:
    """What is served, what went wrong on purpose, and what was asked for."""

    root: Path
    url: str = ""
    faults: list[str] = field(default_factory=list)
    """Of the next requests for tars: error, drop, short, slow, flip, whole, wrong; each is used once."""
    always: str = ""
    """A fault of every request for a tar."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path with range, of tars."""


@contextmanager
def serve(root: Path) -> Iterator[Server]:
    """Serve a folder until the block ends."""
    server = Server(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = server.root / self.path.lstrip("/")
            is_tar, fault = path.suffix == ".tar", ""
            if is_tar:
                server.requests.append((self.command, f"{self.path} {self.headers.get('Range', '')}".strip()))
                if with_body:
                    fault = server.faults.pop(0) if server.faults else server.always
            if fault == "error":
                self.send_error(503)
                return
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            total, status = len(content), 200
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if match and fault != "whole":
                start, stop = int(match[1]), min(int(match[2]) + 1, total)
                if fault == "wrong":
                    start, stop = start + 7, stop + 7
                content, status = content[start:stop], 206
            if fault == "slow":
                time.sleep(3)
            if fault == "flip":
                content = bytes([content[0] ^ 1]) + content[1:]
            self.send_response(status)
            self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
            length = len(content)
            if fault == "short":
                content = content[: length // 2]
                length = len(content)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if with_body:
                self.wfile.write(content[: length // 2] if fault == "drop" else content)
                if fault == "drop":
                    self.close_connection = True

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
